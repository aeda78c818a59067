//! The caller-owned error record, and the error type that entry points use before it becomes one.

use super::guard::shielded;
use super::options::{Versioned, init};
use super::status::{
    RUNTIME_ERROR_BUFFER_TOO_SMALL, RUNTIME_ERROR_PANIC, RUNTIME_ERROR_STALE_HANDLE, RUNTIME_OK, runtime_status,
    status_of,
};
use crate::error::Error;
use std::ffi::c_char;
use std::mem::offset_of;

/// Where a call reports what went wrong. It belongs to the caller, is optional everywhere (pass NULL), holds
/// no pointer and needs no release. A call that succeeds sets code to RUNTIME_OK and message to "".
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub struct runtime_error {
    /// sizeof(runtime_error) of the caller's header; RUNTIME_ERROR_INIT sets it.
    pub struct_size: u32,
    /// The status that the call returned.
    pub code: runtime_status,
    /// What the operating system said (errno), or 0.
    pub detail: i32,
    /// One line of UTF-8 in English, NUL-terminated, cut where it is too long.
    pub message: [c_char; 512],
}

// SAFETY: integers only, no padding.
unsafe impl Versioned for runtime_error {
    const NAME: &'static str = "runtime_error";
    const FIRST_SIZE: usize = 524;
}

/// Sets struct_size and clears the rest, as RUNTIME_ERROR_INIT does. NULL is allowed and does nothing.
///
/// # Safety
/// `error` is NULL or points to a writable struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_error_init(error: *mut runtime_error) {
    // SAFETY: the caller's promise.
    shielded("runtime_error_init", (), || unsafe { init(error) });
}

/// Why an entry point failed.
pub(super) enum Failure {
    Error(Error),
    StaleHandle(&'static str),
    /// The caller's buffer has no room for so many elements.
    TooSmall(usize),
    Panic(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl Failure {
    pub(super) fn status(&self) -> runtime_status {
        match self {
            Self::Error(error) => status_of(error),
            Self::StaleHandle(_) => RUNTIME_ERROR_STALE_HANDLE,
            Self::TooSmall(_) => RUNTIME_ERROR_BUFFER_TOO_SMALL,
            Self::Panic(_) => RUNTIME_ERROR_PANIC,
        }
    }

    fn detail(&self) -> i32 {
        match self {
            Self::Error(Error::Io { source, .. }) => source.raw_os_error().unwrap_or(0),
            _ => 0,
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Error(error) => error.to_string().replace('\n', " "),
            Self::StaleHandle(what) => format!("this {what} handle is zero, was released, or is no handle at all"),
            Self::TooSmall(needed) => format!("the buffer is too small: {needed} are needed"),
            Self::Panic(what) => format!("internal error (please report): {what}"),
        }
    }
}

/// Fills the caller's record, as much of it as the caller's `struct_size` has room for.
///
/// # Safety
/// `out` is NULL or points to `struct_size` writable bytes (a `struct_size` of 0 means the first version's size).
pub(super) unsafe fn report(out: *mut runtime_error, result: &Result<(), Failure>) {
    if out.is_null() {
        return;
    }
    // SAFETY: not NULL, so the caller promises at least the first field.
    let size = match unsafe { (&raw const (*out).struct_size).read() } as usize {
        0 => size_of::<runtime_error>(),
        size => size,
    };
    let (code, detail, message) = match result {
        Ok(()) => (RUNTIME_OK, 0, String::new()),
        Err(failure) => (failure.status(), failure.detail(), failure.message()),
    };
    let start = offset_of!(runtime_error, message);
    if size < start {
        return;
    }
    let room = (size - start).min(size_of::<runtime_error>() - start);
    let mut len = message.len().min(room.saturating_sub(1));
    while !message.is_char_boundary(len) {
        len -= 1;
    }
    let text = &message.as_bytes()[..len];
    // SAFETY: `size` covers the fields before `message` and `room` bytes of it; `text` leaves one for the NUL.
    unsafe {
        (&raw mut (*out).code).write(code);
        (&raw mut (*out).detail).write(detail);
        if room > 0 {
            let target = (&raw mut (*out).message).cast::<u8>();
            target.copy_from_nonoverlapping(text.as_ptr(), text.len());
            target.add(text.len()).write(0);
        }
    }
}
