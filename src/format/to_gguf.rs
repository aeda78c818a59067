//! From Hugging Face to GGUF: config.json to metadata, tensor names, and the row order of q and k. Undone by `from_gguf`.
//!
//! Keys: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>; the values are those of llama.cpp's
//! `convert_hf_to_gguf.py`.

use super::gguf::GgufValue;
use crate::error::{Error, Result};
use crate::model::config::{ModelConfig, RopeScaling};
use crate::model::rope::frequencies;
use crate::tensor::HostTensor;

/// Divisors of the rotary frequencies, a tensor of its own.
pub const ROPE_FREQS: &str = "rope_freqs.weight";

/// `general.architecture` of a model. Mistral has no name of its own.
pub fn architecture(config: &ModelConfig) -> &'static str {
    config.family.spec().gguf_architecture.unwrap_or("llama")
}

/// The keys that describe the architecture.
///
/// # Errors
/// [`Error::Unsupported`] for rotary scaling that GGUF cannot express or llama.cpp does not compute.
pub fn metadata(config: &ModelConfig) -> Result<Vec<(String, GgufValue)>> {
    let arch = architecture(config);
    let mut keys = Vec::new();
    let mut put = |name: &str, value: GgufValue| keys.push((format!("{arch}.{name}"), value));
    let number = |n: usize| GgufValue::U32(u32::try_from(n).unwrap_or(u32::MAX));
    put("vocab_size", number(config.vocab));
    put("context_length", number(config.max_positions));
    put("embedding_length", number(config.hidden));
    put("block_count", number(config.layers));
    put("feed_forward_length", number(config.intermediate));
    put("attention.head_count", number(config.heads));
    put("attention.head_count_kv", number(config.kv_heads));
    put("attention.key_length", number(config.head_dim));
    put("attention.value_length", number(config.head_dim));
    put("attention.layer_norm_rms_epsilon", GgufValue::F32(config.rms_norm_eps));
    put("rope.dimension_count", number(config.rope_dim));
    put("rope.freq_base", GgufValue::F32(config.rope_theta as f32));
    if let Some(window) = windows(config)? {
        put("attention.sliding_window", number(window));
    }
    match &config.rope_scaling {
        // The last two are tensors: see `rope_divisors`.
        RopeScaling::None | RopeScaling::Llama3 { .. } | RopeScaling::Divisors { .. } => {}
        RopeScaling::Linear { factor } => {
            put("rope.scaling.type", GgufValue::String("linear".into()));
            put("rope.scaling.factor", GgufValue::F32(*factor as f32));
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_max_positions,
            attention_factor,
            mscale,
            truncate,
        } => {
            // llama.cpp derives the factor on cos and sin as `0.1 ln(factor) + 1`.
            let derived = 0.1 * factor.ln() + 1.0;
            if attention_factor.is_some_and(|stated| (stated - derived).abs() > 1e-6) || mscale.is_some() || !truncate {
                return Err(Error::unsupported("GGUF of a model whose YaRN states an attention factor of its own"));
            }
            put("rope.scaling.type", GgufValue::String("yarn".into()));
            put("rope.scaling.factor", GgufValue::F32(*factor as f32));
            put("rope.scaling.original_context_length", number(*original_max_positions));
            put("rope.scaling.yarn_beta_fast", GgufValue::F32(*beta_fast as f32));
            put("rope.scaling.yarn_beta_slow", GgufValue::F32(*beta_slow as f32));
        }
        RopeScaling::Dynamic { .. } => return Err(Error::unsupported("GGUF of a model with dynamic rotary scaling")),
        RopeScaling::LongRope { .. } => return Err(Error::unsupported("GGUF of a model with LongRoPE scaling")),
    }
    Ok(keys)
}

/// The one window of all layers.
fn windows(config: &ModelConfig) -> Result<Option<usize>> {
    let first = config.windows.first().copied().flatten();
    if config.windows.iter().any(|window| *window != first) {
        return Err(Error::unsupported("GGUF of a model in which only some layers have a sliding window"));
    }
    // llama.cpp computes no window for these families; one as long as the context never shows.
    match first.filter(|window| *window < config.max_positions) {
        Some(window) if architecture(config) != "llama" => Err(Error::unsupported(format!(
            "GGUF of a {} model with a sliding window of {window}",
            config.family.name()
        ))),
        window => Ok(window),
    }
}

/// The contents of [`ROPE_FREQS`]: what each frequency of a plain model is divided by; `None` where by nothing.
pub fn rope_divisors(config: &ModelConfig) -> Option<Vec<f32>> {
    match &config.rope_scaling {
        RopeScaling::Llama3 { .. } | RopeScaling::Divisors { .. } => {
            let plain = ModelConfig { rope_scaling: RopeScaling::None, ..config.clone() };
            let [plain, scaled] = [&plain, config].map(|c| frequencies(c, c.max_positions).inv_freq);
            Some(plain.iter().zip(&scaled).map(|(plain, scaled)| (plain / scaled) as f32).collect())
        }
        _ => None,
    }
}

/// GGUF's name of a tensor.
///
/// # Errors
/// [`Error::Internal`] for a name that no supported family has.
pub fn tensor_name(name: &str) -> Result<String> {
    let fixed = match name {
        "model.embed_tokens.weight" => Some("token_embd.weight"),
        "model.norm.weight" => Some("output_norm.weight"),
        "lm_head.weight" => Some("output.weight"),
        _ => None,
    };
    let in_layer = || {
        let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let (module, kind) = rest.rsplit_once('.')?;
        let module = match module {
            "input_layernorm" => "attn_norm",
            "post_attention_layernorm" => "ffn_norm",
            "self_attn.q_proj" => "attn_q",
            "self_attn.k_proj" => "attn_k",
            "self_attn.v_proj" => "attn_v",
            "self_attn.o_proj" => "attn_output",
            "self_attn.q_norm" => "attn_q_norm",
            "self_attn.k_norm" => "attn_k_norm",
            "mlp.gate_proj" => "ffn_gate",
            "mlp.up_proj" => "ffn_up",
            "mlp.down_proj" => "ffn_down",
            _ => return None,
        };
        Some(format!("blk.{layer}.{module}.{kind}"))
    };
    fixed
        .map(str::to_owned)
        .or_else(in_layer)
        .ok_or_else(|| Error::internal(format!("tensor '{name}' has no name in GGUF")))
}

/// Heads whose rows GGUF orders differently: those of q and k of a Llama; `None` for all other tensors.
pub fn interleaved_heads(config: &ModelConfig, name: &str) -> Option<usize> {
    let module = name.rsplit('.').nth(1)?;
    match (architecture(config), module) {
        ("llama", "q_proj") => Some(config.heads),
        ("llama", "k_proj") => Some(config.kv_heads),
        _ => None,
    }
}

/// Interleaves the halves of each head: row `half · rope_dim/2 + j` goes to row `2j + half`. `data` holds `rows` rows of
/// any type.
pub fn interleave(data: &[u8], rows: usize, config: &ModelConfig) -> Vec<u8> {
    let (row_bytes, half) = (data.len() / rows.max(1), config.rope_dim / 2);
    let mut out = Vec::with_capacity(data.len());
    for head in 0..rows / config.head_dim.max(1) {
        for row in 0..config.head_dim {
            let from = if row < 2 * half { (row % 2) * half + row / 2 } else { row };
            let at = (head * config.head_dim + from) * row_bytes;
            out.extend_from_slice(&data[at..at + row_bytes]);
        }
    }
    out
}

/// Rows that [`interleave`] moves: a bias has rows of one element.
pub fn rows(tensor: &HostTensor) -> usize {
    if tensor.shape.len() == 1 { tensor.len() } else { tensor.rows() }
}
