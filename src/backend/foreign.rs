//! Devices that somebody else has opened: handles as their APIs have them.

use super::{ComputeType, Device};
use crate::error::Result;
use std::ffi::c_void;
use std::sync::Arc;

/// A Vulkan device that somebody else has made and keeps: handles as Vulkan's own, extensions that were switched on.
#[derive(Clone, Debug)]
pub struct ForeignVulkan {
    /// `vkGetInstanceProcAddr`.
    pub get_instance_proc_addr: *const c_void,
    /// `VkInstance`.
    pub instance: *const c_void,
    /// `VkPhysicalDevice`.
    pub physical_device: *const c_void,
    /// `VkDevice`.
    pub device: *const c_void,
    /// Family of the queue that the engine submits to.
    pub queue_family: u32,
    /// Its index in the family.
    pub queue_index: u32,
    /// Version that the instance was made with.
    pub api_version: u32,
    /// 16-bit arithmetic and storage were switched on.
    pub f16: bool,
    /// Of the instance.
    pub instance_extensions: Vec<String>,
    /// Of the device.
    pub device_extensions: Vec<String>,
}

/// A CUDA context and a stream in it that somebody else has made and keeps.
#[derive(Clone, Copy, Debug)]
pub struct ForeignCuda {
    /// `CUcontext`.
    pub context: *mut c_void,
    /// `CUstream`; null: the context's own.
    pub stream: *mut c_void,
}

/// Opens a device on somebody else's Vulkan device.
///
/// # Errors
/// [`Error::Unsupported`] where this build lacks the backend; [`Error::Device`] for handles that cannot be worked with.
///
/// # Safety
/// The handles are valid, belong together, and outlive the device; the device was made with the queue, with these extensions,
/// and with the features that its physical device reports for timeline semaphores and robust buffer access. Nobody submits to the
/// queue while the engine works.
pub unsafe fn open_vulkan(foreign: &ForeignVulkan, compute: ComputeType) -> Result<Arc<dyn Device>> {
    #[cfg(all(feature = "wgpu", not(target_vendor = "apple")))]
    // SAFETY: the caller's promise.
    return unsafe { super::wgpu::foreign::open(foreign, compute) };
    #[cfg(not(all(feature = "wgpu", not(target_vendor = "apple"))))]
    {
        let _ = (foreign, compute);
        Err(crate::error::Error::unsupported("this build does not work on foreign Vulkan devices"))
    }
}

/// Opens a device on somebody else's CUDA context.
///
/// # Errors
/// [`Error::Unsupported`] where this build lacks the backend; [`Error::Device`] where there is no driver or no such context.
///
/// # Safety
/// The handles are valid, belong together, and outlive the device.
pub unsafe fn open_cuda_context(foreign: &ForeignCuda, compute: ComputeType) -> Result<Arc<dyn Device>> {
    #[cfg(feature = "cuda")]
    // SAFETY: the caller's promise.
    return unsafe { super::cuda::open_foreign(foreign, compute) };
    #[cfg(not(feature = "cuda"))]
    {
        let _ = (foreign, compute);
        Err(crate::error::Error::unsupported("this build has no CUDA backend: build with --features cuda"))
    }
}
