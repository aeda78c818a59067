/*
 * 60 frames a second with a language model in them: 4 ms of each frame for the engine, which has no thread of its own. C99.
 *
 *   frame_loop MODEL [FRAMES]
 *
 * Prints what was said, and how long polling and stepping took: half of all frames, 99 of 100, and the slowest.
 */
#define _POSIX_C_SOURCE 199309L
#include <runtime.h>

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define BUDGET_US 4000
#define FRAME_NS 16666667L

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void report(const char *what, double *us, int n)
{
    qsort(us, (size_t)n, sizeof *us, ascending);
    printf("%s: p50 %.0f us, p99 %.0f us, max %.0f us\n", what, us[n / 2], us[(n * 99) / 100], us[n - 1]);
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
    int frames = argc > 2 ? atoi(argv[2]) : 300, frame, tokens = 0;
    double *poll_us, *step_us;

    if (argc < 2 || frames < 1) {
        fprintf(stderr, "usage: %s MODEL [FRAMES]\n", argv[0]);
        return 2;
    }
    options.backend = RUNTIME_BACKEND_CPU;
    options.run_mode = RUNTIME_RUN_STEPPED;
    if (runtime_engine_create(&options, &engine, &error) != RUNTIME_OK ||
        runtime_model_load(engine, argv[1], SIZE_MAX, NULL, &model, &error) != RUNTIME_OK ||
        runtime_model_wait(model, UINT32_MAX, &error) != RUNTIME_OK ||
        runtime_session_create(model, &session, &error) != RUNTIME_OK ||
        runtime_session_append_text(session, "Once upon a time", SIZE_MAX, &error) != RUNTIME_OK) {
        fprintf(stderr, "error: %s\n", error.message);
        return 1;
    }
    generate.max_tokens = 64;
    generate.ignore_eos = 1;
    runtime_session_generate(session, &generate, &request, &error);
    poll_us = calloc((size_t)frames, sizeof *poll_us);
    step_us = calloc((size_t)frames, sizeof *step_us);
    if (!poll_us || !step_us) return 1;

    for (frame = 0; frame < frames; frame++) {
        runtime_event events[16];
        struct timespec rest = { 0, 0 };
        size_t count, i;
        double began = now_us(), stepped, polled, left;

        runtime_engine_step(engine, BUDGET_US, NULL, NULL);
        stepped = now_us();
        runtime_event_init(&events[0]);
        runtime_engine_poll(engine, events, 16, &count, NULL);
        polled = now_us();
        step_us[frame] = stepped - began;
        poll_us[frame] = polled - stepped;
        for (i = 0; i < count; i++) {
            if (events[i].type == RUNTIME_EVENT_TEXT) {
                tokens += (int)events[i].id_count;
                fwrite(events[i].text, 1, events[i].text_len, stdout);
            } else if (events[i].type == RUNTIME_EVENT_REQUEST_DONE) {
                runtime_session_rewind(session, 0, NULL);
                runtime_session_append_text(session, "Once upon a time", SIZE_MAX, NULL);
                runtime_session_generate(session, &generate, &request, NULL);
                printf("\n");
            }
        }
        left = (double)FRAME_NS / 1e3 - (now_us() - began);
        if (left > 0) {
            rest.tv_nsec = (long)(left * 1e3);
            nanosleep(&rest, NULL);
        }
    }
    printf("\n%d tokens in %d frames\n", tokens, frames);
    report("poll", poll_us, frames);
    report("step", step_us, frames);
    free(poll_us);
    free(step_us);
    runtime_session_release(session);
    runtime_model_release(model);
    runtime_engine_release(engine);
    return 0;
}
