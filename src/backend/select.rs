//! Which device a run uses.

use super::{ComputeType, Device, DeviceInfo, cpu};
use crate::error::{Error, Result};
use std::str::FromStr;
use std::sync::Arc;

/// What `--backend` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum BackendChoice {
    /// CUDA, then a hardware adapter of wgpu, then the CPU; never a software adapter.
    #[default]
    Auto,
    /// The NVIDIA driver.
    Cuda,
    /// Vulkan, Metal or DX12, software adapters included.
    Wgpu,
    /// The host.
    Cpu,
}

impl FromStr for BackendChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "cuda" => Ok(Self::Cuda),
            "wgpu" => Ok(Self::Wgpu),
            "cpu" => Ok(Self::Cpu),
            other => Err(Error::invalid(format!("unknown backend '{other}': use auto, cuda, wgpu or cpu"))),
        }
    }
}

/// Every device that this build can see; the order is the one in which `auto` prefers them.
pub fn devices() -> Vec<DeviceInfo> {
    let mut list = Vec::new();
    #[cfg(feature = "cuda")]
    list.extend(super::cuda::devices());
    #[cfg(feature = "wgpu")]
    list.extend(super::wgpu::devices());
    list.push(cpu::info());
    list
}

/// Opens the device that `choice` and `index` (position among that backend's devices) name.
///
/// # Errors
/// [`Error::Unsupported`] where this build lacks the backend; [`Error::Device`] where there is no such device.
pub fn open(choice: BackendChoice, index: usize, compute: ComputeType) -> Result<Arc<dyn Device>> {
    match choice {
        BackendChoice::Cpu => cpu::open(compute),
        BackendChoice::Cuda => open_cuda(index, compute),
        BackendChoice::Wgpu => open_wgpu(index, compute, true),
        BackendChoice::Auto => open_auto(index, compute),
    }
}

#[cfg(feature = "wgpu")]
fn open_wgpu(index: usize, compute: ComputeType, software: bool) -> Result<Arc<dyn Device>> {
    super::wgpu::open(index, compute, software)
}

#[cfg(not(feature = "wgpu"))]
fn open_wgpu(_: usize, _: ComputeType, _: bool) -> Result<Arc<dyn Device>> {
    Err(Error::unsupported("this build has no wgpu backend: build with --features wgpu"))
}

#[cfg(feature = "cuda")]
fn open_cuda(index: usize, compute: ComputeType) -> Result<Arc<dyn Device>> {
    super::cuda::open(index, compute)
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_: usize, _: ComputeType) -> Result<Arc<dyn Device>> {
    Err(Error::unsupported("this build has no CUDA backend: build with --features cuda"))
}

/// The first that opens. A GPU that is there and out of memory is an error, not a reason to be slow.
fn open_auto(index: usize, compute: ComputeType) -> Result<Arc<dyn Device>> {
    open_cuda(index, compute)
        .or_else(
            |error| {
                if matches!(error, Error::OutOfMemory { .. }) { Err(error) } else { open_wgpu(index, compute, false) }
            },
        )
        .or_else(|error| if matches!(error, Error::OutOfMemory { .. }) { Err(error) } else { cpu::open(compute) })
}
