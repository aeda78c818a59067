/*
 * What a host must not notice: run with two paths to copies of the library and a model. Prints nothing and returns 0 where
 * loading starts no thread, no signal disposition changes, and both copies answer in one process.
 */
#define _GNU_SOURCE
#include <runtime.h>

#include <dirent.h>
#include <dlfcn.h>
#include <signal.h>
#include <string.h>

static int threads(void)
{
    int n = 0;
    DIR *tasks = opendir("/proc/self/task");
    if (!tasks) return 1;
    while (readdir(tasks)) n++;
    closedir(tasks);
    return n - 2;
}

static struct sigaction before[65];

static int signals_changed(void)
{
    int s;
    for (s = 1; s <= 64; s++) {
        struct sigaction now;
        if (sigaction(s, NULL, &now) == 0 && now.sa_handler != before[s].sa_handler) return s;
    }
    return 0;
}

#define GET(name) __typeof__(&name) name##_ = (__typeof__(&name))(size_t)dlsym(library, #name)

static int use(void *library, const char *path)
{
    GET(runtime_engine_create);
    GET(runtime_model_load);
    GET(runtime_model_wait);
    GET(runtime_session_create);
    GET(runtime_session_append_text);
    GET(runtime_session_generate);
    GET(runtime_engine_wait);
    GET(runtime_engine_poll);
    GET(runtime_session_release);
    GET(runtime_model_release);
    GET(runtime_engine_release);
    runtime_engine_options options = RUNTIME_ENGINE_OPTIONS_INIT;
    runtime_generate_options generate = RUNTIME_GENERATE_OPTIONS_INIT;
    runtime_event event = RUNTIME_EVENT_INIT;
    runtime_engine engine;
    runtime_model model;
    runtime_session session;
    runtime_request request;
    size_t n;

    options.backend = RUNTIME_BACKEND_CPU;
    generate.max_tokens = 8;
    if (runtime_engine_create_(&options, &engine, NULL) != RUNTIME_OK) return 10;
    if (runtime_model_load_(engine, path, SIZE_MAX, NULL, &model, NULL) != RUNTIME_OK) return 11;
    if (runtime_model_wait_(model, UINT32_MAX, NULL) != RUNTIME_OK) return 12;
    if (runtime_session_create_(model, &session, NULL) != RUNTIME_OK) return 13;
    if (runtime_session_append_text_(session, "Hello", SIZE_MAX, NULL) != RUNTIME_OK) return 14;
    if (runtime_session_generate_(session, &generate, &request, NULL) != RUNTIME_OK) return 15;
    do {
        runtime_engine_wait_(engine, UINT32_MAX, NULL, NULL);
        if (runtime_engine_poll_(engine, &event, 1, &n, NULL) != RUNTIME_OK) return 16;
    } while (n == 0 || event.type != RUNTIME_EVENT_REQUEST_DONE);
    if (event.status != RUNTIME_OK) return 17;
    /* A wrong path and a wrong handle are quiet, too. */
    if (runtime_session_release_(session) != RUNTIME_OK) return 18;
    if (runtime_session_release_(session) != RUNTIME_ERROR_STALE_HANDLE) return 19;
    if (runtime_model_release_(model) != RUNTIME_OK) return 20;
    return runtime_engine_release_(engine) == RUNTIME_OK ? 0 : 21;
}

int main(int argc, char **argv)
{
    void *a, *b;
    int s, result;
    if (argc != 4) return 2;
    for (s = 1; s <= 64; s++) sigaction(s, NULL, &before[s]);
    a = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    b = dlopen(argv[2], RTLD_NOW | RTLD_LOCAL);
    if (!a || !b || a == b) return 3;
    if (threads() != 1) return 4;
    if ((result = use(a, argv[3])) != 0) return result;
    if ((result = use(b, argv[3])) != 0) return result + 20;
    return signals_changed() ? 5 : 0;
}
