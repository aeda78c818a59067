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

use super::{
    Bindings, Buffer, BufferDesc, Communicator, ComputeType, Device, DeviceInfo, Executable, ForeignCuda, Limits,
};
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
        let device = result::device::get(index as i32).ok()?;
        let (mut luid, mut mask) = ([0; 8], 0);
        if cfg!(windows) {
            // SAFETY: writes eight bytes and an integer. Where the driver does not know, zeros stay.
            let _ = unsafe { sys::cuDeviceGetLuid(luid.as_mut_ptr(), &mut mask, device) }.result();
        }
        Some(DeviceInfo {
            uuid: result::device::get_uuid(device).map_or([0; 16], |uuid| uuid.bytes.map(|byte| byte as u8)),
            luid: luid.map(|byte| byte as u8),
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

/// Opens a device in somebody else's context.
///
/// # Errors
/// [`Error::Device`] where there is no driver, or the context is none of its.
///
/// # Safety
/// The context is alive, the stream belongs to it, and both outlive the device.
pub unsafe fn open_foreign(foreign: &ForeignCuda, compute: ComputeType) -> Result<Arc<dyn Device>> {
    let no = |message: &str| Error::Device { backend: "cuda", message: message.into() };
    let list = devices();
    if list.is_empty() {
        return Err(no("no NVIDIA driver with a device was found: there can be no foreign context"));
    }
    if foreign.context.is_null() {
        return Err(no("the foreign context is NULL"));
    }
    let fail = |e| device_error("asking a foreign context for its device", e);
    let (context, mut device, mut before) = (foreign.context.cast(), 0, std::ptr::null_mut());
    // SAFETY: the caller's promise; the thread's own context comes back.
    unsafe {
        sys::cuCtxPushCurrent_v2(context).result().map_err(fail)?;
        let found = sys::cuCtxGetDevice(&mut device).result();
        sys::cuCtxPopCurrent_v2(&mut before).result().map_err(fail)?;
        found.map_err(fail)?;
    }
    let index = (0..list.len()).find(|index| result::device::get(*index as i32).is_ok_and(|other| other == device));
    let info =
        index.and_then(|index| list.get(index)).ok_or_else(|| no("the foreign context's device is not listed"))?;
    // SAFETY: as above. The context is never destroyed: `Context` keeps one reference for ever.
    let cuda = unsafe { CudaContext::from_raw_context(info.index, device, context) }.map_err(fail)?;
    let context = Context::on(cuda, info.clone(), Some(foreign.stream.cast()))?;
    Ok(Arc::new(CudaDevice { context, compute }))
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
