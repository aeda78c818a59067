//! From GGUF to Hugging Face: metadata to config.json, tensor names, and the row order of q and k.
//!
//! Keys: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. The conversion that this undoes is
//! llama.cpp's `convert_hf_to_gguf.py`.

use super::gguf::{GgufFile, GgufMetadata};
use super::quant::dequantise_row;
use crate::error::{Error, Result};
use crate::model::config::{ModelConfig, RopeScaling};
use crate::model::families::{FAMILIES, FamilySpec, config_from_json};
use crate::tensor::{HostBytes, HostTensor};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// GGUF's tensor of frequency divisors (llama.cpp bakes Llama 3's rule into it).
const ROPE_FREQS: &str = "rope_freqs.weight";

/// Everything a checkpoint needs, in Hugging Face terms.
pub(super) struct Converted {
    pub config: ModelConfig,
    pub raw_config: Value,
    pub tensors: BTreeMap<String, HostTensor>,
}

pub(super) fn convert(file: &GgufFile) -> Result<Converted> {
    let meta = &file.metadata;
    let (spec, arch) = family(meta)?;
    let divisors = file.tensors.get(ROPE_FREQS).map(|t| read_divisors(meta, t)).transpose()?;
    let raw_config = config_json(file, spec, arch, divisors.as_deref())?;
    let mut config = config_from_json(meta.file(), &raw_config)?;
    if let Some(divisors) = divisors {
        config.rope_scaling = RopeScaling::Divisors { divisors };
    }
    let mut tensors = BTreeMap::new();
    for (name, tensor) in &file.tensors {
        if name == ROPE_FREQS {
            continue;
        }
        // A name without a counterpart keeps its own and is refused by the checkpoint's check, by name.
        let to = hf_name(name).unwrap_or_else(|| name.clone());
        let heads = match (arch, name.rsplit('.').nth(1)) {
            ("llama", Some("attn_q")) => config.heads,
            ("llama", Some("attn_k")) => config.kv_heads,
            _ => 0,
        };
        let tensor = match heads {
            0 => tensor.clone(),
            heads => unpermute(meta.file(), name, tensor, heads, &config)?,
        };
        tensors.insert(to, tensor);
    }
    Ok(Converted { config, raw_config, tensors })
}

fn family(meta: &GgufMetadata) -> Result<(&'static FamilySpec, &str)> {
    let arch = meta.require_str("general.architecture")?;
    // Mistral has no name of its own: with a window it can only be Mistral.
    let windowed = arch == "llama" && meta.get_u32("llama.attention.sliding_window")?.is_some_and(|w| w > 0);
    let spec = match windowed {
        true => FAMILIES.iter().find(|f| f.model_type == "mistral"),
        false => FAMILIES.iter().find(|f| f.gguf_architecture == Some(arch)),
    };
    let list = || FAMILIES.iter().filter_map(|f| f.gguf_architecture).collect::<Vec<_>>().join(", ");
    spec.map(|s| (s, arch)).ok_or_else(|| {
        Error::unsupported(format!("{}: GGUF architecture '{arch}'; supported are {}", meta.file(), list()))
    })
}

fn read_divisors(meta: &GgufMetadata, tensor: &HostTensor) -> Result<Vec<f64>> {
    let mut values = vec![0.0; tensor.len()];
    dequantise_row(tensor.dtype, &tensor.data, &mut values)?;
    if tensor.shape.len() != 1 || values.iter().any(|v| !v.is_finite() || *v <= 0.0) {
        let message = format!("shape {:?}, expected one dimension of finite values above 0", tensor.shape);
        return Err(Error::format(meta.file(), format!("tensor '{ROPE_FREQS}'"), message));
    }
    Ok(values.iter().map(|v| f64::from(*v)).collect())
}

/// The config.json with which transformers would build the same model.
fn config_json(file: &GgufFile, spec: &FamilySpec, arch: &str, divisors: Option<&[f64]>) -> Result<Value> {
    let meta = &file.metadata;
    let key = |name: &str| format!("{arch}.{name}");
    if meta.get_u32(&key("expert_count"))?.is_some_and(|n| n > 0) {
        return Err(Error::unsupported(format!("{}: mixture of experts (key '{arch}.expert_count')", meta.file())));
    }
    let hidden = meta.require_u32(&key("embedding_length"))?;
    let heads = required_uniform(meta, &key("attention.head_count"))?;
    let kv_heads = meta.get_uniform_u32(&key("attention.head_count_kv"))?.unwrap_or(heads);
    let head_dim = match meta.get_u32(&key("attention.key_length"))? {
        Some(n) => n,
        None => hidden.checked_div(heads).unwrap_or(0),
    };
    if meta.get_u32(&key("attention.value_length"))?.is_some_and(|n| n != head_dim) {
        let message = format!(
            "{}: heads of different width for keys and values (key '{arch}.attention.value_length')",
            meta.file()
        );
        return Err(Error::unsupported(message));
    }
    let eps = key("attention.layer_norm_rms_epsilon");
    let eps = meta.get_f64(&eps)?.ok_or_else(|| Error::format(meta.file(), format!("key '{eps}'"), "missing"))?;
    let context = meta.require_u32(&key("context_length"))?;
    let embedding = file.tensors.get("token_embd.weight").map(HostTensor::rows);
    let vocab = match embedding {
        Some(rows) => rows as u64,
        None => u64::from(meta.require_u32(&key("vocab_size"))?),
    };
    let has = |name: &str| file.tensors.contains_key(name);
    let mut c = Map::new();
    c.insert("architectures".into(), json!([spec.architecture]));
    c.insert("model_type".into(), json!(spec.model_type));
    c.insert("vocab_size".into(), json!(vocab));
    c.insert("hidden_size".into(), json!(hidden));
    c.insert("intermediate_size".into(), json!(required_uniform(meta, &key("feed_forward_length"))?));
    c.insert("num_hidden_layers".into(), json!(meta.require_u32(&key("block_count"))?));
    c.insert("num_attention_heads".into(), json!(heads));
    c.insert("num_key_value_heads".into(), json!(kv_heads));
    c.insert("head_dim".into(), json!(head_dim));
    c.insert("hidden_act".into(), json!("silu"));
    c.insert("max_position_embeddings".into(), json!(context));
    c.insert("rms_norm_eps".into(), json!(eps));
    c.insert("tie_word_embeddings".into(), json!(!has("output.weight")));
    if matches!(spec.model_type, "llama" | "qwen3") {
        let (qkv, out) = (has("blk.0.attn_q.bias"), has("blk.0.attn_output.bias"));
        if qkv != out {
            let message = format!("{}: attention biases on only one side of the attention", meta.file());
            return Err(Error::unsupported(message));
        }
        c.insert("attention_bias".into(), json!(qkv));
    }
    if spec.model_type == "llama" {
        c.insert("mlp_bias".into(), json!(has("blk.0.ffn_gate.bias")));
    }
    let window = meta.get_u32(&key("attention.sliding_window"))?.filter(|w| *w > 0);
    match spec.model_type {
        "mistral" => drop(c.insert("sliding_window".into(), json!(window))),
        _ if window.is_some() => {
            return Err(Error::unsupported(format!("{}: key '{arch}.attention.sliding_window' is set", meta.file())));
        }
        _ => {}
    }
    c.insert("rope_parameters".into(), rope_json(meta, arch, head_dim, context, divisors)?);
    let token = |name: &str| meta.get_u32(&format!("tokenizer.ggml.{name}_token_id"));
    c.insert("bos_token_id".into(), json!(token("bos")?));
    let mut ends = vec![];
    for name in ["eos", "eot", "eom"] {
        ends.extend(token(name)?.filter(|id| !ends.contains(id)));
    }
    c.insert("eos_token_id".into(), if ends.len() == 1 { json!(ends[0]) } else { json!(ends) });
    c.insert("pad_token_id".into(), json!(token("padding")?));
    Ok(Value::Object(c))
}

fn required_uniform(meta: &GgufMetadata, key: &str) -> Result<u32> {
    match meta.get_uniform_u32(key)? {
        Some(n) => Ok(n),
        None => meta.require_u32(key),
    }
}

fn rope_json(meta: &GgufMetadata, arch: &str, head_dim: u32, context: u32, divisors: Option<&[f64]>) -> Result<Value> {
    let key = |name: &str| format!("{arch}.rope.{name}");
    let mut r = Map::new();
    r.insert("rope_theta".into(), json!(meta.get_f64(&key("freq_base"))?.unwrap_or(10_000.0)));
    if let Some(dim) = meta.get_u32(&key("dimension_count"))?.filter(|d| *d != head_dim) {
        r.insert("partial_rotary_factor".into(), json!(f64::from(dim) / f64::from(head_dim.max(1))));
    }
    let kind = meta.get_str(&key("scaling.type"))?.unwrap_or("none");
    let factor = match meta.get_f64(&key("scaling.factor"))? {
        Some(f) => Some(f),
        None => meta.get_f64(&key("scale_linear"))?,
    };
    let refused = |name: &str| Error::unsupported(format!("{}: key '{}' is set", meta.file(), key(name)));
    if meta.get_f64(&key("scaling.attn_factor"))?.is_some_and(|f| f != 1.0) {
        return Err(refused("scaling.attn_factor"));
    }
    match (kind, divisors) {
        ("none" | "linear", Some(d)) => {
            // LongRoPE with equal sets and no attention factor is a plain list of divisors.
            let scale = if kind == "linear" { factor.unwrap_or(1.0) } else { 1.0 };
            if scale != 1.0 {
                return Err(refused("scaling.factor"));
            }
            r.insert("rope_type".into(), json!("longrope"));
            r.insert("short_factor".into(), json!(d));
            r.insert("long_factor".into(), json!(d));
            r.insert("attention_factor".into(), json!(1.0));
            r.insert("factor".into(), json!(1.0));
            r.insert("original_max_position_embeddings".into(), json!(context));
        }
        // An old file states `scale_linear` and no type.
        ("none" | "linear", None) => match factor.filter(|f| *f != 1.0 && *f != 0.0) {
            Some(f) if kind == "linear" || meta.get(&key("scaling.type")).is_none() => {
                r.insert("rope_type".into(), json!("linear"));
                r.insert("factor".into(), json!(f));
            }
            _ => drop(r.insert("rope_type".into(), json!("default"))),
        },
        ("yarn", None) => {
            r.insert("rope_type".into(), json!("yarn"));
            let f = factor.ok_or_else(|| {
                Error::format(
                    meta.file(),
                    format!("key '{}'", key("scaling.factor")),
                    "missing, but rope.scaling.type is yarn",
                )
            })?;
            r.insert("factor".into(), json!(f));
            let original = meta.get_u32(&key("scaling.original_context_length"))?.unwrap_or(context);
            r.insert("original_max_position_embeddings".into(), json!(original));
            for (name, default) in [("scaling.yarn_ext_factor", 1.0), ("scaling.yarn_attn_factor", 1.0)] {
                if meta.get_f64(&key(name))?.is_some_and(|v| v != default) {
                    return Err(refused(name));
                }
            }
            if meta.get_f64(&key("scaling.yarn_log_multiplier"))?.is_some_and(|v| v != 0.0) {
                return Err(refused("scaling.yarn_log_multiplier"));
            }
            for (from, to) in [("scaling.yarn_beta_fast", "beta_fast"), ("scaling.yarn_beta_slow", "beta_slow")] {
                if let Some(v) = meta.get_f64(&key(from))? {
                    r.insert(to.into(), json!(v));
                }
            }
        }
        (other, divisors) => {
            let with = if divisors.is_some() { format!(" together with tensor '{ROPE_FREQS}'") } else { String::new() };
            return Err(Error::unsupported(format!("{}: {} '{other}'{with}", meta.file(), key("scaling.type"))));
        }
    }
    Ok(Value::Object(r))
}

/// The Hugging Face name of a GGUF tensor; `None` for names that the supported families do not have.
fn hf_name(name: &str) -> Option<String> {
    match name {
        "token_embd.weight" => return Some("model.embed_tokens.weight".into()),
        "output_norm.weight" => return Some("model.norm.weight".into()),
        "output.weight" => return Some("lm_head.weight".into()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let index: usize = layer.parse().ok()?;
    let (module, kind) = rest.rsplit_once('.')?;
    let module = match module {
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    (matches!(kind, "weight" | "bias") && index.to_string() == layer)
        .then(|| format!("model.layers.{index}.{module}.{kind}"))
}

/// Puts the rows of q or k back in half-split order.
///
/// The converter interleaves the halves of each head: its row `2j + half` was row `half · rope_dim/2 + j`.
/// Rows are whole runs of blocks, so moving them is exact for every type. A bias is rows of one element.
fn unpermute(file: &str, name: &str, tensor: &HostTensor, heads: usize, config: &ModelConfig) -> Result<HostTensor> {
    let rows = if tensor.shape.len() == 1 { tensor.len() } else { tensor.rows() };
    if rows != heads * config.head_dim || tensor.shape.len() > 2 {
        let message = format!("found shape {:?}, expected {heads} heads of {} rows", tensor.shape, config.head_dim);
        return Err(Error::format(file, format!("tensor '{name}'"), message));
    }
    let row_bytes = tensor.data.len() / rows;
    if tensor.dtype.is_quantised() && tensor.shape.len() == 1 {
        return Err(Error::unsupported(format!("{file}: tensor '{name}': a bias in type {}", tensor.dtype)));
    }
    let half = config.rope_dim / 2;
    let mut out = Vec::with_capacity(tensor.data.len());
    for head in 0..heads {
        for row in 0..config.head_dim {
            let from = match row {
                r if r < half => 2 * r,
                r if r < 2 * half => 2 * (r - half) + 1,
                r => r,
            };
            let at = (head * config.head_dim + from) * row_bytes;
            out.extend_from_slice(&tensor.data[at..at + row_bytes]);
        }
    }
    HostTensor::new(tensor.dtype, tensor.shape.clone(), HostBytes::from_vec(out))
}
