//! The thread that knows the disk: reads files, makes jobs ready, and writes down what happens to them, in order.

use super::check;
use super::recipe::recipe;
use super::records::{CheckpointRecord, EventRecord, Failure, FileRecord, JobRecord, ModelRecord, Status};
use super::running::{Control, Note, Outcome, Running, checkpoint_name};
use super::store::{now, order, sync_folder, unique};
use super::tuner::{Shared, event};
use crate::engine::panic_message;
use crate::error::{Error, Result};
use crate::format::peft::Adapter;
use crate::train::{Copying, EvalReport, Job, StepReport};
use serde_json::{Value, json};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// How long the end of the server waits for a checkpoint's next piece of work.
const PATIENCE: Duration = Duration::from_secs(10);
/// Checkpoints of one job that are models, as at OpenAI.
const KEPT: usize = 3;

/// See the module.
pub struct Director {
    shared: Arc<Shared>,
    /// Of the job that trains: when, and after which step, it began.
    began: (Instant, usize),
}

impl Director {
    /// Takes stock: jobs that were being trained wait again, tuned models are served again.
    pub fn new(shared: Arc<Shared>) -> Result<Self> {
        for mut job in shared.store.jobs()? {
            if job.status == Status::Running && job.base == shared.base() {
                job.status = Status::Queued;
                shared.store.change(|change| {
                    change.put_job(&job)?;
                    change.add_event(&job.id, &event("info", "The server was restarted: the job waits to go on".into()))
                })?;
            }
        }
        for model in shared.store.models()?.iter().filter(|model| model.base == shared.base()) {
            if let Err(error) = shared.load(model) {
                tracing::warn!("the tuned model '{}' cannot be served: {error}", model.name);
            }
        }
        Ok(Self { shared, began: (Instant::now(), 0) })
    }

    /// Works until told to stop, and until the job that trains has left a checkpoint then.
    pub fn run(mut self, inbox: &Receiver<Note>) {
        let mut stopping = false;
        loop {
            let note = if stopping { inbox.recv_timeout(PATIENCE).ok() } else { inbox.recv().ok() };
            let Some(note) = note else { return };
            stopping |= matches!(note, Note::Stop);
            let job = match &note {
                Note::Step { job, .. } | Note::Evaluated { job, .. } | Note::Saved { job, .. } => Some(job.clone()),
                _ => None,
            };
            if let Err(error) = self.handle(note) {
                tracing::error!("fine-tuning: {error}");
                // What cannot be written down must not go on as if it were.
                if let Some(job) = job {
                    self.stop_training(&job);
                    self.fail(&job, failure(&error));
                }
            }
            if stopping {
                if self.shared.active().is_none() {
                    return;
                }
            } else if let Err(error) = self.start_next() {
                tracing::error!("fine-tuning: {error}");
            }
        }
    }

    fn stop_training(&self, id: &str) {
        if let Some((running, control)) = &*self.shared.active()
            && running == id
        {
            control.cancel.store(true, Ordering::SeqCst);
        }
        self.shared.engine.wake();
    }

    fn handle(&mut self, note: Note) -> Result<()> {
        match note {
            Note::Kick => self.validate_all(),
            Note::Step { job, report } => self.stepped(&job, &report),
            Note::Evaluated { job, report } => self.evaluated(&job, &report),
            Note::Saved { job, copied, published } => self.saved(&job, *copied, published),
            Note::Ended { job, outcome } => {
                let result = self.ended(&job, outcome);
                *self.shared.active() = None;
                result
            }
            Note::Stop => Ok(()),
        }
    }

    /// Changes a job, with an event.
    fn update(&self, id: &str, change_it: impl FnOnce(&mut JobRecord) -> Option<EventRecord>) -> Result<()> {
        self.shared.store.change(|change| {
            let Some(mut job) = change.job(id)? else { return Ok(()) };
            if let Some(event) = change_it(&mut job) {
                change.add_event(id, &event)?;
            }
            change.put_job(&job)
        })
    }

    fn fail(&self, id: &str, failure: Failure) {
        let result = self.update(id, |job| {
            if job.status.is_over() {
                return None;
            }
            let event = event("error", failure.message.clone());
            (job.status, job.finished_at, job.error) = (Status::Failed, Some(now()), Some(failure));
            Some(event)
        });
        if let Err(error) = result {
            tracing::error!("fine-tuning: {error}");
        }
    }

    /// Reads the files of new jobs: they wait, or have failed, then.
    fn validate_all(&self) -> Result<()> {
        let mut jobs = self.shared.store.jobs()?;
        jobs.reverse();
        for job in jobs.iter().filter(|job| job.status == Status::ValidatingFiles && job.base == self.shared.base()) {
            match self.validate(job) {
                Ok(rows) => self.update(&job.id, |job| {
                    if job.status != Status::ValidatingFiles {
                        return None;
                    }
                    (job.status, job.hyper) = (Status::Queued, job.hyper.resolved(job.method, rows));
                    Some(event("info", "Files validated, moving job to queued state".into()))
                })?,
                Err(failure) => self.fail(&job.id, failure),
            }
        }
        Ok(())
    }

    fn validate(&self, job: &JobRecord) -> Result<usize, Failure> {
        let (store, model, longest) = (&self.shared.store, self.shared.engine.model(), self.shared.longest());
        let report = check::rows(&store.file_path(&job.training_file), "training_file", job.method, model, longest)?;
        if let Some(id) = &job.validation_file {
            check::rows(&store.file_path(id), "validation_file", job.method, model, longest)?;
        }
        Ok(report.rows)
    }

    /// Makes the next job ready where none trains.
    fn start_next(&mut self) -> Result<()> {
        loop {
            if self.shared.active().is_some() {
                return Ok(());
            }
            let mut jobs = self.shared.store.jobs()?;
            jobs.reverse();
            let fits = |job: &JobRecord| job.status == Status::Queued && job.base == self.shared.base();
            let Some(job) = jobs.into_iter().find(fits) else { return Ok(()) };
            let control = Arc::new(Control::default());
            {
                let mut active = self.shared.active();
                // It may have been cancelled meanwhile.
                if !self.shared.store.job(&job.id)?.is_some_and(|now| now.status == Status::Queued) {
                    continue;
                }
                self.update(&job.id, |job| {
                    job.status = Status::Running;
                    Some(event("info", "Fine-tuning job started".into()))
                })?;
                *active = Some((job.id.clone(), control.clone()));
            }
            let made = catch_unwind(AssertUnwindSafe(|| self.make(&job, control)))
                .unwrap_or_else(|panic| Err(Error::Panic(format!("preparing: {}", panic_message(&*panic)))));
            match made {
                Ok(running) => {
                    *self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(running));
                    self.shared.engine.wake();
                }
                Err(error) => {
                    self.fail(&job.id, failure(&error));
                    *self.shared.active() = None;
                }
            }
        }
    }

    /// The adapter that a job starts from; `None`: a fresh one.
    fn init(&self, job: &JobRecord) -> Result<Option<PathBuf>> {
        if self.shared.options.names.contains(&job.model) {
            return Ok(None);
        }
        let model = self.shared.store.model(&job.model)?;
        let model = model.ok_or_else(|| Error::invalid(format!("the model '{}' was deleted", job.model)))?;
        Ok(Some(self.shared.store.checkpoint_folder(&model.job, model.step)))
    }

    fn make(&mut self, job: &JobRecord, control: Arc<Control>) -> Result<Running> {
        let store = &self.shared.store;
        let folder = store.job_folder(&job.id);
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        let rank = self.shared.engine.adapter_room().1;
        let recipe = recipe(job, store, self.init(job)?, rank, self.shared.longest());
        let made = Job::new(self.shared.engine.model(), &recipe)?;
        let done = made.steps_done();
        // What came after the checkpoint will happen again.
        store.change(|change| change.remove_events_after(&job.id, done as u64))?;
        let tokens = self.metrics(&job.id)?.iter().filter_map(|event| event.data["tokens"].as_u64()).sum();
        self.update(&job.id, |job| {
            job.trained_tokens = tokens;
            (done > 0).then(|| event("info", format!("Going on after step {done}")))
        })?;
        self.began = (Instant::now(), done);
        let epochs = made.epochs_done();
        let model = job.model_name();
        // The checkpoint of an epoch may have been written, and the server gone before it was taken into account.
        let before = |steps: usize| (steps * recipe.grad_accum) / (made.data().rows.max(1));
        let whole = done > 0 && (made.is_done() || before(done) > before(done - 1));
        if whole && !store.checkpoints(&job.id)?.iter().any(|checkpoint| checkpoint.step == done as u64) {
            let name = checkpoint_name(&model, done, made.is_done());
            self.remember(&job.id, done as u64, &name)?;
            let found = store.model(&name)?;
            found.map(|model| self.shared.load(&model)).transpose()?;
        }
        Ok(Running::new(job.id.clone(), made, control, model, epochs, self.shared.options.save_every))
    }

    /// Events of steps.
    fn metrics(&self, id: &str) -> Result<Vec<EventRecord>> {
        Ok(self.shared.store.events(id)?.into_iter().filter(|event| event.step().is_some()).collect())
    }

    fn stepped(&self, id: &str, report: &StepReport) -> Result<()> {
        let StepReport { step, total_steps, loss, tokens, .. } = *report;
        let (began, first) = self.began;
        let left = (total_steps - step) as f64 * began.elapsed().as_secs_f64() / (step - first).max(1) as f64;
        let mut data = json!({
            "step": step, "total_steps": total_steps, "train_loss": loss, "learning_rate": report.lr,
            "grad_norm": report.grad_norm, "tokens": tokens, "epoch": report.epoch,
        });
        if let Some(pairs) = &report.pairs {
            data["reward_accuracy"] = pairs.accuracy.into();
            data["reward_margin"] = (pairs.rewards_chosen - pairs.rewards_rejected).into();
        }
        let event = metrics(format!("Step {step}/{total_steps}: training loss={loss:.4}"), data);
        self.update(id, |job| {
            job.trained_tokens += tokens as u64;
            job.estimated_finish = Some(now() + left.ceil() as u64);
            Some(event)
        })
    }

    fn evaluated(&self, id: &str, report: &EvalReport) -> Result<()> {
        let (step, loss) = (report.step, report.loss);
        let data = json!({"step": step, "valid_loss": loss, "full_valid_loss": loss});
        self.update(id, |_| Some(metrics(format!("Step {step}: full validation loss={loss:.4}"), data)))
    }

    fn saved(&self, id: &str, copied: Copying, published: Option<(String, u64)>) -> Result<()> {
        let snapshot = copied.finish()?;
        let store = &self.shared.store;
        let folder = store.job_folder(id);
        let path = snapshot.write(&folder, &self.shared.engine.model().checkpoint)?;
        sync_folder(&folder)?;
        if let Some((name, version)) = published {
            self.remember(id, snapshot.step as u64, &name)?;
            let adapter = Adapter::read(&path, self.shared.engine.model().config())?;
            self.shared.engine.settle(&name, version, &adapter)?;
        }
        self.prune(id, snapshot.step as u64)
    }

    /// Takes a checkpoint into account that is a model.
    fn remember(&self, id: &str, step: u64, name: &str) -> Result<()> {
        let mut numbers = json!({"step": step});
        for event in self.metrics(id)?.iter().filter(|event| event.step() == Some(step)) {
            for key in ["train_loss", "valid_loss", "full_valid_loss"] {
                if !event.data[key].is_null() {
                    numbers[key] = event.data[key].clone();
                }
            }
        }
        let (job, model) = (id.to_owned(), name.to_owned());
        let checkpoint = CheckpointRecord {
            id: unique("ftckpt_"),
            job: job.clone(),
            created_at: now(),
            model,
            step,
            metrics: numbers,
        };
        let model = ModelRecord { name: name.to_owned(), job, step, base: self.shared.base().to_owned() };
        self.shared.store.change(|change| {
            change.put_checkpoint(&checkpoint)?;
            change.put_model(&model)?;
            change.add_event(id, &event("info", format!("Checkpoint created at step {step}: {name}")))
        })
    }

    /// Removes checkpoints that are neither the latest nor models, and models beyond the last [`KEPT`].
    fn prune(&self, id: &str, latest: u64) -> Result<()> {
        let store = &self.shared.store;
        let known = store.checkpoints(id)?;
        let (old, kept) = known.split_at(known.len().saturating_sub(KEPT));
        for checkpoint in old {
            store.change(|change| {
                change.remove_checkpoint(id, checkpoint.step)?;
                change.remove_model(&checkpoint.model)
            })?;
            let _ = self.shared.engine.unload_adapter(&checkpoint.model);
        }
        let folder = store.job_folder(id);
        for entry in std::fs::read_dir(&folder).map_err(|e| Error::io(&folder, e))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let step: Option<u64> = name.strip_prefix("checkpoint-").and_then(|step| step.parse().ok());
            let Some(step) = step else { continue };
            if step != latest && !kept.iter().any(|checkpoint| checkpoint.step == step) {
                // Renamed first: a checkpoint of which a part is gone must not look like one.
                let gone = folder.join(format!("{name}.partial"));
                let _ = std::fs::remove_dir_all(&gone);
                std::fs::rename(entry.path(), &gone).map_err(|e| Error::io(&gone, e))?;
                std::fs::remove_dir_all(&gone).map_err(|e| Error::io(&gone, e))?;
            }
        }
        Ok(())
    }

    fn ended(&self, id: &str, outcome: Outcome) -> Result<()> {
        match outcome {
            Outcome::Failed(error) => self.fail(id, failure(&error)),
            Outcome::Cancelled | Outcome::Paused => {}
            Outcome::Done => self.succeeded(id)?,
        }
        Ok(())
    }

    /// Writes the result file and gives the job its model.
    fn succeeded(&self, id: &str) -> Result<()> {
        let store = &self.shared.store;
        let Some(job) = store.job(id)? else { return Ok(()) };
        let name = job.model_name();
        if job.status == Status::Cancelled {
            store.change(|change| change.remove_model(&name))?;
            let _ = self.shared.engine.unload_adapter(&name);
            return Ok(());
        }
        let mut csv = String::from("step,train_loss,valid_loss\n");
        for event in self.metrics(id)? {
            let number = |key: &str| match &event.data[key] {
                Value::Null => String::new(),
                value => value.to_string(),
            };
            let (step, train, valid) = (number("step"), number("train_loss"), number("valid_loss"));
            csv.push_str(&format!("{step},{train},{valid}\n"));
        }
        let file = FileRecord {
            id: unique("file-"),
            order: order(),
            bytes: csv.len() as u64,
            created_at: now(),
            filename: "step_metrics.csv".into(),
            purpose: "fine-tune-results".into(),
        };
        let partial = store.partial_path(&file.id);
        std::fs::write(&partial, csv).map_err(|e| Error::io(&partial, e))?;
        store.place(&file)?;
        store.change(|change| {
            let Some(mut job) = change.job(id)? else { return Ok(()) };
            (job.status, job.finished_at, job.fine_tuned_model) = (Status::Succeeded, Some(now()), Some(name.clone()));
            job.result_files = vec![file.id.clone()];
            change.put_file(&file)?;
            change.put_job(&job)?;
            change.add_event(id, &event("info", format!("New fine-tuned model created: {name}")))?;
            change.add_event(id, &event("info", "The job has successfully completed".into()))
        })
    }
}

/// An event with numbers.
fn metrics(message: String, data: Value) -> EventRecord {
    EventRecord { kind: "metrics".into(), data, ..event("info", message) }
}

fn failure(error: &Error) -> Failure {
    let code = match error {
        Error::OutOfMemory { .. } => "out_of_memory",
        Error::Invalid(_) | Error::Unsupported(_) | Error::Text(_) => "invalid_request",
        _ => "server_error",
    };
    Failure { code: code.into(), message: error.to_string(), param: None }
}
