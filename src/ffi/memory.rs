//! Memory, pacing, metrics, log.

use super::engine::{ENGINES, runtime_engine};
use super::error::runtime_error;
use super::event::Userdata;
use super::guard::{guarded, shielded};
use super::options::{self, Versioned, init};
use super::status::runtime_status;
use crate::backend::metered::Purpose;
use crate::embed::{Level, LogSink, Pacing, PacingMode};
use crate::error::Error;
use std::ffi::{c_char, c_void};
use std::sync::Arc;
use std::time::Duration;

/// Bytes in use, by purpose. The peaks are the most so far.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub struct runtime_memory_info {
    /// sizeof(runtime_memory_info) of the caller's header.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// The models' tensors, and the places of adapters. On the CPU those of a file are mapped: the system keeps in memory
    /// what is used.
    pub weights: u64,
    /// Keys and values.
    pub kv: u64,
    /// What steps compute on the way, and their results.
    pub activations: u64,
    /// Gradients and the state of optimizers.
    pub optimizer: u64,
    /// Files that were read into the host's memory, or given as buffers.
    pub host: u64,
    /// All of these.
    pub total: u64,
    /// Peak of weights.
    pub weights_peak: u64,
    /// Peak of kv.
    pub kv_peak: u64,
    /// Peak of activations.
    pub activations_peak: u64,
    /// Peak of optimizer.
    pub optimizer_peak: u64,
    /// Peak of host.
    pub host_peak: u64,
    /// Peak of total.
    pub total_peak: u64,
    /// The soft limit; 0: none.
    pub soft_limit: u64,
    /// The hard limit; 0: none.
    pub hard_limit: u64,
    /// Bytes of the device that are free, for all programs; 0 where the driver does not say.
    pub device_free: u64,
    /// Bytes of the device; 0 where the driver does not say.
    pub device_total: u64,
}

// SAFETY: integers only, no padding.
unsafe impl Versioned for runtime_memory_info {
    const NAME: &'static str = "runtime_memory_info";
    const FIRST_SIZE: usize = 136;
}

/// Sets struct_size and clears the rest. NULL is allowed and does nothing.
///
/// # Safety
/// `info` is NULL or points to a writable struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_memory_info_init(info: *mut runtime_memory_info) {
    // SAFETY: the caller's promise.
    shielded("runtime_memory_info_init", (), || unsafe { init(info) });
}

/// What the engine uses.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_engine_get_memory_info(
    engine: runtime_engine,
    info: *mut runtime_memory_info,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        let host = ENGINES.get(engine.id)?;
        let usage = host.memory();
        let device = host.device().free_memory()?;
        let (used, peak) = (|p: Purpose| usage.used[p as usize], |p: Purpose| usage.peak[p as usize]);
        let value = runtime_memory_info {
            struct_size: 0,
            reserved: 0,
            weights: used(Purpose::Weights),
            kv: used(Purpose::Kv),
            activations: used(Purpose::Activations),
            optimizer: used(Purpose::Optimizer),
            host: used(Purpose::Host),
            total: usage.total(),
            weights_peak: peak(Purpose::Weights),
            kv_peak: peak(Purpose::Kv),
            activations_peak: peak(Purpose::Activations),
            optimizer_peak: peak(Purpose::Optimizer),
            host_peak: peak(Purpose::Host),
            total_peak: usage.total_peak,
            soft_limit: usage.soft,
            hard_limit: usage.hard,
            device_free: device.map_or(0, |(free, _)| free),
            device_total: device.map_or(0, |(_, total)| total),
        };
        // SAFETY: the caller's promise.
        unsafe { options::write(info, &value) }
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_engine_get_memory_info", error, body) }
}

/// Limits what the engine may use, in bytes; 0: no limit. Beyond the hard limit nothing is given: the call or the work that
/// asked gets RUNTIME_ERROR_OUT_OF_MEMORY, and what exists stays. Beyond the soft limit the engine gives back what it can
/// make again, and RUNTIME_EVENT_MEMORY_PRESSURE comes.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_engine_set_memory_limit(
    engine: runtime_engine,
    soft_limit: u64,
    hard_limit: u64,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || Ok(ENGINES.get(engine.id)?.set_memory_limit(soft_limit, hard_limit)?);
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_engine_set_memory_limit", error, body) }
}

/// Gives back, before the next slice, what can be made again. The slices that need it take longer once.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_engine_trim(engine: runtime_engine, error: *mut runtime_error) -> runtime_status {
    let body = || ENGINES.get(engine.id).map(|object| object.trim());
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_engine_trim", error, body) }
}

/// Requests get three quarters of the time while a job trains.
pub const RUNTIME_PACING_BALANCED: i32 = 0;
/// Jobs only train while no request runs.
pub const RUNTIME_PACING_REQUESTS_FIRST: i32 = 1;
/// Requests get a quarter of the time while a job trains.
pub const RUNTIME_PACING_TRAINING_FIRST: i32 = 2;

/// How much of the device the engine takes, and for what. Zero in a field means its default.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub struct runtime_pacing {
    /// sizeof(runtime_pacing) of the caller's header.
    pub struct_size: u32,
    /// One of RUNTIME_PACING.
    pub mode: i32,
    /// Longest slice of the engine's own thread, in microseconds: what cancelling waits for. 0: 10,000.
    pub max_slice_us: u32,
    /// Must be zero.
    pub reserved: u32,
    /// Tokens that all answers together may get in a second: a reading speed leaves the device to others. 0: no limit.
    pub tokens_per_s: f64,
}

// SAFETY: integers and a float, no padding.
unsafe impl Versioned for runtime_pacing {
    const NAME: &'static str = "runtime_pacing";
    const FIRST_SIZE: usize = 24;
}

/// Sets struct_size and clears the rest: all defaults. NULL is allowed and does nothing.
///
/// # Safety
/// `pacing` is NULL or points to a writable struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_pacing_init(pacing: *mut runtime_pacing) {
    // SAFETY: the caller's promise.
    shielded("runtime_pacing_init", (), || unsafe { init(pacing) });
}

/// Sets the pace, from the next slice on. pacing may be NULL: all defaults.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_engine_set_pacing(
    engine: runtime_engine,
    pacing: *const runtime_pacing,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        // SAFETY: the caller's promise.
        let pacing = unsafe { options::read(pacing)? };
        let mode = match pacing.mode {
            RUNTIME_PACING_BALANCED => PacingMode::Balanced,
            RUNTIME_PACING_REQUESTS_FIRST => PacingMode::RequestsFirst,
            RUNTIME_PACING_TRAINING_FIRST => PacingMode::TrainingFirst,
            other => return Err(Error::invalid(format!("mode is {other}, expected one of RUNTIME_PACING")).into()),
        };
        let max_slice = match pacing.max_slice_us {
            0 => Pacing::default().max_slice,
            us => Duration::from_micros(u64::from(us)),
        };
        let pacing = Pacing { mode, max_slice, tokens_per_s: pacing.tokens_per_s };
        Ok(ENGINES.get(engine.id)?.set_pacing(pacing)?)
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_engine_set_pacing", error, body) }
}

/// What the work took. Quantiles are over the latest 1,024.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub struct runtime_metrics {
    /// sizeof(runtime_metrics) of the caller's header.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Slices so far.
    pub slices: u64,
    /// Slices that took more than 1.25 times their budget.
    pub overruns: u64,
    /// Tokens of answers so far.
    pub tokens: u64,
    /// Requests that ended.
    pub requests: u64,
    /// Half of the slices took no longer, in seconds.
    pub slice_p50: f64,
    /// 99 of 100 slices took no longer, in seconds.
    pub slice_p99: f64,
    /// Tokens of answers a second, over the time that was spent on requests.
    pub tokens_per_s: f64,
    /// Half of the requests had their first token after so many seconds.
    pub ttft_p50: f64,
    /// 99 of 100 requests had.
    pub ttft_p99: f64,
}

// SAFETY: integers and floats, no padding.
unsafe impl Versioned for runtime_metrics {
    const NAME: &'static str = "runtime_metrics";
    const FIRST_SIZE: usize = 80;
}

/// Sets struct_size and clears the rest. NULL is allowed and does nothing.
///
/// # Safety
/// `metrics` is NULL or points to a writable struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_metrics_init(metrics: *mut runtime_metrics) {
    // SAFETY: the caller's promise.
    shielded("runtime_metrics_init", (), || unsafe { init(metrics) });
}

/// What the work took so far.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_engine_get_metrics(
    engine: runtime_engine,
    metrics: *mut runtime_metrics,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        let m = ENGINES.get(engine.id)?.metrics();
        let value = runtime_metrics {
            struct_size: 0,
            reserved: 0,
            slices: m.slices,
            overruns: m.overruns,
            tokens: m.tokens,
            requests: m.requests,
            slice_p50: m.slice_p50,
            slice_p99: m.slice_p99,
            tokens_per_s: m.tokens_per_s,
            ttft_p50: m.ttft_p50,
            ttft_p99: m.ttft_p99,
        };
        // SAFETY: the caller's promise.
        unsafe { options::write(metrics, &value) }
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_engine_get_metrics", error, body) }
}

/// No lines.
pub const RUNTIME_LOG_OFF: i32 = 0;
/// What failed.
pub const RUNTIME_LOG_ERROR: i32 = 1;
/// And what may not be what the program wants.
pub const RUNTIME_LOG_WARN: i32 = 2;
/// And what began and ended.
pub const RUNTIME_LOG_INFO: i32 = 3;

/// Takes a line of the log: UTF-8, len bytes, NOT NUL-terminated, valid during the call. Called on any thread; it must
/// not call the library.
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub type runtime_log_fn =
    Option<unsafe extern "C" fn(userdata: *mut c_void, level: i32, line: *const c_char, len: usize)>;

/// Sends the engine's log to a function, up to a level of RUNTIME_LOG. Without this, and with NULL, nothing is logged.
/// userdata must stay valid until the engine and all of its objects are gone.
///
/// # Safety
/// `log` may be called on any thread with `userdata`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_engine_set_log(
    engine: runtime_engine,
    level: i32,
    log: runtime_log_fn,
    userdata: *mut c_void,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        let level = match level {
            RUNTIME_LOG_OFF => None,
            RUNTIME_LOG_ERROR => Some(Level::Error),
            RUNTIME_LOG_WARN => Some(Level::Warn),
            RUNTIME_LOG_INFO => Some(Level::Info),
            other => return Err(Error::invalid(format!("level is {other}, expected one of RUNTIME_LOG")).into()),
        };
        let userdata = Userdata(userdata);
        let sink = level.zip(log).map(|(level, log)| {
            let sink: LogSink = Arc::new(move |level, line| {
                let level = match level {
                    Level::Error => RUNTIME_LOG_ERROR,
                    Level::Warn => RUNTIME_LOG_WARN,
                    Level::Info => RUNTIME_LOG_INFO,
                };
                // SAFETY: the caller's function with its own userdata; the line outlives the call.
                unsafe { log(userdata.get(), level, line.as_ptr().cast(), line.len()) }
            });
            (level, sink)
        });
        ENGINES.get(engine.id)?.set_log(sink);
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_engine_set_log", error, body) }
}
