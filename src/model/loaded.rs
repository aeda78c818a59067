//! A checkpoint on a device: the one copy of the weights that is served and fine-tuned.

use super::config::ModelConfig;
use super::decoder::{ModelShape, buffers};
use super::quantise::{is_quantised, quantised};
use super::rope::rope_table;
use crate::backend::{self, BackendChoice, Bindings, Buffer, BufferDesc, ComputeType, Device};
use crate::error::{Error, Result};
use crate::format::quant::dequantise_row;
use crate::format::{Checkpoint, TokenizerSource};
use crate::tensor::{DType, HostTensor};
use crate::token::{ChatTemplate, Tokenizer};
use std::ops::ControlFlow;
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
    /// Type to which the linear modules of the layers are quantised; `None`: as they are in the file.
    pub weights: Option<DType>,
    /// Keep the embedding table in host memory, from where each step reads the rows of its tokens (Unsloth's
    /// `offload_embedding`).
    pub offload_embedding: bool,
}

/// The table of embeddings.
const EMBEDDING: &str = "model.embed_tokens.weight";

/// A model whose weights are on a device. Engines and training jobs share it by reference.
pub struct LoadedModel {
    /// File or folder name without its ending, for `/v1/models` and messages.
    pub name: String,
    /// The checkpoint it came from (its bytes are mapped, not held).
    pub checkpoint: Checkpoint,
    /// Shared by everything that runs on this model.
    pub device: Arc<dyn Device>,
    /// Weights by canonical name.
    pub weights: Bindings,
    /// Text to tokens and back; absent where the folder has no tokenizer.
    pub tokenizer: Option<Tokenizer>,
    /// Absent where the checkpoint has none.
    pub chat: Option<ChatTemplate>,
}

impl std::fmt::Debug for LoadedModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadedModel").field("name", &self.name).finish_non_exhaustive()
    }
}

impl LoadedModel {
    /// Opens the checkpoint at `path` and puts its weights on a device.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`], [`backend::open`], [`Device::upload`] and of quantising.
    pub fn open(path: &Path, options: &LoadOptions) -> Result<Arc<Self>> {
        let checkpoint = Checkpoint::open(path)?;
        let device = backend::open(options.backend, options.device, options.compute)?;
        Self::load_placed(checkpoint, device, options)
    }

    /// Puts an opened checkpoint on a device as `options` say (but for the device).
    ///
    /// # Errors
    /// As [`LoadedModel::load_as`]; [`Error::Unsupported`] for an embedding in host memory where the backend does not reach it or
    /// the table is also the head.
    pub fn load_placed(checkpoint: Checkpoint, device: Arc<dyn Device>, options: &LoadOptions) -> Result<Arc<Self>> {
        if options.offload_embedding && checkpoint.config.tied_head {
            return Err(Error::unsupported(
                "offload_embedding: the embedding is also this model's head, which every step reads as a whole",
            ));
        }
        Self::place(checkpoint, device, options, &mut |_, _| ControlFlow::Continue(()))
    }

    /// Puts an opened checkpoint on a device.
    ///
    /// # Errors
    /// Those of [`Device::upload`], and of the tokenizer and the chat template.
    pub fn load(checkpoint: Checkpoint, device: Arc<dyn Device>) -> Result<Arc<Self>> {
        Self::load_as(checkpoint, device, None)
    }

    /// As [`LoadedModel::load`], with the linear modules of the layers quantised to `dtype`, one after another.
    ///
    /// # Errors
    /// As [`LoadedModel::load`]; [`Error::Invalid`] where a weight is quantised already, or its rows are not whole blocks.
    pub fn load_as(checkpoint: Checkpoint, device: Arc<dyn Device>, dtype: Option<DType>) -> Result<Arc<Self>> {
        Self::load_with(checkpoint, device, dtype, &mut |_, _| ControlFlow::Continue(()))
    }

    /// As [`LoadedModel::load_as`]. `progress` hears of the bytes that are on the device and of all there are, after each
    /// tensor, and may end it.
    ///
    /// # Errors
    /// As [`LoadedModel::load_as`]; [`Error::Cancelled`] where `progress` said so.
    pub fn load_with(
        checkpoint: Checkpoint,
        device: Arc<dyn Device>,
        dtype: Option<DType>,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Arc<Self>> {
        Self::place(checkpoint, device, &LoadOptions { weights: dtype, ..LoadOptions::default() }, progress)
    }

    fn place(
        checkpoint: Checkpoint,
        device: Arc<dyn Device>,
        options: &LoadOptions,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Arc<Self>> {
        let total = checkpoint.tensors.values().map(|t| t.data.len() as u64).sum();
        let mut done = 0;
        let (tokenizer, chat) = text_tools(&checkpoint)?;
        let mut weights = Bindings::with_capacity(checkpoint.tensors.len());
        for (name, tensor) in &checkpoint.tensors {
            let buffer = match options.weights.filter(|_| is_quantised(name)) {
                _ if options.offload_embedding && name == EMBEDDING => {
                    device.upload_on_host(name, tensor).map_err(|e| match e {
                        Error::Unsupported(why) => Error::unsupported(format!("offload_embedding: {why}")),
                        other => other,
                    })
                }
                _ if tensor.shape.len() == 1 => device.upload(name, &vector_f32(tensor)?),
                Some(dtype) => device.upload(name, &quantised(name, tensor, dtype)?),
                None => device.upload(name, tensor),
            };
            weights.insert(name.clone(), buffer?);
            done += tensor.data.len() as u64;
            if progress(done, total).is_break() {
                return Err(Error::Cancelled);
            }
        }
        let name = checkpoint.path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Arc::new(Self { name, checkpoint, device, weights, tokenizer, chat }))
    }

    /// The architecture.
    pub fn config(&self) -> &ModelConfig {
        &self.checkpoint.config
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`Error::Text`] where the checkpoint has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| {
            let path = self.checkpoint.path.display();
            Error::Text(format!("{path} has no tokenizer.json: text cannot be tokenized, pass token ids"))
        })
    }

    /// The chat template.
    ///
    /// # Errors
    /// [`Error::Text`] where the checkpoint has none.
    pub fn chat(&self) -> Result<&ChatTemplate> {
        self.chat.as_ref().ok_or_else(ChatTemplate::missing)
    }

    /// Bytes of all weights that the device keeps.
    pub fn weight_bytes(&self) -> usize {
        self.weights.values().filter(|w| !w.is_on_host()).map(|w| w.desc().bytes()).sum()
    }

    /// Calls `f` with what [`super::decoder`] needs to build programs for contexts of up to `max_len`.
    pub fn with_shape<R>(&self, max_len: usize, f: impl FnOnce(&ModelShape) -> R) -> R {
        let dtype = |name: &str| self.weights.get(name).map_or(DType::F32, |w| w.desc().dtype);
        f(&ModelShape { config: self.config(), dtype: &dtype, max_len, limits: self.device.limits() })
    }

    /// The rotary table for positions below `max_len`, to be bound as [`buffers::ROPE`].
    ///
    /// # Errors
    /// Those of [`Device::allocate`] and [`Device::write`].
    pub fn rope_buffer(&self, max_len: usize) -> Result<Buffer> {
        let table = rope_table(self.config(), max_len);
        let desc =
            BufferDesc { name: buffers::ROPE.into(), dtype: DType::F32, rows: max_len, cols: self.config().rope_dim };
        let buffer = self.device.allocate(desc)?;
        self.device.write(&buffer, 0, bytemuck::cast_slice(&table.cos_sin))?;
        Ok(buffer)
    }
}

/// Norm weights and biases are a few kilobytes: f32 on every device.
fn vector_f32(tensor: &HostTensor) -> Result<HostTensor> {
    let mut numbers = vec![0.0; tensor.len()];
    dequantise_row(tensor.dtype, &tensor.data, &mut numbers)?;
    HostTensor::from_f32(vec![1, numbers.len()], &numbers)
}

/// Tokenizer and chat template of a checkpoint, where it has them; needs no device.
///
/// # Errors
/// Those of [`Tokenizer::from_source`] and [`ChatTemplate::from_checkpoint`].
pub fn text_tools(checkpoint: &Checkpoint) -> Result<(Option<Tokenizer>, Option<ChatTemplate>)> {
    if matches!(checkpoint.tokenizer, TokenizerSource::None) {
        return Ok((None, None));
    }
    let tokenizer = Tokenizer::from_source(&checkpoint.tokenizer)?;
    let chat = ChatTemplate::from_checkpoint(checkpoint, &tokenizer)?;
    Ok((Some(tokenizer), chat))
}
