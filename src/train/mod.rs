//! LoRA fine-tuning over the model's own program.
//!
//! [`run`] does a whole run from a [`Recipe`]; [`Job`] is the same step by step. The base model is the copy that
//! also serves: it is borrowed, never changed.
//!
//! - `recipe`, `schedule`: what decides a run
//! - `data`, `encode`, `batch`: from JSONL to micro-batches
//! - `preference`: pairs of answers
//! - `trainer`: programs and buffers on the device
//! - `adapter`, `checkpoint`, `export`: from and to files

pub(crate) mod adapter;
pub mod batch;
pub mod bench;
mod checkpoint;
pub mod data;
mod encode;
pub mod export;
mod job;
pub mod preference;
mod recipe;
mod report;
mod schedule;
pub mod trainer;

pub use data::DataReport;
pub use job::{Accumulated, Job};
pub use preference::{PairReport, Preference, PreferenceLoss};
pub use recipe::{DEFAULT_ALPHA, DEFAULT_EPOCHS, DEFAULT_RANK, LossOn, Optim, Recipe};
pub use report::{MemoryReport, Observer, StepReport, Summary};
pub use schedule::Schedule;

use crate::error::{Error, Result};
use crate::model::LoadedModel;
use export::{Card, write_card};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// A whole run: adapter, model card and checkpoints go to `recipe.output`, a line for each step to `recipe.log`.
///
/// A run that the observer stops leaves a checkpoint and no adapter.
///
/// # Errors
/// Those of [`Job::new`] and [`Job::step`]; [`Error::Io`] for output and log; [`Error::Invalid`] for a recipe without
/// an output folder.
pub fn run(model: Arc<LoadedModel>, recipe: &Recipe, observer: &mut dyn Observer) -> Result<Summary> {
    let began = Instant::now();
    let output = &recipe.output;
    if output.as_os_str().is_empty() {
        return Err(Error::invalid("output is empty, expected a folder for the adapter"));
    }
    let mut job = Job::new(&model, recipe)?;
    observer.data(job.data());
    observer.plan(job.memory());
    // Before hours of training rather than after: can the results be written?
    std::fs::create_dir_all(output).map_err(|e| Error::io(output, e))?;
    let mut log = recipe.log.as_deref().map(|path| open_log(path, recipe.resume.is_some())).transpose()?;
    let (mut stopped, mut loss, mut checkpoint) = (false, None, None);
    let mut losses = Vec::new();
    while !job.is_done() {
        let Some(report) = job.step_unless(&|| observer.should_stop())? else {
            stopped = true;
            break;
        };
        loss = Some(report.loss);
        losses.push((report.step, report.loss));
        if let (Some(log), Some(path)) = (&mut log, &recipe.log) {
            writeln!(log, "{}", report.log_line()).map_err(|e| Error::io(path, e))?;
        }
        observer.step(&report);
        if recipe.save_steps.is_some_and(|every| report.step.is_multiple_of(every)) && !job.is_done() {
            checkpoint = Some(job.save(output)?);
        }
    }
    if loss.is_some() {
        checkpoint = Some(job.save(output)?);
    }
    let adapter = if stopped {
        None
    } else {
        job.adapter()?.write(output)?;
        let hash = job.data_hash();
        let card = Card { base_model: &model.name, recipe, data: job.data(), data_hash: &hash, losses: &losses };
        write_card(output, &card)?;
        Some(output.clone())
    };
    let elapsed_s = began.elapsed().as_secs_f64();
    Ok(Summary { steps: job.steps_done(), stopped, loss, adapter, checkpoint, elapsed_s })
}

/// A new log; a resumed run goes on at the end of the old one.
pub(crate) fn open_log(path: &Path, append: bool) -> Result<File> {
    if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    }
    let mut options = File::options();
    let options = options.create(true).write(true).append(append).truncate(!append);
    options.open(path).map_err(|e| Error::io(path, e))
}
