//! Where bytes come from: a memory-mapped file, or a buffer that the embedding program already holds.

use crate::error::{Error, Result};
use crate::tensor::HostBytes;
use std::{fs::File, ops::Range, path::Path, sync::Arc};

/// Read-only bytes with a name for error messages. Cloning shares them.
#[derive(Clone)]
pub struct Source {
    name: String,
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
}

impl Source {
    /// Maps the file at `path`. Pages are read when they are first touched, so opening a large file is cheap.
    ///
    /// The file must not be truncated while it is open: that is a bus error on every system, and the reason
    /// why writers in this crate replace files by renaming instead of overwriting them.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be opened, is not a regular file, or cannot be mapped.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let meta = file.metadata().map_err(|e| Error::io(path, e))?;
        if !meta.is_file() {
            let e = std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file");
            return Err(Error::io(path, e));
        }
        // SAFETY: the map is private and read-only, lives in an `Arc` for as long as any slice of it, and is
        // only ever read as plain bytes. Another process that truncates the file is outside our control;
        // the doc comment above says so.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        Ok(Self { name: path.display().to_string(), owner: Arc::new(map) })
    }

    /// Maps `len` bytes at `offset` of an open file, which may be closed afterwards; `len` 0: up to its end.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be mapped; [`Error::Invalid`] for a range outside of it.
    pub fn map(name: impl Into<String>, file: &File, offset: u64, len: u64) -> Result<Self> {
        let name = name.into();
        let size = file.metadata().map_err(|e| Error::io(&name, e))?.len();
        let len = if len == 0 { size.saturating_sub(offset) } else { len };
        if len == 0 || offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(Error::invalid(format!("{name}: {len} bytes at {offset} of a file of {size}")));
        }
        let mut options = memmap2::MmapOptions::new();
        // SAFETY: as in `open`.
        let map = unsafe { options.offset(offset).len(len as usize).map(file) }.map_err(|e| Error::io(&name, e))?;
        Ok(Self { name, owner: Arc::new(map) })
    }

    /// Takes what an embedding program holds; it is dropped with the last slice.
    pub fn from_owner(name: impl Into<String>, owner: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Self {
        Self { name: name.into(), owner }
    }

    /// Takes a buffer instead of a file; `name` appears in error messages.
    pub fn from_bytes(name: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self { name: name.into(), owner: Arc::new(bytes) }
    }

    /// Name for error messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        (*self.owner).as_ref()
    }

    /// A part that keeps the whole alive; `None` where `range` lies outside.
    pub fn slice(&self, range: Range<usize>) -> Option<HostBytes> {
        HostBytes::new(self.owner.clone(), range)
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Source({}, {} bytes)", self.name, self.bytes().len())
    }
}
