//! A checkpoint on a device: the one copy of the weights that is served and fine-tuned.

use super::config::ModelConfig;
use super::decoder::{ModelShape, buffers};
use super::rope::rope_table;
use crate::backend::{self, BackendChoice, Bindings, Buffer, BufferDesc, ComputeType, Device};
use crate::error::{Error, Result};
use crate::format::quant::dequantise_row;
use crate::format::{Checkpoint, GgufMetadata, TokenizerSource};
use crate::tensor::{DType, HostTensor};
use crate::token::{ChatTemplate, GgufTokenizer, Tokenizer};
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
    pub fn load(checkpoint: Checkpoint, device: Arc<dyn Device>) -> Result<Arc<Self>> {
        let (tokenizer, chat) = text_tools(&checkpoint)?;
        let mut weights = Bindings::with_capacity(checkpoint.tensors.len());
        for (name, tensor) in &checkpoint.tensors {
            let buffer = if tensor.shape.len() == 1 {
                device.upload(name, &vector_f32(tensor)?)
            } else {
                device.upload(name, tensor)
            };
            weights.insert(name.clone(), buffer?);
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

    /// Bytes of all weights as the device keeps them.
    pub fn weight_bytes(&self) -> usize {
        self.weights.values().map(|w| w.desc().bytes()).sum()
    }

    /// Calls `f` with what [`super::decoder`] needs to build programs for contexts of up to `max_len`.
    pub fn with_shape<R>(&self, max_len: usize, f: impl FnOnce(&ModelShape) -> R) -> R {
        let dtype = |name: &str| self.weights.get(name).map_or(DType::F32, |w| w.desc().dtype);
        let max_tensor_bytes = self.device.limits().max_tensor_bytes;
        f(&ModelShape { config: self.config(), dtype: &dtype, max_len, max_tensor_bytes })
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

/// What turns text into tokens for a checkpoint: its tokenizer and its chat template, where it has them. Needs no device.
///
/// # Errors
/// Those of the tokenizer and of the chat template.
pub fn text_tools(checkpoint: &Checkpoint) -> Result<(Option<Tokenizer>, Option<ChatTemplate>)> {
    match &checkpoint.tokenizer {
        TokenizerSource::None => Ok((None, None)),
        TokenizerSource::Json { tokenizer_json, tokenizer_config, special_tokens_map } => {
            let tokenizer = Tokenizer::from_json(tokenizer_json, tokenizer_config, special_tokens_map)?;
            let source = checkpoint.chat_template.as_deref();
            Ok((Some(tokenizer), ChatTemplate::from_hf(source, tokenizer_config, special_tokens_map)?))
        }
        TokenizerSource::Gguf(metadata) => {
            let tokenizer = Tokenizer::from_gguf(gguf_tokenizer(metadata)?)?;
            let chat = ChatTemplate::from_gguf(checkpoint.chat_template.as_deref(), &tokenizer)?;
            Ok((Some(tokenizer), chat))
        }
    }
}

/// The `tokenizer.ggml.*` keys of a GGUF file, as a tokenizer is built from them.
///
/// # Errors
/// [`Error::Format`] for a key of another type than the format says.
pub fn gguf_tokenizer(metadata: &GgufMetadata) -> Result<GgufTokenizer> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let strings = |name: &str| metadata.get_array_str(&key(name)).map(|list| list.map(<[String]>::to_vec));
    let id = |name: &str| metadata.get_u32(&key(name));
    let flag = |name: &str| metadata.get_bool(&key(name));
    Ok(GgufTokenizer {
        model: metadata.require_str(&key("model"))?.to_owned(),
        pre: metadata.get_str(&key("pre"))?.map(str::to_owned),
        tokens: strings("tokens")?.unwrap_or_default(),
        scores: metadata.get_array_f32(&key("scores"))?.map(<[f32]>::to_vec),
        token_types: metadata
            .get_array_i64(&key("token_type"))?
            .map(|types| types.into_iter().map(|t| i32::try_from(t).unwrap_or(0)).collect()),
        merges: strings("merges")?,
        bos: id("bos_token_id")?,
        eos: id("eos_token_id")?,
        eot: id("eot_token_id")?,
        unk: id("unknown_token_id")?,
        pad: id("padding_token_id")?,
        add_bos: flag("add_bos_token")?,
        add_eos: flag("add_eos_token")?,
        add_space_prefix: flag("add_space_prefix")?,
        remove_extra_whitespaces: flag("remove_extra_whitespaces")?,
    })
}
