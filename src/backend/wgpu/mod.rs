//! Vulkan, Metal and DX12 through wgpu.
//!
//! [`compile`](Device::compile) walks a program once: `fuse.rs` finds runs of ops that one dispatch does together, `record.rs` and
//! the `launch_*` files turn them into dispatches (shader variant, bindings, parameters, grid), `executable.rs` makes pipelines
//! and bind groups and replays them in one pass and one submission, encoding the next run's commands while the device is busy.
//! Weights stay in their quantised type (`planes.rs`) and are decoded in the shaders. On a software adapter other variants are
//! picked, where barriers are dear.

mod context;
mod executable;
#[cfg(not(target_vendor = "apple"))]
pub(super) mod foreign;
mod fuse;
mod launch_attention;
mod launch_coop;
mod launch_dora;
mod launch_flat;
mod launch_matmul;
mod launch_rows;
mod launch_split;
mod launch_vec;
mod launch_weights;
pub mod library;
mod places;
mod profile;
mod record;
mod storage;
pub mod template;

use super::{Bindings, Buffer, BufferDesc, ComputeType, Device, DeviceInfo, Executable, Limits};
use crate::error::{Error, Result};
use crate::program::Program;
use crate::tensor::{DType, HostTensor};
pub use context::Variants;
use context::{Context, device_error};
use std::sync::Arc;
use std::time::Instant;

/// Adapters in the order that `--device` counts: hardware first, software last.
pub fn devices() -> Vec<DeviceInfo> {
    adapters().into_iter().map(|(_, info)| info).collect()
}

/// Opens the `index`-th adapter of [`devices`]; without `software` only hardware adapters count.
///
/// # Errors
/// [`Error::Device`] where there is no such adapter or it cannot be opened.
pub fn open(index: usize, compute: ComputeType, software: bool) -> Result<Arc<dyn Device>> {
    open_with(index, compute, software, Variants::Auto)
}

/// [`open`] with a chosen family of shaders.
///
/// # Errors
/// As [`open`].
pub fn open_with(index: usize, compute: ComputeType, software: bool, variants: Variants) -> Result<Arc<dyn Device>> {
    let list: Vec<_> = adapters().into_iter().filter(|(_, info)| software || !info.software).collect();
    let Some((adapter, info)) = list.get(index) else {
        let kind = if software { "adapters" } else { "hardware adapters" };
        return Err(device_error(format!(
            "no adapter {index}: {} {kind} found (runtime devices lists them)",
            list.len()
        )));
    };
    Ok(Arc::new(WgpuDevice { context: Context::open(adapter, info.clone(), compute, variants)? }))
}

fn adapters() -> Vec<(wgpu::Adapter, DeviceInfo)> {
    let mut desc = wgpu::InstanceDescriptor::new_without_display_handle();
    desc.backends = wgpu::Backends::PRIMARY;
    let instance = wgpu::Instance::new(desc);
    let mut found = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
    found.sort_by_key(|adapter| adapter.get_info().device_type == wgpu::DeviceType::Cpu);
    found
        .into_iter()
        .enumerate()
        .map(|(index, adapter)| {
            let info = adapter.get_info();
            let detail = format!("{} · {} {}", info.backend, info.driver, info.driver_info);
            let software = info.device_type == wgpu::DeviceType::Cpu;
            #[cfg(not(target_vendor = "apple"))]
            let (uuid, luid) = foreign::identity(&adapter);
            #[cfg(target_vendor = "apple")]
            let (uuid, luid) = Default::default();
            let (backend, name, memory_bytes) = ("wgpu", info.name, None);
            (adapter, DeviceInfo { backend, index, name, detail, memory_bytes, software, uuid, luid })
        })
        .collect()
}

struct WgpuDevice {
    context: Arc<Context>,
}

impl Device for WgpuDevice {
    fn info(&self) -> &DeviceInfo {
        &self.context.info
    }

    fn limits(&self) -> Limits {
        let caps = &self.context.caps;
        Limits {
            // A software adapter computes 64 rows in seconds: more only delay the first token.
            max_step_rows: if caps.software { 256 } else { 4096 },
            max_tensor_bytes: usize::try_from(caps.max_binding).unwrap_or(usize::MAX),
            runs_ahead: true,
            kv_dtype: if caps.half_cache { DType::F16 } else { DType::F32 },
            activations: DType::F32,
            // Few rows leave most of a GPU idle in the head's gradient: 55 instead of 512 cost half of a 0.6B model's step.
            logits_chunk_bytes: if caps.software { 32 << 20 } else { 312 << 20 },
            recompute_cheap: false,
        }
    }

    fn allocate(&self, desc: BufferDesc) -> Result<Buffer> {
        storage::allocate(&self.context, desc)
    }

    fn upload(&self, name: &str, tensor: &HostTensor) -> Result<Buffer> {
        storage::upload(&self.context, name, tensor)
    }

    fn write(&self, buffer: &Buffer, offset: usize, data: &[u8]) -> Result<()> {
        let inner = storage::flat_range(buffer, offset, data.len())?;
        // Copies are in words: the words at the ends keep their other bytes.
        let (start, end) = (offset / 4 * 4, (offset + data.len()).next_multiple_of(4));
        if (start, end) == (offset, offset + data.len()) {
            return self.context.write(inner, offset as u64, data);
        }
        let mut words = vec![0; end - start];
        self.context.read(inner, start as u64, &mut words)?;
        words[offset - start..offset - start + data.len()].copy_from_slice(data);
        self.context.write(inner, start as u64, &words)
    }

    fn read(&self, buffer: &Buffer, offset: usize, out: &mut [u8]) -> Result<()> {
        let inner = storage::flat_range(buffer, offset, out.len())?;
        self.context.read(inner, offset as u64, out)
    }

    fn compile(&self, program: Arc<Program>, bindings: &Bindings) -> Result<Box<dyn Executable>> {
        Ok(Box::new(executable::WgpuExecutable::new(self.context.clone(), program, bindings)?))
    }

    fn copy_bandwidth(&self) -> Result<f64> {
        let context = &self.context;
        let bytes = (if context.caps.software { 64 << 20 } else { 512 << 20u64 }).min(context.caps.max_buffer);
        let (from, to) = (context.storage("copy source", bytes)?, context.storage("copy target", bytes)?);
        let copy = |times: u32| -> Result<f64> {
            let mut encoder = context.device.create_command_encoder(&Default::default());
            for _ in 0..times {
                encoder.copy_buffer_to_buffer(&from, 0, &to, 0, bytes);
            }
            let start = Instant::now();
            let index = context.queue.submit([encoder.finish()]);
            context.wait(index)?;
            Ok(start.elapsed().as_secs_f64())
        };
        copy(1)?;
        // The difference of two runs leaves out the fixed cost of a submission.
        let (few, many) = if context.caps.software { (1, 5) } else { (4, 36) };
        let seconds = (copy(many)? - copy(few)?).max(1e-9);
        if seconds <= 1e-9 {
            return Err(Error::internal("copy bandwidth: no time passed"));
        }
        Ok(2.0 * bytes as f64 * f64::from(many - few) / seconds)
    }
}
