//! Models: load, release.

use super::error::{Failure, runtime_error};
use super::guard::guarded;
use super::handle::Handles;
use super::options::{self, Versioned};
use super::status::{RUNTIME_OK, runtime_status};
use super::text;
use crate::backend::{BackendChoice, ComputeType};
use crate::engine::{Engine, EngineOptions};
use crate::error::Error;
use crate::model::{LoadOptions, LoadedModel};
use std::ffi::c_char;
use std::path::Path;
use std::sync::Arc;

/// CUDA where there is a usable NVIDIA driver, else a hardware GPU through wgpu, else the CPU.
pub const RUNTIME_BACKEND_AUTO: i32 = 0;
/// An NVIDIA GPU through its driver.
pub const RUNTIME_BACKEND_CUDA: i32 = 1;
/// A GPU through Vulkan, Metal or DX12; a software adapter too.
pub const RUNTIME_BACKEND_WGPU: i32 = 2;
/// The host's processor.
pub const RUNTIME_BACKEND_CPU: i32 = 3;

/// The type that the device computes fastest in without losing quality.
pub const RUNTIME_COMPUTE_AUTO: i32 = 0;
/// 32-bit floating point throughout.
pub const RUNTIME_COMPUTE_F32: i32 = 1;
/// 16-bit floating-point operands, 32-bit sums.
pub const RUNTIME_COMPUTE_F16: i32 = 2;
/// bfloat16 operands, 32-bit sums.
pub const RUNTIME_COMPUTE_BF16: i32 = 3;

/// A loaded model. Copy it freely: it is a number, not a pointer. All functions on it may be called from any thread
/// at any time; a number that is no live model gives RUNTIME_ERROR_STALE_HANDLE, never undefined behaviour.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub struct runtime_model {
    /// Zero: no model.
    pub id: u64,
}

/// How to load a model. Zero in a field means its default; RUNTIME_MODEL_OPTIONS_INIT and
/// runtime_model_options_init set struct_size and leave the rest zero.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub struct runtime_model_options {
    /// sizeof(runtime_model_options) of the caller's header.
    pub struct_size: u32,
    /// One of RUNTIME_BACKEND.
    pub backend: i32,
    /// Position among that backend's devices, from 0, as `runtime devices` lists them.
    pub device: u32,
    /// One of RUNTIME_COMPUTE.
    pub compute: i32,
    /// Longest prompt and answer together, in tokens. 0: what the model was trained for, at most 8192.
    pub max_tokens: u32,
    /// Requests that run at the same time; more wait for their turn. 0: 16.
    pub max_requests: u32,
}

// SAFETY: integers only, no padding.
unsafe impl Versioned for runtime_model_options {
    const NAME: &'static str = "runtime_model_options";
    const FIRST_SIZE: usize = 24;
}

/// What a handle stands for: the engine keeps the weights alive.
pub(super) static MODELS: Handles<Engine> = Handles::new("model");

/// Sets all fields to their defaults. NULL is allowed and does nothing.
///
/// # Safety
/// `options` is NULL or points to a writable struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_model_options_init(options: *mut runtime_model_options) {
    if options.is_null() {
        return;
    }
    let struct_size = size_of::<runtime_model_options>() as u32;
    // SAFETY: not NULL, so writable.
    unsafe {
        options.write(runtime_model_options {
            struct_size,
            backend: RUNTIME_BACKEND_AUTO,
            device: 0,
            compute: RUNTIME_COMPUTE_AUTO,
            max_tokens: 0,
            max_requests: 0,
        });
    }
}

/// Loads a model and puts its weights on a device. The call returns when that is done: seconds, for a large model.
///
/// path names a .gguf file or a folder with config.json and .safetensors files; it is UTF-8, path_len bytes
/// long (SIZE_MAX: NUL-terminated). options may be NULL. On success *model is the new handle, to be given to
/// runtime_model_release once; on failure it is zero. error may be NULL.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_model_load(
    path: *const c_char,
    path_len: usize,
    options: *const runtime_model_options,
    model: *mut runtime_model,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        if model.is_null() {
            return Err(Error::invalid("model is NULL: there is no place for the handle").into());
        }
        // SAFETY: not NULL, so writable; the others are the caller's promise.
        let (path, options) = unsafe {
            model.write(runtime_model { id: 0 });
            (text::read("path", path, path_len)?, options::read(options)?)
        };
        if path.is_empty() {
            return Err(Error::invalid("path is empty").into());
        }
        let load = LoadOptions {
            backend: backend(options.backend)?,
            device: options.device as usize,
            compute: compute(options.compute)?,
            weights: None,
        };
        let mut sizes = EngineOptions::default();
        if options.max_tokens > 0 {
            sizes.max_len = Some(options.max_tokens as usize);
        }
        if options.max_requests > 0 {
            sizes.max_seqs = options.max_requests as usize;
        }
        let engine = Engine::start(LoadedModel::open(Path::new(path), &load)?, sizes)?;
        let id = MODELS.insert(Arc::new(engine))?;
        // SAFETY: not NULL, so writable.
        unsafe { model.write(runtime_model { id }) };
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { guarded(error, body) }
}

/// Gives a model back: its weights and caches are freed as soon as no call is using them any more. Zero is allowed and
/// does nothing; a handle that was released before gives RUNTIME_ERROR_STALE_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn runtime_model_release(model: runtime_model) -> runtime_status {
    if model.id == 0 {
        return RUNTIME_OK;
    }
    let body = || MODELS.remove(model.id).map(drop);
    // SAFETY: NULL is allowed.
    unsafe { guarded(std::ptr::null_mut(), body) }
}

fn backend(value: i32) -> Result<BackendChoice, Failure> {
    match value {
        RUNTIME_BACKEND_AUTO => Ok(BackendChoice::Auto),
        RUNTIME_BACKEND_CUDA => Ok(BackendChoice::Cuda),
        RUNTIME_BACKEND_WGPU => Ok(BackendChoice::Wgpu),
        RUNTIME_BACKEND_CPU => Ok(BackendChoice::Cpu),
        other => Err(Error::invalid(format!("backend is {other}, expected one of RUNTIME_BACKEND")).into()),
    }
}

fn compute(value: i32) -> Result<ComputeType, Failure> {
    match value {
        RUNTIME_COMPUTE_AUTO => Ok(ComputeType::Auto),
        RUNTIME_COMPUTE_F32 => Ok(ComputeType::F32),
        RUNTIME_COMPUTE_F16 => Ok(ComputeType::F16),
        RUNTIME_COMPUTE_BF16 => Ok(ComputeType::BF16),
        other => Err(Error::invalid(format!("compute is {other}, expected one of RUNTIME_COMPUTE")).into()),
    }
}
