//! Checkpoints: the adapter, AdamW's moments and the place in the data.
//!
//! `checkpoint-N/` holds PEFT's two files (so it loads like any adapter), `optimizer.safetensors` (the moments `m` and
//! `v` as the device's buffers hold them; those of 8 bits as u32 words of four codes, with `m_max` and `v_max`) and `trainer_state.json`. Order of rows and dropout masks
//! follow from the seed and the step, so there is no generator state to keep.

use super::data::Row;
use super::recipe::Recipe;
use crate::error::{Error, Result};
use crate::format::peft::Adapter;
use crate::format::safetensors::{self, Tensors};
use crate::format::safetensors_write::{write_file, write_json};
use crate::format::source::Source;
use crate::model::ModelConfig;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const STATE: &str = "trainer_state.json";
const OPTIMIZER: &str = "optimizer.safetensors";
/// Version of the state's layout.
const FORMAT: u32 = 1;

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
}

/// What a run goes on from.
pub struct Saved {
    /// The checkpoint's folder; the parent folder when writing.
    pub folder: PathBuf,
    /// Parameters.
    pub adapter: Adapter,
    /// What `Trainer::moments` gave.
    pub moments: Tensors,
    /// Steps done.
    pub step: usize,
}

impl Saved {
    /// Reads a checkpoint, or the latest one in an output folder.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is none, or recipe or data differ from those it was made with, naming what;
    /// [`Error::Format`] for corrupt files.
    pub fn read(folder: &Path, recipe: &Recipe, model: &ModelConfig, rows: &[Row]) -> Result<Self> {
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
        if (state.rows, &state.data_hash) != (rows.len(), &data_hash(rows)) {
            let message = format!(
                "cannot resume {}: the data differs from that which it was trained on ({} rows then, {} now)",
                folder.display(),
                state.rows,
                rows.len()
            );
            return Err(Error::invalid(message));
        }
        let adapter = Adapter::read(&folder, model)?;
        let source = Source::open(&folder.join(OPTIMIZER))?;
        Ok(Self { moments: safetensors::read_state(&source)?, folder, adapter, step: state.step })
    }
}

/// The folder itself where it is a checkpoint, else its `checkpoint-N` with the largest N.
fn locate(folder: &Path) -> Result<PathBuf> {
    if folder.join(STATE).is_file() {
        return Ok(folder.to_owned());
    }
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let numbered = entries.flatten().filter_map(|entry| {
        let step: usize = entry.file_name().to_str()?.strip_prefix("checkpoint-")?.parse().ok()?;
        entry.path().join(STATE).is_file().then_some((step, entry.path()))
    });
    numbered.max().map(|(_, path)| path).ok_or_else(|| {
        Error::invalid(format!(
            "cannot resume {}: it neither is a checkpoint ({STATE}) nor holds a checkpoint-N",
            folder.display()
        ))
    })
}

/// Writes `checkpoint-N` into `saved.folder`, under another name until it is complete. Gives its path.
///
/// # Errors
/// [`Error::Io`].
pub fn write(saved: &Saved, recipe: &Recipe, rows: &[Row], position: usize) -> Result<PathBuf> {
    let name = format!("checkpoint-{}", saved.step);
    let (done, partial) = (saved.folder.join(&name), saved.folder.join(format!("{name}.partial")));
    remove(&partial)?;
    saved.adapter.write(&partial)?;
    write_file(&partial.join(OPTIMIZER), saved.moments.iter().map(|(name, tensor)| (name.as_str(), tensor)))?;
    let state = State {
        format: FORMAT,
        step: saved.step,
        position,
        rows: rows.len(),
        data_hash: data_hash(rows),
        recipe: recipe.clone(),
    };
    let state = serde_json::to_value(state).map_err(|e| Error::internal(e.to_string()))?;
    write_json(&partial.join(STATE), &state)?;
    remove(&done)?;
    std::fs::rename(&partial, &done).map_err(|e| Error::io(&done, e))?;
    Ok(done)
}

fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(folder, e)),
        _ => Ok(()),
    }
}

/// FNV-1a over ids and masks, in hexadecimal.
pub fn data_hash(rows: &[Row]) -> String {
    let mut hash = 0xCBF2_9CE4_8422_2325u64;
    let mut eat = |word: u64| hash = (hash ^ word).wrapping_mul(0x0100_0000_01B3);
    for row in rows {
        eat(row.ids.len() as u64);
        row.ids.iter().zip(&row.counted).for_each(|(id, counted)| eat(u64::from(*id) << 1 | u64::from(*counted)));
    }
    format!("{hash:016x}")
}
