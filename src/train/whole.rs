//! Weights that are trained whole: how they get into the flat buffer, and out of it again.

use super::adapter::Start;
use super::recipe::Recipe;
use crate::error::{Error, Result};
use crate::format::Checkpoint;
use crate::format::peft::{AdapterConfig, TargetModules};
use crate::format::quant::dequantise_row;
use crate::format::safetensors::Tensors;
use crate::model::LoadedModel;
use crate::model::weights::{EMBED, HEAD};
use crate::model::whole::{TrainLayout, WholeEntry};
use crate::tensor::HostTensor;

/// Every weight of a model, as it is in the checkpoint or in `given`.
///
/// # Errors
/// [`Error::Unsupported`] for a model whose weights are quantised, saying which and what to do; [`Error::Invalid`] where `given`
/// does not fit.
pub fn full(model: &LoadedModel, given: Option<&Tensors>) -> Result<Start> {
    let stored = model.checkpoint.tensors.iter().map(|(name, tensor)| (name, tensor.dtype));
    let loaded = model.weights.iter().map(|(name, buffer)| (name, buffer.desc().dtype));
    if let Some((name, dtype)) = stored.chain(loaded).find(|(_, dtype)| dtype.is_quantised()) {
        return Err(Error::unsupported(format!(
            "full_finetuning of a model in {dtype} (tensor '{name}'): numbers of a few bits do not follow small steps. Train \
             adapters on it, or give a model in 16 or 32 bits (without --load-in-4bit)"
        )));
    }
    let config = model.config();
    let layout = TrainLayout::full(config, padding(&model.checkpoint));
    let params = vec![0.0; layout.len];
    let adapter = AdapterConfig::new(1, 1.0, TargetModules::List(Vec::new()));
    let mut start = Start { config: adapter, layout, scale: 1.0, params };
    fill(&mut start, &model.checkpoint, given)?;
    Ok(start)
}

/// The adapters of `start` with the modules beside them that recipe or adapter name.
///
/// # Errors
/// [`Error::Invalid`] for modules that the model does not have, or that have an adapter.
pub fn beside(mut start: Start, recipe: &Recipe, checkpoint: &Checkpoint, given: Option<&Tensors>) -> Result<Start> {
    if start.config.modules_to_save.is_empty() {
        start.config.modules_to_save.clone_from(&recipe.modules_to_save);
    }
    if start.config.modules_to_save.is_empty() {
        return Ok(start);
    }
    let names = &start.config.modules_to_save;
    start.layout = TrainLayout::saved(start.layout.lora, &checkpoint.config, names, padding(checkpoint))?;
    start.params.resize(start.layout.len, 0.0);
    fill(&mut start, checkpoint, given)?;
    Ok(start)
}

/// Writes each weight to its place: from `given`, or as the checkpoint has it, decoded to f32.
fn fill(start: &mut Start, checkpoint: &Checkpoint, given: Option<&Tensors>) -> Result<()> {
    for entry in &start.layout.whole.entries {
        let own = || match checkpoint.tensors.get(&entry.name) {
            // The head's own copy of the embedding.
            None if entry.name == HEAD => checkpoint.tensors.get(EMBED),
            found => found,
        };
        let found = given.map_or_else(own, |given| given.get(&entry.name));
        let Some(tensor) = found.filter(|tensor| tensor.shape == entry.shape) else {
            let (name, shape) = (&entry.name, &entry.shape);
            return Err(Error::invalid(format!("tensor '{name}' is missing, or its shape is not {shape:?}")));
        };
        let place = start.params.get_mut(entry.at..entry.at + entry.len());
        let place = place.ok_or_else(|| Error::internal("a weight lies outside the flat buffer"))?;
        dequantise_row(tensor.dtype, &tensor.data, place)?;
    }
    Ok(())
}

/// The whole weights in a flat buffer, f32, under the checkpoint's names.
///
/// # Errors
/// [`Error::Internal`] for a buffer that is shorter than its layout.
pub fn tensors(layout: &TrainLayout, flat: &[f32]) -> Result<Tensors> {
    let cut = |entry: &WholeEntry| -> Result<(String, HostTensor)> {
        let numbers = flat.get(entry.at..entry.at + entry.len());
        let numbers = numbers.ok_or_else(|| Error::internal("the flat buffer is shorter than its layout"))?;
        Ok((entry.name.clone(), HostTensor::from_f32(entry.shape.clone(), numbers)?))
    };
    layout.whole.entries.iter().map(cut).collect()
}

/// The row of the embedding that PyTorch's lookups give no gradient: the configuration's `pad_token_id`.
fn padding(checkpoint: &Checkpoint) -> Option<u32> {
    u32::try_from(checkpoint.raw_config["pad_token_id"].as_u64()?).ok()
}
