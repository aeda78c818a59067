//! Checkpoints of a GRPO run: those of `train`, with the options of GRPO beside the recipe.
//!
//! Answers are drawn with seeds that follow from the recipe's and the step, so that a run that goes on draws what an unbroken one
//! would have drawn.

use super::GrpoOptions;
use super::rollout::Prompts;
use crate::error::{Error, Result};
use crate::format::Checkpoint;
use crate::format::peft::Adapter;
use crate::model::LoadedModel;
use crate::train::checkpoint::{self, Best, Saved, Snapshot};
use crate::train::trainer::Trainer;
use crate::train::{Recipe, rows::Rows};
use std::path::{Path, PathBuf};

/// The prompts as rows: other prompts are refused, as other data is.
pub fn rows(prompts: &Prompts) -> Result<Rows> {
    let mut rows = Rows::new(None);
    rows.next_file();
    prompts.tokens().try_for_each(|row| rows.push(&row))?;
    Ok(rows)
}

/// What `recipe.resume` names; `None` where the run begins.
///
/// # Errors
/// Those of [`Saved::read`]; [`Error::Invalid`] where options differ from those that it was made with.
pub fn resume(recipe: &Recipe, options: &GrpoOptions, model: &LoadedModel, rows: &Rows) -> Result<Option<Saved>> {
    let folder = match recipe.resume.as_deref() {
        Some(auto) if auto == Path::new("auto") => checkpoint::latest(&recipe.output),
        given => given.map(Path::to_owned),
    };
    let Some(folder) = folder else { return Ok(None) };
    let saved = Saved::read(&folder, recipe, &model.checkpoint, rows, 1)?;
    let mine = serde_json::to_value(options).map_err(|e| Error::internal(e.to_string()))?;
    let differs = mine.as_object().into_iter().flatten().find(|(name, value)| saved.more[name.as_str()] != **value);
    match differs {
        Some((name, value)) => Err(Error::invalid(format!(
            "cannot resume {}: {name} is {value}, the checkpoint was made with {}",
            saved.folder.display(),
            saved.more[name.as_str()]
        ))),
        None => Ok(Some(saved)),
    }
}

/// Writes `checkpoint-N` into the output folder.
///
/// # Errors
/// [`Error::Io`], [`Error::Device`].
pub fn save(
    recipe: &Recipe,
    options: &GrpoOptions,
    base: &Checkpoint,
    (trainer, adapter): (&Trainer, Adapter),
    rows: &Rows,
    step: usize,
) -> Result<PathBuf> {
    let more = serde_json::to_value(options).map_err(|e| Error::internal(e.to_string()))?;
    let snapshot = Snapshot::new(adapter, trainer.moments()?, step, recipe.clone());
    let path = snapshot.over(rows, step * options.prompts, more).write(&recipe.output, base)?;
    if let Some(limit) = recipe.save_total_limit {
        checkpoint::prune(&recipe.output, limit, &Best::default())?;
    }
    Ok(path)
}
