//! From a configuration to programs: families as data, one decoder for all of them, weights on a device.

pub mod choice;
pub mod config;
pub mod decoder;
pub mod families;
pub mod keys;
mod loaded;
pub mod lora;
pub mod optimizer;
mod quantise;
pub mod rope;
mod rope_config;
pub mod weights;
pub mod whole;

pub use config::{Activation, Family, ModelConfig, RopeScaling};
pub use loaded::{LoadOptions, LoadedModel, text_tools};
