//! What `runtime inspect` prints.

use super::checkpoint::{Checkpoint, TokenizerSource};
use crate::model::config::{ModelConfig, RopeScaling};
use serde::Serialize;
use std::collections::BTreeMap;

/// A checkpoint in a few lines; `serde` gives its JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Description {
    /// File or folder.
    pub path: String,
    /// `llama`, `mistral`, `qwen2` or `qwen3`.
    pub family: &'static str,
    /// Elements of all tensors; a tied head counts once.
    pub parameters: usize,
    /// Bytes of all tensors as stored.
    pub bytes: usize,
    /// Tensors by element type.
    pub dtypes: BTreeMap<&'static str, DtypeCount>,
    /// The configuration, field by field.
    pub config: ConfigSummary,
    /// `tokenizer.json`, `gguf (gpt2, smollm)` or `none`.
    pub tokenizer: String,
    /// Whether there is a chat template.
    pub chat_template: bool,
}

/// Tensors of one element type.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct DtypeCount {
    /// How many tensors.
    pub tensors: usize,
    /// Their elements.
    pub elements: usize,
    /// Their bytes.
    pub bytes: usize,
}

/// The fields of [`ModelConfig`] that a person asks for, under Hugging Face names.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)] // the names are those of config.json
pub struct ConfigSummary {
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub intermediate_size: usize,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f32,
    pub rope_theta: f64,
    pub rope_type: &'static str,
    pub rope_dim: usize,
    pub qk_norm: bool,
    pub qkv_bias: bool,
    pub o_bias: bool,
    pub mlp_bias: bool,
    /// Layers with a sliding window, and its width.
    pub windowed_layers: usize,
    pub sliding_window: Option<usize>,
    pub tie_word_embeddings: bool,
    pub bos_token_id: Option<u32>,
    pub eos_token_ids: Vec<u32>,
}

/// Describes an opened checkpoint; no tensor data is read.
pub fn describe(checkpoint: &Checkpoint) -> Description {
    let mut dtypes = BTreeMap::<_, DtypeCount>::new();
    for tensor in checkpoint.tensors.values() {
        let count = dtypes.entry(tensor.dtype.name()).or_default();
        count.tensors += 1;
        count.elements += tensor.len();
        count.bytes += tensor.data.len();
    }
    Description {
        path: checkpoint.path.display().to_string(),
        family: checkpoint.config.family.name(),
        parameters: dtypes.values().map(|c| c.elements).sum(),
        bytes: dtypes.values().map(|c| c.bytes).sum(),
        dtypes,
        config: summary(&checkpoint.config),
        tokenizer: tokenizer(&checkpoint.tokenizer),
        chat_template: checkpoint.chat_template.is_some(),
    }
}

fn summary(c: &ModelConfig) -> ConfigSummary {
    ConfigSummary {
        hidden_size: c.hidden,
        num_hidden_layers: c.layers,
        num_attention_heads: c.heads,
        num_key_value_heads: c.kv_heads,
        head_dim: c.head_dim,
        intermediate_size: c.intermediate,
        vocab_size: c.vocab,
        max_position_embeddings: c.max_positions,
        rms_norm_eps: c.rms_norm_eps,
        rope_theta: c.rope_theta,
        rope_type: match c.rope_scaling {
            RopeScaling::None => "default",
            RopeScaling::Linear { .. } => "linear",
            RopeScaling::Dynamic { .. } => "dynamic",
            RopeScaling::Yarn { .. } => "yarn",
            RopeScaling::Llama3 { .. } => "llama3",
            RopeScaling::LongRope { .. } => "longrope",
            RopeScaling::Divisors { .. } => "divisors",
        },
        rope_dim: c.rope_dim,
        qk_norm: c.qk_norm,
        qkv_bias: c.qkv_bias,
        o_bias: c.o_bias,
        mlp_bias: c.mlp_bias,
        windowed_layers: c.windows.iter().flatten().count(),
        sliding_window: c.windows.iter().flatten().max().copied(),
        tie_word_embeddings: c.tied_head,
        bos_token_id: c.bos,
        eos_token_ids: c.eos.clone(),
    }
}

fn tokenizer(source: &TokenizerSource) -> String {
    match source {
        TokenizerSource::Json { .. } => "tokenizer.json".into(),
        TokenizerSource::Gguf(meta) => {
            let part = |key| meta.get_str(key).ok().flatten().unwrap_or("?").to_owned();
            format!("gguf ({}, {})", part("tokenizer.ggml.model"), part("tokenizer.ggml.pre"))
        }
        TokenizerSource::None => "none".into(),
    }
}
