/*
 * runtime.h - load a language model once; serve it, talk to it.
 *
 * Generated from src/ffi by cbindgen: edit the comments there, not here.
 *
 * Conventions
 *
 *   Names      functions are runtime_<noun>_<verb>, types runtime_<noun>, constants RUNTIME_<NOUN>_<VALUE>.
 *   Handles    are 64-bit numbers in a struct of their own, so that the compiler keeps kinds apart. Zero is no
 *              object. A stale or made-up handle gives RUNTIME_ERROR_STALE_HANDLE, never undefined behaviour.
 *   Errors     every call that can fail returns a runtime_status and fills an optional runtime_error that the
 *              caller owns. There is no thread-local state and nothing to free.
 *   Options    structs start with struct_size. All-zero means defaults. A struct from an older header works; one
 *              from a newer header works as long as its new fields are zero.
 *   Text       is UTF-8 with a length in bytes; SIZE_MAX as a length means NUL-terminated. Text that streams out
 *              never ends within a character.
 *   Threads    every function may be called from any thread at any time. Callbacks are called under no lock.
 *   Manners    the library never aborts or exits, installs no signal handler, and prints nothing. A bug in it
 *              comes back as RUNTIME_ERROR_PANIC.
 *
 * First text, without the error handling (tests/c/first_text.c has it all):
 *
 *   static int32_t print(void *userdata, const char *text, size_t len) {
 *       (void)userdata;
 *       return fwrite(text, 1, len, stdout) == len ? 0 : 1;
 *   }
 *
 *   runtime_model model;
 *   runtime_generate_options options = RUNTIME_GENERATE_OPTIONS_INIT;
 *   options.chat = 1;
 *   runtime_model_load("model.gguf", SIZE_MAX, NULL, &model, NULL);
 *   runtime_generate(model, "Hello!", SIZE_MAX, &options, print, NULL, NULL);
 *   runtime_model_release(model);
 */

#ifndef RUNTIME_H
#define RUNTIME_H

#include <stddef.h>
#include <stdint.h>

/*
 * Initialisers: all defaults. For example: runtime_error error = RUNTIME_ERROR_INIT;
 */
#define RUNTIME_ERROR_INIT { (uint32_t)sizeof(runtime_error), 0, 0, { 0 } }
#define RUNTIME_MODEL_OPTIONS_INIT { (uint32_t)sizeof(runtime_model_options), 0, 0, 0, 0, 0 }
#define RUNTIME_GENERATE_OPTIONS_INIT { (uint32_t)sizeof(runtime_generate_options), 0, 0, 0, 0, 0, 0 }

/**
 * Version of this header. Within one major version of the library it only grows by additions: a program that was
 * compiled against a smaller number goes on working. Version 1 is a first taste: before the library's own version 1.0,
 * functions may still change.
 */
#define RUNTIME_ABI_VERSION 1

/**
 * CUDA where there is a usable NVIDIA driver, else a hardware GPU through wgpu, else the CPU.
 */
#define RUNTIME_BACKEND_AUTO 0

/**
 * An NVIDIA GPU through its driver.
 */
#define RUNTIME_BACKEND_CUDA 1

/**
 * A GPU through Vulkan, Metal or DX12; a software adapter too.
 */
#define RUNTIME_BACKEND_WGPU 2

/**
 * The host's processor.
 */
#define RUNTIME_BACKEND_CPU 3

/**
 * The type that the device computes fastest in without losing quality.
 */
#define RUNTIME_COMPUTE_AUTO 0

/**
 * 32-bit floating point throughout.
 */
#define RUNTIME_COMPUTE_F32 1

/**
 * 16-bit floating-point operands, 32-bit sums.
 */
#define RUNTIME_COMPUTE_F16 2

/**
 * bfloat16 operands, 32-bit sums.
 */
#define RUNTIME_COMPUTE_BF16 3

/**
 * What a call returns: RUNTIME_OK or one of the RUNTIME_ERROR codes, which are all negative. A code keeps
 * its meaning for ever; new ones may come, so treat any other negative value as an error too.
 */
typedef int32_t runtime_status;

/**
 * How to load a model. Zero in a field means its default; RUNTIME_MODEL_OPTIONS_INIT and
 * runtime_model_options_init set struct_size and leave the rest zero.
 */
typedef struct {
    /**
     * sizeof(runtime_model_options) of the caller's header.
     */
    uint32_t struct_size;
    /**
     * One of RUNTIME_BACKEND.
     */
    int32_t backend;
    /**
     * Position among that backend's devices, from 0, as `runtime devices` lists them.
     */
    uint32_t device;
    /**
     * One of RUNTIME_COMPUTE.
     */
    int32_t compute;
    /**
     * Longest prompt and answer together, in tokens. 0: what the model was trained for, at most 8192.
     */
    uint32_t max_tokens;
    /**
     * Requests that run at the same time; more wait for their turn. 0: 16.
     */
    uint32_t max_requests;
} runtime_model_options;

/**
 * A loaded model. Copy it freely: it is a number, not a pointer. All functions on it may be called from any thread
 * at any time; a number that is no live model gives RUNTIME_ERROR_STALE_HANDLE, never undefined behaviour.
 */
typedef struct {
    /**
     * Zero: no model.
     */
    uint64_t id;
} runtime_model;

/**
 * Where a call reports what went wrong. It belongs to the caller, is optional everywhere (pass NULL), holds
 * no pointer and needs no release. A call that succeeds sets code to RUNTIME_OK and message to "".
 */
typedef struct {
    /**
     * sizeof(runtime_error) of the caller's header; RUNTIME_ERROR_INIT sets it.
     */
    uint32_t struct_size;
    /**
     * The status that the call returned.
     */
    runtime_status code;
    /**
     * What the operating system said (errno), or 0.
     */
    int32_t detail;
    /**
     * One line of UTF-8 in English, NUL-terminated, cut where it is too long.
     */
    char message[512];
} runtime_error;

/**
 * How to generate. Zero in a field means its default; RUNTIME_GENERATE_OPTIONS_INIT and runtime_generate_options_init
 * set struct_size and leave the rest zero.
 */
typedef struct {
    /**
     * sizeof(runtime_generate_options) of the caller's header.
     */
    uint32_t struct_size;
    /**
     * Most tokens to generate. 0: 128.
     */
    uint32_t max_tokens;
    /**
     * 0: always the most likely token. Higher is more varied; 1 is the model's own distribution.
     */
    float temperature;
    /**
     * Only the most likely tokens that together reach this probability. 0: all.
     */
    float top_p;
    /**
     * Only this many of the most likely tokens. 0: all.
     */
    uint32_t top_k;
    /**
     * Non-zero: the prompt is a user's message, to be put into the model's chat template. 0: the model goes on with the
     * prompt as it stands.
     */
    uint32_t chat;
    /**
     * Same seed, same text. 0: another one for every call.
     */
    uint64_t seed;
} runtime_generate_options;

/**
 * Receives text as it is generated, on the thread that called runtime_generate. text is UTF-8, len bytes long, NOT
 * NUL-terminated, never ends within a character, and is valid only during the call. Return 0 to go on; any other
 * value ends the generation, and runtime_generate returns RUNTIME_ERROR_CANCELLED. The callback may call any function
 * of this library.
 */
typedef int32_t (*runtime_text_fn)(void *userdata, const char *text, size_t len);

/**
 * The call did what it says.
 */
#define RUNTIME_OK 0

/**
 * An argument is wrong: a pointer that must not be NULL, text that is not UTF-8, a number out of range, an
 * options struct of a newer version with fields that this library does not know.
 */
#define RUNTIME_ERROR_INVALID_ARGUMENT (-1)

/**
 * The handle is zero, was released, or never came from this library.
 */
#define RUNTIME_ERROR_STALE_HANDLE (-2)

/**
 * The operating system refused to open, read or write a file.
 */
#define RUNTIME_ERROR_IO (-3)

/**
 * A file is corrupt, truncated or not what it claims to be.
 */
#define RUNTIME_ERROR_FORMAT (-4)

/**
 * Well-formed input that this build does not handle, for example an unknown architecture.
 */
#define RUNTIME_ERROR_UNSUPPORTED (-5)

/**
 * The device or its driver failed or went away.
 */
#define RUNTIME_ERROR_DEVICE (-6)

/**
 * Memory ran out, on the host or on the device. Nothing that existed before the call is lost.
 */
#define RUNTIME_ERROR_OUT_OF_MEMORY (-7)

/**
 * Text could not be turned into tokens, or the model's chat template failed.
 */
#define RUNTIME_ERROR_TEXT (-8)

/**
 * A download or a network listener failed.
 */
#define RUNTIME_ERROR_NETWORK (-9)

/**
 * The caller stopped the work, for example by a non-zero return from a callback.
 */
#define RUNTIME_ERROR_CANCELLED (-10)

/**
 * The library contradicted itself. Please report it.
 */
#define RUNTIME_ERROR_INTERNAL (-11)

/**
 * A bug made the library panic. It was caught: the object of the call should be released, all others go on
 * working. Please report it.
 */
#define RUNTIME_ERROR_PANIC (-12)

/**
 * Too many requests are waiting already. The same call may succeed later.
 */
#define RUNTIME_ERROR_BUSY (-13)

#ifdef __cplusplus
extern "C" {
#endif

/**
 * The name of a status, for log lines: "RUNTIME_ERROR_IO". A static string, never NULL; for a number that
 * is no status of this library, "RUNTIME_ERROR_UNKNOWN".
 */
const char *runtime_status_name(runtime_status status);

/**
 * The version of the library, for example "0.1.0". A static string, never NULL.
 */
const char *runtime_version(void);

/**
 * The RUNTIME_ABI_VERSION that the library was built with. A program that needs a newer one than this should
 * refuse to go on.
 */
uint32_t runtime_abi_version(void);

/**
 * Sets all fields to their defaults. NULL is allowed and does nothing.
 */
void runtime_model_options_init(runtime_model_options *options);

/**
 * Loads a model and puts its weights on a device. The call returns when that is done: seconds, for a large model.
 *
 * path names a .gguf file or a folder with config.json and .safetensors files; it is UTF-8, path_len bytes
 * long (SIZE_MAX: NUL-terminated). options may be NULL. On success *model is the new handle, to be given to
 * runtime_model_release once; on failure it is zero. error may be NULL.
 */
runtime_status runtime_model_load(const char *path,
                                  size_t path_len,
                                  const runtime_model_options *options,
                                  runtime_model *model,
                                  runtime_error *error);

/**
 * Gives a model back: its weights and caches are freed as soon as no call is using them any more. Zero is allowed and
 * does nothing; a handle that was released before gives RUNTIME_ERROR_STALE_HANDLE.
 */
runtime_status runtime_model_release(runtime_model model);

/**
 * Sets all fields to their defaults. NULL is allowed and does nothing.
 */
void runtime_generate_options_init(runtime_generate_options *options);

/**
 * Generates text after a prompt and returns when it is complete: the model ended it, or max_tokens were used up.
 *
 * prompt is UTF-8, prompt_len bytes long (SIZE_MAX: NUL-terminated). options may be NULL. on_text receives the text
 * with userdata as its first argument. error may be NULL. Several threads may generate with one model at the same
 * time; their requests are computed together.
 */
runtime_status runtime_generate(runtime_model model,
                                const char *prompt,
                                size_t prompt_len,
                                const runtime_generate_options *options,
                                runtime_text_fn on_text,
                                void *userdata,
                                runtime_error *error);

#ifdef __cplusplus
}
#endif

#endif  /* RUNTIME_H */
