//! Mistral (`MistralForCausalLM`): no biases, one sliding window for every layer, 4096 unless the file says
//! null. Defaults: `MistralConfig` of transformers. In GGUF it goes by the name `llama`.

use super::{Defaults, FamilySpec};
use crate::error::Error;
use crate::model::config::Family;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Mistral,
    model_type: "mistral",
    architecture: "MistralForCausalLM",
    gguf_architecture: None,
    defaults: Defaults {
        vocab: 32000,
        hidden: 4096,
        intermediate: 14336,
        layers: 32,
        heads: 32,
        kv_heads: Some(8),
        head_dim: None,
        max_positions: 4096 * 32,
        bos: Some(1),
        eos: Some(2),
    },
    flags: |keys, config| {
        let window = match keys.contains("sliding_window") {
            true => keys.size("sliding_window")?,
            false => Some(4096),
        };
        // transformers' Mistral ignores `layer_types`, its Ministral does not: mixed layers would run differently.
        if let Some(types) = keys.strings("layer_types")? {
            let kind = if window.is_some() { "sliding_attention" } else { "full_attention" };
            if types.iter().any(|t| *t != kind) {
                let message = format!("{}: layer_types other than '{kind}' in a Mistral model", keys.file());
                return Err(Error::unsupported(message));
            }
        }
        config.windows.fill(window);
        Ok(())
    },
};
