//! CUDA: for now it only finds devices. Kernels are listed as missing in `tests/ops.rs`.

use super::DeviceInfo;
use cudarc::driver::{CudaContext, result};

/// NVIDIA devices that the driver reports; none where there is no driver.
pub fn devices() -> Vec<DeviceInfo> {
    // cudarc panics where a library or a symbol of it is missing; both mean "no usable driver" here.
    std::panic::catch_unwind(probe).ok().flatten().unwrap_or_default()
}

fn probe() -> Option<Vec<DeviceInfo>> {
    // SAFETY: only looks for the shared library; calls nothing in it.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return None;
    }
    result::init().ok()?;
    let count = result::device::get_count().ok()?;
    let list = (0..count as usize).filter_map(|index| {
        let context = CudaContext::new(index).ok()?;
        let (major, minor) = context.compute_capability().ok()?;
        Some(DeviceInfo {
            backend: "cuda",
            index,
            name: context.name().ok()?,
            detail: format!("compute capability {major}.{minor}"),
            memory_bytes: context.total_mem().ok().map(|bytes| bytes as u64),
            software: false,
        })
    });
    Some(list.collect())
}
