#include <runtime.h>
#include <stdio.h>
int main(int argc, char **argv)
{
    runtime_engine engine;
    runtime_model model;
    runtime_session session;
    runtime_request request;
    runtime_event event = RUNTIME_EVENT_INIT;
    size_t n;
    runtime_engine_create(NULL, &engine, NULL);
    runtime_model_load(engine, argv[argc - 1], SIZE_MAX, NULL, &model, NULL);
    if (runtime_model_wait(model, UINT32_MAX, NULL) != RUNTIME_OK) return 1;
    runtime_session_create(model, &session, NULL);
    runtime_session_append_text(session, "Once upon a time", SIZE_MAX, NULL);
    runtime_session_generate(session, NULL, &request, NULL);
    do {
        runtime_engine_wait(engine, UINT32_MAX, NULL, NULL);
        runtime_engine_poll(engine, &event, 1, &n, NULL);
        if (event.type == RUNTIME_EVENT_TEXT) fwrite(event.text, 1, event.text_len, stdout);
    } while (event.type != RUNTIME_EVENT_REQUEST_DONE);
    return runtime_engine_release(engine) != RUNTIME_OK;
}
