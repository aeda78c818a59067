/*
 * First text: load a model, let it answer, release it. C99; link with -lruntime.
 *
 *   first_text MODEL PROMPT [cpu|wgpu|cuda]
 *
 * The answer goes to stdout as it is generated; the library itself prints nothing.
 */
#include <runtime.h>

#include <stdio.h>
#include <string.h>

/* Called with every piece of text; a non-zero return would end the generation. */
static int32_t on_text(void *userdata, const char *text, size_t len)
{
    FILE *out = (FILE *)userdata;
    return fwrite(text, 1, len, out) == len && fflush(out) == 0 ? 0 : 1;
}

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

int main(int argc, char **argv)
{
    runtime_error error = RUNTIME_ERROR_INIT;
    runtime_model_options load = RUNTIME_MODEL_OPTIONS_INIT;
    runtime_generate_options generate = RUNTIME_GENERATE_OPTIONS_INIT;
    runtime_model model;
    runtime_status status;

    if (argc < 3) {
        fprintf(stderr, "usage: %s MODEL PROMPT [cpu|wgpu|cuda]\n", argv[0]);
        return 2;
    }
    if (runtime_abi_version() < RUNTIME_ABI_VERSION) {
        fprintf(stderr, "error: the library (%s) is older than its header\n", runtime_version());
        return 1;
    }
    if (argc > 3) load.backend = backend(argv[3]);
    status = runtime_model_load(argv[1], SIZE_MAX, &load, &model, &error);
    if (status != RUNTIME_OK) return fail("load", status, &error);

    generate.chat = 1;
    generate.max_tokens = 24;
    status = runtime_generate(model, argv[2], SIZE_MAX, &generate, on_text, stdout, &error);
    if (status != RUNTIME_OK) fail("generate", status, &error);
    printf("\n");

    runtime_model_release(model);
    return status == RUNTIME_OK ? 0 : 1;
}
