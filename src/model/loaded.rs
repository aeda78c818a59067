//! A checkpoint on a device: the one copy of the weights that is served and fine-tuned.

use crate::backend::{self, BackendChoice, Bindings, ComputeType, Device};
use crate::error::Result;
use crate::format::checkpoint::Checkpoint;
use crate::model::config::ModelConfig;
use crate::token::{ChatTemplate, Tokenizer};
use std::path::Path;
use std::sync::Arc;

/// Where and how to load.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions {
    /// Which backend.
    pub backend: BackendChoice,
    /// Position among the backend's devices.
    pub device: usize,
    /// Numeric type of the products.
    pub compute: ComputeType,
}

/// A model whose weights are on a device. Engines and training jobs share it by reference.
pub struct LoadedModel {
    /// File or folder name, for `/v1/models` and messages.
    pub name: String,
    /// The checkpoint it came from (its bytes are mapped, not held).
    pub checkpoint: Checkpoint,
    /// Shared by everything that runs on this model.
    pub device: Arc<dyn Device>,
    /// Weights by canonical name.
    pub weights: Bindings,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// Absent where the checkpoint has none.
    pub chat: Option<ChatTemplate>,
}

impl LoadedModel {
    /// Opens the checkpoint at `path` and puts its weights on a device.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`], [`backend::open`] and [`Device::upload`].
    pub fn open(path: &Path, options: &LoadOptions) -> Result<Arc<Self>> {
        let checkpoint = Checkpoint::open(path)?;
        let device = backend::open(options.backend, options.device, options.compute)?;
        Self::load(checkpoint, device)
    }

    /// Puts an opened checkpoint on a device.
    ///
    /// # Errors
    /// Those of [`Device::upload`], and of the tokenizer and the chat template.
    pub fn load(_checkpoint: Checkpoint, _device: Arc<dyn Device>) -> Result<Arc<Self>> {
        Err(crate::Error::internal("unfinished"))
    }

    /// The architecture.
    pub fn config(&self) -> &ModelConfig {
        &self.checkpoint.config
    }
}
