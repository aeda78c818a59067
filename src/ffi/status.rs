//! Status codes: one for each variant of [`Error`], and a few that only exist at the border to C.

use super::guard::shielded;
use crate::error::Error;
use std::ffi::c_char;

/// What a call returns: RUNTIME_OK or one of the RUNTIME_ERROR codes, which are all negative. A code keeps
/// its meaning for ever; new ones may come, so treat any other negative value as an error too.
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub type runtime_status = i32;

/// The call did what it says.
pub const RUNTIME_OK: runtime_status = 0;
/// An argument is wrong: a pointer that must not be NULL, text that is not UTF-8, a number out of range, an
/// options struct of a newer version with fields that this library does not know.
pub const RUNTIME_ERROR_INVALID_ARGUMENT: runtime_status = -1;
/// The handle is zero, was released, or never came from this library.
pub const RUNTIME_ERROR_STALE_HANDLE: runtime_status = -2;
/// The operating system refused to open, read or write a file.
pub const RUNTIME_ERROR_IO: runtime_status = -3;
/// A file is corrupt, truncated or not what it claims to be.
pub const RUNTIME_ERROR_FORMAT: runtime_status = -4;
/// Well-formed input that this build does not handle, for example an unknown architecture.
pub const RUNTIME_ERROR_UNSUPPORTED: runtime_status = -5;
/// The device or its driver failed or went away.
pub const RUNTIME_ERROR_DEVICE: runtime_status = -6;
/// Memory ran out, on the host or on the device. Nothing that existed before the call is lost.
pub const RUNTIME_ERROR_OUT_OF_MEMORY: runtime_status = -7;
/// Text could not be turned into tokens, or the model's chat template failed.
pub const RUNTIME_ERROR_TEXT: runtime_status = -8;
/// A download or a network listener failed.
pub const RUNTIME_ERROR_NETWORK: runtime_status = -9;
/// The caller stopped the work, for example by a non-zero return from a callback.
pub const RUNTIME_ERROR_CANCELLED: runtime_status = -10;
/// The library contradicted itself. Please report it.
pub const RUNTIME_ERROR_INTERNAL: runtime_status = -11;
/// A bug made the library panic. It was caught: the object of the call should be released, all others go on
/// working. Please report it.
pub const RUNTIME_ERROR_PANIC: runtime_status = -12;
/// The object is busy: a model that is being loaded, a session with a running request, too many requests that wait.
/// The same call may succeed later.
pub const RUNTIME_ERROR_BUSY: runtime_status = -13;
/// The caller's buffer is too small; the length that is needed was written where the length goes, and nothing else.
pub const RUNTIME_ERROR_BUFFER_TOO_SMALL: runtime_status = -14;

/// The status that stands for `error`.
pub(super) fn status_of(error: &Error) -> runtime_status {
    match error {
        Error::Io { .. } => RUNTIME_ERROR_IO,
        Error::Format { .. } => RUNTIME_ERROR_FORMAT,
        Error::Unsupported(_) => RUNTIME_ERROR_UNSUPPORTED,
        Error::Invalid(_) => RUNTIME_ERROR_INVALID_ARGUMENT,
        Error::Device { .. } => RUNTIME_ERROR_DEVICE,
        Error::OutOfMemory { .. } => RUNTIME_ERROR_OUT_OF_MEMORY,
        Error::Text(_) => RUNTIME_ERROR_TEXT,
        Error::Network(_) => RUNTIME_ERROR_NETWORK,
        Error::Busy(_) => RUNTIME_ERROR_BUSY,
        Error::Cancelled => RUNTIME_ERROR_CANCELLED,
        Error::Panic(_) => RUNTIME_ERROR_PANIC,
        Error::Internal(_) => RUNTIME_ERROR_INTERNAL,
    }
}

/// The name of a status, for log lines: "RUNTIME_ERROR_IO". A static string, never NULL; for a number that
/// is no status of this library, "RUNTIME_ERROR_UNKNOWN".
#[unsafe(no_mangle)]
pub extern "C" fn runtime_status_name(status: runtime_status) -> *const c_char {
    let name = || match status {
        RUNTIME_OK => c"RUNTIME_OK",
        RUNTIME_ERROR_INVALID_ARGUMENT => c"RUNTIME_ERROR_INVALID_ARGUMENT",
        RUNTIME_ERROR_STALE_HANDLE => c"RUNTIME_ERROR_STALE_HANDLE",
        RUNTIME_ERROR_IO => c"RUNTIME_ERROR_IO",
        RUNTIME_ERROR_FORMAT => c"RUNTIME_ERROR_FORMAT",
        RUNTIME_ERROR_UNSUPPORTED => c"RUNTIME_ERROR_UNSUPPORTED",
        RUNTIME_ERROR_DEVICE => c"RUNTIME_ERROR_DEVICE",
        RUNTIME_ERROR_OUT_OF_MEMORY => c"RUNTIME_ERROR_OUT_OF_MEMORY",
        RUNTIME_ERROR_TEXT => c"RUNTIME_ERROR_TEXT",
        RUNTIME_ERROR_NETWORK => c"RUNTIME_ERROR_NETWORK",
        RUNTIME_ERROR_CANCELLED => c"RUNTIME_ERROR_CANCELLED",
        RUNTIME_ERROR_INTERNAL => c"RUNTIME_ERROR_INTERNAL",
        RUNTIME_ERROR_PANIC => c"RUNTIME_ERROR_PANIC",
        RUNTIME_ERROR_BUSY => c"RUNTIME_ERROR_BUSY",
        RUNTIME_ERROR_BUFFER_TOO_SMALL => c"RUNTIME_ERROR_BUFFER_TOO_SMALL",
        _ => c"RUNTIME_ERROR_UNKNOWN",
    };
    shielded("runtime_status_name", c"RUNTIME_ERROR_UNKNOWN".as_ptr(), || name().as_ptr())
}
