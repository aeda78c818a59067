//! From a configuration to programs: one decoder for all families, and the weights on a device.

pub mod config;
pub mod decoder;
#[cfg(any())]
mod loaded;
pub mod lora;

#[cfg(any())]
pub use loaded::{LoadOptions, LoadedModel};
