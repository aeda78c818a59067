//! What a [`Buffer`] of this backend holds, and how weights get there.

use super::context::Context;
use super::memory::{HostMemory, Memory};
use crate::backend::planes::{GROUP, Planes};
use crate::backend::{Buffer, BufferDesc, ComputeType};
use crate::error::{Error, Result};
use crate::tensor::{DType, HostTensor};
use rayon::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Device storage of one tensor.
pub enum Storage {
    /// Row-major elements.
    Flat(Memory),
    /// The same, in host memory.
    Host(HostMemory),
    /// A quantised weight in planes (see `planes.rs`).
    Planes(Memory, Planes),
}

impl Storage {
    /// Device address of the first byte.
    pub fn address(&self) -> u64 {
        match self {
            Storage::Flat(memory) | Storage::Planes(memory, _) => memory.address,
            Storage::Host(memory) => memory.address,
        }
    }
}

/// Zeroed flat storage.
pub fn allocate(context: &Arc<Context>, desc: BufferDesc) -> Result<Buffer> {
    let memory = context.allocate_zeroed(&format!("buffer '{}'", desc.name), padded(desc.bytes()))?;
    Ok(Buffer::new(desc, Arc::new(Storage::Flat(memory))))
}

/// Kernels may read a whole vector of 32 bytes at a tensor's end.
fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(256)
}

/// A weight: quantised types in planes, matrices of plain types in the compute type, vectors as they are (f32).
pub fn upload(context: &Arc<Context>, compute: ComputeType, name: &str, tensor: &HostTensor) -> Result<Buffer> {
    let (rows, cols) = (tensor.rows(), tensor.cols());
    let what = format!("weight '{name}'");
    if tensor.dtype.is_quantised() {
        let planes = Planes::new(tensor.dtype, cols);
        let words = pack(&planes, &tensor.data, rows, cols);
        let memory = context.allocate(&what, padded(words.len() * 4))?;
        context.write(memory.address, bytemuck::cast_slice(&words))?;
        let desc = BufferDesc { name: name.into(), dtype: tensor.dtype, rows, cols };
        return Ok(Buffer::new(desc, Arc::new(Storage::Planes(memory, planes))));
    }
    let dtype = stored(compute, tensor);
    let bytes = rows * cols * dtype.block_bytes();
    let memory = context.allocate(&what, padded(bytes))?;
    if dtype == tensor.dtype {
        context.write(memory.address, &tensor.data)?;
    } else {
        let overflow = AtomicBool::new(false);
        context.write_with(memory.address, bytes, |offset, chunk| {
            chunk.par_chunks_mut(1 << 20).enumerate().for_each(|(i, part)| {
                let first = (offset + (i << 20)) / 2;
                if !convert(tensor, first, dtype, part) {
                    overflow.store(true, Ordering::Relaxed);
                }
            });
        })?;
        if overflow.load(Ordering::Relaxed) {
            return Err(overflows(&what, tensor));
        }
    }
    let desc = BufferDesc { name: name.into(), dtype, rows, cols };
    Ok(Buffer::new(desc, Arc::new(Storage::Flat(memory))))
}

/// The type in which a plain tensor lies on the device.
fn stored(compute: ComputeType, tensor: &HostTensor) -> DType {
    match compute {
        _ if tensor.rows() == 1 || tensor.dtype == DType::U32 => tensor.dtype,
        ComputeType::Auto | ComputeType::BF16 => DType::BF16,
        ComputeType::F16 => DType::F16,
        ComputeType::F32 => tensor.dtype,
    }
}

fn overflows(what: &str, tensor: &HostTensor) -> Error {
    let dtype = tensor.dtype;
    Error::unsupported(format!("{what} ({dtype}) has values beyond f16's range of ±65504: use --dtype bfloat16"))
}

/// Zeroed flat storage in pinned host memory.
pub fn allocate_on_host(context: &Arc<Context>, desc: BufferDesc) -> Result<Buffer> {
    context.bind()?;
    let memory = HostMemory::new(context.clone(), padded(desc.bytes()), |_| ())?;
    Ok(Buffer::new(desc, Arc::new(Storage::Host(memory))).in_host_memory())
}

/// A plain weight in pinned host memory, in the type that it would have on the device.
pub fn upload_on_host(context: &Arc<Context>, compute: ComputeType, name: &str, tensor: &HostTensor) -> Result<Buffer> {
    let what = format!("weight '{name}'");
    if tensor.dtype.is_quantised() {
        return Err(Error::unsupported(format!("{what} in host memory: it is {}, not 16 or 32 bits", tensor.dtype)));
    }
    let (rows, cols, dtype) = (tensor.rows(), tensor.cols(), stored(compute, tensor));
    let bytes = rows * cols * dtype.block_bytes();
    let overflow = AtomicBool::new(false);
    context.bind()?;
    let memory = HostMemory::new(context.clone(), padded(bytes), |out| {
        out[..bytes].par_chunks_mut(1 << 20).enumerate().for_each(|(i, part)| {
            if dtype == tensor.dtype {
                part.copy_from_slice(&tensor.data[i << 20..(i << 20) + part.len()]);
            } else if !convert(tensor, (i << 20) / 2, dtype, part) {
                overflow.store(true, Ordering::Relaxed);
            }
        });
    })?;
    if overflow.load(Ordering::Relaxed) {
        return Err(overflows(&what, tensor));
    }
    let desc = BufferDesc { name: name.into(), dtype, rows, cols };
    Ok(Buffer::new(desc, Arc::new(Storage::Host(memory))).in_host_memory())
}

/// Fills `out` with elements from `first` on, as bf16 or f16; false where a finite one became infinite.
fn convert(tensor: &HostTensor, first: usize, dtype: DType, out: &mut [u8]) -> bool {
    let data = &tensor.data;
    let element = |i: usize| -> f32 {
        match tensor.dtype {
            DType::F32 => f32::from_le_bytes([data[4 * i], data[4 * i + 1], data[4 * i + 2], data[4 * i + 3]]),
            DType::F16 => half::f16::from_le_bytes([data[2 * i], data[2 * i + 1]]).to_f32(),
            _ => half::bf16::from_le_bytes([data[2 * i], data[2 * i + 1]]).to_f32(),
        }
    };
    let mut fits = true;
    for (i, to) in out.chunks_exact_mut(2).enumerate() {
        let value = element(first + i);
        if dtype == DType::F16 {
            let half = half::f16::from_f32(value);
            fits &= half.is_finite() || !value.is_finite();
            to.copy_from_slice(&half.to_le_bytes());
        } else {
            to.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes());
        }
    }
    fits
}

/// [`Planes::pack`] on all cores: blocks of rows are packed alone and their planes joined.
fn pack(planes: &Planes, data: &[u8], rows: usize, cols: usize) -> Vec<u32> {
    // Planes join without shifting bits where every block of rows is whole words in every plane.
    const ROWS: usize = 64;
    let row_bytes = planes.dtype.bytes_for(cols).unwrap_or(0);
    let (starts, words) = planes.offsets(rows);
    let mut out = vec![0u32; words];
    let blocks: Vec<(usize, Vec<u32>)> = (0..rows.div_ceil(ROWS))
        .into_par_iter()
        .map(|block| {
            let count = ROWS.min(rows - block * ROWS);
            let start = block * ROWS * row_bytes;
            (count, planes.pack(&data[start..start + count * row_bytes], count, cols))
        })
        .collect();
    let mut at = starts;
    for (count, block) in &blocks {
        let (from, _) = planes.offsets(*count);
        let lens = planes.plane_words(*count);
        for plane in 0..4 {
            let len = lens[plane];
            out[at[plane]..at[plane] + len].copy_from_slice(&block[from[plane]..from[plane] + len]);
            at[plane] += len;
        }
    }
    debug_assert!(cols.is_multiple_of(GROUP));
    out
}

/// The address of a range of a flat buffer, after checking that it lies inside.
pub fn flat_range(buffer: &Buffer, offset: usize, len: usize) -> Result<u64> {
    let desc = buffer.desc();
    match buffer.inner()? {
        Storage::Flat(memory) if offset + len <= desc.bytes() => Ok(memory.address + offset as u64),
        Storage::Flat(_) => Err(Error::internal(format!(
            "bytes {offset}..{} of buffer '{}', which has {}",
            offset + len,
            desc.name,
            desc.bytes()
        ))),
        Storage::Host(memory) => {
            Err(Error::internal(format!("'{}' ({} bytes) lies in host memory", desc.name, memory.len())))
        }
        Storage::Planes(..) => Err(Error::internal(format!("'{}' was uploaded, not allocated", desc.name))),
    }
}
