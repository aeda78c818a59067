//! From a configuration to programs: one decoder for all families, and the weights on a device.

pub mod config;
pub mod families;
pub mod keys;
mod loaded;
pub mod rope;
mod rope_config;
pub mod weights;

pub use config::{Activation, Family, ModelConfig, RopeScaling};
pub use loaded::{LoadOptions, LoadedModel};
