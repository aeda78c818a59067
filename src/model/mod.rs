//! From a configuration to programs: one decoder for all families, and the weights on a device.

pub mod config;
mod loaded;

pub use loaded::{LoadOptions, LoadedModel};
