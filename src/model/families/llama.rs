//! Llama 2, 3 and 3.x, SmolLM2, TinyLlama (`LlamaForCausalLM`). Defaults: `LlamaConfig` of transformers.

use super::{Defaults, FamilySpec};
use crate::model::config::Family;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Llama,
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    gguf_architecture: Some("llama"),
    defaults: Defaults {
        vocab: 32000,
        hidden: 4096,
        intermediate: 11008,
        layers: 32,
        heads: 32,
        kv_heads: None,
        head_dim: None,
        max_positions: 2048,
        bos: Some(1),
        eos: Some(2),
    },
    flags: |keys, config| {
        let attention_bias = keys.bool("attention_bias")?.unwrap_or(false);
        config.qkv_bias = attention_bias;
        config.o_bias = attention_bias;
        config.mlp_bias = keys.bool("mlp_bias")?.unwrap_or(false);
        Ok(())
    },
};
