//! What a run writes about itself: JSONL, TensorBoard's event files, and the curves as SVG, on the way and at the end.

use super::plot;
use super::recipe::Recipe;
use super::report::{EvalReport, StepReport};
use super::tensorboard::Events;
use crate::error::{Error, Result};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Time between two pictures of the curves: a reader sees a run move, and long runs do not draw all the time.
const PLOT_EVERY: Duration = Duration::from_secs(5);

/// The logs of a run.
pub struct Logs {
    file: Option<(PathBuf, File)>,
    events: Option<Events>,
    plot: Option<PathBuf>,
    /// When the curves were last written.
    plotted: Option<Instant>,
    /// (step, loss) of what was trained and of what was evaluated.
    curves: [Vec<(usize, f64)>; 2],
}

impl Logs {
    /// Opens them. A run that goes on after step `done` keeps the lines up to there: those of steps that it does again go.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(recipe: &Recipe, done: usize) -> Result<Self> {
        let mut curves = [Vec::new(), Vec::new()];
        let file = match &recipe.log {
            Some(path) => {
                let kept = if done > 0 { earlier(path, done, &mut curves)? } else { String::new() };
                let mut file = open_log(path)?;
                file.write_all(kept.as_bytes()).map_err(|e| Error::io(path, e))?;
                Some((path.clone(), file))
            }
            None => None,
        };
        let events = recipe.tensorboard.as_deref().map(Events::create).transpose()?;
        Ok(Self { file, events, plot: recipe.plot.clone(), plotted: None, curves })
    }

    /// After a step.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn step(&mut self, report: &StepReport) -> Result<()> {
        self.line(&report.log_line())?;
        self.curves[0].push((report.step, report.loss));
        if self.plotted.is_none_or(|at| at.elapsed() >= PLOT_EVERY) {
            self.draw()?;
        }
        let Some(events) = &mut self.events else { return Ok(()) };
        // The names that transformers' Trainer gives them.
        let values = [
            ("train/loss", report.loss),
            ("train/grad_norm", f64::from(report.grad_norm)),
            ("train/learning_rate", report.lr),
            ("train/epoch", report.epoch),
            ("train/tokens_per_second", report.tok_s),
        ];
        events.scalars(report.step, &values)
    }

    /// After an evaluation.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn evaluated(&mut self, report: &EvalReport) -> Result<()> {
        self.line(&report.log_line())?;
        self.curves[1].push((report.step, report.loss));
        self.draw()?;
        self.events.as_mut().map_or(Ok(()), |events| events.scalars(report.step, &[("eval/loss", report.loss)]))
    }

    /// (step, loss) of the steps, those before a checkpoint included where there is a log.
    pub fn losses(&self) -> &[(usize, f64)] {
        &self.curves[0]
    }

    /// At the end.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(mut self) -> Result<()> {
        self.draw()
    }

    /// Writes the curves so far. A reader finds a whole picture at any time.
    fn draw(&mut self) -> Result<()> {
        let Some(path) = &self.plot else { return Ok(()) };
        let [train, eval] = &self.curves;
        if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        }
        let partial = path.with_extension("svg.partial");
        std::fs::write(&partial, plot::losses(train, eval)).map_err(|e| Error::io(&partial, e))?;
        std::fs::rename(&partial, path).map_err(|e| Error::io(path, e))?;
        self.plotted = Some(Instant::now());
        Ok(())
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let Some((path, file)) = &mut self.file else { return Ok(()) };
        writeln!(file, "{line}").map_err(|e| Error::io(path.as_path(), e))
    }
}

/// An empty file, in a folder that is made where it is missing.
pub(crate) fn open_log(path: &Path) -> Result<File> {
    if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    }
    File::create(path).map_err(|e| Error::io(path, e))
}

/// The lines of a log up to a step, and the losses in them.
fn earlier(path: &Path, done: usize, curves: &mut [Vec<(usize, f64)>; 2]) -> Result<String> {
    let file = match File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        opened => opened.map_err(|e| Error::io(path, e))?,
    };
    let mut kept = String::new();
    for line in BufReader::new(file).split(b'\n') {
        let line = line.map_err(|e| Error::io(path, e))?;
        // A line that was cut off when the program ended is no JSON.
        let Ok(value) = serde_json::from_slice::<Value>(&line) else { continue };
        let Some(step) = value["step"].as_u64().map(|step| step as usize).filter(|step| *step <= done) else {
            continue;
        };
        for (curve, key) in curves.iter_mut().zip(["loss", "eval_loss"]) {
            curve.extend(value[key].as_f64().map(|loss| (step, loss)));
        }
        kept.push_str(&String::from_utf8_lossy(&line));
        kept.push('\n');
    }
    Ok(kept)
}
