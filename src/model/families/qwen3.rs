//! Qwen3 (`Qwen3ForCausalLM`): RMS norm on each head of q and k, heads of 128 unless stated. Defaults:
//! `Qwen3Config` of transformers.

use super::{Defaults, FamilySpec, layer_windows};
use crate::model::config::Family;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Qwen3,
    model_type: "qwen3",
    architecture: "Qwen3ForCausalLM",
    gguf_architecture: Some("qwen3"),
    defaults: Defaults {
        vocab: 151_936,
        hidden: 4096,
        intermediate: 22016,
        layers: 32,
        heads: 32,
        kv_heads: Some(32),
        head_dim: Some(128),
        max_positions: 32768,
        bos: None,
        eos: None,
    },
    flags: |keys, config| {
        config.qk_norm = true;
        let attention_bias = keys.bool("attention_bias")?.unwrap_or(false);
        config.qkv_bias = attention_bias;
        config.o_bias = attention_bias;
        layer_windows(keys, config)
    },
};
