/*
 * First text: make an engine, load a model, let it answer, release all. C99; link with -lruntime.
 *
 *   first_text MODEL PROMPT [cpu|wgpu|cuda]
 *
 * The answer goes to stdout as it is generated; the library itself prints nothing.
 */
#include <runtime.h>

#include <stdio.h>
#include <string.h>

static int fail(const char *what, runtime_status status, const runtime_error *error)
{
    fprintf(stderr, "error: %s: %s: %s\n", what, runtime_status_name(status), error->message);
    return 1;
}

static int32_t backend(const char *name)
{
    if (strcmp(name, "cpu") == 0) return RUNTIME_BACKEND_CPU;
    if (strcmp(name, "wgpu") == 0) return RUNTIME_BACKEND_WGPU;
    if (strcmp(name, "cuda") == 0) return RUNTIME_BACKEND_CUDA;
    return RUNTIME_BACKEND_AUTO;
}

/* A user's message as a JSON list; quotes and control characters are escaped. */
static void message(char *out, size_t capacity, const char *text)
{
    size_t n = (size_t)snprintf(out, capacity, "[{\"role\":\"user\",\"content\":\"");
    for (; *text && n + 16 < capacity; text++) {
        unsigned char c = (unsigned char)*text;
        if (c < 0x20 || c == '"' || c == '\\')
            n += (size_t)snprintf(out + n, capacity - n, "\\u%04x", (unsigned)c);
        else
            out[n++] = *text;
    }
    snprintf(out + n, capacity - n, "\"}]");
}

/* Prints the answer as it comes; returns the status of its last event. */
static runtime_status print_answer(runtime_engine engine)
{
    for (;;) {
        runtime_event events[16];
        size_t count, i;
        runtime_event_init(&events[0]);
        runtime_engine_wait(engine, UINT32_MAX, NULL, NULL);
        if (runtime_engine_poll(engine, events, 16, &count, NULL) != RUNTIME_OK) return RUNTIME_ERROR_INTERNAL;
        for (i = 0; i < count; i++) {
            if (events[i].type == RUNTIME_EVENT_TEXT) {
                fwrite(events[i].text, 1, events[i].text_len, stdout);
                fflush(stdout);
            } else if (events[i].type == RUNTIME_EVENT_REQUEST_DONE) {
                if (events[i].status != RUNTIME_OK)
                    fprintf(stderr, "error: generate: %.*s\n", (int)events[i].text_len, events[i].text);
                return events[i].status;
            }
        }
    }
}

int main(int argc, char **argv)
{
    runtime_error error = RUNTIME_ERROR_INIT;
    runtime_engine_options options = RUNTIME_ENGINE_OPTIONS_INIT;
    runtime_generate_options generate = RUNTIME_GENERATE_OPTIONS_INIT;
    runtime_engine engine;
    runtime_model model;
    runtime_session session;
    runtime_request request;
    runtime_status status;
    char messages[4096];

    if (argc < 3) {
        fprintf(stderr, "usage: %s MODEL PROMPT [cpu|wgpu|cuda]\n", argv[0]);
        return 2;
    }
    if (runtime_abi_version() < RUNTIME_ABI_VERSION) {
        fprintf(stderr, "error: the library (%s) is older than its header\n", runtime_version());
        return 1;
    }
    if (argc > 3) options.backend = backend(argv[3]);
    status = runtime_engine_create(&options, &engine, &error);
    if (status != RUNTIME_OK) return fail("engine", status, &error);
    status = runtime_model_load(engine, argv[1], SIZE_MAX, NULL, &model, &error);
    if (status == RUNTIME_OK) status = runtime_model_wait(model, UINT32_MAX, &error);
    if (status != RUNTIME_OK) {
        fail("load", status, &error);
        runtime_model_release(model);
        runtime_engine_release(engine);
        return 1;
    }

    message(messages, sizeof messages, argv[2]);
    generate.max_tokens = 24;
    status = runtime_session_create(model, &session, &error);
    if (status == RUNTIME_OK) status = runtime_session_append_messages(session, messages, SIZE_MAX, &error);
    if (status == RUNTIME_OK) status = runtime_session_generate(session, &generate, &request, &error);
    if (status != RUNTIME_OK)
        fail("generate", status, &error);
    else
        status = print_answer(engine);
    printf("\n");

    runtime_session_release(session);
    runtime_model_release(model);
    runtime_engine_release(engine);
    return status == RUNTIME_OK ? 0 : 1;
}
