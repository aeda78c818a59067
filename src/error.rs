//! The one error type. Every variant maps to one C status (`ffi::status`).

use std::path::PathBuf;

/// Shorthand used all over the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, where, and what would have been accepted.
///
/// Messages are one line: they end up after `error: ` on a terminal and in a C buffer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is corrupt, truncated or not what it claims to be.
    #[error("{file}: {place}: {message}")]
    Format {
        /// File name as the user gave it.
        file: String,
        /// Tensor, key, line or byte offset, for example `tensor 'blk.3.attn_q.weight' at offset 4096`.
        place: String,
        /// What was found and what was expected.
        message: String,
    },
    /// Well-formed input that this build does not handle.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// An argument, option or request field is wrong; names it and says what is accepted.
    #[error("{0}")]
    Invalid(String),
    /// A backend failed: driver error, lost device, shader rejected.
    #[error("{backend}: {message}")]
    Device {
        /// `cpu`, `wgpu` or `cuda`.
        backend: &'static str,
        /// What the driver said.
        message: String,
    },
    /// Memory ran out; says how much was asked for and what for.
    #[error("{backend}: out of memory: {message}")]
    OutOfMemory {
        /// `cpu`, `wgpu` or `cuda`.
        backend: &'static str,
        /// Bytes asked for, purpose, and what is available where known.
        message: String,
    },
    /// Text could not be tokenized, or a chat template failed.
    #[error("{0}")]
    Text(String),
    /// A download or a listener failed.
    #[error("{0}")]
    Network(String),
    /// Too much is waiting already; the same call may succeed later.
    #[error("{0}")]
    Busy(String),
    /// The caller cancelled the work.
    #[error("cancelled")]
    Cancelled,
    /// A bug in this crate made it panic; what was being computed is lost, the rest lives on.
    #[error("a panic (please report) in {0}")]
    Panic(String),
    /// A bug in this crate; please report it.
    #[error("internal error (please report): {0}")]
    Internal(String),
}

impl Error {
    /// An [`Error::Io`] about `path`.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// An [`Error::Format`]: which file, where in it, what was found and expected.
    pub fn format(file: impl Into<String>, place: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Format { file: file.into(), place: place.into(), message: message.into() }
    }

    /// An [`Error::Invalid`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(message.into())
    }

    /// An [`Error::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::Unsupported(message.into())
    }

    /// The same error once more, for another request that it ends.
    #[must_use]
    pub fn repeated(&self) -> Self {
        match self {
            Self::Device { backend, message } => Self::Device { backend, message: message.clone() },
            Self::OutOfMemory { backend, message } => Self::OutOfMemory { backend, message: message.clone() },
            Self::Invalid(message) => Self::Invalid(message.clone()),
            Self::Unsupported(message) => Self::Unsupported(message.clone()),
            Self::Internal(message) => Self::Internal(message.clone()),
            other => Self::Internal(other.to_string()),
        }
    }

    /// An [`Error::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::Internal(message.into())
    }
}
