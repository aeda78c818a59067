//! Device memory and pinned host memory, freed when dropped.

use super::context::{Context, device_error};
use crate::error::Result;
use cudarc::driver::{result, sys};
use std::ffi::c_void;
use std::sync::Arc;

/// A range of device memory from the plain allocator: nothing here needs virtual memory or the stream-ordered
/// allocator, which a context shared with a renderer lacks.
pub struct Memory {
    /// Device address.
    pub address: u64,
    context: Arc<Context>,
}

impl Memory {
    /// At least one byte, so that every tensor has an address. The context is current.
    pub(super) fn new(context: Arc<Context>, bytes: usize) -> Result<Self, result::DriverError> {
        // SAFETY: a plain allocation; freed once, in `drop`.
        let address = unsafe { result::malloc_sync(bytes.max(1)) }?;
        Ok(Self { address, context })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: allocated by `new`, freed here only; the driver waits for kernels that still use it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// Page-locked host memory that kernels read and write over the bus.
pub struct HostMemory {
    /// Where the device sees it.
    pub address: u64,
    // Before the context, which is current then (`drop`).
    pinned: Pinned,
    context: Arc<Context>,
}

// SAFETY: after it is filled, the host no longer touches it; the driver's handles may be used from every thread.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// `bytes` that `fill` writes; zeros where it does nothing. The context is current.
    pub(super) fn new(context: Arc<Context>, bytes: usize, fill: impl FnOnce(&mut [u8])) -> Result<Self> {
        let mut pinned = Pinned::new(bytes)?;
        fill(pinned.bytes());
        let mut address = 0;
        // SAFETY: writes one address; the memory was pinned by this context.
        unsafe { sys::cuMemHostGetDevicePointer_v2(&mut address, pinned.pointer().cast_mut(), 0) }
            .result()
            .map_err(|e| device_error("mapping host memory", e))?;
        Ok(Self { address, pinned, context })
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.pinned.len
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // What is still running may use it.
        let _ = self.context.bind().and_then(|()| self.context.wait());
    }
}

/// Page-locked host memory, which the device copies from and to by itself.
pub struct Pinned {
    pointer: *mut u8,
    len: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Zeroed bytes. The context is current.
    pub fn new(len: usize) -> Result<Self> {
        let mut pointer: *mut c_void = std::ptr::null_mut();
        // SAFETY: writes one pointer; the memory is freed once, in `drop`.
        unsafe {
            sys::cuMemHostAlloc(&mut pointer, len.max(1), sys::CU_MEMHOSTALLOC_DEVICEMAP)
                .result()
                .map_err(|e| device_error(&format!("pinning {len} bytes of host memory"), e))?;
            pointer.write_bytes(0, len);
        }
        Ok(Self { pointer: pointer.cast(), len })
    }

    /// For the driver.
    pub fn pointer(&self) -> *const c_void {
        self.pointer.cast()
    }

    /// For the host; the caller knows that no copy is under way.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `len` bytes were allocated and initialised, and `&mut self` makes this the only view.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`; its owners wait for copies before they drop it.
        let _ = unsafe { sys::cuMemFreeHost(self.pointer.cast()) };
    }
}
