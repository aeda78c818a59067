//! Files: GGUF, safetensors, Hugging Face folders, PEFT adapters, downloads.
//!
//! Everything that is read here is untrusted. A corrupt, truncated or unknown file gives an error that names
//! file, tensor or key, and offset; nothing panics, and no allocation is larger than the file justifies.

pub mod bnb;
pub mod checkpoint;
pub mod describe;
mod from_gguf;
pub mod gguf;
pub mod hub;
pub mod lazy;
pub mod peft;
mod peft_config;
pub mod quant;
pub mod random;
pub mod safetensors;
pub mod safetensors_write;
pub mod source;
pub mod to_gguf;

pub use checkpoint::{Checkpoint, TokenizerSource};
pub use describe::{Description, describe};
pub use gguf::{GgufArray, GgufFile, GgufMetadata, GgufValue};
pub use source::Source;
