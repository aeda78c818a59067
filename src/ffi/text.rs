//! Text from C: UTF-8 with a length, or NUL-terminated.

use super::error::Failure;
use crate::error::Error;
use std::ffi::{CStr, c_char};

/// The caller's text; `SIZE_MAX` means NUL-terminated, and NULL with length 0 is the empty text.
///
/// # Safety
/// `text` points to `len` readable bytes, or to a NUL-terminated string where `len` is `SIZE_MAX`, for as long as
/// the result is used.
pub(super) unsafe fn read<'a>(what: &str, text: *const c_char, len: usize) -> Result<&'a str, Failure> {
    if text.is_null() {
        return match len {
            0 => Ok(""),
            _ => Err(Error::invalid(format!("{what} is NULL")).into()),
        };
    }
    let bytes = match len {
        // SAFETY: NUL-terminated, says the caller.
        usize::MAX => unsafe { CStr::from_ptr(text) }.to_bytes(),
        len if len > isize::MAX as usize => return Err(Error::invalid(format!("{what}: its length is {len}")).into()),
        // SAFETY: `len` bytes are readable, says the caller.
        len => unsafe { std::slice::from_raw_parts(text.cast::<u8>(), len) },
    };
    std::str::from_utf8(bytes)
        .map_err(|e| Error::invalid(format!("{what} is not UTF-8 at byte {}", e.valid_up_to())).into())
}

#[cfg(test)]
mod tests {
    #[test]
    fn reads_both_kinds() {
        let text = c"na\xc3\xafve";
        let read = |len| {
            // SAFETY: inside the literal.
            unsafe { super::read("text", text.as_ptr(), len) }.ok()
        };
        assert_eq!(read(usize::MAX), Some("naïve"));
        assert_eq!(read(2), Some("na"));
        assert_eq!(read(3), None, "half a character");
        // SAFETY: NULL is refused or empty.
        unsafe {
            assert_eq!(super::read("text", std::ptr::null(), 0).ok(), Some(""));
            assert!(super::read("text", std::ptr::null(), 1).is_err());
        }
    }
}
