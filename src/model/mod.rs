//! Models as data: configuration, families, tensor names and shapes, rotary tables.

pub mod config;
pub mod families;
pub mod keys;
pub mod rope;
mod rope_config;
pub mod weights;

pub use config::{Activation, Family, ModelConfig, RopeScaling};
