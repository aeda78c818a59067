//! From an opened checkpoint to its tokenizer and chat template.

use serde_json::Value;

use super::chat::ChatTemplate;
use super::gguf::GgufTokenizer;
use super::tokenizer::Tokenizer;
use crate::format::{Checkpoint, GgufMetadata, TokenizerSource};
use crate::{Error, Result};

impl GgufTokenizer {
    /// Reads the `tokenizer.ggml.*` keys.
    ///
    /// # Errors
    /// [`Error::Format`] for a key of another type, or a missing `model` or `tokens`.
    pub fn from_metadata(metadata: &GgufMetadata) -> Result<Self> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let id = |name: &str| metadata.get_u32(&key(name));
        let flag = |name: &str| metadata.get_bool(&key(name));
        let strings = |name: &str| Ok::<_, Error>(metadata.get_array_str(&key(name))?.map(<[String]>::to_vec));
        let token_types = metadata.get_array_i64(&key("token_type"))?;
        Ok(Self {
            model: metadata.require_str(&key("model"))?.to_owned(),
            pre: metadata.get_str(&key("pre"))?.map(str::to_owned),
            tokens: strings("tokens")?.unwrap_or_default(),
            scores: metadata.get_array_f32(&key("scores"))?.map(<[f32]>::to_vec),
            // An unknown kind is an ordinary token.
            token_types: token_types.map(|all| all.iter().map(|&t| i32::try_from(t).unwrap_or(1)).collect()),
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
}

impl Tokenizer {
    /// The tokenizer of a checkpoint.
    ///
    /// # Errors
    /// [`Error::Text`] where the checkpoint has none, and as [`Self::from_json`] and [`Self::from_gguf`].
    pub fn from_source(source: &TokenizerSource) -> Result<Self> {
        match source {
            TokenizerSource::Json { tokenizer_json, tokenizer_config, special_tokens_map } => {
                Self::from_json(tokenizer_json, tokenizer_config, special_tokens_map)
            }
            TokenizerSource::Gguf(metadata) => Self::from_gguf(GgufTokenizer::from_metadata(metadata)?),
            TokenizerSource::None => {
                Err(Error::Text("the model's folder has no tokenizer.json; pass token ids instead of text".into()))
            }
        }
    }
}

impl ChatTemplate {
    /// The chat template of a checkpoint, `None` where it has none; `tokenizer` is the checkpoint's own.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn from_checkpoint(checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let default = checkpoint.chat_template.as_deref();
        match &checkpoint.tokenizer {
            TokenizerSource::Json { tokenizer_config, special_tokens_map, .. } => {
                // A list of named templates is read here: the one for tools is in it too.
                let named = |entry: &Value| entry["template"].as_str() == default && entry["name"] == "default";
                let listed = tokenizer_config["chat_template"].as_array().is_some_and(|all| all.iter().any(named));
                Self::from_hf(default.filter(|_| !listed), tokenizer_config, special_tokens_map)
            }
            TokenizerSource::Gguf(_) | TokenizerSource::None => Self::from_gguf(default, tokenizer),
        }
    }
}
