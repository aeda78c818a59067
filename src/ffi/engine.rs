//! Engines: one device, its memory and its queue of events.

use super::error::{Failure, runtime_error};
use super::guard::{guarded, shielded};
use super::handle::Handles;
use super::options::{self, Versioned, init};
use super::session::{closed, opened};
use super::status::{RUNTIME_OK, runtime_status};
use crate::backend::{BackendChoice, ComputeType};
use crate::embed::{Host, HostOptions};
use crate::error::Error;
use std::sync::Arc;
use std::time::Duration;

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

/// The engine works on a thread of its own.
pub const RUNTIME_RUN_THREAD: i32 = 0;
/// The engine works while runtime_engine_step is called, for example once a frame.
pub const RUNTIME_RUN_STEPPED: i32 = 1;

/// An engine: a device, all that lies on it, and the queue of what happened. A program usually has one. Copy it freely:
/// it is a number, not a pointer.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub struct runtime_engine {
    /// Zero: no engine.
    pub id: u64,
}

/// How to make an engine. Zero in a field means its default.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub struct runtime_engine_options {
    /// sizeof(runtime_engine_options) of the caller's header.
    pub struct_size: u32,
    /// One of RUNTIME_BACKEND.
    pub backend: i32,
    /// Position among that backend's devices, from 0: `index` of runtime_device_info.
    pub device: u32,
    /// One of RUNTIME_COMPUTE.
    pub compute: i32,
    /// One of RUNTIME_RUN.
    pub run_mode: i32,
    /// Must be zero.
    pub reserved: u32,
    /// See runtime_engine_set_memory_limit.
    pub soft_limit: u64,
    /// See runtime_engine_set_memory_limit.
    pub hard_limit: u64,
}

// SAFETY: integers only, no padding.
unsafe impl Versioned for runtime_engine_options {
    const NAME: &'static str = "runtime_engine_options";
    const FIRST_SIZE: usize = 40;
}

/// What a handle stands for.
pub(super) static ENGINES: Handles<Host> = Handles::new("engine");

/// Sets struct_size and clears the rest: all defaults. NULL is allowed and does nothing.
///
/// # Safety
/// `options` is NULL or points to a writable struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_engine_options_init(options: *mut runtime_engine_options) {
    // SAFETY: the caller's promise.
    shielded("runtime_engine_options_init", (), || unsafe { init(options) });
}

/// The options that a caller gave.
///
/// # Safety
/// As [`options::read`].
pub(super) unsafe fn read(options: *const runtime_engine_options) -> Result<HostOptions, Failure> {
    // SAFETY: the caller's promise.
    let options = unsafe { options::read(options)? };
    if options.reserved != 0 {
        return Err(Error::invalid("runtime_engine_options: reserved is not zero").into());
    }
    Ok(HostOptions {
        backend: backend(options.backend)?,
        device: options.device as usize,
        compute: compute(options.compute)?,
        stepped: match options.run_mode {
            RUNTIME_RUN_THREAD => false,
            RUNTIME_RUN_STEPPED => true,
            other => return Err(Error::invalid(format!("run_mode is {other}, expected one of RUNTIME_RUN")).into()),
        },
        soft_limit: options.soft_limit,
        hard_limit: options.hard_limit,
    })
}

/// Makes an engine and gives its handle to the caller; zero where it cannot be made.
///
/// # Safety
/// `engine` is NULL or valid.
pub(super) unsafe fn create(
    engine: *mut runtime_engine,
    make: impl FnOnce() -> Result<Arc<Host>, Failure>,
) -> Result<(), Failure> {
    // SAFETY: the caller's promise.
    let out = unsafe { place("engine", engine)? };
    out.id = 0;
    let host = make()?;
    out.id = ENGINES.insert(host.clone())?;
    opened(&host);
    Ok(())
}

/// Opens a device and makes an engine on it. Nothing of the library touches a GPU or starts a thread before this.
///
/// options may be NULL. On success *engine is the new handle, to be given to runtime_engine_release once; on failure it
/// is zero. error may be NULL.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_engine_create(
    options: *const runtime_engine_options,
    engine: *mut runtime_engine,
    error: *mut runtime_error,
) -> runtime_status {
    // SAFETY: the caller's promise.
    let body = || unsafe { create(engine, || Ok(Host::new(read(options)?)?)) };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_engine_create", error, body) }
}

/// Gives an engine back: it cannot be polled any more, and takes no more requests. Its models, sessions and jobs keep it alive
/// until they are released, too, in any order; then its memory is freed and its threads end, after one slice at the latest.
/// Zero is allowed and does nothing.
#[unsafe(no_mangle)]
pub extern "C" fn runtime_engine_release(engine: runtime_engine) -> runtime_status {
    let body = || match engine.id {
        0 => Ok(()),
        id => ENGINES.remove(id).map(|host| closed(&host)),
    };
    // SAFETY: NULL is allowed.
    unsafe { guarded("runtime_engine_release", std::ptr::null_mut(), body) }
}

/// Works for up to budget_us microseconds, on the calling thread; for an engine of RUNTIME_RUN_STEPPED. *busy (may be
/// NULL) is 1 when there is more to do, else 0.
///
/// Prompts, answers and training are cut into slices that end with the budget: on the CPU within some tenths of a
/// millisecond, through wgpu within one operation of the model, on CUDA within a few operations of a training step and
/// between the steps of an answer. Call it once a frame from one thread; a second thread gets RUNTIME_ERROR_BUSY. Models
/// are loaded and jobs are prepared on threads of their own meanwhile.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_engine_step(
    engine: runtime_engine,
    budget_us: u32,
    busy: *mut u32,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        let more = ENGINES.get(engine.id)?.step(Duration::from_micros(u64::from(budget_us)))?;
        // SAFETY: NULL or writable.
        if let Some(busy) = unsafe { busy.as_mut() } {
            *busy = u32::from(more);
        }
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_engine_step", error, body) }
}

/// Works on nothing from the next slice on, until runtime_engine_resume. Loading goes on, cancelling works.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_engine_pause(engine: runtime_engine, error: *mut runtime_error) -> runtime_status {
    let body = || ENGINES.get(engine.id).map(|object| object.pause(true));
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_engine_pause", error, body) }
}

/// Goes on after runtime_engine_pause.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_engine_resume(engine: runtime_engine, error: *mut runtime_error) -> runtime_status {
    let body = || ENGINES.get(engine.id).map(|object| object.pause(false));
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_engine_resume", error, body) }
}

/// The place for a result that must not be NULL.
///
/// # Safety
/// `out` is NULL or points to a writable value that nobody else uses meanwhile.
pub(super) unsafe fn place<'a, T>(what: &str, out: *mut T) -> Result<&'a mut T, Failure> {
    // SAFETY: the caller's promise is passed on.
    unsafe { out.as_mut() }
        .ok_or_else(|| Error::invalid(format!("{what} is NULL: there is no place for the result")).into())
}

/// Takes an object out of its map and drops it without the lock; zero is no object.
pub(super) fn release<T>(name: &str, map: &Handles<T>, id: u64) -> runtime_status {
    let body = || match id {
        0 => Ok(()),
        id => map.remove(id).map(drop),
    };
    // SAFETY: NULL is allowed.
    let status = unsafe { guarded(name, std::ptr::null_mut(), body) };
    debug_assert!(status <= RUNTIME_OK);
    status
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
