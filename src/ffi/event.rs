//! The queue: poll, wait, wake.

use super::engine::{ENGINES, runtime_engine};
use super::error::{Failure, runtime_error};
use super::guard::{guarded, shielded};
use super::options::{self, Versioned, init};
use super::session::heard;
use super::status::{RUNTIME_OK, runtime_status, status_of};
use crate::embed::{Event, EventKind};
use crate::engine::FinishReason;
use crate::error::Error;
use std::ffi::{c_char, c_void};
use std::sync::Arc;
use std::time::Duration;

/// More of a model was loaded: `done` of `total` bytes. object: the model.
pub const RUNTIME_EVENT_MODEL_PROGRESS: i32 = 0;
/// A model can be used, or status says why not. object: the model.
pub const RUNTIME_EVENT_MODEL_READY: i32 = 1;
/// More of an answer: `text`, the tokens `ids` that end in it, and, where they were asked for, their log-probabilities
/// `values`. object: the request.
pub const RUNTIME_EVENT_TEXT: i32 = 2;
/// The end of a request: status and finish_reason say why, `text` is the stop string that ended it or the error's
/// message; counts and times. object: the request, whose handle is no longer valid.
pub const RUNTIME_EVENT_REQUEST_DONE: i32 = 3;
/// The end of a request for an embedding: `values`. object: the request, whose handle is no longer valid.
pub const RUNTIME_EVENT_EMBEDDING: i32 = 4;
/// The end of a request for log-probabilities: `values`, in nat, of each token after the first. object: the request,
/// whose handle is no longer valid.
pub const RUNTIME_EVENT_SCORES: i32 = 5;
/// A training job can be started, or status says why not; `total` is the number of its steps. object: the job.
pub const RUNTIME_EVENT_TRAINING_READY: i32 = 6;
/// An optimizer step was done: `done` of `total`, loss, grad_norm, learning_rate. object: the job.
pub const RUNTIME_EVENT_TRAINING_STEP: i32 = 7;
/// A training job is over: done, cancelled, or failed. object: the job.
pub const RUNTIME_EVENT_TRAINING_DONE: i32 = 8;
/// Memory in use has passed the soft limit: `done` bytes, of `total`. Comes once until it has fallen below. object: 0.
pub const RUNTIME_EVENT_MEMORY_PRESSURE: i32 = 9;

/// Not the end of an answer.
pub const RUNTIME_FINISH_NONE: i32 = 0;
/// The model ended the answer, or a stop string or the grammar did.
pub const RUNTIME_FINISH_STOP: i32 = 1;
/// max_tokens or the context was used up.
pub const RUNTIME_FINISH_LENGTH: i32 = 2;
/// It was cancelled.
pub const RUNTIME_FINISH_CANCELLED: i32 = 3;

/// One thing that happened. Fields that do not belong to its type are zero.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub struct runtime_event {
    /// sizeof(runtime_event) of the caller's header.
    pub struct_size: u32,
    /// One of RUNTIME_EVENT. New ones may come: pass over those you do not know.
    pub r#type: i32,
    /// The id of the model, request or training job.
    pub object: u64,
    /// `userdata` of the options that the object was made with.
    pub userdata: u64,
    /// RUNTIME_OK, or why the work failed; then text is the message.
    pub status: runtime_status,
    /// One of RUNTIME_FINISH.
    pub finish_reason: i32,
    /// UTF-8, text_len bytes, NOT NUL-terminated, whole characters only. Borrowed until the next runtime_engine_poll.
    pub text: *const c_char,
    /// Bytes of text.
    pub text_len: usize,
    /// Tokens. Borrowed until the next runtime_engine_poll.
    pub ids: *const u32,
    /// How many.
    pub id_count: usize,
    /// Numbers. Borrowed until the next runtime_engine_poll.
    pub values: *const f32,
    /// How many.
    pub value_count: usize,
    /// Bytes or steps done.
    pub done: u64,
    /// Of so many.
    pub total: u64,
    /// Mean loss of a training step, in nat a token.
    pub loss: f64,
    /// Norm of its gradient before clipping.
    pub grad_norm: f64,
    /// Its learning rate.
    pub learning_rate: f64,
    /// Seconds since the work was asked for.
    pub seconds: f64,
    /// Of a request: seconds that it waited.
    pub queue_seconds: f64,
    /// Of a request: seconds from its first step to its first token.
    pub prefill_seconds: f64,
    /// Of a request: seconds from its first token to its last.
    pub decode_seconds: f64,
    /// Of a request: tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of a request: how many of them were computed before, for another request that began in the same way.
    pub cached_tokens: u32,
    /// Of a request: tokens of the answer.
    pub generated_tokens: u32,
    /// Zero.
    pub reserved: u32,
}

// SAFETY: integers, floats and pointers, which may hold any bits; no padding.
unsafe impl Versioned for runtime_event {
    const NAME: &'static str = "runtime_event";
    const FIRST_SIZE: usize = size_of::<runtime_event>();
}

/// Called when events have come into an empty queue, on whichever thread they came from, under no lock. It may only
/// signal the program: set a flag, post to an event loop.
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub type runtime_wake_fn = Option<unsafe extern "C" fn(userdata: *mut c_void)>;

/// Sets struct_size and clears the rest. NULL is allowed and does nothing.
///
/// # Safety
/// `event` is NULL or points to a writable struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_event_init(event: *mut runtime_event) {
    // SAFETY: the caller's promise.
    shielded("runtime_event_init", (), || unsafe { init(event) });
}

/// Takes up to capacity events out of the queue, in order, and writes how many to *count. Never waits for work: call it
/// once a frame.
///
/// events is an array; events[0].struct_size, set by runtime_event_init or RUNTIME_EVENT_INIT, is the size of its
/// elements (0: that of the first version). Text and numbers are borrowed until the next poll of the same engine, so poll
/// from one thread at a time.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_engine_poll(
    engine: runtime_engine,
    events: *mut runtime_event,
    capacity: usize,
    count: *mut usize,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        // SAFETY: the caller's promise.
        let count = unsafe { super::engine::place("count", count)? };
        *count = 0;
        let host = ENGINES.get(engine.id)?;
        if capacity == 0 {
            return Ok(());
        }
        if events.is_null() {
            return Err(Error::invalid("events is NULL").into());
        }
        let array = events.cast::<u8>();
        // SAFETY: an element begins with its size.
        let size = match unsafe { array.cast::<u32>().read_unaligned() } as usize {
            0 => runtime_event::FIRST_SIZE,
            size => size,
        };
        if !(runtime_event::FIRST_SIZE..=4096).contains(&size) || !size.is_multiple_of(8) {
            return Err(Error::invalid(format!(
                "events[0].struct_size is {size}, expected {}: initialise it with the macro or the _init function",
                size_of::<runtime_event>()
            ))
            .into());
        }
        let mut result = Ok(());
        *count = host.poll(capacity, &mut |index, event| {
            // SAFETY: the array has `capacity` elements of `size` bytes.
            let written = unsafe {
                let element = array.add(index * size);
                element.cast::<u32>().write_unaligned(size as u32);
                options::write(element.cast::<runtime_event>(), &translated(event))
            };
            if matches!(event.kind, EventKind::RequestDone | EventKind::Embedding | EventKind::Scores) {
                heard(&host, event.object);
            }
            result = written;
        });
        result
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_engine_poll", error, body) }
}

fn translated(event: &Event) -> runtime_event {
    runtime_event {
        struct_size: 0,
        r#type: match event.kind {
            EventKind::ModelProgress => RUNTIME_EVENT_MODEL_PROGRESS,
            EventKind::ModelReady => RUNTIME_EVENT_MODEL_READY,
            EventKind::Text => RUNTIME_EVENT_TEXT,
            EventKind::RequestDone => RUNTIME_EVENT_REQUEST_DONE,
            EventKind::Embedding => RUNTIME_EVENT_EMBEDDING,
            EventKind::Scores => RUNTIME_EVENT_SCORES,
            EventKind::TrainingReady => RUNTIME_EVENT_TRAINING_READY,
            EventKind::TrainingStep => RUNTIME_EVENT_TRAINING_STEP,
            EventKind::TrainingDone => RUNTIME_EVENT_TRAINING_DONE,
            EventKind::MemoryPressure => RUNTIME_EVENT_MEMORY_PRESSURE,
        },
        object: event.object,
        userdata: event.userdata,
        status: event.error.as_ref().map_or(RUNTIME_OK, status_of),
        finish_reason: match event.reason {
            None => RUNTIME_FINISH_NONE,
            Some(FinishReason::Stop) => RUNTIME_FINISH_STOP,
            Some(FinishReason::Length) => RUNTIME_FINISH_LENGTH,
            Some(FinishReason::Cancelled | FinishReason::Deadline) => RUNTIME_FINISH_CANCELLED,
        },
        text: event.text.as_ptr().cast(),
        text_len: event.text.len(),
        ids: event.ids.as_ptr(),
        id_count: event.ids.len(),
        values: event.values.as_ptr(),
        value_count: event.values.len(),
        done: event.done,
        total: event.total,
        loss: event.loss,
        grad_norm: event.grad_norm,
        learning_rate: event.lr,
        seconds: event.seconds,
        queue_seconds: event.usage.queue_s,
        prefill_seconds: event.usage.prefill_s,
        decode_seconds: event.usage.decode_s,
        prompt_tokens: event.usage.prompt_tokens as u32,
        cached_tokens: event.usage.cached_tokens as u32,
        generated_tokens: event.usage.completion_tokens as u32,
        reserved: 0,
    }
}

/// Waits until there is an event, for up to timeout_ms milliseconds (UINT32_MAX: for ever). *ready (may be NULL) is 1 when
/// there is one, else 0. For a program without an event loop; with RUNTIME_RUN_STEPPED nothing happens while it waits but
/// loading.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_engine_wait(
    engine: runtime_engine,
    timeout_ms: u32,
    ready: *mut u32,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        let timeout = (timeout_ms != u32::MAX).then(|| Duration::from_millis(u64::from(timeout_ms)));
        let found = ENGINES.get(engine.id)?.wait(timeout);
        // SAFETY: NULL or writable.
        if let Some(ready) = unsafe { ready.as_mut() } {
            *ready = u32::from(found);
        }
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_engine_wait", error, body) }
}

/// Where a callback's first argument travels between threads.
#[derive(Clone, Copy)]
pub(super) struct Userdata(pub *mut c_void);

// SAFETY: the header says that callbacks are called on any thread; what the pointer means is the caller's business.
unsafe impl Send for Userdata {}
// SAFETY: as above.
unsafe impl Sync for Userdata {}

impl Userdata {
    /// The pointer. A method, so that closures capture all of it.
    pub fn get(&self) -> *mut c_void {
        self.0
    }
}

/// Sets the function that is called when events have come into an empty queue; NULL: none. When this returns, the one
/// before is not called any more, and its userdata may go (unless this is called from within it).
///
/// # Safety
/// `wake` may be called on any thread with `userdata` until it is replaced or the engine is gone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_engine_set_wake_callback(
    engine: runtime_engine,
    wake: runtime_wake_fn,
    userdata: *mut c_void,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || -> Result<(), Failure> {
        let userdata = Userdata(userdata);
        let wake = wake.map(|wake| {
            let call: crate::embed::Wake = Arc::new(move || {
                // SAFETY: the caller's function with its own userdata.
                unsafe { wake(userdata.get()) }
            });
            call
        });
        ENGINES.get(engine.id)?.set_wake(wake);
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_engine_set_wake_callback", error, body) }
}
