//! NVIDIA GPUs from compute capability 8.0 on, through the driver alone.
//!
//! The driver is loaded when it is there: one program starts with or without it. [`compile`](Device::compile) walks a
//! program once: `record.rs` and the `launch_*` files turn each op into kernel launches, `fuse.rs` those runs of ops that one
//! kernel does together; `executable.rs` captures the launches in a CUDA graph and replays it. Kernels are in `kernels/`;
//! `library.rs` finds them compiled in the program, in the disk cache, or compiles them with NVRTC. Dense products may be
//! cuBLASLt's instead (`candidates.rs`).

mod candidates;
mod context;
mod cublaslt;
mod executable;
mod fuse;
mod fuse_adapters;
mod graph;
mod launch;
mod launch_attention;
mod launch_dora;
mod launch_dots;
mod launch_few;
mod launch_flat;
mod launch_glu;
mod launch_lora;
mod launch_matmul;
mod launch_rows;
mod launch_weights;
pub mod library;
mod memory;
mod nccl;
pub mod nvrtc;
mod places;
mod profile;
mod record;
mod storage;
mod tensor_map;
pub mod variants;

use super::{Bindings, Buffer, BufferDesc, Communicator, ComputeType, Device, DeviceInfo, Executable, Limits};
use crate::error::{Error, Result};
use crate::program::Program;
use crate::tensor::{DType, HostTensor};
use context::{Context, device_error};
use cudarc::driver::{CudaContext, result, sys};
use std::sync::Arc;

/// NVIDIA devices that the driver reports; none where there is no driver.
pub fn devices() -> Vec<DeviceInfo> {
    // cudarc panics where a library or a symbol of it is missing; both mean "no usable driver" here.
    std::panic::catch_unwind(probe).ok().flatten().unwrap_or_default()
}

fn probe() -> Option<Vec<DeviceInfo>> {
    // SAFETY: only looks for the shared library; calls nothing in it.
    if !unsafe { sys::is_culib_present() } {
        return None;
    }
    result::init().ok()?;
    let count = result::device::get_count().ok()?;
    let mut driver = 0;
    // SAFETY: writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut driver) }.result().ok()?;
    let list = (0..count as usize).filter_map(|index| {
        let context = CudaContext::new(index).ok()?;
        let (major, minor) = context.compute_capability().ok()?;
        Some(DeviceInfo {
            backend: "cuda",
            index,
            name: context.name().ok()?,
            detail: format!(
                "compute capability {major}.{minor} · driver for CUDA {}.{}",
                driver / 1000,
                driver % 1000 / 10
            ),
            memory_bytes: context.total_mem().ok().map(|bytes| bytes as u64),
            software: false,
        })
    });
    Some(list.collect())
}

/// Opens the `index`-th of [`devices`].
///
/// # Errors
/// [`Error::Device`] where there is no driver, no such device, or it fails; [`Error::Unsupported`] where it is too old.
pub fn open(index: usize, compute: ComputeType) -> Result<Arc<dyn Device>> {
    let list = devices();
    let Some(info) = list.get(index) else {
        let message = match list.len() {
            0 => "no NVIDIA driver with a device was found: install the driver, or use --backend wgpu or cpu".into(),
            n => format!("there is no device {index}: the driver reports {n}, counted from 0"),
        };
        return Err(Error::Device { backend: "cuda", message });
    };
    Ok(Arc::new(CudaDevice { context: Context::open(index, info.clone())?, compute }))
}

struct CudaDevice {
    context: Arc<Context>,
    compute: ComputeType,
}

/// The copy that bandwidth is measured with: well beyond any L2.
const COPY_BYTES: usize = 1 << 30;

impl Device for CudaDevice {
    fn info(&self) -> &DeviceInfo {
        &self.context.info
    }

    fn limits(&self) -> Limits {
        let activations = match self.compute {
            ComputeType::F32 => DType::F32,
            ComputeType::F16 => DType::F16,
            ComputeType::Auto | ComputeType::BF16 => DType::BF16,
        };
        Limits {
            max_step_rows: 8192,
            max_tensor_bytes: usize::MAX,
            runs_ahead: true,
            kv_dtype: activations,
            activations,
            // 512 rows of a vocabulary of 151,936: 256 cost 8 % of a small model's training step.
            logits_chunk_bytes: 312 << 20,
            recompute_cheap: true,
        }
    }

    fn allocate(&self, desc: BufferDesc) -> Result<Buffer> {
        storage::allocate(&self.context, desc)
    }

    fn upload(&self, name: &str, tensor: &HostTensor) -> Result<Buffer> {
        storage::upload(&self.context, self.compute, name, tensor)
    }

    fn allocate_on_host(&self, desc: BufferDesc) -> Result<Buffer> {
        storage::allocate_on_host(&self.context, desc)
    }

    fn upload_on_host(&self, name: &str, tensor: &HostTensor) -> Result<Buffer> {
        storage::upload_on_host(&self.context, self.compute, name, tensor)
    }

    fn write(&self, buffer: &Buffer, offset: usize, data: &[u8]) -> Result<()> {
        self.context.write(storage::flat_range(buffer, offset, data.len())?, data)
    }

    fn read(&self, buffer: &Buffer, offset: usize, out: &mut [u8]) -> Result<()> {
        self.context.read(storage::flat_range(buffer, offset, out.len())?, out)
    }

    fn compile(&self, program: Arc<Program>, bindings: &Bindings) -> Result<Box<dyn Executable>> {
        Ok(Box::new(executable::CudaExecutable::new(self.context.clone(), program, bindings)?))
    }

    fn free_memory(&self) -> Result<Option<(u64, u64)>> {
        self.context.bind()?;
        let (free, total) = result::mem_get_info().map_err(|e| device_error("asking for free memory", e))?;
        Ok(Some((free as u64, total as u64)))
    }

    fn communicates(&self) -> Result<()> {
        nccl::present()
    }

    fn communicator_id(&self) -> Result<Vec<u8>> {
        nccl::unique_id()
    }

    fn communicator(&self, id: &[u8], rank: usize, world_size: usize) -> Result<Box<dyn Communicator>> {
        Ok(Box::new(nccl::connect(self.context.clone(), id, rank, world_size)?))
    }

    fn copy_bandwidth(&self) -> Result<f64> {
        const TIMES: u32 = 20;
        let context = &self.context;
        let (from, to) = (context.allocate("a copy", COPY_BYTES)?, context.allocate("a copy", COPY_BYTES)?);
        let copy = |times: u32| {
            (0..times).try_for_each(|_| {
                // SAFETY: both allocations have that many bytes and live until the copies are over (`time` waits).
                unsafe { sys::cuMemcpyDtoDAsync_v2(to.address, from.address, COPY_BYTES, context.stream) }
                    .result()
                    .map_err(|e| device_error("copying on the device", e))
            })
        };
        context.time(|| copy(2))?;
        let seconds = context.time(|| copy(TIMES))?;
        Ok(2.0 * COPY_BYTES as f64 * f64::from(TIMES) / seconds)
    }
}
