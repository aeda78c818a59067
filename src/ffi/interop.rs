//! Engines on devices that the host has made: a renderer's Vulkan device, a simulation's CUDA context. Experimental.

use super::engine::{create, read, runtime_engine, runtime_engine_options};
use super::error::{Failure, runtime_error};
use super::guard::{guarded, shielded};
use super::options::{self, Versioned, init};
use super::status::runtime_status;
use crate::backend::{ForeignCuda, ForeignVulkan, open_cuda_context, open_vulkan};
use crate::embed::Host;
use crate::error::Error;
use std::ffi::{CStr, c_char, c_void};

/// The device was made with shaderFloat16 and storageBuffer16BitAccess: shaders may compute in 16 bits.
pub const RUNTIME_VULKAN_F16: u32 = 1;

/// A Vulkan device that the host has made, for runtime_engine_create_on_vulkan. Everything in it stays the host's, and has to
/// live until the engine and all that belongs to it are released.
///
/// The instance is of version 1.2 or newer. The device was made with timelineSemaphore and, where its physical device reports
/// them, robustBufferAccess and the features of VkPhysicalDeviceVulkan11Features to 13Features: what is reported is taken for
/// switched on. The queue has to compute. While the engine works (in runtime_engine_step, or at any time where it has a thread)
/// nobody else may submit to that queue: give it one of its own where the family has several.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub struct runtime_vulkan_device {
    /// sizeof(runtime_vulkan_device) of the caller's header.
    pub struct_size: u32,
    /// Version that the instance was made with, as VK_MAKE_API_VERSION gives it.
    pub api_version: u32,
    /// The address of vkGetInstanceProcAddr.
    pub get_instance_proc_addr: *const c_void,
    /// VkInstance.
    pub instance: *const c_void,
    /// VkPhysicalDevice.
    pub physical_device: *const c_void,
    /// VkDevice.
    pub device: *const c_void,
    /// Family of the queue.
    pub queue_family: u32,
    /// Its index in the family.
    pub queue_index: u32,
    /// Names of the extensions that the instance was made with.
    pub instance_extensions: *const *const c_char,
    /// Names of the extensions that the device was made with.
    pub device_extensions: *const *const c_char,
    /// How many names instance_extensions has.
    pub instance_extension_count: u32,
    /// How many names device_extensions has.
    pub device_extension_count: u32,
    /// RUNTIME_VULKAN flags, added up.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

// SAFETY: integers and pointers, no padding.
unsafe impl Versioned for runtime_vulkan_device {
    const NAME: &'static str = "runtime_vulkan_device";
    const FIRST_SIZE: usize = size_of::<runtime_vulkan_device>();
}

/// A CUDA context that the host has made, for runtime_engine_create_on_cuda. Both stay the host's, and have to live until the
/// engine and all that belongs to it are released.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub struct runtime_cuda_context {
    /// sizeof(runtime_cuda_context) of the caller's header.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// CUcontext.
    pub context: *mut c_void,
    /// CUstream on which everything is ordered; NULL: the context's default stream.
    pub stream: *mut c_void,
}

// SAFETY: integers and pointers, no padding.
unsafe impl Versioned for runtime_cuda_context {
    const NAME: &'static str = "runtime_cuda_context";
    const FIRST_SIZE: usize = size_of::<runtime_cuda_context>();
}

/// Sets struct_size and clears the rest. NULL is allowed and does nothing.
///
/// # Safety
/// `device` is NULL or points to a writable struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_vulkan_device_init(device: *mut runtime_vulkan_device) {
    // SAFETY: the caller's promise.
    shielded("runtime_vulkan_device_init", (), || unsafe { init(device) });
}

/// Sets struct_size and clears the rest. NULL is allowed and does nothing.
///
/// # Safety
/// `context` is NULL or points to a writable struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_cuda_context_init(context: *mut runtime_cuda_context) {
    // SAFETY: the caller's promise.
    shielded("runtime_cuda_context_init", (), || unsafe { init(context) });
}

/// As runtime_engine_create, on the host's Vulkan device; backend and device of the options are not looked at.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_engine_create_on_vulkan(
    options: *const runtime_engine_options,
    device: *const runtime_vulkan_device,
    engine: *mut runtime_engine,
    error: *mut runtime_error,
) -> runtime_status {
    let make = || {
        // SAFETY: the caller's promise.
        let (options, device) = unsafe { (read(options)?, given("device", device, options::read(device)?)?) };
        if device.flags & !RUNTIME_VULKAN_F16 != 0 || device.reserved != 0 {
            return Err(Error::invalid("runtime_vulkan_device: flags or reserved have unknown bits").into());
        }
        // SAFETY: the caller's promise.
        let (instance_extensions, device_extensions) = unsafe {
            let of_device = names("device_extensions", device.device_extensions, device.device_extension_count)?;
            (names("instance_extensions", device.instance_extensions, device.instance_extension_count)?, of_device)
        };
        let foreign = ForeignVulkan {
            get_instance_proc_addr: device.get_instance_proc_addr,
            instance: device.instance,
            physical_device: device.physical_device,
            device: device.device,
            queue_family: device.queue_family,
            queue_index: device.queue_index,
            api_version: device.api_version,
            f16: device.flags & RUNTIME_VULKAN_F16 != 0,
            instance_extensions,
            device_extensions,
        };
        // SAFETY: the caller's promise.
        Ok(Host::on(unsafe { open_vulkan(&foreign, options.compute)? }, options)?)
    };
    // SAFETY: the caller's promise.
    let body = || unsafe { create(engine, make) };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_engine_create_on_vulkan", error, body) }
}

/// As runtime_engine_create, in the host's CUDA context; backend and device of the options are not looked at. Without an NVIDIA
/// driver it is RUNTIME_ERROR_DEVICE.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_engine_create_on_cuda(
    options: *const runtime_engine_options,
    context: *const runtime_cuda_context,
    engine: *mut runtime_engine,
    error: *mut runtime_error,
) -> runtime_status {
    let make = || {
        // SAFETY: the caller's promise.
        let (options, context) = unsafe { (read(options)?, given("context", context, options::read(context)?)?) };
        if context.reserved != 0 {
            return Err(Error::invalid("runtime_cuda_context: reserved is not zero").into());
        }
        let foreign = ForeignCuda { context: context.context, stream: context.stream };
        // SAFETY: the caller's promise.
        Ok(Host::on(unsafe { open_cuda_context(&foreign, options.compute)? }, options)?)
    };
    // SAFETY: the caller's promise.
    let body = || unsafe { create(engine, make) };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_engine_create_on_cuda", error, body) }
}

/// What has no default.
fn given<T>(name: &str, pointer: *const T, value: T) -> Result<T, Failure> {
    if pointer.is_null() {
        return Err(Error::invalid(format!("{name} is NULL")).into());
    }
    Ok(value)
}

/// # Safety
/// `list` has `count` NUL-terminated strings.
unsafe fn names(what: &str, list: *const *const c_char, count: u32) -> Result<Vec<String>, Failure> {
    if count == 0 {
        return Ok(Vec::new());
    }
    if list.is_null() {
        return Err(Error::invalid(format!("{what} is NULL, and its count is {count}")).into());
    }
    // SAFETY: the caller's promise.
    let list = unsafe { std::slice::from_raw_parts(list, count as usize) };
    let name = |name: &*const c_char| match name.is_null() {
        true => Err(Error::invalid(format!("{what} has a NULL in it")).into()),
        // SAFETY: the caller's promise.
        false => Ok(unsafe { CStr::from_ptr(*name) }.to_string_lossy().into_owned()),
    };
    list.iter().map(name).collect()
}
