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

/// JSON from C.
///
/// # Safety
/// As [`read`].
pub(super) unsafe fn json(what: &str, text: *const c_char, len: usize) -> Result<serde_json::Value, Failure> {
    // SAFETY: the caller's promise is passed on.
    let text = unsafe { read(what, text, len)? };
    serde_json::from_str(text).map_err(|e| Error::invalid(format!("{what} is not JSON: {e}")).into())
}

/// A list from C; NULL with 0 is the empty list.
///
/// # Safety
/// `list` points to `count` readable elements for as long as the result is used.
pub(super) unsafe fn list<'a, T>(what: &str, list: *const T, count: usize) -> Result<&'a [T], Failure> {
    match (list.is_null(), count) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(Error::invalid(format!("{what} is NULL")).into()),
        (false, _) if count > isize::MAX as usize / size_of::<T>().max(1) || !list.is_aligned() => {
            Err(Error::invalid(format!("{what}: {count} elements at {list:p}")).into())
        }
        // SAFETY: `count` elements are readable, says the caller.
        _ => Ok(unsafe { std::slice::from_raw_parts(list, count) }),
    }
}

/// Copies a result into the caller's buffer and writes how long it is; a NULL buffer only asks for the length.
///
/// # Safety
/// `buffer` is NULL or points to `capacity` writable elements; `len` is NULL or writable.
pub(super) unsafe fn give<T: Copy>(
    items: &[T],
    buffer: *mut T,
    capacity: usize,
    len: *mut usize,
) -> Result<(), Failure> {
    if len.is_null() && buffer.is_null() {
        return Err(Error::invalid("there is neither a buffer nor a place for the length").into());
    }
    if !len.is_null() {
        // SAFETY: not NULL, so writable.
        unsafe { len.write(items.len()) };
    }
    if buffer.is_null() {
        return Ok(());
    }
    if items.len() > capacity {
        return Err(Failure::TooSmall(items.len()));
    }
    // SAFETY: `capacity` elements are writable, and the caller's buffer is not ours.
    unsafe { buffer.copy_from_nonoverlapping(items.as_ptr(), items.len()) };
    Ok(())
}

/// As [`give`], for text; a NUL follows where there is room for it.
///
/// # Safety
/// As [`give`].
pub(super) unsafe fn give_text(
    text: &str,
    buffer: *mut c_char,
    capacity: usize,
    len: *mut usize,
) -> Result<(), Failure> {
    // SAFETY: the caller's promise is passed on; there is room for the NUL where it is written.
    unsafe {
        give(text.as_bytes(), buffer.cast::<u8>(), capacity, len)?;
        if !buffer.is_null() && text.len() < capacity {
            buffer.add(text.len()).write(0);
        }
    }
    Ok(())
}

/// A name cut to fit an array of a struct, with its NUL.
pub(super) fn array<const N: usize>(text: &str) -> [c_char; N] {
    let mut out = [0; N];
    let mut len = text.len().min(N - 1);
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    out.iter_mut().zip(&text.as_bytes()[..len]).for_each(|(to, from)| *to = *from as c_char);
    out
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
