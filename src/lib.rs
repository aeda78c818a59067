//! `runtime` loads a language model once and serves and fine-tunes it from that one copy.
pub mod error;
pub mod format;
pub mod model;
pub mod tensor;
pub mod token;
pub use error::{Error, Result};
