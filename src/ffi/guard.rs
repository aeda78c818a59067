//! Every entry point runs in here: errors become statuses, and so do panics.

use super::error::{Failure, report, runtime_error};
use super::status::{RUNTIME_OK, runtime_status};
use crate::embed::faults;
use crate::engine::panic_message;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// An entry point is running on this thread.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// A caught panic must not print: Rust's default hook does. Panics of others keep the hook that there was; in a shared library
/// there are no others, since it has a standard library of its own.
fn silence_own_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let thread = std::thread::current();
            // Threads of the engine, and the unnamed ones of the CPU backend's pool.
            let own = GUARDED.get() || thread.name().is_none_or(|name| name.starts_with("runtime-"));
            if !own {
                before(info);
            }
        }));
    });
}

fn caught<R>(body: impl FnOnce() -> R) -> Result<R, Failure> {
    silence_own_panics();
    let before = GUARDED.replace(true);
    // What a panicking body leaves behind is reached through handles only, whose locks ignore poison and whose
    // objects are either complete or absent.
    let result = catch_unwind(AssertUnwindSafe(body));
    GUARDED.set(before);
    result.map_err(|panic| {
        // A payload's own destructor may panic, too: it is left alone.
        let message = panic_message(&*panic);
        std::mem::forget(panic);
        Failure::Panic(message)
    })
}

/// Runs the body of a function that has no status to return; `default` where it panics.
pub(super) fn shielded<R>(name: &str, default: R, body: impl FnOnce() -> R) -> R {
    caught(|| {
        faults::point(name);
        body()
    })
    .unwrap_or(default)
}

/// Runs the body of an entry point, fills the caller's error record and returns the status.
///
/// # Safety
/// `error` is NULL or a caller's `runtime_error`, as the header demands.
pub(super) unsafe fn guarded(
    name: &str,
    error: *mut runtime_error,
    body: impl FnOnce() -> Result<(), Failure>,
) -> runtime_status {
    let result = caught(|| {
        faults::point(name);
        body()
    });
    let result = result.unwrap_or_else(Err);
    // SAFETY: the caller's promise is passed on.
    unsafe { report(error, &result) };
    result.map_or_else(|failure| failure.status(), |()| RUNTIME_OK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::ffi::status::{RUNTIME_ERROR_INVALID_ARGUMENT, RUNTIME_ERROR_PANIC};
    use std::ffi::{CStr, c_char};

    fn record(struct_size: u32) -> runtime_error {
        runtime_error { struct_size, code: 77, detail: 77, message: [b'x' as c_char; 512] }
    }

    fn text(error: &runtime_error) -> &str {
        // SAFETY: the library has ended it with a NUL.
        unsafe { CStr::from_ptr(error.message.as_ptr()) }.to_str().unwrap()
    }

    #[test]
    fn a_panic_becomes_a_status() {
        let mut error = record(size_of::<runtime_error>() as u32);
        // SAFETY: a record of our own.
        let status = unsafe { guarded("test", &mut error, || panic!("injected")) };
        assert_eq!((status, error.code), (RUNTIME_ERROR_PANIC, RUNTIME_ERROR_PANIC));
        assert!(text(&error).contains("injected"), "{}", text(&error));
    }

    #[test]
    fn success_clears_the_record() {
        let mut error = record(0);
        // SAFETY: a record of our own.
        assert_eq!(unsafe { guarded("test", &mut error, || Ok(())) }, RUNTIME_OK);
        assert_eq!((error.code, error.detail, text(&error)), (RUNTIME_OK, 0, ""));
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let mut error = record(0);
        // SAFETY: a record of our own.
        let status = unsafe { guarded("test", &mut error, || Err(Error::invalid("é".repeat(400)).into())) };
        assert_eq!(status, RUNTIME_ERROR_INVALID_ARGUMENT);
        assert_eq!(text(&error), "é".repeat(255));
    }

    #[test]
    fn a_small_record_is_not_overrun() {
        let mut error = record(16);
        // SAFETY: a record of our own.
        unsafe { guarded("test", &mut error, || Err(Error::invalid("long enough").into())) };
        assert_eq!(error.message[..5].iter().map(|c| *c as u8).collect::<Vec<_>>(), b"lon\0x");
    }
}
