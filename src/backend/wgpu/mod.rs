//! Vulkan, Metal and DX12 through wgpu.
use super::*;
/// Adapters.
pub fn devices() -> Vec<DeviceInfo> { vec![] }
/// Opens.
pub fn open(_: usize, _: ComputeType, _: bool) -> Result<Arc<dyn Device>> { Err(Error::internal("stub")) }
