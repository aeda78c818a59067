//! About the library itself, and the devices of this machine.

use super::error::{Failure, runtime_error};
use super::guard::{guarded, shielded};
use super::options::{self, Versioned, init};
use super::status::runtime_status;
use super::text;
use crate::backend::{self, DeviceInfo};
use crate::error::Error;
use std::ffi::c_char;

/// Version of this header. Within one major version of the library it only grows by additions: a program that was
/// compiled against a smaller number goes on working. Before the library's own version 1.0, functions may still change.
pub const RUNTIME_ABI_VERSION: u32 = 2;

/// The version of the library, for example "0.1.0". A static string, never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn runtime_version() -> *const c_char {
    let version: *const c_char = concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast();
    shielded("runtime_version", version, || version)
}

/// The RUNTIME_ABI_VERSION that the library was built with. A program that needs a newer one than this should
/// refuse to go on.
#[unsafe(no_mangle)]
pub extern "C" fn runtime_abi_version() -> u32 {
    shielded("runtime_abi_version", 0, || RUNTIME_ABI_VERSION)
}

/// The version and the backends that the library was built with, on one line, for bug reports: "0.1.0 cpu wgpu cuda". A static
/// string, never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn runtime_build_info() -> *const c_char {
    #[cfg(feature = "wgpu")]
    macro_rules! wgpu {
        () => {
            " wgpu"
        };
    }
    #[cfg(not(feature = "wgpu"))]
    macro_rules! wgpu {
        () => {
            ""
        };
    }
    #[cfg(feature = "cuda")]
    macro_rules! cuda {
        () => {
            " cuda"
        };
    }
    #[cfg(not(feature = "cuda"))]
    macro_rules! cuda {
        () => {
            ""
        };
    }
    let backends: &str = concat!(env!("CARGO_PKG_VERSION"), " cpu", wgpu!(), cuda!(), "\0");
    let info: *const c_char = backends.as_ptr().cast();
    shielded("runtime_build_info", info, || info)
}

/// A device of this machine.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub struct runtime_device_info {
    /// sizeof(runtime_device_info) of the caller's header.
    pub struct_size: u32,
    /// One of RUNTIME_BACKEND, never RUNTIME_BACKEND_AUTO.
    pub backend: i32,
    /// Position among the backend's devices: `device` of runtime_engine_options.
    pub index: u32,
    /// Non-zero: a software rasteriser, chosen only when asked for.
    pub software: u32,
    /// Bytes of its own memory; 0 where the driver does not say.
    pub memory_bytes: u64,
    /// The driver's name for it, NUL-terminated.
    pub name: [c_char; 128],
    /// Driver, graphics API, instruction sets: one line, NUL-terminated.
    pub detail: [c_char; 256],
    /// Which device it is, whatever the API: VkPhysicalDeviceIDProperties and cuDeviceGetUuid report the same. Zeros where the
    /// driver does not say.
    pub uuid: [u8; 16],
    /// What DirectX knows it by, on Windows; else zeros.
    pub luid: [u8; 8],
}

// SAFETY: integers only, no padding.
unsafe impl Versioned for runtime_device_info {
    const NAME: &'static str = "runtime_device_info";
    const FIRST_SIZE: usize = 408;
}

/// Sets struct_size and clears the rest. NULL is allowed and does nothing.
///
/// # Safety
/// `info` is NULL or points to a writable struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_device_info_init(info: *mut runtime_device_info) {
    // SAFETY: the caller's promise.
    shielded("runtime_device_info_init", (), || unsafe { init(info) });
}

/// How many devices there are. Asks the drivers: the first call may take a tenth of a second.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_device_count(count: *mut u32, error: *mut runtime_error) -> runtime_status {
    let body = || {
        if count.is_null() {
            return Err(Error::invalid("count is NULL").into());
        }
        // SAFETY: not NULL, so writable.
        unsafe { count.write(backend::devices().len() as u32) };
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_device_count", error, body) }
}

/// Describes a device. They are ordered as RUNTIME_BACKEND_AUTO prefers them; position is below runtime_device_count's
/// result.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_device_get_info(
    position: u32,
    info: *mut runtime_device_info,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || -> Result<(), Failure> {
        let devices = backend::devices();
        let Some(device) = devices.get(position as usize) else {
            return Err(Error::invalid(format!("device {position} of {}", devices.len())).into());
        };
        // SAFETY: the caller's promise.
        unsafe { options::write(info, &described(device)) }
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_device_get_info", error, body) }
}

fn described(device: &DeviceInfo) -> runtime_device_info {
    runtime_device_info {
        struct_size: 0,
        backend: match device.backend {
            "cuda" => super::engine::RUNTIME_BACKEND_CUDA,
            "wgpu" => super::engine::RUNTIME_BACKEND_WGPU,
            _ => super::engine::RUNTIME_BACKEND_CPU,
        },
        index: device.index as u32,
        software: u32::from(device.software),
        memory_bytes: device.memory_bytes.unwrap_or(0),
        name: text::array(&device.name),
        detail: text::array(&device.detail),
        uuid: device.uuid,
        luid: device.luid,
    }
}
