//! Tensors in host memory: a dtype, a shape and bytes that are either owned or part of a mapped file.

use super::DType;
use crate::error::{Error, Result};
use std::{fmt, ops::Range, sync::Arc};

/// Bytes shared without copying: a slice of something that derefs to bytes (a `Vec`, a memory map).
#[derive(Clone)]
pub struct HostBytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl HostBytes {
    /// The bytes `range` of `owner`; `None` where the range lies outside.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Option<Self> {
        (*owner).as_ref().get(range.clone())?;
        Some(Self { owner, range })
    }

    /// Takes ownership of a vector.
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { owner: Arc::new(bytes), range }
    }
}

impl std::ops::Deref for HostBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

impl fmt::Debug for HostBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostBytes({} bytes)", self.range.len())
    }
}

/// A tensor on the host. `shape` is row-major, outermost dimension first (as in safetensors and
/// PyTorch; GGUF's reversed order is turned round on reading).
#[derive(Clone, Debug)]
pub struct HostTensor {
    /// Element type, as in the file.
    pub dtype: DType,
    /// Outermost first: a weight of `nn.Linear` is `[out_features, in_features]`.
    pub shape: Vec<usize>,
    /// Exactly `dtype.bytes_for(len)` bytes, little-endian.
    pub data: HostBytes,
}

impl HostTensor {
    /// Checks that the byte count fits dtype and shape.
    pub fn new(dtype: DType, shape: Vec<usize>, data: HostBytes) -> Result<Self> {
        let row = shape.last().copied().unwrap_or(1);
        let rows = shape[..shape.len().saturating_sub(1)].iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let want = rows.zip(dtype.bytes_for(row)).and_then(|(n, b)| n.checked_mul(b));
        match want {
            Some(want) if want == data.len() => Ok(Self { dtype, shape, data }),
            _ => Err(Error::invalid(format!(
                "a {dtype} tensor of shape {shape:?} needs {} bytes, got {}",
                want.map_or_else(|| "whole blocks in a row and fewer".into(), |n| n.to_string()),
                data.len()
            ))),
        }
    }

    /// An f32 tensor that owns its data.
    pub fn from_f32(shape: Vec<usize>, data: &[f32]) -> Result<Self> {
        Self::new(DType::F32, shape, HostBytes::from_vec(bytemuck::cast_slice(data).to_vec()))
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True where there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Length of a row: the innermost dimension (1 for a scalar).
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Product of all dimensions but the innermost.
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len().saturating_sub(1)].iter().product()
    }
}
