//! The host as a device.

use super::executable::CpuExecutable;
use super::weight::Weight;
use crate::backend::{Bindings, Buffer, BufferDesc, ComputeType, Device, DeviceInfo, Executable, Limits};
use crate::error::{Error, Result};
use crate::program::Program;
use crate::tensor::{DType, HostTensor};
use std::ops::Range;
use std::sync::{Arc, RwLock};
use std::time::Instant;

/// What a CPU buffer holds. u32 buffers and caches of 8-bit codes keep their bits in f32s, so that all storage is one type.
pub(super) enum Storage {
    /// Mutable numbers.
    Numbers(RwLock<Vec<f32>>),
    /// A weight in its file's type.
    Weight(Weight),
}

struct CpuDevice {
    info: DeviceInfo,
}

/// Describes the host.
pub fn info() -> DeviceInfo {
    let threads = rayon::current_num_threads();
    let memory = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|l| l.starts_with("MemTotal:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    DeviceInfo {
        uuid: [0; 16],
        luid: [0; 8],
        backend: "cpu",
        index: 0,
        name: std::env::consts::ARCH.into(),
        detail: format!("{threads} threads, {}", instruction_set()),
        memory_bytes: memory.map(|kib| kib * 1024),
        software: false,
    }
}

/// What vectorised loops are compiled for here.
fn instruction_set() -> &'static str {
    // pulp names its levels after the x86-64 ones, and prints every feature behind the name.
    let level = format!("{:?}", pulp::Arch::new());
    match level.split('(').next() {
        Some("V4") => "AVX-512",
        Some("V3") => "AVX2",
        Some("Neon") => "NEON",
        _ => "baseline instructions",
    }
}

/// Opens the host. Every [`ComputeType`] is accepted: f32 is at least as precise as what was asked for.
pub fn open(_: ComputeType) -> Result<Arc<dyn Device>> {
    Ok(Arc::new(CpuDevice { info: info() }))
}

/// A zeroed vector, or an error instead of an abort where the host has not enough memory.
pub(super) fn zeroed(name: &str, len: usize) -> Result<Vec<f32>> {
    let mut data = Vec::new();
    data.try_reserve_exact(len)
        .map_err(|_| Error::OutOfMemory { backend: "cpu", message: format!("{} bytes for {name}", len * 4) })?;
    data.resize(len, 0.0);
    Ok(data)
}

fn range(buffer: &Buffer, offset: usize, bytes: usize, len: usize) -> Result<Range<usize>> {
    let (start, end) = (offset / 4, (offset + bytes) / 4);
    if !offset.is_multiple_of(4) || !bytes.is_multiple_of(4) || end > len {
        let name = &buffer.desc().name;
        return Err(Error::internal(format!("bytes {offset}..{} lie outside buffer '{name}'", offset + bytes)));
    }
    Ok(start..end)
}

pub(super) fn poisoned<T>(_: T) -> Error {
    Error::internal("a buffer's lock was poisoned by an earlier panic")
}

impl Device for CpuDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn limits(&self) -> Limits {
        Limits {
            max_step_rows: 512,
            max_tensor_bytes: usize::MAX,
            runs_ahead: false,
            kv_dtype: DType::F32,
            activations: DType::F32,
            // Larger chunks stopped paying at this size on 2 cores.
            logits_chunk_bytes: 32 << 20,
            recompute_cheap: false,
        }
    }

    fn allocate(&self, desc: BufferDesc) -> Result<Buffer> {
        if !matches!(desc.dtype, DType::F32 | DType::U32 | DType::I8 | DType::E4M3) {
            return Err(Error::unsupported(format!("cpu: buffer '{}' of type {}", desc.name, desc.dtype)));
        }
        let data = zeroed(&desc.name, desc.bytes().div_ceil(4))?;
        Ok(Buffer::new(desc, Arc::new(Storage::Numbers(RwLock::new(data)))))
    }

    fn allocate_on_host(&self, desc: BufferDesc) -> Result<Buffer> {
        Ok(self.allocate(desc)?.in_host_memory())
    }

    fn upload_on_host(&self, name: &str, tensor: &HostTensor) -> Result<Buffer> {
        Ok(self.upload(name, tensor)?.in_host_memory())
    }

    fn upload(&self, name: &str, tensor: &HostTensor) -> Result<Buffer> {
        let desc = BufferDesc { name: name.into(), dtype: tensor.dtype, rows: tensor.rows(), cols: tensor.cols() };
        Ok(Buffer::new(desc, Arc::new(Storage::Weight(Weight::new(tensor.clone())?))))
    }

    fn write(&self, buffer: &Buffer, offset: usize, data: &[u8]) -> Result<()> {
        let Storage::Numbers(numbers) = buffer.inner::<Storage>()? else {
            return Err(Error::internal(format!("weight '{}' is read-only", buffer.desc().name)));
        };
        let mut numbers = numbers.write().map_err(poisoned)?;
        let range = range(buffer, offset, data.len(), numbers.len())?;
        bytemuck::cast_slice_mut::<f32, u8>(&mut numbers[range]).copy_from_slice(data);
        Ok(())
    }

    fn read(&self, buffer: &Buffer, offset: usize, out: &mut [u8]) -> Result<()> {
        let Storage::Numbers(numbers) = buffer.inner::<Storage>()? else {
            return Err(Error::internal(format!("weight '{}' is not read back", buffer.desc().name)));
        };
        let numbers = numbers.read().map_err(poisoned)?;
        let range = range(buffer, offset, out.len(), numbers.len())?;
        out.copy_from_slice(bytemuck::cast_slice(&numbers[range]));
        Ok(())
    }

    fn compile(&self, program: Arc<Program>, bindings: &Bindings) -> Result<Box<dyn Executable>> {
        Ok(Box::new(CpuExecutable::new(program, bindings)?))
    }

    fn copy_bandwidth(&self) -> Result<f64> {
        use rayon::prelude::*;
        const LEN: usize = 64 << 20; // 256 MiB each way: far beyond any cache
        const CHUNK: usize = 1 << 20;
        let (from, mut to) = (vec![1.0f32; LEN], zeroed("copy bandwidth", LEN)?);
        let mut best = f64::INFINITY;
        for _ in 0..4 {
            let start = Instant::now();
            to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| to.copy_from_slice(from));
            best = best.min(start.elapsed().as_secs_f64());
        }
        std::hint::black_box(&to);
        Ok((2 * LEN * 4) as f64 / best)
    }
}
