//! What a [`Buffer`] of this backend holds.

use super::context::Context;
use crate::backend::planes::Planes;
use crate::backend::{Buffer, BufferDesc};
use crate::error::{Error, Result};
use crate::tensor::HostTensor;
use std::sync::Arc;

/// Device storage of one tensor.
pub enum Storage {
    /// Row-major elements as the host wrote them.
    Flat(wgpu::Buffer),
    /// A weight in planes (see `planes.rs`), split by rows.
    Planes {
        /// Layout of each part.
        planes: Planes,
        /// In order of rows.
        parts: Vec<Part>,
    },
}

/// Consecutive rows of a weight.
pub struct Part {
    pub buffer: wgpu::Buffer,
    pub first: usize,
    pub rows: usize,
}

/// Zeroed flat storage.
pub fn allocate(context: &Context, desc: BufferDesc) -> Result<Buffer> {
    let buffer = context.storage(&desc.name, desc.bytes() as u64)?;
    Ok(Buffer::new(desc, Arc::new(Storage::Flat(buffer))))
}

/// A weight, packed and uploaded part by part.
pub fn upload(context: &Context, name: &str, tensor: &HostTensor) -> Result<Buffer> {
    let (rows, cols) = (tensor.rows(), tensor.cols());
    let planes = Planes::new(tensor.dtype, cols);
    let row_bytes = tensor.dtype.bytes_for(cols).unwrap_or(0);
    // No part is packed in more host memory than this, whatever the binding limit is.
    let limit = context.caps.max_binding.min(MAX_PART);
    let step = planes.rows_within(limit as usize);
    if planes.offsets(step.min(rows)).1 as u64 * 4 > context.caps.max_binding {
        let message = format!("one row of '{name}' is larger than a binding of {} bytes", context.caps.max_binding);
        return Err(Error::unsupported(message));
    }
    let mut parts = Vec::new();
    for first in (0..rows).step_by(step) {
        let count = step.min(rows - first);
        let words = planes.pack(&tensor.data[first * row_bytes..(first + count) * row_bytes], count, cols);
        let buffer = context.storage(name, words.len() as u64 * 4)?;
        context.write(&buffer, 0, bytemuck::cast_slice(&words))?;
        parts.push(Part { buffer, first, rows: count });
    }
    let desc = BufferDesc { name: name.to_string(), dtype: tensor.dtype, rows, cols };
    Ok(Buffer::new(desc, Arc::new(Storage::Planes { planes, parts })))
}

/// 1 GiB.
const MAX_PART: u64 = 1 << 30;

/// The flat buffer behind `buffer`, after checking that `len` bytes at `offset` lie inside it.
pub fn flat_range(buffer: &Buffer, offset: usize, len: usize) -> Result<&wgpu::Buffer> {
    let desc = buffer.desc();
    match buffer.inner::<Storage>()? {
        Storage::Flat(inner) if offset.checked_add(len).is_some_and(|end| end <= desc.bytes()) => Ok(inner),
        Storage::Flat(_) => Err(Error::internal(format!(
            "bytes {offset}..{} of '{}', which has {}",
            offset.saturating_add(len),
            desc.name,
            desc.bytes()
        ))),
        Storage::Planes { .. } => {
            Err(Error::internal(format!("'{}' is an uploaded weight: it is not read or written", desc.name)))
        }
    }
}
