//! From a Hugging Face config.json to a [`ModelConfig`]: one small file per family states what differs.
//!
//! GGUF metadata is first turned into the same JSON (`format::from_gguf`), so there is one reading of every key.

mod llama;
mod mistral;
mod qwen2;
mod qwen3;

use super::config::{Activation, Family, ModelConfig};
use super::keys::Keys;
use super::rope_config::read_rope;
use crate::error::{Error, Result};
use serde_json::Value;

/// More layers than any model has, few enough that a corrupt count costs nothing.
const MAX_LAYERS: usize = 1024;

/// What transformers assumes where a key is absent. `None` in `kv_heads`: as many as `heads`; in
/// `head_dim`: `hidden / heads`.
pub struct Defaults {
    vocab: usize,
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    kv_heads: Option<usize>,
    head_dim: Option<usize>,
    max_positions: usize,
    bos: Option<u32>,
    eos: Option<u32>,
}

/// One family: its names in the two formats, its defaults, and the flags that only it reads.
pub struct FamilySpec {
    /// The family.
    pub family: Family,
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// The one entry of `architectures` in config.json.
    pub architecture: &'static str,
    /// `general.architecture` in GGUF, where the family has a name of its own.
    pub gguf_architecture: Option<&'static str>,
    defaults: Defaults,
    flags: fn(&Keys, &mut ModelConfig) -> Result<()>,
}

/// Every supported family.
pub static FAMILIES: [FamilySpec; 4] = [llama::SPEC, mistral::SPEC, qwen2::SPEC, qwen3::SPEC];

/// Keys that change the answer and are not implemented: each is refused by name unless it is absent, null,
/// false, zero or empty.
const REFUSED: [&str; 12] = [
    "quantization_config",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "num_experts_per_tok",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "no_rope_layers",
    "cross_attention_layers",
    "alibi",
    "per_layer_config",
    "vision_config",
];

impl Family {
    /// Names in the file formats, and defaults.
    pub fn spec(self) -> &'static FamilySpec {
        match self {
            Family::Llama => &FAMILIES[0],
            Family::Mistral => &FAMILIES[1],
            Family::Qwen2 => &FAMILIES[2],
            Family::Qwen3 => &FAMILIES[3],
        }
    }

    /// The family's lower-case name, as in `model_type`.
    pub fn name(self) -> &'static str {
        self.spec().model_type
    }
}

/// Which family a config.json belongs to.
///
/// # Errors
/// [`Error::Unsupported`] naming the architecture and listing the supported ones.
pub fn family_of(keys: &Keys) -> Result<&'static FamilySpec> {
    let list = || FAMILIES.each_ref().map(|f| f.architecture).join(", ");
    let architectures = keys.strings("architectures")?.unwrap_or_default();
    let spec = match keys.str("model_type")? {
        Some(name) => FAMILIES.iter().find(|f| f.model_type == name),
        None => FAMILIES.iter().find(|f| architectures.contains(&f.architecture)),
    };
    match spec {
        Some(spec) if architectures.is_empty() || architectures.contains(&spec.architecture) => Ok(spec),
        _ => {
            let name = match architectures.first() {
                Some(name) => (*name).to_owned(),
                None => format!("model_type '{}'", keys.str("model_type")?.unwrap_or_default()),
            };
            Err(Error::unsupported(format!("{}: architecture {name}; supported are {}", keys.file(), list())))
        }
    }
}

/// Reads config.json (`raw`) with the defaults of transformers; `file` appears in messages.
///
/// # Errors
/// [`Error::Format`] naming the key, what was found and what was expected; [`Error::Unsupported`] for unknown
/// architectures and for keys that change the answer and are not implemented.
pub fn config_from_json(file: &str, raw: &Value) -> Result<ModelConfig> {
    let keys = Keys::new(file, raw)?;
    let spec = family_of(&keys)?;
    refuse(&keys)?;
    let d = &spec.defaults;
    let layers = keys.size("num_hidden_layers")?.unwrap_or(d.layers);
    if layers > MAX_LAYERS {
        return Err(keys.error("num_hidden_layers", format!("found {layers}, expected at most {MAX_LAYERS}")));
    }
    let hidden = keys.size("hidden_size")?.unwrap_or(d.hidden);
    let heads = keys.size("num_attention_heads")?.unwrap_or(d.heads);
    // A null means "as many as heads" in every family; an absent key means the family's default.
    let kv_default = if keys.contains("num_key_value_heads") { None } else { d.kv_heads };
    let kv_heads = keys.size("num_key_value_heads")?.or(kv_default).unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        let message = format!("found {kv_heads}, expected a divisor of the {heads} attention heads");
        return Err(keys.error("num_key_value_heads", message));
    }
    let head_dim = match keys.size("head_dim")?.or(d.head_dim) {
        Some(n) => n,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            let message = format!("found {heads}, expected a divisor of hidden_size {hidden} where head_dim is absent");
            return Err(keys.error("num_attention_heads", message));
        }
    };
    let max_positions = keys.size("max_position_embeddings")?.unwrap_or(d.max_positions);
    let rope = read_rope(keys, head_dim, max_positions)?;
    let mut config = ModelConfig {
        family: spec.family,
        hidden,
        layers,
        heads,
        kv_heads,
        head_dim,
        intermediate: keys.size("intermediate_size")?.unwrap_or(d.intermediate),
        vocab: keys.size("vocab_size")?.unwrap_or(d.vocab),
        rms_norm_eps: keys.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        rope_theta: rope.theta,
        rope_dim: rope.dim,
        rope_scaling: rope.scaling,
        max_positions,
        qk_norm: false,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        windows: vec![None; layers],
        activation: activation(&keys)?,
        tied_head: keys.bool("tie_word_embeddings")?.unwrap_or(false),
        bos: token_default(&keys, "bos_token_id", d.bos)?.first().copied(),
        eos: token_default(&keys, "eos_token_id", d.eos)?,
    };
    (spec.flags)(&keys, &mut config)?;
    Ok(config)
}

fn refuse(keys: &Keys) -> Result<()> {
    let found = REFUSED.iter().find(|key| match keys.get(key) {
        // What bitsandbytes has quantised is read like any other checkpoint (`format::bnb`).
        Some(Value::Object(m))
            if **key == "quantization_config" && m.get("bnb_4bit_quant_type") == Some(&"nf4".into()) =>
        {
            false
        }
        None | Some(Value::Bool(false)) => false,
        Some(Value::Number(n)) => n.as_f64() != Some(0.0),
        Some(Value::Object(m)) => !m.is_empty(),
        Some(Value::Array(a)) => !a.is_empty(),
        Some(_) => true,
    });
    match found {
        Some(key) => Err(Error::unsupported(format!("{}: {} is set", keys.file(), keys.place(key)))),
        None => Ok(()),
    }
}

fn activation(keys: &Keys) -> Result<Activation> {
    match keys.str("hidden_act")?.unwrap_or("silu") {
        "silu" | "swish" => Ok(Activation::Silu),
        // The same formula under two names in transformers' ACT2FN.
        "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
        other => Err(Error::unsupported(format!(
            "{}: hidden_act '{other}'; supported are silu, gelu_pytorch_tanh",
            keys.file()
        ))),
    }
}

/// An absent key means the default of the family, null means none.
fn token_default(keys: &Keys, key: &str, default: Option<u32>) -> Result<Vec<u32>> {
    Ok(match keys.contains(key) {
        true => keys.token_ids(key)?.unwrap_or_default(),
        false => default.into_iter().collect(),
    })
}

/// Qwen's windows: `use_sliding_window` switches them on, `layer_types` says where, else every layer from
/// `max_window_layers` on.
fn layer_windows(keys: &Keys, config: &mut ModelConfig) -> Result<()> {
    let window = match (keys.bool("use_sliding_window")?.unwrap_or(false), keys.contains("sliding_window")) {
        (false, _) => None,
        (true, true) => keys.size("sliding_window")?,
        (true, false) => Some(4096),
    };
    let Some(types) = keys.strings("layer_types")? else {
        let from = keys.count("max_window_layers")?.unwrap_or(28);
        for w in config.windows.iter_mut().skip(from) {
            *w = window;
        }
        return Ok(());
    };
    if types.len() != config.layers {
        let message = format!("found {} entries, expected one for each of {} layers", types.len(), config.layers);
        return Err(keys.error("layer_types", message));
    }
    for (w, kind) in config.windows.iter_mut().zip(types) {
        *w = match (kind, window) {
            ("full_attention", _) => None,
            ("sliding_attention", Some(n)) => Some(n),
            ("sliding_attention", None) => {
                return Err(keys.error("layer_types", "sliding_attention without a sliding_window in use"));
            }
            _ => return Err(Error::unsupported(format!("{}: layer type '{kind}'", keys.file()))),
        };
    }
    Ok(())
}
