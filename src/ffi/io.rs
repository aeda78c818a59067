//! What a program reads for the library: descriptors, buffers, functions.

use super::error::Failure;
use super::event::Userdata;
use super::guard::shielded;
use super::options::{Versioned, init};
use crate::embed::ReadAt;
use crate::error::{Error, Result};
use std::ffi::c_void;
use std::fs::File;
use std::sync::Arc;

/// Called once when borrowed bytes are not read any more, on any thread.
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub type runtime_free_fn = Option<unsafe extern "C" fn(userdata: *mut c_void)>;

/// How many bytes there are.
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub type runtime_io_size_fn = Option<unsafe extern "C" fn(userdata: *mut c_void) -> u64>;

/// Writes len bytes from offset on to data; 0 for success, anything else ends loading with RUNTIME_ERROR_IO.
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub type runtime_io_read_fn =
    Option<unsafe extern "C" fn(userdata: *mut c_void, offset: u64, data: *mut c_void, len: usize) -> i32>;

/// A program's own way to read a file.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub struct runtime_io {
    /// sizeof(runtime_io) of the caller's header.
    pub struct_size: u32,
    /// Must be zero.
    pub reserved: u32,
    /// First argument of the functions.
    pub userdata: *mut c_void,
    /// Must not be NULL.
    pub size: runtime_io_size_fn,
    /// Must not be NULL.
    pub read: runtime_io_read_fn,
    /// Called once, last; may be NULL.
    pub close: runtime_free_fn,
}

// SAFETY: integers, a pointer, and functions that may be NULL: what the bits of a function mean is the caller's promise.
unsafe impl Versioned for runtime_io {
    const NAME: &'static str = "runtime_io";
    const FIRST_SIZE: usize = size_of::<runtime_io>();
}

/// Sets struct_size and clears the rest. NULL is allowed and does nothing.
///
/// # Safety
/// `io` is NULL or points to a writable struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_io_init(io: *mut runtime_io) {
    // SAFETY: the caller's promise.
    shielded("runtime_io_init", (), || unsafe { init(io) });
}

/// The caller's functions.
pub(super) struct Reader {
    userdata: Userdata,
    size: unsafe extern "C" fn(*mut c_void) -> u64,
    read: unsafe extern "C" fn(*mut c_void, u64, *mut c_void, usize) -> i32,
    close: runtime_free_fn,
}

impl Reader {
    pub(super) fn new(io: &runtime_io) -> Result<Self, Failure> {
        let (Some(size), Some(read)) = (io.size, io.read) else {
            return Err(Error::invalid("runtime_io: size or read is NULL").into());
        };
        Ok(Self { userdata: Userdata(io.userdata), size, read, close: io.close })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(close) = self.close {
            // SAFETY: the caller's function with its own userdata.
            unsafe { close(self.userdata.get()) };
        }
    }
}

impl ReadAt for Reader {
    fn size(&self) -> u64 {
        // SAFETY: the caller's function with its own userdata.
        unsafe { (self.size)(self.userdata.get()) }
    }

    fn read_at(&mut self, offset: u64, out: &mut [u8]) -> Result<()> {
        // SAFETY: the caller's function with its own userdata; `out` is writable for its length.
        let code = unsafe { (self.read)(self.userdata.get(), offset, out.as_mut_ptr().cast(), out.len()) };
        match code {
            0 => Ok(()),
            code => {
                let message = format!("reading {} bytes at {offset} gave {code}", out.len());
                Err(Error::io("reader", std::io::Error::other(message)))
            }
        }
    }
}

/// The caller's bytes, until nobody reads them any more.
pub(super) struct Buffer {
    data: Userdata,
    size: usize,
    free: runtime_free_fn,
    userdata: Userdata,
}

/// Bytes of our own, or the caller's.
pub(super) enum Bytes {
    Own(Vec<u8>),
    Borrowed(Buffer),
}

impl Buffer {
    /// Borrows the caller's bytes, or copies them where `free` is NULL.
    ///
    /// # Safety
    /// `data` points to `size` readable bytes, until `free` is called where it is not NULL.
    pub(super) unsafe fn of(
        data: *const c_void,
        size: usize,
        free: runtime_free_fn,
        userdata: *mut c_void,
    ) -> Result<Bytes, Failure> {
        let buffer = Self { data: Userdata(data.cast_mut()), size, free, userdata: Userdata(userdata) };
        if data.is_null() || size > isize::MAX as usize {
            return Err(Error::invalid(format!("data is {data:p}, size is {size}")).into());
        }
        Ok(match free {
            Some(_) => Bytes::Borrowed(buffer),
            None => Bytes::Own(buffer.as_ref().to_vec()),
        })
    }
}

impl Bytes {
    pub(super) fn shared(self) -> Arc<dyn AsRef<[u8]> + Send + Sync> {
        match self {
            Bytes::Own(bytes) => Arc::new(bytes),
            Bytes::Borrowed(buffer) => Arc::new(buffer),
        }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: checked not to be NULL or too long; the caller promised them readable until `free` is called.
        unsafe { std::slice::from_raw_parts(self.data.get().cast_const().cast(), self.size) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(free) = self.free {
            // SAFETY: the caller's function with its own userdata.
            unsafe { free(self.userdata.get()) };
        }
    }
}

/// A file of our own on the caller's descriptor.
#[cfg(unix)]
pub(super) fn duplicate(fd: i32) -> Result<File, Failure> {
    use std::os::fd::BorrowedFd;
    if fd < 0 {
        return Err(Error::invalid(format!("fd is {fd}")).into());
    }
    // SAFETY: not -1; one that is not open gives an error when it is duplicated.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let owned = borrowed.try_clone_to_owned().map_err(|e| Error::io("descriptor", e))?;
    Ok(File::from(owned))
}

/// There are no descriptors.
#[cfg(not(unix))]
pub(super) fn duplicate(_: i32) -> Result<File, Failure> {
    Err(Error::unsupported("loading from a descriptor: use runtime_model_load_io").into())
}
