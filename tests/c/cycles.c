/*
 * Engines that come and go: run with a model and a number of cycles. Each is cut at another point: before a model, while one is
 * loaded, in a prompt, in an answer, after it, while a job is prepared, while it trains. Prints what the allocator has given out
 * and what the process holds before and after, in bytes, and its threads; 0 where what the allocator has given out is no more
 * than before, but for ALLOWED bytes, and no thread is left.
 */
#define _GNU_SOURCE
#include <runtime.h>

#include <dirent.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/*
 * What is left per process: the tokenizer's crate keeps an empty table entry of 56 bytes for each model that a thread has used, in
 * a table that doubles, and so do the tables of handles. A leak of 170 bytes in a cycle is more after 100.
 */
#define ALLOWED (16 * 1024)

/* Bytes that are given out, exactly: the allocator's own statistics count what it keeps for later, too. */
static long given;

#ifndef __SANITIZE_ADDRESS__
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static void *counted(void *p, long sign)
{
    if (p) __atomic_add_fetch(&given, sign * (long)malloc_usable_size(p), __ATOMIC_RELAXED);
    return p;
}

void *malloc(size_t n) { return counted(__libc_malloc(n), 1); }
void *calloc(size_t n, size_t size) { return counted(__libc_calloc(n, size), 1); }
void *memalign(size_t align, size_t n) { return counted(__libc_memalign(align, n), 1); }
void *aligned_alloc(size_t align, size_t n) { return memalign(align, n); }
void free(void *p) { __libc_free(counted(p, -1)); }

void *realloc(void *p, size_t n)
{
    size_t before = p ? malloc_usable_size(p) : 0;
    void *moved = __libc_realloc(p, n);
    if (moved || n == 0) __atomic_add_fetch(&given, -(long)before, __ATOMIC_RELAXED);
    return counted(moved, 1);
}

int posix_memalign(void **out, size_t align, size_t n)
{
    void *p = memalign(align, n);
    if (!p) return 12; /* ENOMEM */
    *out = p;
    return 0;
}
#endif

enum { EMPTY, LOADING, PROMPT, ANSWER, ANSWERED, PREPARING, TRAINING, PHASES };

static void failed(const char *what, runtime_error *error)
{
    fprintf(stderr, "%s: %s\n", what, error->message);
    exit(1);
}

#define MUST(call) \
    do { \
        if ((call) != RUNTIME_OK) failed(#call, &error); \
    } while (0)

/* Works and polls until an event of this type has come; at most `steps` times where that is not 0. */
static void until(runtime_engine engine, int threaded, int type, int steps)
{
    runtime_event event = RUNTIME_EVENT_INIT;
    int n = 0;
    for (;;) {
        size_t count;
        if (threaded) runtime_engine_wait(engine, 10, NULL, NULL);
        else runtime_engine_step(engine, 1000, NULL, NULL);
        while (runtime_engine_poll(engine, &event, 1, &count, NULL) == RUNTIME_OK && count > 0)
            if (event.type == type) return;
        if (steps > 0 && ++n >= steps) return;
    }
}

static void cycle(const char *path, int number)
{
    runtime_error error = RUNTIME_ERROR_INIT;
    runtime_engine_options options = RUNTIME_ENGINE_OPTIONS_INIT;
    runtime_generate_options generate = RUNTIME_GENERATE_OPTIONS_INIT;
    runtime_training_options teach = RUNTIME_TRAINING_OPTIONS_INIT;
    runtime_engine engine;
    runtime_model model = { 0 };
    runtime_session session = { 0 };
    runtime_training training = { 0 };
    runtime_adapter adapter = { 0 };
    runtime_request request;
    int phase = number % PHASES, threaded = number / PHASES % 2;

    options.backend = RUNTIME_BACKEND_CPU;
    options.run_mode = threaded ? RUNTIME_RUN_THREAD : RUNTIME_RUN_STEPPED;
    MUST(runtime_engine_create(&options, &engine, &error));
    if (phase == EMPTY) goto end;
    MUST(runtime_model_load(engine, path, SIZE_MAX, NULL, &model, &error));
    if (phase == LOADING) goto end;
    MUST(runtime_model_wait(model, UINT32_MAX, &error));
    if (phase == PREPARING || phase == TRAINING) {
        teach.max_steps = 1000;
        teach.loss = RUNTIME_LOSS_ALL;
        MUST(runtime_training_create(model, &teach, &training, &error));
        MUST(runtime_training_add_example(training, "{\"text\": \"The gulls are quarrelling.\"}", SIZE_MAX, &error));
        MUST(runtime_training_seal(training, &error));
        MUST(runtime_training_start(training, &error));
        if (phase == TRAINING) {
            until(engine, threaded, RUNTIME_EVENT_TRAINING_STEP, 0);
            MUST(runtime_training_snapshot_adapter(training, &adapter, &error));
        }
        goto end;
    }
    MUST(runtime_session_create(model, &session, &error));
    MUST(runtime_session_append_text(session, "Once upon a time there was a lighthouse", SIZE_MAX, &error));
    generate.max_tokens = 16;
    generate.ignore_eos = 1;
    MUST(runtime_session_generate(session, &generate, &request, &error));
    if (phase == ANSWER) until(engine, threaded, RUNTIME_EVENT_TEXT, 0);
    if (phase == ANSWERED) until(engine, threaded, RUNTIME_EVENT_REQUEST_DONE, 0);
end:
    /* In another order each time: all are legal. */
    if (number % 3 == 0) runtime_engine_release(engine);
    if (number % 2 == 0) runtime_model_release(model);
    runtime_session_release(session);
    runtime_adapter_release(adapter);
    runtime_training_release(training);
    if (number % 2 != 0) runtime_model_release(model);
    if (number % 3 != 0) runtime_engine_release(engine);
}

static long resident(void)
{
    long all, pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file) {
        if (fscanf(file, "%ld %ld", &all, &pages) != 2) pages = 0;
        fclose(file);
    }
    malloc_trim(0);
    return pages * sysconf(_SC_PAGESIZE);
}

static int threads(void)
{
    int n = 0;
    DIR *folder = opendir("/proc/self/task");
    struct dirent *entry;
    if (!folder) return 0;
    while ((entry = readdir(folder)) != NULL) n += entry->d_name[0] != '.';
    closedir(folder);
    return n;
}

static const struct timespec moment = { 0, 10 * 1000 * 1000 };

/* Releasing waits for nobody, so threads may be about to end: waits until their number has been the same for half a second. What
 * stays is the pool that all engines of a process compute with. */
static int threads_that_stay(void)
{
    int n = threads(), same = 0;
    while (same < 50) {
        nanosleep(&moment, NULL);
        same = threads() == n ? same + 1 : 0;
        n = threads();
    }
    return n;
}

/* The number of threads once it is no more than `wanted`, or after ten seconds. */
static int threads_left(int wanted)
{
    int i;
    for (i = 0; i < 1000 && threads() > wanted; i++) nanosleep(&moment, NULL);
    return threads();
}

int main(int argc, char **argv)
{
    int cycles = argc > 2 ? atoi(argv[2]) : 100, i;
    int stay, left;
    long before, after, held[2];
    if (argc < 2 || cycles < 1) return 2;
    for (i = 0; i < 2 * PHASES; i++) cycle(argv[1], i);
    stay = threads_that_stay();
    held[0] = resident();
    before = given;
    for (i = 0; i < cycles; i++) cycle(argv[1], i);
    left = threads_left(stay);
    after = given;
    held[1] = resident();
    printf("%d cycles: %ld bytes more are given out (of %ld), %ld more are resident (of %ld), %d threads (of %d)\n", cycles,
           after - before, before, held[1] - held[0], held[0], left, stay);
    return after - before > ALLOWED || left > stay;
}
