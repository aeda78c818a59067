//! `runtime` loads a language model once and serves and fine-tunes it from that one copy.
pub mod backend;
pub mod collective;
pub mod embed;
pub mod engine;
pub mod error;
pub mod ffi;
pub mod format;
pub mod grpo;
pub mod model;
pub mod program;
#[cfg(feature = "serve")]
pub mod serve;
pub mod tensor;
pub mod token;
pub mod train;
#[cfg(feature = "serve")]
pub mod tune;
pub use error::{Error, Result};
