//! A Vulkan device that somebody else has made: a renderer's.

use super::WgpuDevice;
use super::context::{Context, Variants, device_error, required};
use crate::backend::{ComputeType, Device, DeviceInfo, ForeignVulkan};
use crate::error::Result;
use ash::vk::{self, Handle};
use std::ffi::CStr;
use std::sync::Arc;
use wgpu::hal::vulkan;

/// The oldest version that is taken: from it on, timeline semaphores belong to the core.
const OLDEST: u32 = vk::API_VERSION_1_2;

/// Those of `names` that `known` has, as `known` spells them.
fn those(known: Vec<&'static CStr>, names: &[String]) -> Vec<&'static CStr> {
    known.into_iter().filter(|known| names.iter().any(|name| name.as_bytes() == known.to_bytes())).collect()
}

/// What Vulkan knows an adapter by: UUID, and on Windows LUID. Zeros for adapters of other APIs.
pub fn identity(adapter: &wgpu::Adapter) -> ([u8; 16], [u8; 8]) {
    // SAFETY: nothing is destroyed through the borrowed handle.
    let Some(adapter) = (unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }) else { return Default::default() };
    let mut ids = vk::PhysicalDeviceIDProperties::default();
    let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut ids);
    let instance = adapter.shared_instance().raw_instance();
    // SAFETY: the device belongs to the instance, whose version is 1.1 or newer; the chain is alive.
    unsafe { instance.get_physical_device_properties2(adapter.raw_physical_device(), &mut properties) };
    let luid = if ids.device_luid_valid == vk::TRUE { ids.device_luid } else { [0; 8] };
    (ids.device_uuid, luid)
}

/// Opens a device on somebody else's.
///
/// # Errors
/// [`crate::Error::Device`] where a handle is missing, the version is too old, or wgpu refuses.
///
/// # Safety
/// As [`crate::backend::open_vulkan`].
pub unsafe fn open(foreign: &ForeignVulkan, compute: ComputeType) -> Result<Arc<dyn Device>> {
    let fail = |what: &str, error: &dyn std::fmt::Display| device_error(format!("a foreign Vulkan {what}: {error}"));
    let handles = [foreign.get_instance_proc_addr, foreign.instance, foreign.physical_device, foreign.device];
    if handles.iter().any(|handle| handle.is_null()) {
        return Err(device_error(
            "a foreign Vulkan device needs the loader's function, instance, physical device and device",
        ));
    }
    if foreign.api_version < OLDEST {
        let (major, minor) = (vk::api_version_major(foreign.api_version), vk::api_version_minor(foreign.api_version));
        return Err(device_error(format!(
            "a foreign Vulkan instance of version {major}.{minor}: expected 1.2 or newer"
        )));
    }
    // SAFETY: the caller's promise: the function is Vulkan's vkGetInstanceProcAddr, which every other one is found with.
    let entry = unsafe {
        let get: vk::PFN_vkGetInstanceProcAddr = std::mem::transmute(foreign.get_instance_proc_addr);
        ash::Entry::from_static_fn(ash::StaticFn { get_instance_proc_addr: get })
    };
    let flags = wgpu::InstanceFlags::empty();
    let known = vulkan::Instance::desired_extensions(&entry, foreign.api_version, flags)
        .map_err(|error| fail("instance", &error))?;
    let extensions = those(known, &foreign.instance_extensions);
    // SAFETY: the caller's promise: the instance is alive, of that version, with these extensions; with a callback it stays the
    // caller's.
    let (raw, instance) = unsafe {
        let raw = ash::Instance::load(entry.static_fn(), vk::Instance::from_raw(foreign.instance as u64));
        let instance = vulkan::Instance::from_raw(
            entry.clone(),
            raw.clone(),
            foreign.api_version,
            0,
            None,
            extensions,
            flags,
            wgpu::MemoryBudgetThresholds::default(),
            false,
            Some(Box::new(|| {})),
        );
        (raw, instance.map_err(|error| fail("instance", &error))?)
    };
    let physical = vk::PhysicalDevice::from_raw(foreign.physical_device as u64);
    let exposed = instance
        .expose_adapter(physical)
        .ok_or_else(|| device_error("a foreign Vulkan physical device that wgpu cannot work on"))?;
    // Subgroups are a property of the device; everything else would have to be switched on when it is made.
    let mut features = exposed.features & wgpu::Features::SUBGROUP;
    if foreign.f16 {
        features |= exposed.features & wgpu::Features::SHADER_F16;
    }
    let limits = exposed.capabilities.limits.clone();
    let extensions = those(exposed.adapter.required_device_extensions(features), &foreign.device_extensions);
    // SAFETY: the caller's promise: the device is alive, made from this physical device with this queue; with a callback it stays
    // the caller's.
    let opened = unsafe {
        exposed.adapter.device_from_raw(
            ash::Device::load(raw.fp_v1_0(), vk::Device::from_raw(foreign.device as u64)),
            Some(Box::new(|| {})),
            &extensions,
            features,
            &limits,
            &wgpu::MemoryHints::default(),
            foreign.queue_family,
            foreign.queue_index,
        )
    };
    let opened = opened.map_err(|error| fail("device", &error))?;
    // SAFETY: both are the ones that were made just now.
    let (adapter, device, queue) = unsafe {
        let instance = wgpu::Instance::from_hal::<wgpu::hal::api::Vulkan>(instance);
        let adapter = instance.create_adapter_from_hal(exposed);
        let request = required(features, limits);
        let made = adapter.create_device_from_hal(opened, &request);
        let (device, queue) = made.map_err(|error| fail("device", &error))?;
        (adapter, device, queue)
    };
    let found = adapter.get_info();
    let (uuid, luid) = identity(&adapter);
    let info = DeviceInfo {
        uuid,
        luid,
        backend: "wgpu",
        index: 0,
        name: found.name,
        detail: format!("foreign {} · {} {}", found.backend, found.driver, found.driver_info),
        memory_bytes: None,
        software: found.device_type == wgpu::DeviceType::Cpu,
    };
    let context = Context::on(&adapter, (device, queue), info, compute, Variants::Auto, None)?;
    Ok(Arc::new(WgpuDevice { context }))
}
