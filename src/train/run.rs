//! A whole run: steps, evaluations, checkpoints, logs, and what is left at the end.

use super::export::{Card, not_its_own, write_card};
use super::job::Job;
use super::log::Logs;
use super::outcome::Outcome;
use super::recipe::Recipe;
use super::report::{Observer, Summary};
use crate::collective::{Alone, Collective};
use crate::error::{Error, Result};
use crate::model::LoadedModel;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// A whole run: adapter (or model), model card and checkpoints go to `recipe.output`, a line for each step to `recipe.log`.
///
/// A run that the observer stops leaves a checkpoint and nothing else.
///
/// # Errors
/// Those of [`Job::new`] and [`Job::step`]; [`Error::Io`] for output and logs; [`Error::Invalid`] for a recipe without
/// an output folder or data; what the observer's `sample` returns.
pub fn run(model: Arc<LoadedModel>, recipe: &Recipe, observer: &mut dyn Observer) -> Result<Summary> {
    run_among(model, recipe, &(Arc::new(Alone) as Arc<dyn Collective>), observer)
}

/// As [`run`], as one of several processes, which all call this: see [`Job::among`]. Rank 0 alone writes files and asks for
/// samples; a process that fails ends all of them.
///
/// # Errors
/// As [`run`]; [`Error::Network`] where another process fails, with its rank and message, or is gone.
pub fn run_among(
    model: Arc<LoadedModel>,
    recipe: &Recipe,
    group: &Arc<dyn Collective>,
    observer: &mut dyn Observer,
) -> Result<Summary> {
    let result = whole_run(model, recipe, group, observer);
    if let Err(error) = &result {
        group.abort(&error.to_string());
    }
    result
}

fn whole_run(
    model: Arc<LoadedModel>,
    recipe: &Recipe,
    group: &Arc<dyn Collective>,
    observer: &mut dyn Observer,
) -> Result<Summary> {
    let began = Instant::now();
    let output = &recipe.output;
    if output.as_os_str().is_empty() {
        return Err(Error::invalid("output is empty, expected a folder for the adapter"));
    }
    if recipe.data.is_empty() {
        return Err(Error::invalid("data is empty, expected a file of training rows"));
    }
    if recipe.full_finetuning {
        // Before hours of training rather than after.
        not_its_own(&model.checkpoint, output)?;
    }
    let first = group.rank() == 0;
    let mut job = Job::among(&model, recipe, group.clone())?;
    observer.data(job.data());
    if let Some(report) = job.eval_data() {
        observer.eval_data(report);
    }
    observer.plan(job.memory());
    // Before hours of training rather than after: can the results be written?
    if first {
        std::fs::create_dir_all(output).map_err(|e| Error::io(output, e))?;
    }
    let quiet = Recipe { log: None, tensorboard: None, plot: None, ..recipe.clone() };
    let mut logs = Logs::open(if first { recipe } else { &quiet }, job.steps_done())?;
    let (mut stopped, mut stopped_early, mut loss, mut checkpoint) = (false, false, None, None);
    while !job.is_done() && !stopped_early {
        let Some(report) = job.step_unless(&|| observer.should_stop())? else {
            stopped = true;
            break;
        };
        loss = Some(report.loss);
        logs.step(&report)?;
        observer.step(&report);
        let mut save = recipe.save_steps.is_some_and(|every| report.step.is_multiple_of(every));
        if job.evaluation_due()
            && let Some(report) = job.evaluate()?
        {
            logs.evaluated(&report)?;
            observer.evaluated(&report);
            // The best one has a checkpoint of its own, whatever save_steps says.
            save |= report.best && recipe.load_best_model_at_end;
            stopped_early = recipe.early_stopping_patience.is_some_and(|most| job.best().worse >= most);
        }
        if first && recipe.sample_steps.is_some_and(|every| report.step.is_multiple_of(every)) {
            observer.sample(report.step, job.adapter()?)?;
        }
        if save && !job.is_done() && !stopped_early {
            checkpoint = Some(job.save(output)?);
        }
    }
    if loss.is_some() {
        checkpoint = Some(job.save(output)?);
    }
    let adapter = if stopped {
        None
    } else if !first {
        Some(output.clone())
    } else {
        last(&job, recipe, &model)?.write(output, &model.checkpoint, None)?;
        let (data, data_hash) = (job.data(), job.data_hash());
        let (base_model, losses) = (&model.name, logs.losses());
        write_card(output, &Card { base_model, recipe, data, data_hash: &data_hash, losses })?;
        Some(output.clone())
    };
    logs.finish()?;
    // Whoever ends last has seen that everything is written.
    group.barrier()?;
    let best = job.best().step.zip(job.best().loss);
    let elapsed_s = began.elapsed().as_secs_f64();
    Ok(Summary { steps: job.steps_done(), stopped, stopped_early, best, loss, adapter, checkpoint, elapsed_s })
}

/// What has been trained as it is now, or as it was at the best evaluation.
fn last(job: &Job, recipe: &Recipe, model: &LoadedModel) -> Result<Outcome> {
    let best = job.best().step.filter(|step| recipe.load_best_model_at_end && *step != job.steps_done());
    let Some(step) = best else { return job.outcome() };
    let folder: PathBuf = recipe.output.join(format!("checkpoint-{step}"));
    Outcome::read(&folder, &model.checkpoint, recipe.full_finetuning)
}
