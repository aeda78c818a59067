//! Model and adapter as one: `W + scale · B · A` for every target (DoRA: with rows of the lengths that it has learned), in Hugging Face's layout (here) or as GGUF (`gguf`).
//!
//! Weights are merged while they are written, one tensor at a time.

mod card;
mod gguf;

pub use card::{Card, write_card};
pub use gguf::{FileType, write_adapter_gguf, write_model_gguf};

use crate::error::{Error, Result};
use crate::format::lazy::{Bytes, LazyTensor};
use crate::format::peft::{Adapter, LoraWeights};
use crate::format::quant::{dequantise_row, quantise_row};
use crate::format::safetensors::Tensors;
use crate::format::safetensors_write::{MAX_SHARD_BYTES, write_folder_lazy, write_json};
use crate::format::{Checkpoint, TokenizerSource};
use crate::model::text_tools;
use crate::model::weights::{EMBED, HEAD};
use crate::tensor::{DType, HostTensor};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// What [`merge`] wrote.
#[derive(Clone, Copy, Debug)]
pub struct MergeReport {
    /// Element type of the weights.
    pub dtype: DType,
    /// Bytes of all weights.
    pub bytes: u64,
}

/// Writes the model into `folder`, merged with `adapter` where there is one: weights, configuration, tokenizer.
/// transformers and this crate load it.
///
/// `dtype` is f32, f16 or bf16; `None` keeps the model's own, and takes f32 for a quantised model. The sum is made
/// in f32 and rounded once.
///
/// # Errors
/// [`Error::Invalid`] for an adapter that does not fit, a value that f16 cannot hold, or `folder` being the model's
/// own; [`Error::Io`].
pub fn merge(
    checkpoint: &Checkpoint,
    adapter: Option<&Adapter>,
    folder: &Path,
    dtype: Option<DType>,
) -> Result<MergeReport> {
    check_modules(checkpoint, adapter)?;
    write_merged(checkpoint, &whole_of(checkpoint, adapter), adapter, folder, dtype)
}

/// The model with every tensor of `trained` in the place of its own, as [`merge`] writes it.
///
/// # Errors
/// As [`merge`].
pub fn merge_tensors(
    checkpoint: &Checkpoint,
    trained: &Tensors,
    folder: &Path,
    dtype: Option<DType>,
) -> Result<MergeReport> {
    let tensors = checkpoint.tensors.iter().map(|(name, own)| (name.as_str(), trained.get(name).unwrap_or(own)));
    write_merged(checkpoint, &tensors.collect(), None, folder, dtype)
}

/// Refuses the model's own folder: its files are memory-mapped, and overwriting them would tear them from under us.
///
/// # Errors
/// [`Error::Invalid`].
pub fn not_its_own(checkpoint: &Checkpoint, folder: &Path) -> Result<()> {
    let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    let source = &checkpoint.path;
    if same(source, folder) || source.parent().is_some_and(|parent| source.is_file() && same(parent, folder)) {
        return Err(Error::invalid(format!("{}: is the model's own folder; name another one", folder.display())));
    }
    Ok(())
}

/// The model's tensors, those of the adapter's saved modules in their places. A head that was the embedding is one of its own
/// where either was saved: they are no longer equal.
fn whole_of<'a>(checkpoint: &'a Checkpoint, adapter: Option<&'a Adapter>) -> BTreeMap<&'a str, &'a HostTensor> {
    let mut tensors: BTreeMap<&str, &HostTensor> = checkpoint.tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let Some(adapter) = adapter else { return tensors };
    if adapter.saved.keys().any(|name| name == EMBED || name == HEAD)
        && let Some(table) = tensors.get(EMBED).copied()
    {
        tensors.entry(HEAD).or_insert(table);
    }
    tensors.extend(adapter.saved.iter().map(|(name, tensor)| (name.as_str(), tensor)));
    tensors
}

fn write_merged(
    checkpoint: &Checkpoint,
    tensors: &BTreeMap<&str, &HostTensor>,
    adapter: Option<&Adapter>,
    folder: &Path,
    dtype: Option<DType>,
) -> Result<MergeReport> {
    let dtype = dtype.unwrap_or_else(|| own_dtype(checkpoint));
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    not_its_own(checkpoint, folder)?;
    let tied = checkpoint.config.tied_head && !tensors.contains_key(HEAD);
    let tensors: Vec<LazyTensor> = tensors
        .iter()
        .map(|(name, tensor)| {
            let lora = lora_of(adapter, name);
            LazyTensor::new(*name, dtype, tensor.shape.clone(), move || merged(name, tensor, lora, dtype))
        })
        .collect();
    write_folder_lazy(folder, &tensors, MAX_SHARD_BYTES)?;
    write_json(&folder.join("config.json"), &config_json(checkpoint, dtype, tied))?;
    write_json(&folder.join("generation_config.json"), &generation_json(checkpoint))?;
    write_tokenizer(checkpoint, folder)?;
    Ok(MergeReport { dtype, bytes: tensors.iter().filter_map(LazyTensor::byte_len).map(|bytes| bytes as u64).sum() })
}

/// Every module of the adapter is one of the model's.
fn check_modules(checkpoint: &Checkpoint, adapter: Option<&Adapter>) -> Result<()> {
    for module in adapter.iter().flat_map(|adapter| adapter.modules.keys()) {
        if !checkpoint.tensors.contains_key(&format!("{module}.weight")) {
            return Err(Error::invalid(format!("the adapter changes '{module}', which the model does not have")));
        }
    }
    for (name, tensor) in adapter.iter().flat_map(|adapter| &adapter.saved) {
        let own = checkpoint.tensors.get(if name == HEAD && checkpoint.config.tied_head { EMBED } else { name });
        if own.is_none_or(|own| own.shape != tensor.shape) {
            return Err(Error::invalid(format!(
                "the adapter's saved '{name}' {:?} does not fit the model",
                tensor.shape
            )));
        }
    }
    Ok(())
}

/// What an adapter adds to a tensor.
fn lora_of<'a>(adapter: Option<&'a Adapter>, tensor: &str) -> Option<&'a LoraWeights> {
    adapter?.modules.get(tensor.strip_suffix(".weight")?)
}

/// The type of most of a model's numbers; f32 where they are quantised.
pub fn own_dtype(checkpoint: &Checkpoint) -> DType {
    let mut counts: BTreeMap<DType, usize> = BTreeMap::new();
    for tensor in checkpoint.tensors.values() {
        *counts.entry(tensor.dtype).or_default() += tensor.len();
    }
    let most = counts.into_iter().max_by_key(|(_, count)| *count).map(|(dtype, _)| dtype);
    most.filter(|dtype| matches!(dtype, DType::F16 | DType::BF16)).unwrap_or(DType::F32)
}

/// A tensor in `dtype`, with the adapter's product added; as it stands where nothing changes.
fn merged<'a>(name: &str, tensor: &'a HostTensor, lora: Option<&LoraWeights>, dtype: DType) -> Result<Bytes<'a>> {
    if lora.is_none() && tensor.dtype == dtype {
        return Ok(Bytes::Borrowed(&tensor.data));
    }
    let mut values = floats(tensor)?;
    if let Some(lora) = lora {
        add_product(&mut values, tensor, lora)?;
    }
    Ok(Bytes::Owned(encode(name, &values, tensor.cols(), dtype)?))
}

/// `W += scale · B · A`, a row of W at a time; with magnitudes a row then gets its length.
fn add_product(weight: &mut [f32], tensor: &HostTensor, lora: &LoraWeights) -> Result<()> {
    let (a, b) = (floats(&lora.a)?, floats(&lora.b)?);
    let (rank, inputs) = (lora.a.rows(), lora.a.cols());
    if rank == 0 || inputs != tensor.cols() || lora.b.rows() != tensor.rows() || lora.b.cols() != rank {
        return Err(Error::invalid(format!("an adapter of shape {:?} does not fit {:?}", lora.b.shape, tensor.shape)));
    }
    let magnitude = lora.magnitude.as_ref().map(floats).transpose()?;
    if magnitude.as_ref().is_some_and(|magnitude| magnitude.len() != tensor.rows()) {
        return Err(Error::invalid(format!("magnitudes that do not fit {:?}", tensor.shape)));
    }
    weight.par_chunks_exact_mut(inputs).zip(b.par_chunks_exact(rank)).enumerate().for_each(|(n, (row, b))| {
        let mut delta = vec![0.0f32; inputs];
        for (b, a) in b.iter().zip(a.chunks_exact(inputs)) {
            delta.iter_mut().zip(a).for_each(|(delta, a)| *delta += b * a);
        }
        row.iter_mut().zip(&delta).for_each(|(weight, delta)| *weight += lora.scale * delta);
        if let Some(magnitude) = &magnitude {
            let norm = row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt().max(1e-15);
            let factor = magnitude[n] / norm as f32;
            row.iter_mut().for_each(|weight| *weight *= factor);
        }
    });
    Ok(())
}

fn floats(tensor: &HostTensor) -> Result<Vec<f32>> {
    let mut values = vec![0.0; tensor.len()];
    dequantise_row(tensor.dtype, &tensor.data, &mut values)?;
    Ok(values)
}

/// Rows of `cols` numbers as bytes of `dtype`.
fn encode(name: &str, values: &[f32], cols: usize, dtype: DType) -> Result<Vec<u8>> {
    // Runs of rows, so that short rows do not cost an allocation each.
    let run = cols.max(1) * (65_536 / cols.max(1)).max(1);
    let parts: Vec<Vec<u8>> = values
        .par_chunks(run)
        .map(|part| quantise_row(dtype, part))
        .collect::<Result<_>>()
        .map_err(|error| Error::invalid(format!("tensor '{name}': {error}")))?;
    Ok(parts.concat())
}

fn config_json(checkpoint: &Checkpoint, dtype: DType, tied: bool) -> Value {
    let mut config = checkpoint.raw_config.clone();
    let name = match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        _ => "float32",
    };
    if let Value::Object(config) = &mut config {
        // transformers 5 calls it `dtype` and still reads the older name.
        let key = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        config.insert(key.into(), name.into());
        config.insert("tie_word_embeddings".into(), tied.into());
        config.remove("quantization_config");
    }
    config
}

fn generation_json(checkpoint: &Checkpoint) -> Value {
    match &checkpoint.generation {
        Value::Null => {
            let mut config = serde_json::Map::new();
            if let Some(bos) = checkpoint.config.bos {
                config.insert("bos_token_id".into(), bos.into());
            }
            match checkpoint.config.eos.as_slice() {
                [] => {}
                [one] => drop(config.insert("eos_token_id".into(), json!(one))),
                several => drop(config.insert("eos_token_id".into(), json!(several))),
            }
            Value::Object(config)
        }
        own => own.clone(),
    }
}

fn write_tokenizer(checkpoint: &Checkpoint, folder: &Path) -> Result<()> {
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).map_err(|e| Error::io(path, e))
    };
    match &checkpoint.tokenizer {
        TokenizerSource::Json { tokenizer_json, tokenizer_config, special_tokens_map } => {
            write("tokenizer.json", tokenizer_json)?;
            for (name, value) in
                [("tokenizer_config.json", tokenizer_config), ("special_tokens_map.json", special_tokens_map)]
            {
                if !value.is_null() {
                    write_json(&folder.join(name), value)?;
                }
            }
            // Where the template is a part of tokenizer_config.json it is written already.
            if let Some(template) =
                checkpoint.chat_template.as_ref().filter(|_| tokenizer_config["chat_template"].is_null())
            {
                write("chat_template.jinja", template.as_bytes())?;
            }
        }
        TokenizerSource::Gguf(_) => {
            let Some(tokenizer) = text_tools(checkpoint)?.0 else { return Ok(()) };
            write_json(&folder.join("tokenizer.json"), &tokenizer.to_json()?)?;
            let mut config = tokenizer.config_json(checkpoint.config.max_positions);
            if let Some(template) = &checkpoint.chat_template {
                config["chat_template"] = template.as_str().into();
            }
            write_json(&folder.join("tokenizer_config.json"), &config)?;
        }
        TokenizerSource::None => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_the_scaled_product() {
        let weight = HostTensor::from_f32(vec![2, 3], &[1.0; 6]).unwrap();
        let lora = LoraWeights {
            a: HostTensor::from_f32(vec![1, 3], &[1.0, 2.0, 3.0]).unwrap(),
            b: HostTensor::from_f32(vec![2, 1], &[10.0, -1.0]).unwrap(),
            scale: 0.5,
            magnitude: None,
        };
        for dtype in [DType::F32, DType::BF16] {
            let bytes = merged("w", &weight, Some(&lora), dtype).unwrap();
            let mut values = [0.0; 6];
            dequantise_row(dtype, &bytes, &mut values).unwrap();
            assert_eq!(values, [6.0, 11.0, 16.0, 0.5, 0.0, -0.5]);
        }
    }

    #[test]
    fn f16_refuses_what_it_cannot_hold() {
        let weight = HostTensor::from_f32(vec![1, 2], &[1.0, 1e6]).unwrap();
        let error = merged("w", &weight, None, DType::F16).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("'w'") && error.contains("bf16"), "{error}");
    }
}
