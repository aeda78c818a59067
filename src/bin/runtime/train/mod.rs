//! `runtime train`

mod args;
mod samples;
mod screen;

use crate::common;
pub use args::Args;
use runtime::train::{self, Recipe};
use runtime::{Error, Result};
use screen::Screen;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub fn run(args: &Args) -> Result<()> {
    let (recipe, notes) = args.recipe()?;
    // Before a large model is loaded for nothing.
    recipe.validate()?;
    if args.print_recipe {
        return common::print(&recipe.to_toml()?);
    }
    notes.iter().for_each(|note| eprintln!("note: {note}"));
    let model = needed(&recipe)?;
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stop);
    let handler = move || {
        if asked.swap(true, Ordering::Relaxed) {
            // A second Ctrl-C: the user means it.
            std::process::exit(130);
        }
        eprintln!("stopping after this micro-batch (Ctrl-C again: at once, without a checkpoint)");
    };
    ctrlc::set_handler(handler).map_err(|error| Error::internal(format!("cannot catch Ctrl-C: {error}")))?;
    let model = common::load_as(model, recipe.weight_type, args.device)?;
    eprintln!("{} on {}", model.name, model.device.info().name);
    let mut screen = Screen::new(stop, Arc::clone(&model), &recipe);
    let result = train::run(model, &recipe, &mut screen);
    screen.finish();
    let summary = result?;
    let steps = summary.steps;
    if let Some((step, loss)) = summary.best {
        let why = if summary.stopped_early { "stopped early: the evaluation loss no longer falls; " } else { "" };
        eprintln!("{why}best evaluation loss {loss:.4} after step {step}");
    }
    match (&summary.adapter, &summary.checkpoint) {
        (Some(adapter), _) => {
            let loss = summary.loss.map(|loss| format!(", last loss {loss:.4}")).unwrap_or_default();
            let seconds = summary.elapsed_s;
            eprintln!("{steps} steps in {seconds:.0} s{loss}; the adapter is in {}", adapter.display());
        }
        (None, Some(checkpoint)) => {
            eprintln!("stopped after {steps} steps; go on with the same command and --resume {}", checkpoint.display())
        }
        (None, None) => eprintln!("stopped before the first step; nothing was written"),
    }
    Ok(())
}

/// What no run can do without: the model's name, and files that exist.
fn needed(recipe: &Recipe) -> Result<&str> {
    let missing = |what: &str| Error::invalid(format!("{what} is missing, here and in a recipe"));
    let model = recipe.model.as_deref().ok_or_else(|| missing("--model"))?;
    if recipe.data.is_empty() {
        return Err(missing("--data"));
    }
    if recipe.output.as_os_str().is_empty() {
        return Err(missing("--output"));
    }
    let data = recipe.data.iter().map(|file| ("--data", file.path.as_path()));
    let eval = recipe.eval_data.iter().map(|file| ("--eval-data", file.path.as_path()));
    let start = recipe.init_adapter.iter().map(|path| ("--init-adapter", path.as_path()));
    let exists = |path: &Path| path.exists();
    match data.chain(eval).chain(start).find(|(_, path)| !exists(path)) {
        Some((what, path)) => Err(Error::invalid(format!("{what} {}: no such file or folder", path.display()))),
        None => Ok(model),
    }
}
