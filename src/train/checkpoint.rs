//! Checkpoints: the adapter (or the model), AdamW's moments and the place in the data.
//!
//! `checkpoint-N/` holds PEFT's two files (so it loads like any adapter), in full fine-tuning those of a Hugging Face model in f32, `optimizer.safetensors` (the moments `m` and
//! `v` as the device's buffers hold them; those of 8 bits as u32 words of four codes, with `m_max` and `v_max`) and `trainer_state.json`. Order of rows and dropout masks
//! follow from the seed and the step, so there is no generator state to keep.

use super::outcome::Outcome;
use super::recipe::Recipe;
use super::rows::Rows;
use crate::error::{Error, Result};
use crate::format::Checkpoint;
use crate::format::peft::Adapter;
use crate::format::safetensors::{self, Tensors};
use crate::format::safetensors_write::{write_file, write_json};
use crate::format::source::Source;
use crate::model::ModelConfig;
use crate::tensor::DType;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

const STATE: &str = "trainer_state.json";
const OPTIMIZER: &str = "optimizer.safetensors";
/// Ends the name of a checkpoint whose place another is about to take.
const REPLACED: &str = ".replaced";
/// Version of the state's layout.
const FORMAT: u32 = 2;

#[derive(Serialize, Deserialize)]
struct State {
    format: u32,
    step: usize,
    /// Rows (bins when packing) consumed, over all epochs.
    position: usize,
    rows: usize,
    /// FNV-1a over ids and masks, in hexadecimal: other data is refused.
    data_hash: String,
    recipe: Recipe,
    /// Evaluations so far.
    #[serde(default)]
    best: Best,
    /// Processes of the run.
    #[serde(default = "one")]
    world_size: usize,
    /// What decides the numbers beside the recipe.
    #[serde(default)]
    more: Value,
}

fn one() -> usize {
    1
}

/// What the evaluations of a run have shown.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Step of the lowest loss.
    pub step: Option<usize>,
    /// That loss.
    pub loss: Option<f64>,
    /// Evaluations since it was last lower by the recipe's threshold.
    pub worse: usize,
}

/// What a checkpoint will hold.
pub struct Snapshot {
    /// Parameters.
    pub(super) outcome: Outcome,
    /// What `Trainer::moments` gave.
    pub(super) moments: Tensors,
    /// Steps done.
    pub step: usize,
    pub(super) best: Best,
    pub(super) recipe: Recipe,
    /// Rows (bins when packing) consumed, over all epochs.
    pub(super) position: usize,
    pub(super) rows: usize,
    pub(super) data_hash: String,
    pub(super) world_size: usize,
    pub(super) more: Value,
}

/// What a run goes on from.
pub struct Saved {
    /// The checkpoint's folder.
    pub folder: PathBuf,
    /// Parameters.
    pub outcome: Outcome,
    /// What `Trainer::moments` gave.
    pub moments: Tensors,
    /// Steps done.
    pub step: usize,
    /// Evaluations.
    pub best: Best,
    /// Processes.
    pub world_size: usize,
    /// What decides the numbers beside the recipe: GRPO's options. Compared by whoever put it there.
    pub more: Value,
}

impl Saved {
    /// Reads a checkpoint, or the latest one in an output folder.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is none, or recipe or data differ from those it was made with, naming what;
    /// [`Error::Format`] for corrupt files.
    pub fn read(folder: &Path, recipe: &Recipe, base: &Checkpoint, rows: &Rows, world_size: usize) -> Result<Self> {
        let folder = locate(folder)?;
        let path = folder.join(STATE);
        let file = path.display().to_string();
        let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let state: State = serde_json::from_slice(&bytes).map_err(|e| Error::format(&file, "JSON", e.to_string()))?;
        if state.format != FORMAT {
            return Err(Error::unsupported(format!("{file}: format {}; this build reads {FORMAT}", state.format)));
        }
        if let Some(conflict) = recipe.conflict(&state.recipe) {
            return Err(Error::invalid(format!("cannot resume {}: {conflict}", folder.display())));
        }
        if state.world_size != world_size {
            return Err(Error::invalid(format!(
                "cannot resume {}: it was made by {} processes, now there are {world_size}",
                folder.display(),
                state.world_size
            )));
        }
        if (state.rows, &state.data_hash) != (rows.len(), &data_hash(rows)) {
            let message = format!(
                "cannot resume {}: the data differs from that which it was trained on ({} rows then, {} now)",
                folder.display(),
                state.rows,
                rows.len()
            );
            return Err(Error::invalid(message));
        }
        let outcome = Outcome::read(&folder, base, recipe.full_finetuning)?;
        let source = Source::open(&folder.join(OPTIMIZER))?;
        Ok(Self {
            moments: safetensors::read_state(&source)?,
            folder,
            outcome,
            step: state.step,
            best: state.best,
            world_size,
            more: state.more,
        })
    }
}

/// The folder itself where it is a checkpoint, else its `checkpoint-N` with the largest N.
fn locate(folder: &Path) -> Result<PathBuf> {
    if folder.join(STATE).is_file() {
        return Ok(folder.to_owned());
    }
    std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    latest(folder).ok_or_else(|| {
        Error::invalid(format!(
            "cannot resume {}: it neither is a checkpoint ({STATE}) nor holds a checkpoint-N",
            folder.display()
        ))
    })
}

/// The latest whole checkpoint in an output folder.
#[must_use]
pub fn latest(folder: &Path) -> Option<PathBuf> {
    numbered(folder).pop().map(|(_, path)| path)
}

/// The whole checkpoints of an output folder, in the order of their steps. One that was being replaced when the program
/// ended is put back.
fn numbered(folder: &Path) -> Vec<(usize, PathBuf)> {
    let entries: Vec<PathBuf> = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    let mut found = Vec::new();
    for path in entries {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let Some(number) = name.strip_prefix("checkpoint-") else { continue };
        let (number, replaced) = match number.strip_suffix(REPLACED) {
            Some(number) => (number, true),
            None => (number, false),
        };
        let Ok(step) = number.parse() else { continue };
        if !path.join(STATE).is_file() {
            continue;
        }
        let whole = folder.join(format!("checkpoint-{step}"));
        if !replaced || (!whole.exists() && std::fs::rename(&path, &whole).is_ok()) {
            found.push((step, whole));
        }
    }
    found.sort();
    found
}

/// Removes the oldest checkpoints beyond `limit`, but not the best one.
///
/// # Errors
/// [`Error::Io`].
pub fn prune(folder: &Path, limit: usize, best: &Best) -> Result<()> {
    let mut old: Vec<(usize, PathBuf)> = numbered(folder);
    let mut excess = old.len().saturating_sub(limit.max(1));
    // The latest stays whatever the limit: it is what a run goes on from.
    old.pop();
    for (_, path) in old.into_iter().filter(|(step, _)| Some(*step) != best.step) {
        if excess == 0 {
            break;
        }
        // Renamed first: a checkpoint of which a part is gone must not look like one.
        let gone = path.with_extension("partial");
        remove(&gone)?;
        std::fs::rename(&path, &gone).map_err(|e| Error::io(&path, e))?;
        remove(&gone)?;
        excess -= 1;
    }
    Ok(())
}

impl Snapshot {
    /// Of a trainer that is fed by hand: without data, and so without a place in it.
    pub fn new(adapter: Adapter, moments: Tensors, step: usize, recipe: Recipe) -> Self {
        Self {
            outcome: Outcome::Adapter(adapter),
            moments,
            step,
            best: Best::default(),
            recipe,
            position: 0,
            rows: 0,
            data_hash: String::new(),
            world_size: 1,
            more: Value::Null,
        }
    }

    /// Of a run over `rows`, so far into them, and what decides the numbers beside the recipe.
    pub(crate) fn over(self, rows: &Rows, position: usize, more: Value) -> Self {
        Self { position, rows: rows.len(), data_hash: data_hash(rows), more, ..self }
    }

    /// The adapter; `None` in full fine-tuning.
    pub fn adapter(&self) -> Option<&Adapter> {
        match &self.outcome {
            Outcome::Adapter(adapter) => Some(adapter),
            Outcome::Model(_) => None,
        }
    }

    /// Reads what [`Snapshot::write`] wrote of an adapter: a checkpoint, or the latest one in a folder.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is none; [`Error::Format`] for corrupt files.
    pub fn read(folder: &Path, model: &ModelConfig) -> Result<Self> {
        let folder = locate(folder)?;
        let path = folder.join(STATE);
        let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let file = path.display().to_string();
        let state: State = serde_json::from_slice(&bytes).map_err(|e| Error::format(&file, "JSON", e.to_string()))?;
        let State { step, position, rows, data_hash, recipe, best, world_size, more, .. } = state;
        let moments = safetensors::read_state(&Source::open(&folder.join(OPTIMIZER))?)?;
        let outcome = Outcome::Adapter(Adapter::read(&folder, model)?);
        Ok(Self { outcome, moments, step, best, recipe, position, rows, data_hash, world_size, more })
    }

    /// What `Trainer::moments` gave.
    pub fn moments(&self) -> &Tensors {
        &self.moments
    }

    /// How it is trained.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Writes `checkpoint-N` into `folder`, under another name until it is complete. `base` is what was trained upon. Gives its path.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, folder: &Path, base: &Checkpoint) -> Result<PathBuf> {
        let name = format!("checkpoint-{}", self.step);
        let (done, partial) = (folder.join(&name), folder.join(format!("{name}.partial")));
        remove(&partial)?;
        // In f32 whatever the model's type: a run goes on from the very numbers that it had.
        self.outcome.write(&partial, base, Some(DType::F32))?;
        write_file(&partial.join(OPTIMIZER), self.moments.iter().map(|(name, tensor)| (name.as_str(), tensor)))?;
        let state = State {
            format: FORMAT,
            step: self.step,
            position: self.position,
            rows: self.rows,
            data_hash: self.data_hash.clone(),
            recipe: self.recipe.clone(),
            best: self.best.clone(),
            world_size: self.world_size,
            more: self.more.clone(),
        };
        let state = serde_json::to_value(state).map_err(|e| Error::internal(e.to_string()))?;
        write_json(&partial.join(STATE), &state)?;
        sync(&partial)?;
        // An old one of this step stays until the new one has its name.
        let replaced = folder.join(format!("{name}{REPLACED}"));
        if done.exists() {
            remove(&replaced)?;
            std::fs::rename(&done, &replaced).map_err(|e| Error::io(&done, e))?;
        }
        std::fs::rename(&partial, &done).map_err(|e| Error::io(&done, e))?;
        remove(&replaced)?;
        Ok(done)
    }
}

/// Waits until a folder's files are on the disk: a name must not survive a power failure that its contents do not.
fn sync(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        std::fs::File::options().write(true).open(&path).and_then(|f| f.sync_all()).map_err(|e| Error::io(&path, e))?;
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(folder, e)),
        _ => Ok(()),
    }
}

/// FNV-1a over ids and masks, in hexadecimal.
pub fn data_hash(rows: &Rows) -> String {
    format!("{:016x}", rows.hash())
}
