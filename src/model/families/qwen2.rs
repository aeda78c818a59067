//! Qwen2 and Qwen2.5 (`Qwen2ForCausalLM`): biases on q, k and v, always. Defaults: `Qwen2Config` of
//! transformers.

use super::{Defaults, FamilySpec, layer_windows};
use crate::model::config::Family;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Qwen2,
    model_type: "qwen2",
    architecture: "Qwen2ForCausalLM",
    gguf_architecture: Some("qwen2"),
    defaults: Defaults {
        vocab: 151_936,
        hidden: 4096,
        intermediate: 22016,
        layers: 32,
        heads: 32,
        kv_heads: Some(32),
        head_dim: None,
        max_positions: 32768,
        bos: None,
        eos: None,
    },
    flags: |keys, config| {
        config.qkv_bias = true;
        layer_windows(keys, config)
    },
};
