//! Which tensors a configuration implies, with their shapes, under Hugging Face names.

use super::config::ModelConfig;
use crate::error::{Error, Result};

/// Embedding table, `[vocab, hidden]`.
pub const EMBED: &str = "model.embed_tokens.weight";
/// Final norm, `[hidden]`.
pub const NORM: &str = "model.norm.weight";
/// Output head, `[vocab, hidden]`; absent where it shares the embedding.
pub const HEAD: &str = "lm_head.weight";

/// The seven linear modules of a layer, in the order in which they run.
pub const LINEARS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// `[out, in]` of a linear module of a layer (a name of [`LINEARS`]); `None` for other names.
pub fn linear_shape(config: &ModelConfig, linear: &str) -> Option<[usize; 2]> {
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    Some(match linear {
        "self_attn.q_proj" => [q, config.hidden],
        "self_attn.k_proj" | "self_attn.v_proj" => [kv, config.hidden],
        "self_attn.o_proj" => [config.hidden, q],
        "mlp.gate_proj" | "mlp.up_proj" => [config.intermediate, config.hidden],
        "mlp.down_proj" => [config.hidden, config.intermediate],
        _ => return None,
    })
}

/// Whether a linear module of a layer has a bias.
pub fn linear_bias(config: &ModelConfig, linear: &str) -> bool {
    match linear {
        "self_attn.q_proj" | "self_attn.k_proj" | "self_attn.v_proj" => config.qkv_bias,
        "self_attn.o_proj" => config.o_bias,
        _ => config.mlp_bias,
    }
}

/// `[out, in]` of a module by its full path, for example `model.layers.0.mlp.up_proj` or `lm_head`.
pub fn module_shape(config: &ModelConfig, module: &str) -> Option<[usize; 2]> {
    if module == "lm_head" {
        return Some([config.vocab, config.hidden]);
    }
    let (layer, linear) = module.strip_prefix("model.layers.")?.split_once('.')?;
    let index: usize = layer.parse().ok()?;
    // `01` and `+1` parse too, but name nothing.
    if index >= config.layers || index.to_string() != layer {
        return None;
    }
    linear_shape(config, linear)
}

/// Full paths of every linear module of the layers: what PEFT's `all-linear` means.
pub fn linear_modules(config: &ModelConfig) -> impl Iterator<Item = String> + '_ {
    (0..config.layers).flat_map(|i| LINEARS.iter().map(move |l| format!("model.layers.{i}.{l}")))
}

/// Every tensor of the model with its shape, layer by layer.
pub fn expected_tensors(config: &ModelConfig) -> impl Iterator<Item = (String, Vec<usize>)> + '_ {
    let table = vec![config.vocab, config.hidden];
    let embed = std::iter::once((EMBED.to_owned(), table.clone()));
    let layers = (0..config.layers).flat_map(move |i| layer_tensors(config, i));
    let norm = std::iter::once((NORM.to_owned(), vec![config.hidden]));
    let head = (!config.tied_head).then(|| (HEAD.to_owned(), table));
    embed.chain(layers).chain(norm).chain(head)
}

fn layer_tensors(config: &ModelConfig, i: usize) -> Vec<(String, Vec<usize>)> {
    let name = |rest: &str| format!("model.layers.{i}.{rest}");
    let mut out = vec![
        (name("input_layernorm.weight"), vec![config.hidden]),
        (name("post_attention_layernorm.weight"), vec![config.hidden]),
    ];
    if config.qk_norm {
        out.push((name("self_attn.q_norm.weight"), vec![config.head_dim]));
        out.push((name("self_attn.k_norm.weight"), vec![config.head_dim]));
    }
    for linear in LINEARS {
        let Some([rows, cols]) = linear_shape(config, linear) else { continue };
        out.push((name(&format!("{linear}.weight")), vec![rows, cols]));
        if linear_bias(config, linear) {
            out.push((name(&format!("{linear}.bias")), vec![rows]));
        }
    }
    out
}

/// The tensors of the modules whose path ends in one of `names`, with their shapes: PEFT's `modules_to_save`. A head that is
/// the embedding counts as a module of its own.
///
/// # Errors
/// [`Error::Invalid`] for a name that selects nothing.
pub fn saved_tensors(config: &ModelConfig, names: &[String]) -> Result<Vec<(String, Vec<usize>)>> {
    let module = |tensor: &str| tensor.rsplit_once('.').map_or(String::new(), |(module, _)| module.to_owned());
    let mut all: Vec<(String, Vec<usize>)> = expected_tensors(config).collect();
    if config.tied_head {
        all.push((HEAD.to_owned(), vec![config.vocab, config.hidden]));
    }
    if let Some(name) =
        names.iter().find(|name| name.is_empty() || !all.iter().any(|(t, _)| module(t).ends_with(*name)))
    {
        let (embed, head) = (module(EMBED), module(HEAD));
        return Err(Error::invalid(format!(
            "modules_to_save: the model has no module '{name}'; there are {}, {head}, norm, input_layernorm and the like",
            embed.trim_start_matches("model.")
        )));
    }
    all.retain(|(tensor, _)| names.iter().any(|name| module(tensor).ends_with(name)));
    Ok(all)
}

/// Buffers that old checkpoints carry and that are recomputed here: rotary frequencies and causal masks.
pub fn is_harmless(name: &str) -> bool {
    [
        ".rotary_emb.inv_freq",
        ".rotary_emb.cos_cached",
        ".rotary_emb.sin_cached",
        ".self_attn.masked_bias",
        ".self_attn.bias",
    ]
    .iter()
    .any(|end| name.ends_with(end))
}
