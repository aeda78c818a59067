/*
 * runtime.h - load a language model once; serve it, talk to it, fine-tune it.
 *
 * Generated from src/ffi by cbindgen: edit the comments there, not here.
 *
 * Conventions
 *
 *   Names      functions are runtime_<noun>_<verb>, types runtime_<noun>, constants RUNTIME_<NOUN>_<VALUE>.
 *   Handles    are 64-bit numbers in a struct of their own, so that the compiler keeps kinds apart. Zero is no
 *              object. A stale, foreign or made-up handle gives RUNTIME_ERROR_STALE_HANDLE, never undefined
 *              behaviour. Children keep their parents alive: release in any order.
 *   Errors     every call that can fail returns a runtime_status and fills an optional runtime_error that the
 *              caller owns. There is no thread-local state and nothing to free. What goes wrong later comes as the
 *              status of an event.
 *   Structs    start with struct_size. All-zero means defaults. A struct from an older header works; one
 *              from a newer header works as long as its new fields are zero. Results fill what the caller has room
 *              for. Every such struct has a macro _INIT and a function _init.
 *   Text       is UTF-8 with a length in bytes; SIZE_MAX as a length means NUL-terminated. Text that streams out
 *              never ends within a character.
 *   Events     what happens later is heard of through runtime_engine_poll. Each request, load and job has exactly
 *              one last event.
 *   Threads    functions on engines, models, adapters and jobs may be called from any thread at any time; one
 *              thread at a time uses a session or a decoder; cancel works from any thread at any time. Callbacks
 *              are called under no lock.
 *   Manners    the library never aborts or exits, installs no signal handler, and prints nothing. A bug in it
 *              comes back as RUNTIME_ERROR_PANIC. Loading it starts no thread and touches no GPU.
 *
 * What lives how long
 *
 *   An engine is a device and a queue of events. A model lies on an engine; sessions, adapters and training jobs belong
 *   to a model. Each of them holds what it belongs to: a model that was released stays until its last session is.
 *   What no handle holds any more ends by itself: its requests come back as cancelled, its memory is freed after one
 *   slice at the latest.
 *
 *   A request is made by runtime_session_generate, runtime_model_embed or runtime_model_score. Its handle is only good
 *   for runtime_request_cancel and for telling events apart; it ends when its last event is polled. A program that asks
 *   and never polls gets RUNTIME_ERROR_BUSY after some thirty thousand requests.
 *
 *   Memory that goes in (paths, texts, options) is only read during the call, but for runtime_model_load_buffer with a
 *   function that frees it. Memory that comes out is the caller's own buffer; texts and numbers of events are borrowed
 *   until the next poll.
 *
 * Which events an object has
 *
 *   model      RUNTIME_EVENT_MODEL_PROGRESS, many; RUNTIME_EVENT_MODEL_READY, one, the last
 *   answer     RUNTIME_EVENT_TEXT, many; RUNTIME_EVENT_REQUEST_DONE, one, the last
 *   embedding  RUNTIME_EVENT_EMBEDDING, one
 *   scores     RUNTIME_EVENT_SCORES, one
 *   job        RUNTIME_EVENT_TRAINING_READY, one; RUNTIME_EVENT_TRAINING_STEP, many; RUNTIME_EVENT_TRAINING_DONE, one, the
 *              last, cancelled and failed jobs included
 *   engine     RUNTIME_EVENT_MEMORY_PRESSURE, whenever the soft limit is passed
 *
 * Two ways to run
 *
 *   RUNTIME_RUN_THREAD, the default: the engine works on a thread of its own. Wait with runtime_engine_wait, or be woken
 *   by runtime_engine_set_wake_callback, and poll.
 *
 *   RUNTIME_RUN_STEPPED: the engine works while runtime_engine_step is called, for as long as its budget says. A game
 *   calls it once a frame, then polls:
 *
 *     runtime_engine_step(engine, 4000, NULL, NULL);
 *     runtime_engine_poll(engine, events, 16, &n, NULL);
 *
 *   Prompts, answers and training are cut into slices, so that the budget, pause and cancel hold within one. What cannot be
 *   cut takes some tenths of a millisecond on the CPU, elsewhere one operation of the model. Models are loaded and jobs are
 *   prepared on threads of their own in both ways, and the CPU backend computes with a pool of threads.
 *
 * What is read of the process's environment, when an engine is made or a model is loaded, and never written: RAYON_NUM_THREADS
 * (threads of the CPU backend's pool); with CUDA RUNTIME_CACHE, XDG_CACHE_HOME, LOCALAPPDATA and HOME (the first one set says
 * where kernels are kept that had to be compiled), RUNTIME_NVRTC and VIRTUAL_ENV (where the compiler is looked for) and
 * RUNTIME_CUBLASLT; and what the Vulkan loader and the GPU drivers read themselves.
 *
 * When something fails
 *
 *   RUNTIME_ERROR_BUSY            try again later: after the event that is waited for, or after polling
 *   RUNTIME_ERROR_OUT_OF_MEMORY   nothing is lost: release something, or ask for less with the options
 *   RUNTIME_ERROR_CANCELLED       the program wanted it so
 *   RUNTIME_ERROR_STALE_HANDLE    for a request: it has ended; for anything else: a bug of the program
 *   RUNTIME_ERROR_PANIC           a bug of the library: release the object, the others go on
 *   RUNTIME_ERROR_DEVICE          the driver failed: release the engine, and make another one
 *   all others                    the message says what was wrong, where, and what would have been right
 *
 * Talking
 *
 *   A session is a text. Put text or tokens into it and the model goes on with them; or put messages into it, and the
 *   model's chat template makes the text:
 *
 *     runtime_session_append_messages(session, "[{\"role\": \"user\", \"content\": \"Hello!\"}]", SIZE_MAX, NULL);
 *
 *   The answer is appended, so the next message goes on from there. runtime_session_fork tries several ways to go on,
 *   runtime_session_rewind goes back: neither computes again what was computed before.
 *
 * Learning
 *
 *   A training job fine-tunes a LoRA adapter on the loaded model while sessions talk with it: create, add examples, seal,
 *   start. runtime_training_snapshot_adapter gives the adapter after the last step; into an adapter that sessions use
 *   already, it is heard from their next request on.
 *
 * First text, without the error handling (examples/c/first_text.c has it all):
 *
 *   runtime_engine engine;
 *   runtime_model model;
 *   runtime_session session;
 *   runtime_request request;
 *   runtime_event event = RUNTIME_EVENT_INIT;
 *   size_t n;
 *
 *   runtime_engine_create(NULL, &engine, NULL);
 *   runtime_model_load(engine, "model.gguf", SIZE_MAX, NULL, &model, NULL);
 *   runtime_model_wait(model, UINT32_MAX, NULL);
 *   runtime_session_create(model, &session, NULL);
 *   runtime_session_append_text(session, "Once upon a time", SIZE_MAX, NULL);
 *   runtime_session_generate(session, NULL, &request, NULL);
 *   do {
 *       runtime_engine_wait(engine, UINT32_MAX, NULL, NULL);
 *       runtime_engine_poll(engine, &event, 1, &n, NULL);
 *       if (event.type == RUNTIME_EVENT_TEXT) fwrite(event.text, 1, event.text_len, stdout);
 *   } while (event.type != RUNTIME_EVENT_REQUEST_DONE);
 *   runtime_session_release(session);
 *   runtime_model_release(model);
 *   runtime_engine_release(engine);
 */

#ifndef RUNTIME_H
#define RUNTIME_H

#include <stddef.h>
#include <stdint.h>

/**
 * Version of this header. Within one major version of the library it only grows by additions: a program that was
 * compiled against a smaller number goes on working. Before the library's own version 1.0, functions may still change.
 */
#define RUNTIME_ABI_VERSION 2

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
 * The engine works on a thread of its own.
 */
#define RUNTIME_RUN_THREAD 0

/**
 * The engine works while runtime_engine_step is called, for example once a frame.
 */
#define RUNTIME_RUN_STEPPED 1

/**
 * More of a model was loaded: `done` of `total` bytes. object: the model.
 */
#define RUNTIME_EVENT_MODEL_PROGRESS 0

/**
 * A model can be used, or status says why not. object: the model.
 */
#define RUNTIME_EVENT_MODEL_READY 1

/**
 * More of an answer: `text`, the tokens `ids` that end in it, and, where they were asked for, their log-probabilities
 * `values`. object: the request.
 */
#define RUNTIME_EVENT_TEXT 2

/**
 * The end of a request: status and finish_reason say why, `text` is the stop string that ended it or the error's
 * message; counts and times. object: the request, whose handle is no longer valid.
 */
#define RUNTIME_EVENT_REQUEST_DONE 3

/**
 * The end of a request for an embedding: `values`. object: the request, whose handle is no longer valid.
 */
#define RUNTIME_EVENT_EMBEDDING 4

/**
 * The end of a request for log-probabilities: `values`, in nat, of each token after the first. object: the request,
 * whose handle is no longer valid.
 */
#define RUNTIME_EVENT_SCORES 5

/**
 * A training job can be started, or status says why not; `total` is the number of its steps. object: the job.
 */
#define RUNTIME_EVENT_TRAINING_READY 6

/**
 * An optimizer step was done: `done` of `total`, loss, grad_norm, learning_rate. object: the job.
 */
#define RUNTIME_EVENT_TRAINING_STEP 7

/**
 * A training job is over: done, cancelled, or failed. object: the job.
 */
#define RUNTIME_EVENT_TRAINING_DONE 8

/**
 * Memory in use has passed the soft limit: `done` bytes, of `total`. Comes once until it has fallen below. object: 0.
 */
#define RUNTIME_EVENT_MEMORY_PRESSURE 9

/**
 * Not the end of an answer.
 */
#define RUNTIME_FINISH_NONE 0

/**
 * The model ended the answer, or a stop string or the grammar did.
 */
#define RUNTIME_FINISH_STOP 1

/**
 * max_tokens or the context was used up.
 */
#define RUNTIME_FINISH_LENGTH 2

/**
 * It was cancelled.
 */
#define RUNTIME_FINISH_CANCELLED 3

/**
 * Requests get three quarters of the time while a job trains.
 */
#define RUNTIME_PACING_BALANCED 0

/**
 * Jobs only train while no request runs.
 */
#define RUNTIME_PACING_REQUESTS_FIRST 1

/**
 * Requests get a quarter of the time while a job trains.
 */
#define RUNTIME_PACING_TRAINING_FIRST 2

/**
 * No lines.
 */
#define RUNTIME_LOG_OFF 0

/**
 * What failed.
 */
#define RUNTIME_LOG_ERROR 1

/**
 * And what may not be what the program wants.
 */
#define RUNTIME_LOG_WARN 2

/**
 * And what began and ended.
 */
#define RUNTIME_LOG_INFO 3

/**
 * A cache of the device's own type: 16-bit floats on a GPU, 32-bit ones on the CPU.
 */
#define RUNTIME_KV_AUTO 0

/**
 * A cache of 8-bit floats, with a scale for each head of a token.
 */
#define RUNTIME_KV_FP8 1

/**
 * A cache of 8-bit integers, with a scale for each head of a token.
 */
#define RUNTIME_KV_INT8 2

/**
 * An answer of any form.
 */
#define RUNTIME_GRAMMAR_NONE 0

/**
 * A JSON object; grammar is not used.
 */
#define RUNTIME_GRAMMAR_JSON 1

/**
 * JSON that the JSON schema in grammar describes.
 */
#define RUNTIME_GRAMMAR_JSON_SCHEMA 2

/**
 * Text that the regular expression in grammar matches as a whole.
 */
#define RUNTIME_GRAMMAR_REGEX 3

/**
 * One of the texts in grammar, a JSON list of strings.
 */
#define RUNTIME_GRAMMAR_CHOICE 4

/**
 * A grammar in Lark's syntax, whose first rule is `start`.
 */
#define RUNTIME_GRAMMAR_LARK 5

/**
 * The learning rate falls in a straight line to 0.
 */
#define RUNTIME_SCHEDULE_LINEAR 0

/**
 * It falls along a cosine.
 */
#define RUNTIME_SCHEDULE_COSINE 1

/**
 * It stays, after the warm-up.
 */
#define RUNTIME_SCHEDULE_CONSTANT 2

/**
 * AdamW with 32-bit state.
 */
#define RUNTIME_OPTIMIZER_ADAMW 0

/**
 * AdamW with 8-bit moments: a quarter of the memory.
 */
#define RUNTIME_OPTIMIZER_ADAMW_8BIT 1

/**
 * No preference tuning: the job takes examples.
 */
#define RUNTIME_PREFERENCE_NONE 0

/**
 * DPO: the job takes pairs of answers.
 */
#define RUNTIME_PREFERENCE_DPO 1

/**
 * The hinge loss on DPO's margin.
 */
#define RUNTIME_PREFERENCE_HINGE 2

/**
 * IPO.
 */
#define RUNTIME_PREFERENCE_IPO 3

/**
 * ORPO: without a reference model.
 */
#define RUNTIME_PREFERENCE_ORPO 4

/**
 * The loss counts what the model itself has to say.
 */
#define RUNTIME_LOSS_ASSISTANT 0

/**
 * The loss counts every token.
 */
#define RUNTIME_LOSS_ALL 1

/**
 * Several short examples share a row of max_length tokens; they do not see each other.
 */
#define RUNTIME_TRAINING_PACKING 1

/**
 * Compute activations again in the backward pass: less memory, more time.
 */
#define RUNTIME_TRAINING_RECOMPUTE 2

/**
 * Examples in the order in which they were added, in every epoch.
 */
#define RUNTIME_TRAINING_IN_ORDER 4

/**
 * What a call returns: RUNTIME_OK or one of the RUNTIME_ERROR codes, which are all negative. A code keeps
 * its meaning for ever; new ones may come, so treat any other negative value as an error too.
 */
typedef int32_t runtime_status;

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
 * All defaults: runtime_error x = RUNTIME_ERROR_INIT;
 */
#define RUNTIME_ERROR_INIT { (uint32_t)sizeof(runtime_error), 0, 0, { 0 } }

/**
 * A device of this machine.
 */
typedef struct {
    /**
     * sizeof(runtime_device_info) of the caller's header.
     */
    uint32_t struct_size;
    /**
     * One of RUNTIME_BACKEND, never RUNTIME_BACKEND_AUTO.
     */
    int32_t backend;
    /**
     * Position among the backend's devices: `device` of runtime_engine_options.
     */
    uint32_t index;
    /**
     * Non-zero: a software rasteriser, chosen only when asked for.
     */
    uint32_t software;
    /**
     * Bytes of its own memory; 0 where the driver does not say.
     */
    uint64_t memory_bytes;
    /**
     * The driver's name for it, NUL-terminated.
     */
    char name[128];
    /**
     * Driver, graphics API, instruction sets: one line, NUL-terminated.
     */
    char detail[256];
    /**
     * Which device it is, whatever the API: VkPhysicalDeviceIDProperties and cuDeviceGetUuid report the same. Zeros where the
     * driver does not say.
     */
    uint8_t uuid[16];
    /**
     * What DirectX knows it by, on Windows; else zeros.
     */
    uint8_t luid[8];
} runtime_device_info;

/**
 * All defaults: runtime_device_info x = RUNTIME_DEVICE_INFO_INIT;
 */
#define RUNTIME_DEVICE_INFO_INIT { (uint32_t)sizeof(runtime_device_info), 0, 0, 0, 0, { 0 }, { 0 }, { 0 }, { 0 } }

/**
 * How to make an engine. Zero in a field means its default.
 */
typedef struct {
    /**
     * sizeof(runtime_engine_options) of the caller's header.
     */
    uint32_t struct_size;
    /**
     * One of RUNTIME_BACKEND.
     */
    int32_t backend;
    /**
     * Position among that backend's devices, from 0: `index` of runtime_device_info.
     */
    uint32_t device;
    /**
     * One of RUNTIME_COMPUTE.
     */
    int32_t compute;
    /**
     * One of RUNTIME_RUN.
     */
    int32_t run_mode;
    /**
     * Must be zero.
     */
    uint32_t reserved;
    /**
     * See runtime_engine_set_memory_limit.
     */
    uint64_t soft_limit;
    /**
     * See runtime_engine_set_memory_limit.
     */
    uint64_t hard_limit;
} runtime_engine_options;

/**
 * All defaults: runtime_engine_options x = RUNTIME_ENGINE_OPTIONS_INIT;
 */
#define RUNTIME_ENGINE_OPTIONS_INIT { (uint32_t)sizeof(runtime_engine_options), 0, 0, 0, 0, 0, 0, 0 }

/**
 * An engine: a device, all that lies on it, and the queue of what happened. A program usually has one. Copy it freely:
 * it is a number, not a pointer.
 */
typedef struct {
    /**
     * Zero: no engine.
     */
    uint64_t id;
} runtime_engine;

/**
 * One thing that happened. Fields that do not belong to its type are zero.
 */
typedef struct {
    /**
     * sizeof(runtime_event) of the caller's header.
     */
    uint32_t struct_size;
    /**
     * One of RUNTIME_EVENT. New ones may come: pass over those you do not know.
     */
    int32_t type;
    /**
     * The id of the model, request or training job.
     */
    uint64_t object;
    /**
     * `userdata` of the options that the object was made with.
     */
    uint64_t userdata;
    /**
     * RUNTIME_OK, or why the work failed; then text is the message.
     */
    runtime_status status;
    /**
     * One of RUNTIME_FINISH.
     */
    int32_t finish_reason;
    /**
     * UTF-8, text_len bytes, NOT NUL-terminated, whole characters only. Borrowed until the next runtime_engine_poll.
     */
    const char *text;
    /**
     * Bytes of text.
     */
    size_t text_len;
    /**
     * Tokens. Borrowed until the next runtime_engine_poll.
     */
    const uint32_t *ids;
    /**
     * How many.
     */
    size_t id_count;
    /**
     * Numbers. Borrowed until the next runtime_engine_poll.
     */
    const float *values;
    /**
     * How many.
     */
    size_t value_count;
    /**
     * Bytes or steps done.
     */
    uint64_t done;
    /**
     * Of so many.
     */
    uint64_t total;
    /**
     * Mean loss of a training step, in nat a token.
     */
    double loss;
    /**
     * Norm of its gradient before clipping.
     */
    double grad_norm;
    /**
     * Its learning rate.
     */
    double learning_rate;
    /**
     * Seconds since the work was asked for.
     */
    double seconds;
    /**
     * Of a request: seconds that it waited.
     */
    double queue_seconds;
    /**
     * Of a request: seconds from its first step to its first token.
     */
    double prefill_seconds;
    /**
     * Of a request: seconds from its first token to its last.
     */
    double decode_seconds;
    /**
     * Of a request: tokens of the prompt.
     */
    uint32_t prompt_tokens;
    /**
     * Of a request: how many of them were computed before, for another request that began in the same way.
     */
    uint32_t cached_tokens;
    /**
     * Of a request: tokens of the answer.
     */
    uint32_t generated_tokens;
    /**
     * Zero.
     */
    uint32_t reserved;
} runtime_event;

/**
 * All defaults: runtime_event x = RUNTIME_EVENT_INIT;
 */
#define RUNTIME_EVENT_INIT \
    { (uint32_t)sizeof(runtime_event), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

/**
 * Called when events have come into an empty queue, on whichever thread they came from, under no lock. It may only
 * signal the program: set a flag, post to an event loop.
 */
typedef void (*runtime_wake_fn)(void *userdata);

/**
 * Bytes in use, by purpose. The peaks are the most so far.
 */
typedef struct {
    /**
     * sizeof(runtime_memory_info) of the caller's header.
     */
    uint32_t struct_size;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * The models' tensors, and the places of adapters. On the CPU those of a file are mapped: the system keeps in memory
     * what is used.
     */
    uint64_t weights;
    /**
     * Keys and values.
     */
    uint64_t kv;
    /**
     * What steps compute on the way, and their results.
     */
    uint64_t activations;
    /**
     * Gradients and the state of optimizers.
     */
    uint64_t optimizer;
    /**
     * Files that were read into the host's memory, or given as buffers.
     */
    uint64_t host;
    /**
     * All of these.
     */
    uint64_t total;
    /**
     * Peak of weights.
     */
    uint64_t weights_peak;
    /**
     * Peak of kv.
     */
    uint64_t kv_peak;
    /**
     * Peak of activations.
     */
    uint64_t activations_peak;
    /**
     * Peak of optimizer.
     */
    uint64_t optimizer_peak;
    /**
     * Peak of host.
     */
    uint64_t host_peak;
    /**
     * Peak of total.
     */
    uint64_t total_peak;
    /**
     * The soft limit; 0: none.
     */
    uint64_t soft_limit;
    /**
     * The hard limit; 0: none.
     */
    uint64_t hard_limit;
    /**
     * Bytes of the device that are free, for all programs; 0 where the driver does not say.
     */
    uint64_t device_free;
    /**
     * Bytes of the device; 0 where the driver does not say.
     */
    uint64_t device_total;
} runtime_memory_info;

/**
 * All defaults: runtime_memory_info x = RUNTIME_MEMORY_INFO_INIT;
 */
#define RUNTIME_MEMORY_INFO_INIT \
    { (uint32_t)sizeof(runtime_memory_info), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

/**
 * How much of the device the engine takes, and for what. Zero in a field means its default.
 */
typedef struct {
    /**
     * sizeof(runtime_pacing) of the caller's header.
     */
    uint32_t struct_size;
    /**
     * One of RUNTIME_PACING.
     */
    int32_t mode;
    /**
     * Longest slice of the engine's own thread, in microseconds: what cancelling waits for. 0: 10,000.
     */
    uint32_t max_slice_us;
    /**
     * Must be zero.
     */
    uint32_t reserved;
    /**
     * Tokens that all answers together may get in a second: a reading speed leaves the device to others. 0: no limit.
     */
    double tokens_per_s;
} runtime_pacing;

/**
 * All defaults: runtime_pacing x = RUNTIME_PACING_INIT;
 */
#define RUNTIME_PACING_INIT { (uint32_t)sizeof(runtime_pacing), 0, 0, 0, 0 }

/**
 * What the work took. Quantiles are over the latest 1,024.
 */
typedef struct {
    /**
     * sizeof(runtime_metrics) of the caller's header.
     */
    uint32_t struct_size;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * Slices so far.
     */
    uint64_t slices;
    /**
     * Slices that took more than 1.25 times their budget.
     */
    uint64_t overruns;
    /**
     * Tokens of answers so far.
     */
    uint64_t tokens;
    /**
     * Requests that ended.
     */
    uint64_t requests;
    /**
     * Half of the slices took no longer, in seconds.
     */
    double slice_p50;
    /**
     * 99 of 100 slices took no longer, in seconds.
     */
    double slice_p99;
    /**
     * Tokens of answers a second, over the time that was spent on requests.
     */
    double tokens_per_s;
    /**
     * Half of the requests had their first token after so many seconds.
     */
    double ttft_p50;
    /**
     * 99 of 100 requests had.
     */
    double ttft_p99;
} runtime_metrics;

/**
 * All defaults: runtime_metrics x = RUNTIME_METRICS_INIT;
 */
#define RUNTIME_METRICS_INIT { (uint32_t)sizeof(runtime_metrics), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

/**
 * Takes a line of the log: UTF-8, len bytes, NOT NUL-terminated, valid during the call. Called on any thread; it must
 * not call the library.
 */
typedef void (*runtime_log_fn)(void *userdata, int32_t level, const char *line, size_t len);

/**
 * How many bytes there are.
 */
typedef uint64_t (*runtime_io_size_fn)(void *userdata);

/**
 * Writes len bytes from offset on to data; 0 for success, anything else ends loading with RUNTIME_ERROR_IO.
 */
typedef int32_t (*runtime_io_read_fn)(void *userdata, uint64_t offset, void *data, size_t len);

/**
 * Called once when borrowed bytes are not read any more, on any thread.
 */
typedef void (*runtime_free_fn)(void *userdata);

/**
 * A program's own way to read a file.
 */
typedef struct {
    /**
     * sizeof(runtime_io) of the caller's header.
     */
    uint32_t struct_size;
    /**
     * Must be zero.
     */
    uint32_t reserved;
    /**
     * First argument of the functions.
     */
    void *userdata;
    /**
     * Must not be NULL.
     */
    runtime_io_size_fn size;
    /**
     * Must not be NULL.
     */
    runtime_io_read_fn read;
    /**
     * Called once, last; may be NULL.
     */
    runtime_free_fn close;
} runtime_io;

/**
 * All defaults: runtime_io x = RUNTIME_IO_INIT;
 */
#define RUNTIME_IO_INIT { (uint32_t)sizeof(runtime_io), 0, 0, 0, 0, 0 }

/**
 * How to load a model. Zero in a field means its default.
 */
typedef struct {
    /**
     * sizeof(runtime_model_options) of the caller's header.
     */
    uint32_t struct_size;
    /**
     * Longest prompt and answer together, in tokens. 0: what the model was trained for, at most 8192.
     */
    uint32_t max_tokens;
    /**
     * Requests that run at the same time; more wait for their turn. 0: 4.
     */
    uint32_t max_requests;
    /**
     * Most tokens of one step: a long prompt is cut into chunks of so many. 0: 512, with RUNTIME_RUN_STEPPED 32.
     */
    uint32_t max_step_tokens;
    /**
     * Bytes of the key/value cache. 0: what the requests can fill, at most 512 MiB.
     */
    uint64_t kv_bytes;
    /**
     * One of RUNTIME_KV.
     */
    int32_t kv_type;
    /**
     * Adapters on the device at once; any number can be loaded. 0: 4. -1: none, which saves their memory.
     */
    int32_t max_adapters;
    /**
     * Largest rank of an adapter, or of adapters that answer together. 0: 16.
     */
    uint32_t max_rank;
    /**
     * Must be zero.
     */
    uint32_t reserved;
    /**
     * Comes back in the model's events.
     */
    uint64_t userdata;
} runtime_model_options;

/**
 * All defaults: runtime_model_options x = RUNTIME_MODEL_OPTIONS_INIT;
 */
#define RUNTIME_MODEL_OPTIONS_INIT { (uint32_t)sizeof(runtime_model_options), 0, 0, 0, 0, 0, 0, 0, 0, 0 }

/**
 * What a model and its options will need of the device, in bytes: known before anything is loaded.
 */
typedef struct {
    /**
     * sizeof(runtime_requirements) of the caller's header.
     */
    uint32_t struct_size;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * The model's tensors.
     */
    uint64_t weights;
    /**
     * The key/value cache.
     */
    uint64_t kv;
    /**
     * Of the cache, for a token.
     */
    uint64_t kv_per_token;
    /**
     * What the largest step computes on the way: an estimate from above.
     */
    uint64_t activations;
    /**
     * The places of adapters.
     */
    uint64_t adapters;
    /**
     * All of these.
     */
    uint64_t total;
} runtime_requirements;

/**
 * All defaults: runtime_requirements x = RUNTIME_REQUIREMENTS_INIT;
 */
#define RUNTIME_REQUIREMENTS_INIT { (uint32_t)sizeof(runtime_requirements), 0, 0, 0, 0, 0, 0, 0 }

/**
 * A model of an engine. Copy it freely: it is a number, not a pointer. All functions on it may be called from any thread
 * at any time; a number that is no live model gives RUNTIME_ERROR_STALE_HANDLE, never undefined behaviour.
 */
typedef struct {
    /**
     * Zero: no model.
     */
    uint64_t id;
} runtime_model;

/**
 * What a model is.
 */
typedef struct {
    /**
     * sizeof(runtime_model_info) of the caller's header.
     */
    uint32_t struct_size;
    /**
     * Transformer layers.
     */
    uint32_t layers;
    /**
     * Width of the residual stream; of embeddings, too.
     */
    uint32_t hidden;
    /**
     * Attention heads.
     */
    uint32_t heads;
    /**
     * Heads of keys and values.
     */
    uint32_t kv_heads;
    /**
     * Width of a head.
     */
    uint32_t head_dim;
    /**
     * Tokens that the model knows.
     */
    uint32_t vocab;
    /**
     * Longest prompt and answer together, as it was loaded.
     */
    uint32_t max_tokens;
    /**
     * What it was trained for.
     */
    uint32_t max_positions;
    /**
     * Non-zero: text can be used, else tokens only.
     */
    uint32_t has_tokenizer;
    /**
     * Non-zero: messages can be used.
     */
    uint32_t has_chat_template;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * Bytes of the weights.
     */
    uint64_t weight_bytes;
    /**
     * File or folder name without its ending, NUL-terminated.
     */
    char name[128];
    /**
     * The architecture, for example "qwen3", NUL-terminated.
     */
    char family[32];
} runtime_model_info;

/**
 * All defaults: runtime_model_info x = RUNTIME_MODEL_INFO_INIT;
 */
#define RUNTIME_MODEL_INFO_INIT \
    { (uint32_t)sizeof(runtime_model_info), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, { 0 }, { 0 } }

/**
 * An adapter of a model. Copy it freely: it is a number, not a pointer.
 */
typedef struct {
    /**
     * Zero: no adapter.
     */
    uint64_t id;
} runtime_adapter;

/**
 * What an adapter is.
 */
typedef struct {
    /**
     * sizeof(runtime_adapter_info) of the caller's header.
     */
    uint32_t struct_size;
    /**
     * Largest rank of its modules.
     */
    uint32_t rank;
    /**
     * Linear modules that it changes.
     */
    uint32_t modules;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * Numbers in it.
     */
    uint64_t parameters;
    /**
     * Stands for its contents: equal adapters have equal hashes.
     */
    uint64_t hash;
} runtime_adapter_info;

/**
 * All defaults: runtime_adapter_info x = RUNTIME_ADAPTER_INFO_INIT;
 */
#define RUNTIME_ADAPTER_INFO_INIT { (uint32_t)sizeof(runtime_adapter_info), 0, 0, 0, 0, 0 }

/**
 * A text that grows: what the program appends, and what the model answers. Many sessions can use one model; one thread
 * at a time uses a session. Copy it freely: it is a number, not a pointer.
 */
typedef struct {
    /**
     * Zero: no session.
     */
    uint64_t id;
} runtime_session;

/**
 * An adapter and what its effect is multiplied by.
 */
typedef struct {
    /**
     * Of the session's model.
     */
    runtime_adapter adapter;
    /**
     * 1: as it was trained. (0 is 0: no effect.)
     */
    float scale;
    /**
     * Must be zero.
     */
    uint32_t reserved;
} runtime_adapter_ref;

/**
 * How to answer. Zero in a field means its default.
 */
typedef struct {
    /**
     * sizeof(runtime_generate_options) of the caller's header.
     */
    uint32_t struct_size;
    /**
     * Most tokens to generate. 0: 128, or fewer where the context has no room for them.
     */
    uint32_t max_tokens;
    /**
     * The answer does not end before so many.
     */
    uint32_t min_tokens;
    /**
     * 0: always the most likely token. Higher is more varied; 1 is the model's own distribution.
     */
    float temperature;
    /**
     * Only the most likely tokens that together reach this probability. 0: all.
     */
    float top_p;
    /**
     * Only tokens at least this share as likely as the most likely one. 0: all.
     */
    float min_p;
    /**
     * Only this many of the most likely tokens. 0: all.
     */
    uint32_t top_k;
    /**
     * Above 1: tokens of the text so far become less likely. 0: 1, no change.
     */
    float repetition_penalty;
    /**
     * Subtracted from the logits of tokens that the answer has.
     */
    float presence_penalty;
    /**
     * Subtracted once for each time that the answer has a token.
     */
    float frequency_penalty;
    /**
     * One of RUNTIME_GRAMMAR.
     */
    int32_t grammar_type;
    /**
     * Requests with smaller numbers are served first.
     */
    int32_t priority;
    /**
     * Same seed, same text. 0: another one for every call.
     */
    uint64_t seed;
    /**
     * What the answer must look like.
     */
    const char *grammar;
    /**
     * Bytes of grammar; SIZE_MAX: NUL-terminated.
     */
    size_t grammar_len;
    /**
     * NUL-terminated strings; the answer ends before the first of them that appears.
     */
    const char *const *stop;
    /**
     * How many.
     */
    size_t stop_count;
    /**
     * Non-zero: go on past the model's end-of-text tokens.
     */
    uint32_t ignore_eos;
    /**
     * Non-zero: text events carry the log-probabilities of their tokens.
     */
    uint32_t logprobs;
    /**
     * Comes back in the request's events.
     */
    uint64_t userdata;
} runtime_generate_options;

/**
 * All defaults: runtime_generate_options x = RUNTIME_GENERATE_OPTIONS_INIT;
 */
#define RUNTIME_GENERATE_OPTIONS_INIT \
    { (uint32_t)sizeof(runtime_generate_options), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

/**
 * A request that runs. It needs no release: its handle ends when its last event is polled, and is stale from then on.
 */
typedef struct {
    /**
     * Zero: no request.
     */
    uint64_t id;
} runtime_request;

/**
 * How to train. Zero in a field means its default; where 0 itself makes sense, -1 stands for it.
 */
typedef struct {
    /**
     * sizeof(runtime_training_options) of the caller's header.
     */
    uint32_t struct_size;
    /**
     * LoRA rank. 0: the initial adapter's, else 16.
     */
    uint32_t rank;
    /**
     * LoRA alpha: the product is scaled by alpha / rank. 0: the initial adapter's, else 16.
     */
    double alpha;
    /**
     * Peak learning rate. 0: 2e-4.
     */
    double learning_rate;
    /**
     * Decoupled weight decay. 0: 0.01; -1: none.
     */
    double weight_decay;
    /**
     * Norm that the gradient is clipped to. 0: 1; -1: no clipping.
     */
    double max_grad_norm;
    /**
     * Passes over the examples; excludes max_steps. Both 0: 3.
     */
    double epochs;
    /**
     * Optimizer steps; excludes epochs.
     */
    uint32_t max_steps;
    /**
     * Dropout on the adapter's input, below 1.
     */
    float dropout;
    /**
     * Examples of a micro-batch. 0: 2.
     */
    uint32_t batch_size;
    /**
     * Micro-batches of an optimizer step. 0: 4.
     */
    uint32_t grad_accum;
    /**
     * Tokens after which an example is cut. 0: 1024, or the model's context where that is shorter.
     */
    uint32_t max_length;
    /**
     * Steps over which the learning rate rises. 0: 5; -1: none.
     */
    int32_t warmup_steps;
    /**
     * One of RUNTIME_SCHEDULE.
     */
    int32_t schedule;
    /**
     * One of RUNTIME_OPTIMIZER.
     */
    int32_t optimizer;
    /**
     * One of RUNTIME_LOSS.
     */
    int32_t loss;
    /**
     * RUNTIME_TRAINING flags, added up.
     */
    uint32_t flags;
    /**
     * Decides the initial adapter, the order of examples and the dropout. 0: 3407.
     */
    uint64_t seed;
    /**
     * Comes back in the job's events.
     */
    uint64_t userdata;
    /**
     * Projections that get an adapter, separated by commas: "q_proj,v_proj". NULL: all seven.
     */
    const char *target_modules;
    /**
     * Bytes of target_modules; SIZE_MAX: NUL-terminated.
     */
    size_t target_modules_len;
    /**
     * A checkpoint of runtime_training_checkpoint to go on from; the examples must be the same. NULL: none.
     */
    const char *resume;
    /**
     * Bytes of resume; SIZE_MAX: NUL-terminated.
     */
    size_t resume_len;
    /**
     * An adapter to start from; zero: a fresh one.
     */
    runtime_adapter init_adapter;
    /**
     * One of RUNTIME_PREFERENCE: the job then takes pairs (runtime_training_add_preference) in place of examples.
     */
    int32_t preference;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * How near preference tuning stays to the model without adapter; of ORPO the odds ratio's weight. 0: 0.1.
     */
    double beta;
    /**
     * Adds so many times the mean cross-entropy of the chosen answers; not with ORPO. 0: nothing.
     */
    double rpo_alpha;
} runtime_training_options;

/**
 * All defaults: runtime_training_options x = RUNTIME_TRAINING_OPTIONS_INIT;
 */
#define RUNTIME_TRAINING_OPTIONS_INIT \
    { (uint32_t)sizeof(runtime_training_options), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, { 0 }, 0, 0, 0, 0 }

/**
 * A training job: LoRA fine-tuning on a model that goes on serving. Copy it freely: it is a number, not a pointer.
 */
typedef struct {
    /**
     * Zero: no job.
     */
    uint64_t id;
} runtime_training;

/**
 * Text from tokens that come one by one. Copy it freely: it is a number, not a pointer.
 */
typedef struct {
    /**
     * Zero: no decoder.
     */
    uint64_t id;
} runtime_decoder;

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
 * The object is busy: a model that is being loaded, a session with a running request, too many requests that wait.
 * The same call may succeed later.
 */
#define RUNTIME_ERROR_BUSY (-13)

/**
 * The caller's buffer is too small; the length that is needed was written where the length goes, and nothing else.
 */
#define RUNTIME_ERROR_BUFFER_TOO_SMALL (-14)

#ifdef __cplusplus
extern "C" {
#endif

/**
 * The name of a status, for log lines: "RUNTIME_ERROR_IO". A static string, never NULL; for a number that
 * is no status of this library, "RUNTIME_ERROR_UNKNOWN".
 */
const char *runtime_status_name(runtime_status status);

/**
 * Sets struct_size and clears the rest, as RUNTIME_ERROR_INIT does. NULL is allowed and does nothing.
 */
void runtime_error_init(runtime_error *error);

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
 * The version and the backends that the library was built with, on one line, for bug reports: "0.1.0 cpu wgpu cuda". A static
 * string, never NULL.
 */
const char *runtime_build_info(void);

/**
 * Sets struct_size and clears the rest. NULL is allowed and does nothing.
 */
void runtime_device_info_init(runtime_device_info *info);

/**
 * How many devices there are. Asks the drivers: the first call may take a tenth of a second.
 */
runtime_status runtime_device_count(uint32_t *count, runtime_error *error);

/**
 * Describes a device. They are ordered as RUNTIME_BACKEND_AUTO prefers them; position is below runtime_device_count's
 * result.
 */
runtime_status runtime_device_get_info(uint32_t position, runtime_device_info *info, runtime_error *error);

/**
 * Sets struct_size and clears the rest: all defaults. NULL is allowed and does nothing.
 */
void runtime_engine_options_init(runtime_engine_options *options);

/**
 * Opens a device and makes an engine on it. Nothing of the library touches a GPU or starts a thread before this.
 *
 * options may be NULL. On success *engine is the new handle, to be given to runtime_engine_release once; on failure it
 * is zero. error may be NULL.
 */
runtime_status runtime_engine_create(const runtime_engine_options *options,
                                     runtime_engine *engine,
                                     runtime_error *error);

/**
 * Gives an engine back: it cannot be polled any more, and takes no more requests. Its models, sessions and jobs keep it alive
 * until they are released, too, in any order; then its memory is freed and its threads end, after one slice at the latest.
 * Zero is allowed and does nothing.
 */
runtime_status runtime_engine_release(runtime_engine engine);

/**
 * Works for up to budget_us microseconds, on the calling thread; for an engine of RUNTIME_RUN_STEPPED. *busy (may be
 * NULL) is 1 when there is more to do, else 0.
 *
 * Prompts, answers and training are cut into slices that end with the budget: on the CPU within some tenths of a
 * millisecond, through wgpu within one operation of the model, on CUDA within a few operations of a training step and
 * between the steps of an answer. Call it once a frame from one thread; a second thread gets RUNTIME_ERROR_BUSY. Models
 * are loaded and jobs are prepared on threads of their own meanwhile.
 */
runtime_status runtime_engine_step(runtime_engine engine, uint32_t budget_us, uint32_t *busy, runtime_error *error);

/**
 * Works on nothing from the next slice on, until runtime_engine_resume. Loading goes on, cancelling works.
 */
runtime_status runtime_engine_pause(runtime_engine engine, runtime_error *error);

/**
 * Goes on after runtime_engine_pause.
 */
runtime_status runtime_engine_resume(runtime_engine engine, runtime_error *error);

/**
 * Sets struct_size and clears the rest. NULL is allowed and does nothing.
 */
void runtime_event_init(runtime_event *event);

/**
 * Takes up to capacity events out of the queue, in order, and writes how many to *count. Never waits for work: call it
 * once a frame.
 *
 * events is an array; events[0].struct_size, set by runtime_event_init or RUNTIME_EVENT_INIT, is the size of its
 * elements (0: that of the first version). Text and numbers are borrowed until the next poll of the same engine, so poll
 * from one thread at a time.
 */
runtime_status runtime_engine_poll(runtime_engine engine,
                                   runtime_event *events,
                                   size_t capacity,
                                   size_t *count,
                                   runtime_error *error);

/**
 * Waits until there is an event, for up to timeout_ms milliseconds (UINT32_MAX: for ever). *ready (may be NULL) is 1 when
 * there is one, else 0. For a program without an event loop; with RUNTIME_RUN_STEPPED nothing happens while it waits but
 * loading.
 */
runtime_status runtime_engine_wait(runtime_engine engine,
                                   uint32_t timeout_ms,
                                   uint32_t *ready,
                                   runtime_error *error);

/**
 * Sets the function that is called when events have come into an empty queue; NULL: none. When this returns, the one
 * before is not called any more, and its userdata may go (unless this is called from within it).
 */
runtime_status runtime_engine_set_wake_callback(runtime_engine engine,
                                                runtime_wake_fn wake,
                                                void *userdata,
                                                runtime_error *error);

/**
 * Sets struct_size and clears the rest. NULL is allowed and does nothing.
 */
void runtime_memory_info_init(runtime_memory_info *info);

/**
 * What the engine uses.
 */
runtime_status runtime_engine_get_memory_info(runtime_engine engine, runtime_memory_info *info, runtime_error *error);

/**
 * Limits what the engine may use, in bytes; 0: no limit. Beyond the hard limit nothing is given: the call or the work that
 * asked gets RUNTIME_ERROR_OUT_OF_MEMORY, and what exists stays. Beyond the soft limit the engine gives back what it can
 * make again, and RUNTIME_EVENT_MEMORY_PRESSURE comes.
 */
runtime_status runtime_engine_set_memory_limit(runtime_engine engine,
                                               uint64_t soft_limit,
                                               uint64_t hard_limit,
                                               runtime_error *error);

/**
 * Gives back, before the next slice, what can be made again. The slices that need it take longer once.
 */
runtime_status runtime_engine_trim(runtime_engine engine, runtime_error *error);

/**
 * Sets struct_size and clears the rest: all defaults. NULL is allowed and does nothing.
 */
void runtime_pacing_init(runtime_pacing *pacing);

/**
 * Sets the pace, from the next slice on. pacing may be NULL: all defaults.
 */
runtime_status runtime_engine_set_pacing(runtime_engine engine, const runtime_pacing *pacing, runtime_error *error);

/**
 * Sets struct_size and clears the rest. NULL is allowed and does nothing.
 */
void runtime_metrics_init(runtime_metrics *metrics);

/**
 * What the work took so far.
 */
runtime_status runtime_engine_get_metrics(runtime_engine engine, runtime_metrics *metrics, runtime_error *error);

/**
 * Sends the engine's log to a function, up to a level of RUNTIME_LOG. Without this, and with NULL, nothing is logged.
 * userdata must stay valid until the engine and all of its objects are gone.
 */
runtime_status runtime_engine_set_log(runtime_engine engine,
                                      int32_t level,
                                      runtime_log_fn log,
                                      void *userdata,
                                      runtime_error *error);

/**
 * Sets struct_size and clears the rest. NULL is allowed and does nothing.
 */
void runtime_io_init(runtime_io *io);

/**
 * Sets struct_size and clears the rest: all defaults. NULL is allowed and does nothing.
 */
void runtime_model_options_init(runtime_model_options *options);

/**
 * Sets struct_size and clears the rest. NULL is allowed and does nothing.
 */
void runtime_requirements_init(runtime_requirements *requirements);

/**
 * Says what runtime_model_load with the same path and options would need; reads the file's header only.
 */
runtime_status runtime_engine_get_requirements(runtime_engine engine,
                                               const char *path,
                                               size_t path_len,
                                               const runtime_model_options *options,
                                               runtime_requirements *requirements,
                                               runtime_error *error);

/**
 * Begins to load a model and returns at once. RUNTIME_EVENT_MODEL_PROGRESS events follow, then one
 * RUNTIME_EVENT_MODEL_READY; or use runtime_model_wait.
 *
 * path names a .gguf file or a folder with config.json and .safetensors files; it is UTF-8, path_len bytes long
 * (SIZE_MAX: NUL-terminated). options may be NULL. On success *model is the new handle, to be given to
 * runtime_model_release once; on failure it is zero. error may be NULL.
 */
runtime_status runtime_model_load(runtime_engine engine,
                                  const char *path,
                                  size_t path_len,
                                  const runtime_model_options *options,
                                  runtime_model *model,
                                  runtime_error *error);

/**
 * As runtime_model_load, from a GGUF file that lies in an open file, size bytes from offset on (size 0: to the file's
 * end): in a pak, an APK, an archive that does not compress it. fd is a POSIX file descriptor; it is duplicated, and can
 * be closed when this returns. offset need not be aligned to pages. On Windows: RUNTIME_ERROR_UNSUPPORTED; use
 * runtime_model_load_io.
 */
runtime_status runtime_model_load_fd(runtime_engine engine,
                                     int32_t fd,
                                     uint64_t offset,
                                     uint64_t size,
                                     const runtime_model_options *options,
                                     runtime_model *model,
                                     runtime_error *error);

/**
 * As runtime_model_load, from the bytes of a GGUF file.
 *
 * With free_data the bytes are borrowed, and free_data(userdata) is called once when nothing reads them any more: after
 * the model was released, or when this fails. On the CPU the weights are used where they lie. With free_data NULL the
 * bytes are copied before this returns.
 */
runtime_status runtime_model_load_buffer(runtime_engine engine,
                                         const void *data,
                                         size_t size,
                                         runtime_free_fn free_data,
                                         void *userdata,
                                         const runtime_model_options *options,
                                         runtime_model *model,
                                         runtime_error *error);

/**
 * As runtime_model_load, from a GGUF file that the program reads itself. io's functions are called on one other thread,
 * in order of offset, and close exactly once; the struct itself is copied.
 */
runtime_status runtime_model_load_io(runtime_engine engine,
                                     const runtime_io *io,
                                     const runtime_model_options *options,
                                     runtime_model *model,
                                     runtime_error *error);

/**
 * Gives up loading: RUNTIME_EVENT_MODEL_READY comes with RUNTIME_ERROR_CANCELLED, after one tensor at the latest. Does
 * nothing to a model that is ready. The handle still has to be released.
 */
runtime_status runtime_model_cancel(runtime_model model, runtime_error *error);

/**
 * Waits until the model can be used, for up to timeout_ms milliseconds (UINT32_MAX: for ever). RUNTIME_ERROR_BUSY: not
 * yet. Any other error is why it could not be loaded.
 */
runtime_status runtime_model_wait(runtime_model model, uint32_t timeout_ms, runtime_error *error);

/**
 * Sets struct_size and clears the rest. NULL is allowed and does nothing.
 */
void runtime_model_info_init(runtime_model_info *info);

/**
 * Describes a model that is ready.
 */
runtime_status runtime_model_get_info(runtime_model model, runtime_model_info *info, runtime_error *error);

/**
 * The model's chat template, as Jinja source. buffer, of capacity bytes, may be NULL to ask for the length; *len is the
 * length without the NUL, which is written where there is room.
 */
runtime_status runtime_model_get_chat_template(runtime_model model,
                                               char *buffer,
                                               size_t capacity,
                                               size_t *len,
                                               runtime_error *error);

/**
 * Gives a model back. Its sessions, adapters and jobs keep it alive until they are released, too, in any order; then its
 * requests end as cancelled, and its memory is freed after one slice at the latest. Zero is allowed and does nothing; a
 * handle that was released before gives RUNTIME_ERROR_STALE_HANDLE. Releasing a model that is being loaded cancels that.
 */
runtime_status runtime_model_release(runtime_model model);

/**
 * Reads an adapter in PEFT's format: a folder with adapter_config.json and adapter_model.safetensors. On success *adapter
 * is the new handle, to be given to runtime_adapter_release once; on failure it is zero.
 */
runtime_status runtime_adapter_load(runtime_model model,
                                    const char *path,
                                    size_t path_len,
                                    runtime_adapter *adapter,
                                    runtime_error *error);

/**
 * As runtime_adapter_load, from the contents of the two files, which are copied.
 */
runtime_status runtime_adapter_load_buffer(runtime_model model,
                                           const char *config_json,
                                           size_t config_len,
                                           const void *weights,
                                           size_t weights_size,
                                           runtime_adapter *adapter,
                                           runtime_error *error);

/**
 * Writes an adapter as a folder that runtime_adapter_load and PEFT read. An adapter of that folder is replaced.
 */
runtime_status runtime_adapter_save(runtime_adapter adapter, const char *path, size_t path_len, runtime_error *error);

/**
 * Sets struct_size and clears the rest. NULL is allowed and does nothing.
 */
void runtime_adapter_info_init(runtime_adapter_info *info);

/**
 * Describes an adapter.
 */
runtime_status runtime_adapter_get_info(runtime_adapter adapter, runtime_adapter_info *info, runtime_error *error);

/**
 * Gives an adapter back. Sessions that use it keep it until they are released or get others. Zero is allowed and does
 * nothing.
 */
runtime_status runtime_adapter_release(runtime_adapter adapter);

/**
 * Makes an empty session on a model that is ready. On success *session is the new handle, to be given to
 * runtime_session_release once; on failure it is zero.
 */
runtime_status runtime_session_create(runtime_model model, runtime_session *session, runtime_error *error);

/**
 * The adapters that answer in this session from now on, each with a scale; count 0: the plain model. Their ranks together
 * must not pass max_rank of the model's options.
 */
runtime_status runtime_session_set_adapters(runtime_session session,
                                            const runtime_adapter_ref *adapters,
                                            size_t count,
                                            runtime_error *error);

/**
 * Appends text as it stands: the model will go on with it. What the tokenizer puts at the beginning of a text comes with
 * the first. After messages, it is the beginning of the assistant's answer.
 */
runtime_status runtime_session_append_text(runtime_session session,
                                           const char *text,
                                           size_t text_len,
                                           runtime_error *error);

/**
 * Appends count tokens.
 */
runtime_status runtime_session_append_tokens(runtime_session session,
                                             const uint32_t *ids,
                                             size_t count,
                                             runtime_error *error);

/**
 * Appends messages: a JSON list of objects with "role" and "content", as OpenAI's API has them. The model's chat template
 * puts them into text; answers become the assistant's messages. A session is made either of messages or of text and
 * tokens.
 */
runtime_status runtime_session_append_messages(runtime_session session,
                                               const char *messages_json,
                                               size_t messages_len,
                                               runtime_error *error);

/**
 * Sets struct_size and clears the rest: all defaults. NULL is allowed and does nothing.
 */
void runtime_generate_options_init(runtime_generate_options *options);

/**
 * Begins to answer and returns at once. RUNTIME_EVENT_TEXT events follow, then one RUNTIME_EVENT_REQUEST_DONE; the answer
 * is appended to the session. Until then the session only takes runtime_request_cancel; other calls get
 * RUNTIME_ERROR_BUSY. options may be NULL. *request is what cancels it.
 */
runtime_status runtime_session_generate(runtime_session session,
                                        const runtime_generate_options *options,
                                        runtime_request *request,
                                        runtime_error *error);

/**
 * Ends a request: its last event comes at once, with RUNTIME_ERROR_CANCELLED, and the engine stops working on it within a
 * slice. What it has answered so far stays in the session. Legal from any thread at any time; for a request that has
 * ended RUNTIME_ERROR_STALE_HANDLE, which can be ignored.
 */
runtime_status runtime_request_cancel(runtime_request request,
                                      runtime_error *error);

/**
 * Makes a session with the same text and adapters. Nothing is computed again: both share the keys and values of what they
 * have in common.
 */
runtime_status runtime_session_fork(runtime_session session,
                                    runtime_session *fork,
                                    runtime_error *error);

/**
 * Cuts the text to its first tokens tokens. To go on with messages, rewind to what runtime_session_get_token_count gave
 * after an append or an answer.
 */
runtime_status runtime_session_rewind(runtime_session session, size_t tokens, runtime_error *error);

/**
 * How many tokens the text has.
 */
runtime_status runtime_session_get_token_count(runtime_session session, size_t *count, runtime_error *error);

/**
 * The tokens of the text. ids, of capacity elements, may be NULL to ask for the number, which goes to *count.
 */
runtime_status runtime_session_get_tokens(runtime_session session,
                                          uint32_t *ids,
                                          size_t capacity,
                                          size_t *count,
                                          runtime_error *error);

/**
 * The session as bytes, to be restored later, by another process too: text and messages, and hashes of the model and the
 * adapters that they belong to. Keys and values are computed again. data, of capacity bytes, may be NULL to ask for the
 * size, which goes to *size.
 */
runtime_status runtime_session_save_state(runtime_session session,
                                          void *data,
                                          size_t capacity,
                                          size_t *size,
                                          runtime_error *error);

/**
 * As runtime_session_save_state, with the keys and values of the text, as far as the engine's cache still has them: some tens
 * of kilobytes a token. Restored on an engine that stores them in the same way, the session goes on without computing its text
 * again. Waits for a slice where one is being worked on. The size may be another in the next call.
 */
runtime_status runtime_session_save_state_with_cache(runtime_session session,
                                                     void *data,
                                                     size_t capacity,
                                                     size_t *size,
                                                     runtime_error *error);

/**
 * Makes a session of what runtime_session_save_state or runtime_session_save_state_with_cache gave. The model must be
 * the same, and adapters the same with the same scales; damaged bytes give RUNTIME_ERROR_FORMAT.
 */
runtime_status runtime_session_load_state(runtime_model model,
                                          const void *data,
                                          size_t size,
                                          const runtime_adapter_ref *adapters,
                                          size_t adapter_count,
                                          runtime_session *session,
                                          runtime_error *error);

/**
 * Gives a session back. A request that runs on it goes on to its end. Zero is allowed and does nothing.
 */
runtime_status runtime_session_release(runtime_session session);

/**
 * Sets struct_size and clears the rest: all defaults. NULL is allowed and does nothing.
 */
void runtime_training_options_init(runtime_training_options *options);

/**
 * Makes a job on a model that is ready. Add examples, seal it, start it. On success *training is the new handle, to be
 * given to runtime_training_release once; on failure it is zero. options may be NULL.
 */
runtime_status runtime_training_create(runtime_model model,
                                       const runtime_training_options *options,
                                       runtime_training *training,
                                       runtime_error *error);

/**
 * Adds an example: a JSON object as on a line of `runtime train`'s data, {"messages": [...]}, {"prompt": ...,
 * "completion": ...} or {"text": ...}.
 */
runtime_status runtime_training_add_example(runtime_training training,
                                            const char *example_json,
                                            size_t example_len,
                                            runtime_error *error);

/**
 * Adds an example of count tokens; the loss counts those whose mask is not 0 (never the first: nothing predicts it).
 */
runtime_status runtime_training_add_tokens(runtime_training training,
                                           const uint32_t *ids,
                                           const uint8_t *mask,
                                           size_t count,
                                           runtime_error *error);

/**
 * Adds a pair of answers to a job whose options name a preference loss: a JSON object as on a line of `runtime train`'s
 * preference data, {"prompt": ..., "chosen": ..., "rejected": ...}, all texts or all lists of messages; without a prompt both
 * answers begin alike.
 */
runtime_status runtime_training_add_preference(runtime_training training,
                                               const char *pair_json,
                                               size_t pair_len,
                                               runtime_error *error);

/**
 * Takes no more examples and prepares the job, on a thread of its own. RUNTIME_EVENT_TRAINING_READY says when it is done.
 */
runtime_status runtime_training_seal(runtime_training training,
                                     runtime_error *error);

/**
 * Begins to train, or will when the job is ready: RUNTIME_EVENT_TRAINING_STEP events, then one
 * RUNTIME_EVENT_TRAINING_DONE. Requests are served meanwhile; runtime_engine_set_pacing shares the time.
 */
runtime_status runtime_training_start(runtime_training training, runtime_error *error);

/**
 * Stops between two slices, within a step if need be.
 */
runtime_status runtime_training_pause(runtime_training training, runtime_error *error);

/**
 * Goes on after runtime_training_pause, where it stopped.
 */
runtime_status runtime_training_resume(runtime_training training, runtime_error *error);

/**
 * Ends the job: its last event comes at once, with RUNTIME_ERROR_CANCELLED, and the engine stops working on it within a
 * slice. Its adapter can still be had.
 */
runtime_status runtime_training_cancel(runtime_training training, runtime_error *error);

/**
 * Writes a folder checkpoint-N into the folder path, after N steps: what `resume` of another job's options, and
 * `runtime train --resume`, go on from.
 */
runtime_status runtime_training_checkpoint(runtime_training training,
                                           const char *path,
                                           size_t path_len,
                                           runtime_error *error);

/**
 * The adapter as it is after the last step. Where *adapter is zero, a new one is made, to be released by the caller;
 * else that adapter's weights are replaced: sessions that use it answer with the new ones from their next request on.
 * Set *adapter to zero before the first call.
 */
runtime_status runtime_training_snapshot_adapter(runtime_training training,
                                                 runtime_adapter *adapter,
                                                 runtime_error *error);

/**
 * Gives a job back; one that runs ends without a further event. Zero is allowed and does nothing.
 */
runtime_status runtime_training_release(runtime_training training);

/**
 * The tokens of a text. add_special non-zero: with what the tokenizer puts around a text, a BOS token for example. ids,
 * of capacity elements, may be NULL to ask for the number, which goes to *count.
 */
runtime_status runtime_model_tokenize(runtime_model model,
                                      const char *text,
                                      size_t text_len,
                                      uint32_t add_special,
                                      uint32_t *ids,
                                      size_t capacity,
                                      size_t *count,
                                      runtime_error *error);

/**
 * The text of count tokens. skip_special non-zero: without special tokens. buffer, of capacity bytes, may be NULL to ask
 * for the length; *len is the length without the NUL, which is written where there is room. For tokens that come one by
 * one use a runtime_decoder: a token may be a part of a character.
 */
runtime_status runtime_model_detokenize(runtime_model model,
                                        const uint32_t *ids,
                                        size_t count,
                                        uint32_t skip_special,
                                        char *buffer,
                                        size_t capacity,
                                        size_t *len,
                                        runtime_error *error);

/**
 * Messages as the text that the model was trained on: what runtime_session_append_messages appends. messages_json as
 * there; add_generation_prompt non-zero: with the beginning of the assistant's turn. The rest as
 * runtime_model_detokenize.
 */
runtime_status runtime_model_apply_template(runtime_model model,
                                            const char *messages_json,
                                            size_t messages_len,
                                            uint32_t add_generation_prompt,
                                            char *buffer,
                                            size_t capacity,
                                            size_t *len,
                                            runtime_error *error);

/**
 * Makes a decoder of a model's tokens. skip_special non-zero: special tokens have no text. On success *decoder is the new
 * handle, to be given to runtime_decoder_release once.
 */
runtime_status runtime_decoder_create(runtime_model model,
                                      uint32_t skip_special,
                                      runtime_decoder *decoder,
                                      runtime_error *error);

/**
 * Takes a token and gives the text that is complete with it, whole characters only; often none. 1024 bytes of buffer are
 * always enough; where they are too few, the text is kept for the next call.
 */
runtime_status runtime_decoder_push(runtime_decoder decoder,
                                    uint32_t token,
                                    char *buffer,
                                    size_t capacity,
                                    size_t *len,
                                    runtime_error *error);

/**
 * Ends the text: an unfinished character becomes U+FFFD. The decoder can then begin anew.
 */
runtime_status runtime_decoder_flush(runtime_decoder decoder,
                                     char *buffer,
                                     size_t capacity,
                                     size_t *len,
                                     runtime_error *error);

/**
 * Gives a decoder back. Zero is allowed and does nothing.
 */
runtime_status runtime_decoder_release(runtime_decoder decoder);

/**
 * Asks for the embedding of count tokens and returns at once: RUNTIME_EVENT_EMBEDDING brings the last token's output of the
 * last layer, after the norm, `hidden` numbers, not normalised. userdata comes back in the event.
 */
runtime_status runtime_model_embed(runtime_model model,
                                   const uint32_t *ids,
                                   size_t count,
                                   uint64_t userdata,
                                   runtime_request *request,
                                   runtime_error *error);

/**
 * Asks for the log-probability, in nat, of each of count tokens but the first, given those before it, and returns at once:
 * RUNTIME_EVENT_SCORES brings them. userdata comes back in the event.
 */
runtime_status runtime_model_score(runtime_model model,
                                   const uint32_t *ids,
                                   size_t count,
                                   uint64_t userdata,
                                   runtime_request *request,
                                   runtime_error *error);

#ifdef __cplusplus
}
#endif

#endif  /* RUNTIME_H */
