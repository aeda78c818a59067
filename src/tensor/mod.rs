//! Plain data about tensors: element types, shapes and host bytes. No device, no arithmetic.

mod dtype;
mod host;

pub use dtype::DType;
pub use host::{HostBytes, HostTensor};
