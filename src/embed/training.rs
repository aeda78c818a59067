//! Fine-tuning beside serving: one job on a loaded model, worked on in slices.

use super::event::{Emitter, Event, EventKind};
use super::faults;
use super::log::Level;
use super::model::{Model, repeated};
use super::pump::{Shared, Task};
use crate::engine::{Turn, panic_message};
use crate::error::{Error, Result};
use crate::format::peft::Adapter;
use crate::train::data::{Row, row};
use crate::train::preference;
use crate::train::{Job, Recipe};
use serde_json::Value;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainingState {
    /// Takes examples.
    Open,
    /// Its programs are being made.
    Preparing,
    /// Waits for its start.
    Ready,
    /// Trains.
    Running,
    /// Has done all its steps, was cancelled, or failed.
    Over,
}

struct Inner {
    state: TrainingState,
    recipe: Recipe,
    rows: Vec<Row>,
    init: Option<Arc<Adapter>>,
    job: Option<Job>,
    /// Started before it was ready.
    started: bool,
}

struct Work {
    inner: Mutex<Inner>,
    cancelled: AtomicBool,
    paused: AtomicBool,
    ended: AtomicBool,
    object: AtomicU64,
    userdata: u64,
    began: Instant,
    shared: Arc<Shared>,
}

/// A job. Examples first, then [`Training::seal`], then [`Training::start`].
pub struct Training {
    work: Arc<Work>,
    model: Arc<Model>,
}

impl Drop for Training {
    fn drop(&mut self) {
        self.work.cancelled.store(true, Ordering::SeqCst);
        self.work.shared.remove(&*self.work);
    }
}

impl Work {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn post(&self, event: Event) {
        let seconds = self.began.elapsed().as_secs_f64();
        let object = self.object.load(Ordering::SeqCst);
        let emitter = Emitter { events: self.shared.events.clone(), object, userdata: self.userdata };
        emitter.post(Event { seconds, ..event });
    }

    /// The one last event.
    fn end(&self, error: Option<Error>) {
        if !self.ended.swap(true, Ordering::SeqCst) {
            self.shared.log.line(Level::Info, || match &error {
                None => "training is done".into(),
                Some(error) => format!("training ended: {error}"),
            });
            self.post(Event { kind: EventKind::TrainingDone, error, ..Event::default() });
        }
    }
}

impl Task for Work {
    fn turn(&self, deadline: Instant) -> Turn {
        if self.cancelled.load(Ordering::SeqCst) {
            self.inner().state = TrainingState::Over;
            return Turn::Ended;
        }
        let mut inner = self.inner();
        if inner.state != TrainingState::Running || self.paused.load(Ordering::SeqCst) {
            return Turn::Idle;
        }
        let Some(job) = &mut inner.job else { return Turn::Idle };
        let turn = || {
            faults::point("train");
            job.turn(deadline)
        };
        let turn = catch_unwind(AssertUnwindSafe(turn))
            .unwrap_or_else(|panic| Err(Error::Panic(format!("training: {}", panic_message(&*panic)))));
        let over = match turn {
            Ok(None) => return Turn::Worked,
            Ok(Some(report)) => {
                self.post(Event {
                    kind: EventKind::TrainingStep,
                    done: report.step as u64,
                    total: report.total_steps as u64,
                    loss: report.loss,
                    grad_norm: f64::from(report.grad_norm),
                    lr: report.lr,
                    ..Event::default()
                });
                if !job.is_done() {
                    return Turn::Worked;
                }
                None
            }
            Err(error) => Some(error),
        };
        inner.state = TrainingState::Over;
        drop(inner);
        self.end(over);
        Turn::Ended
    }

    fn trains(&self) -> bool {
        true
    }
}

impl Training {
    /// A job that takes examples. Data and output of the recipe are not used; `init` is an adapter to start from.
    ///
    /// # Errors
    /// Those of [`Recipe::validate`] and [`Model::loaded`].
    pub fn new(model: &Arc<Model>, recipe: Recipe, init: Option<Arc<Adapter>>, userdata: u64) -> Result<Arc<Self>> {
        model.ready()?;
        recipe.validate()?;
        if recipe.full_finetuning {
            return Err(Error::unsupported(
                "full_finetuning in a job beside sessions: they hear of adapters on the model as it was loaded",
            ));
        }
        let inner = Inner { state: TrainingState::Open, recipe, rows: Vec::new(), init, job: None, started: false };
        let work = Work {
            inner: Mutex::new(inner),
            cancelled: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            object: AtomicU64::new(0),
            userdata,
            began: Instant::now(),
            shared: model.host().shared().clone(),
        };
        Ok(Arc::new(Self { work: Arc::new(work), model: model.clone() }))
    }

    /// The number that its events carry.
    pub fn named(&self, object: u64) {
        self.work.object.store(object, Ordering::SeqCst);
    }

    /// The model that is trained.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Where it is.
    pub fn state(&self) -> TrainingState {
        self.work.inner().state
    }

    /// `pairs`: for pairs of answers, else for single examples.
    fn open(&self, pairs: bool) -> Result<MutexGuard<'_, Inner>> {
        let inner = self.work.inner();
        match (inner.state, inner.recipe.preference.is_some()) {
            (TrainingState::Open, prefers) if prefers == pairs => Ok(inner),
            (TrainingState::Open, true) => Err(Error::invalid("a job of preference tuning takes pairs of answers")),
            (TrainingState::Open, false) => {
                Err(Error::invalid("the job takes no pairs of answers: its options name no preference loss"))
            }
            _ => Err(Error::invalid("the job was sealed: it takes no more examples")),
        }
    }

    /// One example, in a form that `runtime train` reads from a line.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming what is wrong; [`Error::Text`] for a model without tokenizer.
    pub fn add_example(&self, example: &Value) -> Result<()> {
        let mut inner = self.open(false)?;
        let model = self.model.loaded()?;
        let line = inner.rows.len() + 1;
        let row = row(example, line, inner.recipe.loss, model.tokenizer()?, model.chat.as_ref())?;
        inner.rows.push(row);
        Ok(())
    }

    /// A pair of answers, in a form that `runtime train --preference` reads from a line.
    ///
    /// # Errors
    /// As [`Training::add_example`]; [`Error::Invalid`] where the recipe names no preference loss.
    pub fn add_preference(&self, pair: &Value) -> Result<()> {
        let mut inner = self.open(true)?;
        let model = self.model.loaded()?;
        let line = inner.rows.len() / 2 + 1;
        let rows = preference::data::rows(pair, line, model.tokenizer()?, model.chat.as_ref())?;
        inner.rows.extend(rows);
        Ok(())
    }

    /// One example as tokens, and which of them the loss counts.
    ///
    /// # Errors
    /// [`Error::Invalid`] for fewer than two tokens, or tokens outside the vocabulary.
    pub fn add_tokens(&self, ids: &[u32], counted: &[bool]) -> Result<()> {
        let mut inner = self.open(false)?;
        let vocab = self.model.loaded()?.config().vocab;
        if ids.len() < 2 || ids.len() != counted.len() || ids.iter().any(|id| *id as usize >= vocab) {
            let (n, m) = (ids.len(), counted.len());
            return Err(Error::invalid(format!(
                "an example of {n} tokens and {m} marks: expected two at least of both, below {vocab}"
            )));
        }
        let line = inner.rows.len() + 1;
        inner.rows.push(Row { ids: ids.to_vec(), counted: counted.to_vec(), line });
        Ok(())
    }

    /// Takes no more examples and makes the job's programs, on a thread of its own; `TrainingReady` says when it is done.
    ///
    /// # Errors
    /// [`Error::Invalid`] without examples, or for a second call.
    pub fn seal(&self) -> Result<()> {
        let prefers = self.work.inner().recipe.preference.is_some();
        let mut inner = self.open(prefers)?;
        if inner.rows.is_empty() {
            return Err(Error::invalid("the job has no examples"));
        }
        let model = self.model.loaded()?;
        let (recipe, rows, init) = (inner.recipe.clone(), std::mem::take(&mut inner.rows), inner.init.clone());
        let work = self.work.clone();
        self.model.host().spawn("runtime-train", move || {
            let make = || Job::from_rows(&model, &recipe, rows, init.as_deref());
            let made = catch_unwind(AssertUnwindSafe(make))
                .unwrap_or_else(|panic| Err(Error::Panic(format!("preparing: {}", panic_message(&*panic)))));
            drop(model);
            let mut inner = work.inner();
            if work.cancelled.load(Ordering::SeqCst) {
                inner.state = TrainingState::Over;
                drop(inner);
                work.end(Some(Error::Cancelled));
                return work.shared.events.announce();
            }
            match made {
                Ok(job) => {
                    let total = job.total_steps() as u64;
                    inner.state = if inner.started { TrainingState::Running } else { TrainingState::Ready };
                    inner.job = Some(job);
                    drop(inner);
                    work.post(Event { kind: EventKind::TrainingReady, total, ..Event::default() });
                    work.shared.add(work.clone());
                }
                Err(error) => {
                    inner.state = TrainingState::Over;
                    drop(inner);
                    work.post(Event {
                        kind: EventKind::TrainingReady,
                        error: Some(repeated(&error)),
                        ..Event::default()
                    });
                    work.end(Some(error));
                }
            }
            work.shared.events.announce();
        })?;
        inner.state = TrainingState::Preparing;
        Ok(())
    }

    /// Begins to train, as soon as the job is ready.
    ///
    /// # Errors
    /// [`Error::Invalid`] before [`Training::seal`], and for a job that is over.
    pub fn start(&self) -> Result<()> {
        let mut inner = self.work.inner();
        match inner.state {
            TrainingState::Open => return Err(Error::invalid("the job was not sealed")),
            TrainingState::Over => return Err(Error::invalid("the job is over")),
            TrainingState::Preparing => inner.started = true,
            TrainingState::Ready | TrainingState::Running => inner.state = TrainingState::Running,
        }
        drop(inner);
        self.work.shared.notify();
        Ok(())
    }

    /// Stops between two slices, until called with false.
    pub fn pause(&self, paused: bool) {
        self.work.paused.store(paused, Ordering::SeqCst);
        self.work.shared.notify();
    }

    /// Ends the job within a slice. Its adapter can still be had.
    pub fn cancel(&self) {
        self.work.cancelled.store(true, Ordering::SeqCst);
        self.work.end(Some(Error::Cancelled));
        self.work.shared.events.announce();
        self.work.shared.notify();
    }

    fn with_job<R>(&self, f: impl FnOnce(&Job) -> Result<R>) -> Result<R> {
        match &self.work.inner().job {
            Some(job) => f(job),
            None => Err(Error::Busy("the job is not ready: seal it, and wait for its event".into())),
        }
    }

    /// The adapter as it is after the last step.
    ///
    /// # Errors
    /// [`Error::Busy`] before the job is ready; [`Error::Device`].
    pub fn adapter(&self) -> Result<Adapter> {
        self.with_job(Job::adapter)
    }

    /// Writes a checkpoint into a folder, to go on from with `resume` of a recipe. Gives its path.
    ///
    /// # Errors
    /// [`Error::Io`], and as [`Training::adapter`].
    pub fn checkpoint(&self, folder: &Path) -> Result<PathBuf> {
        self.with_job(|job| job.save(folder))
    }

    /// Steps done, and those of the whole job.
    ///
    /// # Errors
    /// As [`Training::adapter`].
    pub fn steps(&self) -> Result<(usize, usize)> {
        self.with_job(|job| Ok((job.steps_done(), job.total_steps())))
    }
}
