//! Models: requirements, load, info, release.

use super::engine::{ENGINES, place, release, runtime_engine};
use super::error::{Failure, runtime_error};
use super::guard::{guarded, shielded};
use super::handle::Handles;
use super::io::{Buffer, Reader, runtime_free_fn, runtime_io};
use super::options::{self, Versioned, init};
use super::status::runtime_status;
use super::text;
use crate::embed::{Host, Model, ModelOptions, ModelSource};
use crate::engine::KvType;
use crate::error::Error;
use std::ffi::{c_char, c_void};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A cache of the device's own type: 16-bit floats on a GPU, 32-bit ones on the CPU.
pub const RUNTIME_KV_AUTO: i32 = 0;
/// A cache of 8-bit floats, with a scale for each head of a token.
pub const RUNTIME_KV_FP8: i32 = 1;
/// A cache of 8-bit integers, with a scale for each head of a token.
pub const RUNTIME_KV_INT8: i32 = 2;

/// A model of an engine. Copy it freely: it is a number, not a pointer. All functions on it may be called from any thread
/// at any time; a number that is no live model gives RUNTIME_ERROR_STALE_HANDLE, never undefined behaviour.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub struct runtime_model {
    /// Zero: no model.
    pub id: u64,
}

/// How to load a model. Zero in a field means its default.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub struct runtime_model_options {
    /// sizeof(runtime_model_options) of the caller's header.
    pub struct_size: u32,
    /// Longest prompt and answer together, in tokens. 0: what the model was trained for, at most 8192.
    pub max_tokens: u32,
    /// Requests that run at the same time; more wait for their turn. 0: 4.
    pub max_requests: u32,
    /// Most tokens of one step: a long prompt is cut into chunks of so many. 0: 512, with RUNTIME_RUN_STEPPED 32.
    pub max_step_tokens: u32,
    /// Bytes of the key/value cache. 0: what the requests can fill, at most 512 MiB.
    pub kv_bytes: u64,
    /// One of RUNTIME_KV.
    pub kv_type: i32,
    /// Adapters on the device at once; any number can be loaded. 0: 4. -1: none, which saves their memory.
    pub max_adapters: i32,
    /// Largest rank of an adapter, or of adapters that answer together. 0: 16.
    pub max_rank: u32,
    /// Must be zero.
    pub reserved: u32,
    /// Comes back in the model's events.
    pub userdata: u64,
}

// SAFETY: integers only, no padding.
unsafe impl Versioned for runtime_model_options {
    const NAME: &'static str = "runtime_model_options";
    const FIRST_SIZE: usize = 48;
}

/// What a handle stands for.
pub(super) static MODELS: Handles<Model> = Handles::new("model");

/// Sets struct_size and clears the rest: all defaults. NULL is allowed and does nothing.
///
/// # Safety
/// `options` is NULL or points to a writable struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_model_options_init(options: *mut runtime_model_options) {
    // SAFETY: the caller's promise.
    shielded("runtime_model_options_init", (), || unsafe { init(options) });
}

fn translated(options: &runtime_model_options) -> Result<ModelOptions, Failure> {
    if options.reserved != 0 {
        return Err(Error::invalid("runtime_model_options: reserved is not zero").into());
    }
    Ok(ModelOptions {
        max_tokens: options.max_tokens as usize,
        max_requests: options.max_requests as usize,
        max_step_tokens: options.max_step_tokens as usize,
        kv_bytes: options.kv_bytes,
        kv_type: match options.kv_type {
            RUNTIME_KV_AUTO => KvType::Auto,
            RUNTIME_KV_FP8 => KvType::Fp8,
            RUNTIME_KV_INT8 => KvType::Int8,
            other => return Err(Error::invalid(format!("kv_type is {other}, expected one of RUNTIME_KV")).into()),
        },
        max_adapters: match options.max_adapters {
            -1 => None,
            n if n >= 0 => Some(n as usize),
            other => return Err(Error::invalid(format!("max_adapters is {other}, expected -1 or more")).into()),
        },
        max_rank: options.max_rank as usize,
    })
}

/// What a model and its options will need of the device, in bytes: known before anything is loaded.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub struct runtime_requirements {
    /// sizeof(runtime_requirements) of the caller's header.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// The model's tensors.
    pub weights: u64,
    /// The key/value cache.
    pub kv: u64,
    /// Of the cache, for a token.
    pub kv_per_token: u64,
    /// What the largest step computes on the way: an estimate from above.
    pub activations: u64,
    /// The places of adapters.
    pub adapters: u64,
    /// All of these.
    pub total: u64,
}

// SAFETY: integers only, no padding.
unsafe impl Versioned for runtime_requirements {
    const NAME: &'static str = "runtime_requirements";
    const FIRST_SIZE: usize = 56;
}

/// Sets struct_size and clears the rest. NULL is allowed and does nothing.
///
/// # Safety
/// `requirements` is NULL or points to a writable struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_requirements_init(requirements: *mut runtime_requirements) {
    // SAFETY: the caller's promise.
    shielded("runtime_requirements_init", (), || unsafe { init(requirements) });
}

/// Says what runtime_model_load with the same path and options would need; reads the file's header only.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_engine_get_requirements(
    engine: runtime_engine,
    path: *const c_char,
    path_len: usize,
    options: *const runtime_model_options,
    requirements: *mut runtime_requirements,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        let host = ENGINES.get(engine.id)?;
        // SAFETY: the caller's promise.
        let (path, options) = unsafe { (text::read("path", path, path_len)?, options::read(options)?) };
        let needs = Model::requirements(&host, Path::new(path), &translated(&options)?)?;
        let value = runtime_requirements {
            struct_size: 0,
            reserved: 0,
            weights: needs.weights,
            kv: needs.kv,
            kv_per_token: needs.kv_token,
            activations: needs.activations,
            adapters: needs.adapters,
            total: needs.weights + needs.kv + needs.activations + needs.adapters,
        };
        // SAFETY: the caller's promise.
        unsafe { options::write(requirements, &value) }
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_engine_get_requirements", error, body) }
}

/// Makes the handle first, so that the model's events can carry it.
unsafe fn load(
    host: &Arc<Host>,
    source: ModelSource,
    options: *const runtime_model_options,
    model: *mut runtime_model,
) -> Result<(), Failure> {
    // SAFETY: the caller's promise is passed on.
    let (out, options) = unsafe { (place("model", model)?, options::read(options)?) };
    let loading = Model::new(host);
    let id = MODELS.insert(loading.clone())?;
    let begun = translated(&options).and_then(|sizes| Ok(loading.load(source, &sizes, id, options.userdata)?));
    match begun {
        Ok(()) => out.id = id,
        Err(_) => drop(MODELS.remove(id)),
    }
    begun
}

/// Clears the place of a handle, where there is one.
unsafe fn clear(model: *mut runtime_model) {
    // SAFETY: NULL or writable.
    if let Some(model) = unsafe { model.as_mut() } {
        model.id = 0;
    }
}

/// Begins to load a model and returns at once. RUNTIME_EVENT_MODEL_PROGRESS events follow, then one
/// RUNTIME_EVENT_MODEL_READY; or use runtime_model_wait.
///
/// path names a .gguf file or a folder with config.json and .safetensors files; it is UTF-8, path_len bytes long
/// (SIZE_MAX: NUL-terminated). options may be NULL. On success *model is the new handle, to be given to
/// runtime_model_release once; on failure it is zero. error may be NULL.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_model_load(
    engine: runtime_engine,
    path: *const c_char,
    path_len: usize,
    options: *const runtime_model_options,
    model: *mut runtime_model,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        // SAFETY: the caller's promise.
        unsafe {
            clear(model);
            let host = ENGINES.get(engine.id)?;
            let path = text::read("path", path, path_len)?;
            if path.is_empty() {
                return Err(Error::invalid("path is empty").into());
            }
            load(&host, ModelSource::Path(PathBuf::from(path)), options, model)
        }
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_model_load", error, body) }
}

/// As runtime_model_load, from a GGUF file that lies in an open file, size bytes from offset on (size 0: to the file's
/// end): in a pak, an APK, an archive that does not compress it. fd is a POSIX file descriptor; it is duplicated, and can
/// be closed when this returns. offset need not be aligned to pages. On Windows: RUNTIME_ERROR_UNSUPPORTED; use
/// runtime_model_load_io.
///
/// # Safety
/// Pointers are NULL or valid as described; `fd` is an open file of the caller's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_model_load_fd(
    engine: runtime_engine,
    fd: i32,
    offset: u64,
    size: u64,
    options: *const runtime_model_options,
    model: *mut runtime_model,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        // SAFETY: the caller's promise.
        unsafe {
            clear(model);
            let host = ENGINES.get(engine.id)?;
            let file = super::io::duplicate(fd)?;
            load(&host, ModelSource::File(file, offset, size), options, model)
        }
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_model_load_fd", error, body) }
}

/// As runtime_model_load, from the bytes of a GGUF file.
///
/// With free_data the bytes are borrowed, and free_data(userdata) is called once when nothing reads them any more: after
/// the model was released, or when this fails. On the CPU the weights are used where they lie. With free_data NULL the
/// bytes are copied before this returns.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_model_load_buffer(
    engine: runtime_engine,
    data: *const c_void,
    size: usize,
    free_data: runtime_free_fn,
    userdata: *mut c_void,
    options: *const runtime_model_options,
    model: *mut runtime_model,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        // SAFETY: the caller's promise.
        unsafe {
            // From here on the bytes are given back, whatever happens.
            let buffer = Buffer::of(data, size, free_data, userdata);
            clear(model);
            let host = ENGINES.get(engine.id)?;
            load(&host, ModelSource::Bytes(buffer?.shared()), options, model)
        }
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_model_load_buffer", error, body) }
}

/// As runtime_model_load, from a GGUF file that the program reads itself. io's functions are called on one other thread,
/// in order of offset, and close exactly once; the struct itself is copied.
///
/// # Safety
/// Pointers are NULL or valid as described; io's functions may be called on another thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_model_load_io(
    engine: runtime_engine,
    io: *const runtime_io,
    options: *const runtime_model_options,
    model: *mut runtime_model,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        // SAFETY: the caller's promise.
        unsafe {
            clear(model);
            if io.is_null() {
                return Err(Error::invalid("io is NULL").into());
            }
            let reader = Reader::new(&options::read(io)?)?;
            let host = ENGINES.get(engine.id)?;
            load(&host, ModelSource::Reader(Box::new(reader)), options, model)
        }
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_model_load_io", error, body) }
}

/// Gives up loading: RUNTIME_EVENT_MODEL_READY comes with RUNTIME_ERROR_CANCELLED, after one tensor at the latest. Does
/// nothing to a model that is ready. The handle still has to be released.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_model_cancel(model: runtime_model, error: *mut runtime_error) -> runtime_status {
    let body = || MODELS.get(model.id).map(|object| object.cancel());
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_model_cancel", error, body) }
}

/// Waits until the model can be used, for up to timeout_ms milliseconds (UINT32_MAX: for ever). RUNTIME_ERROR_BUSY: not
/// yet. Any other error is why it could not be loaded.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_model_wait(
    model: runtime_model,
    timeout_ms: u32,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        let timeout = (timeout_ms != u32::MAX).then(|| Duration::from_millis(u64::from(timeout_ms)));
        match MODELS.get(model.id)?.wait(timeout)? {
            true => Ok(()),
            false => Err(Error::Busy("the model is being loaded".into()).into()),
        }
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_model_wait", error, body) }
}

/// What a model is.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub struct runtime_model_info {
    /// sizeof(runtime_model_info) of the caller's header.
    pub struct_size: u32,
    /// Transformer layers.
    pub layers: u32,
    /// Width of the residual stream; of embeddings, too.
    pub hidden: u32,
    /// Attention heads.
    pub heads: u32,
    /// Heads of keys and values.
    pub kv_heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// Tokens that the model knows.
    pub vocab: u32,
    /// Longest prompt and answer together, as it was loaded.
    pub max_tokens: u32,
    /// What it was trained for.
    pub max_positions: u32,
    /// Non-zero: text can be used, else tokens only.
    pub has_tokenizer: u32,
    /// Non-zero: messages can be used.
    pub has_chat_template: u32,
    /// Zero.
    pub reserved: u32,
    /// Bytes of the weights.
    pub weight_bytes: u64,
    /// File or folder name without its ending, NUL-terminated.
    pub name: [c_char; 128],
    /// The architecture, for example "qwen3", NUL-terminated.
    pub family: [c_char; 32],
}

// SAFETY: integers only, no padding.
unsafe impl Versioned for runtime_model_info {
    const NAME: &'static str = "runtime_model_info";
    const FIRST_SIZE: usize = 216;
}

/// Sets struct_size and clears the rest. NULL is allowed and does nothing.
///
/// # Safety
/// `info` is NULL or points to a writable struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_model_info_init(info: *mut runtime_model_info) {
    // SAFETY: the caller's promise.
    shielded("runtime_model_info_init", (), || unsafe { init(info) });
}

/// Describes a model that is ready.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_model_get_info(
    model: runtime_model,
    info: *mut runtime_model_info,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        let model = MODELS.get(model.id)?;
        let (loaded, max_tokens) = (model.loaded()?, model.max_tokens()?);
        let c = loaded.config();
        let value = runtime_model_info {
            struct_size: 0,
            layers: c.layers as u32,
            hidden: c.hidden as u32,
            heads: c.heads as u32,
            kv_heads: c.kv_heads as u32,
            head_dim: c.head_dim as u32,
            vocab: c.vocab as u32,
            max_tokens: max_tokens as u32,
            max_positions: c.max_positions as u32,
            has_tokenizer: u32::from(loaded.tokenizer.is_some()),
            has_chat_template: u32::from(loaded.chat.is_some()),
            reserved: 0,
            weight_bytes: loaded.weight_bytes() as u64,
            name: text::array(&loaded.name),
            family: text::array(c.family.name()),
        };
        // SAFETY: the caller's promise.
        unsafe { options::write(info, &value) }
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_model_get_info", error, body) }
}

/// The model's chat template, as Jinja source. buffer, of capacity bytes, may be NULL to ask for the length; *len is the
/// length without the NUL, which is written where there is room.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_model_get_chat_template(
    model: runtime_model,
    buffer: *mut c_char,
    capacity: usize,
    len: *mut usize,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        let loaded = MODELS.get(model.id)?.loaded()?;
        // SAFETY: the caller's promise.
        unsafe { text::give_text(loaded.chat()?.source(), buffer, capacity, len) }
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_model_get_chat_template", error, body) }
}

/// Gives a model back. Its sessions, adapters and jobs keep it alive until they are released, too, in any order; then its
/// requests end as cancelled, and its memory is freed after one slice at the latest. Zero is allowed and does nothing; a
/// handle that was released before gives RUNTIME_ERROR_STALE_HANDLE. Releasing a model that is being loaded cancels that.
#[unsafe(no_mangle)]
pub extern "C" fn runtime_model_release(model: runtime_model) -> runtime_status {
    release("runtime_model_release", &MODELS, model.id)
}
