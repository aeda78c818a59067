/*
 * 60 frames a second with a language model in them: two sessions answer and a job trains, all within 4 ms of each frame. The
 * engine has no thread of its own. C99.
 *
 *   frame_loop MODEL [FRAMES [cpu|wgpu|cuda|auto [BUDGET_US]]]
 *
 * Prints what was said, and how long polling, stepping and the engine's slices took: half of all, 99 of 100, and the slowest.
 */
#define _POSIX_C_SOURCE 199309L
#include <runtime.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FRAME_NS 16666667L
#define SPEAKERS 2

static const char *prompts[SPEAKERS] = { "Once upon a time", "The old lighthouse keeper said" };

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

static runtime_status speak(runtime_session session, int speaker, runtime_request *request, runtime_error *error)
{
    runtime_generate_options options = RUNTIME_GENERATE_OPTIONS_INIT;
    runtime_status status;
    options.max_tokens = 64;
    options.ignore_eos = 1;
    options.userdata = (uint64_t)speaker;
    status = runtime_session_append_text(session, prompts[speaker], SIZE_MAX, error);
    return status == RUNTIME_OK ? runtime_session_generate(session, &options, request, error) : status;
}

static runtime_status teach(runtime_model model, runtime_training *training, runtime_error *error)
{
    static const char lesson[] =
        "{\"text\": \"The lighthouse stands on the northern cliff of the island. Its keeper climbs the stairs every evening, lights "
        "the lamp, and writes down the weather, the ships that pass, and what the gulls are quarrelling about. In winter the "
        "waves reach the door, and the keeper sings so that the sailors hear that somebody is awake.\"}";
    runtime_training_options options = RUNTIME_TRAINING_OPTIONS_INIT;
    runtime_status status;
    int i;
    options.max_steps = 1000000;
    options.batch_size = 1;
    options.grad_accum = 1;
    options.loss = RUNTIME_LOSS_ALL;
    status = runtime_training_create(model, &options, training, error);
    for (i = 0; status == RUNTIME_OK && i < 8; i++)
        status = runtime_training_add_example(*training, lesson, SIZE_MAX, error);
    if (status == RUNTIME_OK) status = runtime_training_seal(*training, error);
    return status == RUNTIME_OK ? runtime_training_start(*training, error) : status;
}

int main(int argc, char **argv)
{
    runtime_error error = RUNTIME_ERROR_INIT;
    runtime_engine_options options = RUNTIME_ENGINE_OPTIONS_INIT;
    runtime_metrics metrics = RUNTIME_METRICS_INIT;
    runtime_engine engine;
    runtime_model model;
    runtime_session sessions[SPEAKERS];
    runtime_request request;
    runtime_training training;
    const char *backend = argc > 3 ? argv[3] : "cpu";
    int frames = argc > 2 ? atoi(argv[2]) : 300, frame, speaker, tokens = 0, steps = 0, trains = 0;
    uint32_t budget_us = argc > 4 ? (uint32_t)atoi(argv[4]) : 4000;
    double *poll_us, *step_us;

    if (argc < 2 || frames < 1 || budget_us < 1) {
        fprintf(stderr, "usage: %s MODEL [FRAMES [cpu|wgpu|cuda|auto [BUDGET_US]]]\n", argv[0]);
        return 2;
    }
    options.backend = !strcmp(backend, "cuda") ? RUNTIME_BACKEND_CUDA
        : !strcmp(backend, "wgpu")             ? RUNTIME_BACKEND_WGPU
        : !strcmp(backend, "auto")             ? RUNTIME_BACKEND_AUTO
                                               : RUNTIME_BACKEND_CPU;
    options.run_mode = RUNTIME_RUN_STEPPED;
    if (runtime_engine_create(&options, &engine, &error) != RUNTIME_OK ||
        runtime_model_load(engine, argv[1], SIZE_MAX, NULL, &model, &error) != RUNTIME_OK ||
        runtime_model_wait(model, UINT32_MAX, &error) != RUNTIME_OK || teach(model, &training, &error) != RUNTIME_OK) {
        fprintf(stderr, "error: %s\n", error.message);
        return 1;
    }
    for (speaker = 0; speaker < SPEAKERS; speaker++) {
        if (runtime_session_create(model, &sessions[speaker], &error) != RUNTIME_OK ||
            speak(sessions[speaker], speaker, &request, &error) != RUNTIME_OK) {
            fprintf(stderr, "error: %s\n", error.message);
            return 1;
        }
    }
    poll_us = calloc((size_t)frames, sizeof *poll_us);
    step_us = calloc((size_t)frames, sizeof *step_us);
    if (!poll_us || !step_us) return 1;

    for (frame = 0; frame < frames;) {
        runtime_event events[16];
        struct timespec rest = { 0, 0 };
        size_t count, i;
        double began = now_us(), stepped, polled, left;

        runtime_engine_step(engine, budget_us, NULL, NULL);
        stepped = now_us();
        runtime_event_init(&events[0]);
        runtime_engine_poll(engine, events, 16, &count, NULL);
        polled = now_us();
        if (trains) {
            step_us[frame] = stepped - began;
            poll_us[frame++] = polled - stepped;
        }
        for (i = 0; i < count; i++) {
            switch (events[i].type) {
            case RUNTIME_EVENT_TEXT:
                tokens += (int)events[i].id_count;
                if (events[i].userdata == 0) fwrite(events[i].text, 1, events[i].text_len, stdout);
                break;
            case RUNTIME_EVENT_REQUEST_DONE:
                speaker = (int)events[i].userdata;
                runtime_session_rewind(sessions[speaker], 0, NULL);
                speak(sessions[speaker], speaker, &request, NULL);
                break;
            case RUNTIME_EVENT_TRAINING_READY:
                /* The frames are counted while all three work. */
                trains = 1;
                break;
            case RUNTIME_EVENT_TRAINING_STEP:
                steps++;
                break;
            case RUNTIME_EVENT_TRAINING_DONE:
                fprintf(stderr, "error: training ended: %s\n", events[i].text ? events[i].text : "");
                return 1;
            default:
                break;
            }
        }
        left = (double)FRAME_NS / 1e3 - (now_us() - began);
        if (left > 0) {
            rest.tv_nsec = (long)(left * 1e3);
            nanosleep(&rest, NULL);
        }
    }
    printf("\n%d tokens and %d training steps in %d frames, %u us of each on %s\n", tokens, steps, frames,
           (unsigned)budget_us, backend);
    report("poll", poll_us, frames);
    report("step", step_us, frames);
    if (runtime_engine_get_metrics(engine, &metrics, NULL) == RUNTIME_OK)
        printf("slices: p50 %.0f us, p99 %.0f us; %lu of %lu took more than 1.25 times the budget\n", metrics.slice_p50 * 1e6,
               metrics.slice_p99 * 1e6, (unsigned long)metrics.overruns, (unsigned long)metrics.slices);
    free(poll_us);
    free(step_us);
    runtime_training_release(training);
    for (speaker = 0; speaker < SPEAKERS; speaker++) runtime_session_release(sessions[speaker]);
    runtime_model_release(model);
    runtime_engine_release(engine);
    return 0;
}
