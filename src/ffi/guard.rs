//! Every entry point runs in here: errors become statuses, and so do panics.

use super::error::{Failure, report, runtime_error};
use super::status::{RUNTIME_OK, runtime_status};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs the body of an entry point, fills the caller's error record and returns the status.
///
/// # Safety
/// `error` is NULL or a caller's `runtime_error`, as the header demands.
pub(super) unsafe fn guarded(error: *mut runtime_error, body: impl FnOnce() -> Result<(), Failure>) -> runtime_status {
    // What a panicking body leaves behind is reached through handles only, whose locks ignore poison and whose
    // objects are either complete or absent.
    let result = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(Failure::Panic(text.unwrap_or_else(|| "a panic without a message".into())))
    });
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
        let status = unsafe { guarded(&mut error, || panic!("injected")) };
        assert_eq!((status, error.code), (RUNTIME_ERROR_PANIC, RUNTIME_ERROR_PANIC));
        assert!(text(&error).contains("injected"), "{}", text(&error));
    }

    #[test]
    fn success_clears_the_record() {
        let mut error = record(0);
        // SAFETY: a record of our own.
        assert_eq!(unsafe { guarded(&mut error, || Ok(())) }, RUNTIME_OK);
        assert_eq!((error.code, error.detail, text(&error)), (RUNTIME_OK, 0, ""));
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let mut error = record(0);
        // SAFETY: a record of our own.
        let status = unsafe { guarded(&mut error, || Err(Error::invalid("é".repeat(400)).into())) };
        assert_eq!(status, RUNTIME_ERROR_INVALID_ARGUMENT);
        assert_eq!(text(&error), "é".repeat(255));
    }

    #[test]
    fn a_small_record_is_not_overrun() {
        let mut error = record(16);
        // SAFETY: a record of our own.
        unsafe { guarded(&mut error, || Err(Error::invalid("long enough").into())) };
        assert_eq!(error.message[..5].iter().map(|c| *c as u8).collect::<Vec<_>>(), b"lon\0x");
    }
}
