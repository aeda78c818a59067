//! Option structs that can grow: they start with their size, all-zero means defaults, and what this library does not
//! know must be zero.

use super::error::Failure;
use crate::error::Error;
use std::mem::MaybeUninit;

/// A C struct whose first field is `struct_size: u32`, for options and for results.
///
/// # Safety
/// `repr(C)`, no padding that matters, and every bit pattern is a valid value.
pub(super) unsafe trait Versioned: Copy {
    /// For messages.
    const NAME: &'static str;
    /// `sizeof` in the first version of the ABI that had it.
    const FIRST_SIZE: usize;
}

/// The caller's options on top of zeroes. NULL means all defaults; a `struct_size` of 0 means the first version's size.
///
/// # Safety
/// `options` is NULL or points to as many readable bytes as its first field says.
pub(super) unsafe fn read<T: Versioned>(options: *const T) -> Result<T, Failure> {
    let mut value = MaybeUninit::<T>::zeroed();
    if options.is_null() {
        // SAFETY: every bit pattern is valid.
        return Ok(unsafe { value.assume_init() });
    }
    let bytes = options.cast::<u8>();
    // SAFETY: the first field is a u32 and readable.
    let size = match unsafe { bytes.cast::<u32>().read_unaligned() } as usize {
        0 => T::FIRST_SIZE,
        size => size,
    };
    if size < T::FIRST_SIZE || size > 4096 {
        return Err(wrong_size::<T>(size));
    }
    let known = size.min(size_of::<T>());
    // SAFETY: `size` bytes are readable, `known` of them fit `value`.
    let tail = unsafe {
        bytes.copy_to_nonoverlapping(value.as_mut_ptr().cast(), known);
        std::slice::from_raw_parts(bytes.add(known), size - known)
    };
    if tail.iter().any(|byte| *byte != 0) {
        return Err(Error::invalid(format!("{}: set fields that this version does not know", T::NAME)).into());
    }
    // SAFETY: every bit pattern is valid.
    Ok(unsafe { value.assume_init() })
}

/// Clears a struct and sets its size. NULL does nothing.
///
/// # Safety
/// `options` is NULL or points to a writable struct.
pub(super) unsafe fn init<T: Versioned>(options: *mut T) {
    if options.is_null() {
        return;
    }
    // SAFETY: not NULL, so writable; the first field is a u32.
    unsafe {
        options.cast::<u8>().write_bytes(0, size_of::<T>());
        options.cast::<u32>().write(size_of::<T>() as u32);
    }
}

/// Fills a caller's struct, as much of it as its `struct_size` has room for, and clears what it has beyond.
///
/// # Safety
/// `out` points to as many writable bytes as its first field says (0: the first version's size).
pub(super) unsafe fn write<T: Versioned>(out: *mut T, value: &T) -> Result<(), Failure> {
    if out.is_null() {
        return Err(Error::invalid(format!("{} is NULL: there is no place for the result", T::NAME)).into());
    }
    let bytes = out.cast::<u8>();
    // SAFETY: the first field is a u32 and readable.
    let size = match unsafe { bytes.cast::<u32>().read_unaligned() } as usize {
        0 => T::FIRST_SIZE,
        size => size,
    };
    if size < T::FIRST_SIZE || size > 4096 {
        return Err(wrong_size::<T>(size));
    }
    let known = size.min(size_of::<T>());
    // SAFETY: `size` bytes are writable, and `known` of them readable in `value`; the caller's struct_size stays.
    unsafe {
        bytes.add(4).copy_from_nonoverlapping((&raw const *value).cast::<u8>().add(4), known - 4);
        bytes.add(known).write_bytes(0, size - known);
    }
    Ok(())
}

fn wrong_size<T: Versioned>(size: usize) -> Failure {
    let (name, expected) = (T::NAME, size_of::<T>());
    Error::invalid(format!(
        "{name}: struct_size is {size}, expected {expected}: initialise it with the macro or the _init function"
    ))
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Two {
        struct_size: u32,
        a: u32,
        b: u32,
    }

    // SAFETY: three integers.
    unsafe impl Versioned for Two {
        const NAME: &'static str = "two";
        const FIRST_SIZE: usize = 8;
    }

    fn read_words(words: &[u32]) -> Option<(u32, u32)> {
        // SAFETY: the cases below state no more bytes than `words` has.
        unsafe { read(words.as_ptr().cast::<Two>()) }.ok().map(|two| (two.a, two.b))
    }

    #[test]
    fn old_new_and_wrong_sizes() {
        assert_eq!(read_words(&[8, 1]), Some((1, 0)), "an old caller");
        assert_eq!(read_words(&[12, 1, 2]), Some((1, 2)));
        assert_eq!(read_words(&[16, 1, 2, 0]), Some((1, 2)), "a newer caller that uses nothing new");
        assert_eq!(read_words(&[16, 1, 2, 3]), None, "a newer caller that does");
        assert_eq!(read_words(&[0, 1, 2]), Some((1, 0)), "zero: the first version");
        assert_eq!(read_words(&[4, 1, 2]), None);
        assert_eq!(read_words(&[u32::MAX, 1, 2]), None);
        // SAFETY: NULL is allowed.
        assert_eq!(unsafe { read(std::ptr::null::<Two>()) }.ok().map(|two| two.struct_size), Some(0));
    }
}
