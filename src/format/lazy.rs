//! Tensors that are computed when they are written: a model larger than memory is exported one tensor at a time.

use crate::error::Result;
use crate::tensor::{DType, HostTensor};

/// The bytes of a tensor, borrowed from a map or just made.
pub enum Bytes<'a> {
    /// Of something that stays alive.
    Borrowed(&'a [u8]),
    /// Made for this call.
    Owned(Vec<u8>),
}

impl std::ops::Deref for Bytes<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// A tensor's name, type and shape, and how to get its bytes.
pub struct LazyTensor<'a> {
    /// Name in the file.
    pub name: String,
    /// Element type in the file.
    pub dtype: DType,
    /// Outermost first.
    pub shape: Vec<usize>,
    make: Box<dyn Fn() -> Result<Bytes<'a>> + 'a>,
}

impl<'a> LazyTensor<'a> {
    /// `make` is called once, when the tensor's turn comes.
    pub fn new(
        name: impl Into<String>,
        dtype: DType,
        shape: Vec<usize>,
        make: impl Fn() -> Result<Bytes<'a>> + 'a,
    ) -> Self {
        Self { name: name.into(), dtype, shape, make: Box::new(make) }
    }

    /// A tensor as it is.
    pub fn existing(name: impl Into<String>, tensor: &'a HostTensor) -> Self {
        Self::new(name, tensor.dtype, tensor.shape.clone(), move || Ok(Bytes::Borrowed(&tensor.data)))
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes in the file; `None` where rows are not whole blocks.
    pub fn byte_len(&self) -> Option<usize> {
        let row = self.shape.last().copied().unwrap_or(1);
        self.dtype.bytes_for(row)?.checked_mul(self.elements().checked_div(row).unwrap_or(0))
    }

    /// Computes the bytes.
    ///
    /// # Errors
    /// Those of what makes them; [`crate::Error::Internal`] where their number does not fit type and shape.
    pub fn bytes(&self) -> Result<Bytes<'a>> {
        let bytes = (self.make)()?;
        if self.byte_len() != Some(bytes.len()) {
            return Err(crate::Error::internal(format!(
                "{} bytes for tensor '{}' of type {} and shape {:?}",
                bytes.len(),
                self.name,
                self.dtype,
                self.shape
            )));
        }
        Ok(bytes)
    }
}
