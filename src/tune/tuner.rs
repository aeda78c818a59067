//! What requests ask of fine-tuning, from any thread.

use super::check;
use super::director::Director;
use super::records::{CheckpointRecord, EventRecord, FileRecord, Hyper, JobRecord, Method, ModelRecord, Status};
use super::refusal::{Kind, Refusal};
use super::running::{Control, Note, Running, Seat};
use super::session::{Session, Trained};
use super::store::{Store, now, order, unique};
use crate::engine::Engine;
use crate::engine::pacing::Pace;
use crate::error::{Error, Result};
use crate::format::peft::Adapter;
use serde_json::{Map, Value, json};
use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// What clients may leave on the server.
#[derive(Clone, Copy, Debug)]
pub struct TuneLimits {
    /// Bytes of one file (OpenAI: 512 MB).
    pub file_bytes: u64,
    /// Files.
    pub files: usize,
    /// Bytes of all files together.
    pub total_bytes: u64,
    /// Jobs that are not over.
    pub jobs: usize,
}

impl Default for TuneLimits {
    fn default() -> Self {
        Self { file_bytes: 512 << 20, files: 1000, total_bytes: 100 << 30, jobs: 100 }
    }
}

/// How to fine-tune.
#[derive(Clone, Debug)]
pub struct TuneOptions {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Names of the base model.
    pub names: Vec<String>,
    /// How training and requests share the device.
    pub pace: Pace,
    /// What clients may leave.
    pub limits: TuneLimits,
    /// A checkpoint to go on from at least so often, besides those at the ends of epochs.
    pub save_every: Duration,
}

/// What somebody wants to be trained.
#[derive(Clone, Debug, Default)]
pub struct JobRequest {
    /// The base model, or one that was tuned here.
    pub model: String,
    /// Id of a file.
    pub training_file: String,
    /// The same.
    pub validation_file: Option<String>,
    /// DPO instead of learning from answers.
    pub dpo: bool,
    /// Numbers.
    pub hyper: Hyper,
    /// For the model's name.
    pub suffix: Option<String>,
    /// For everything random; `None`: a fresh one.
    pub seed: Option<u64>,
    /// The user's own.
    pub metadata: Option<Map<String, Value>>,
    /// As they were asked for.
    pub integrations: Vec<Value>,
}

/// What all threads share.
pub(super) struct Shared {
    pub store: Store,
    pub engine: Engine,
    pub options: TuneOptions,
    /// The next job for the engine's thread.
    pub waiting: Arc<Mutex<Option<Box<Running>>>>,
    /// The one that was started and has not ended.
    pub active: Mutex<Option<(String, Arc<Control>)>>,
}

/// Fine-tuning on an engine. Ends with the last request that uses it; what was being trained goes on when the server is back.
pub struct Tuner {
    pub(super) shared: Arc<Shared>,
    notes: Mutex<Sender<Note>>,
    thread: Option<JoinHandle<()>>,
    /// Sessions on their way to the engine's thread.
    pub(super) arriving: Arc<Mutex<Vec<Trained>>>,
    /// Those that are open.
    pub(super) sessions: Mutex<Vec<(SessionRecord, Arc<Session>)>>,
}

/// An open training session.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionRecord {
    /// `session-…`
    pub id: String,
    /// Under which its weights answer, once they were published.
    pub model: String,
    /// What it trains on.
    pub base_model: String,
    /// Of its adapter.
    pub rank: usize,
    /// Longest row.
    pub max_tokens: usize,
}

impl Drop for Tuner {
    fn drop(&mut self) {
        // The job that trains leaves a checkpoint, with which the next server begins.
        if let Some((_, control)) = &*self.shared.active() {
            control.pause.store(true, Ordering::SeqCst);
        }
        self.shared.engine.wake();
        self.note(Note::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    pub fn active(&self) -> MutexGuard<'_, Option<(String, Arc<Control>)>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Longest row, in tokens: what the engine serves, too.
    pub fn longest(&self) -> usize {
        self.engine.max_len()
    }

    /// The name of the model that is loaded.
    pub fn base(&self) -> &str {
        &self.engine.model().name
    }

    /// Makes a tuned model one that requests may name.
    pub fn load(&self, model: &ModelRecord) -> Result<()> {
        let folder = self.store.checkpoint_folder(&model.job, model.step);
        self.engine.load_adapter(&model.name, &Adapter::read(&folder, self.engine.model().config())?)
    }
}

impl Tuner {
    /// Opens what was there before and goes on with it.
    ///
    /// # Errors
    /// Those of [`Store::open`]; [`Error::Invalid`] for an engine without room for adapters.
    pub fn start(engine: &Engine, options: TuneOptions) -> Result<Self> {
        if engine.adapter_room().0 == 0 {
            return Err(Error::invalid("fine-tuning needs room for adapters on the device (max_adapters is 0)"));
        }
        let store = Store::open(&options.data_dir)?;
        let (notes, inbox) = channel();
        let waiting = Arc::default();
        let arriving = Arc::default();
        let seat = Seat {
            waiting: Arc::clone(&waiting),
            notes: notes.clone(),
            current: None,
            model: engine.model().clone(),
            arriving: Arc::clone(&arriving),
            sessions: VecDeque::new(),
        };
        engine.host(Box::new(seat), options.pace)?;
        let shared = Arc::new(Shared { store, engine: engine.clone(), options, waiting, active: Mutex::default() });
        let director = Director::new(shared.clone())?;
        let thread = std::thread::Builder::new()
            .name("fine-tuning".into())
            .spawn(move || director.run(&inbox))
            .map_err(|e| Error::internal(format!("cannot start the fine-tuning's thread: {e}")))?;
        let tuner =
            Self { shared, notes: Mutex::new(notes), thread: Some(thread), arriving, sessions: Mutex::default() };
        tuner.note(Note::Kick);
        Ok(tuner)
    }

    fn note(&self, note: Note) {
        let _ = self.notes.lock().unwrap_or_else(PoisonError::into_inner).send(note);
    }

    /// What is kept.
    pub fn store(&self) -> &Store {
        &self.shared.store
    }

    /// Begins to take a file.
    ///
    /// # Errors
    /// [`Refusal`] where there are too many files already.
    pub fn upload(&self) -> Result<Upload<'_>, Refusal> {
        let files = self.store().files()?;
        let limits = &self.shared.options.limits;
        if files.len() >= limits.files {
            let message = format!("You have reached the limit of {} files; delete some first.", limits.files);
            return Err(Refusal::bad(message).code("file_limit_exceeded"));
        }
        let total: u64 = files.iter().map(|file| file.bytes).sum();
        let room = limits.total_bytes.saturating_sub(total);
        let id = unique("file-");
        let path = self.store().partial_path(&id);
        let file = File::create(&path).map_err(|e| Error::io(&path, e))?;
        Ok(Upload { tuner: self, id, path, file, bytes: 0, room, kept: false })
    }

    /// A file.
    ///
    /// # Errors
    /// [`Refusal`] where there is none of that id; so of all that follow.
    pub fn file(&self, id: &str) -> Result<FileRecord, Refusal> {
        self.store().file(id)?.ok_or_else(|| Refusal::not_found("id", format!("No such File object: {id}")))
    }

    /// Removes a file.
    ///
    /// # Errors
    /// As [`Tuner::file`]; for a file that a job still needs.
    pub fn delete_file(&self, id: &str) -> Result<(), Refusal> {
        self.file(id)?;
        let uses = |job: &JobRecord| job.training_file == id || job.validation_file.as_deref() == Some(id);
        if let Some(job) = self.store().jobs()?.iter().find(|job| !job.status.is_over() && uses(job)) {
            return Err(Refusal::field("id", format!("File {id} is in use by the fine-tuning job {}.", job.id)));
        }
        Ok(self.store().forget(id)?)
    }

    /// A job.
    ///
    /// # Errors
    /// [`Refusal`] where there is none of that id.
    pub fn job(&self, id: &str) -> Result<JobRecord, Refusal> {
        let found = self.store().job(id)?;
        found.ok_or_else(|| {
            Refusal::not_found("fine_tuning_job_id", format!("Could not find fine tune: {id}"))
                .code("fine_tune_not_found")
        })
    }

    /// Puts a job in the queue.
    ///
    /// # Errors
    /// [`Refusal`] for a model or a file that is not there, and for numbers that make no sense.
    pub fn create(&self, request: JobRequest) -> Result<JobRecord, Refusal> {
        let names = &self.shared.options.names;
        if !names.contains(&request.model) && self.store().model(&request.model)?.is_none() {
            let message = format!("Model {} is not available for fine-tuning or does not exist.", request.model);
            return Err(Refusal::field("model", message).code("model_not_available"));
        }
        let files =
            [("training_file", Some(&request.training_file)), ("validation_file", request.validation_file.as_ref())];
        for (param, id) in files {
            let Some(id) = id else { continue };
            match self.store().file(id)? {
                Some(file) if file.purpose == "fine-tune" => {}
                Some(file) => {
                    let message = format!("File '{id}' has the purpose '{}', expected 'fine-tune'.", file.purpose);
                    return Err(Refusal::field(param, message).code("invalid_file_purpose"));
                }
                None => {
                    return Err(Refusal::field(param, format!("invalid {param}: {id}")).code("file_not_found"));
                }
            }
        }
        if request.dpo && request.validation_file.is_some() {
            let message =
                "a validation_file is for the method 'supervised': the losses of pairs are not measured apart";
            return Err(Refusal::field("validation_file", message));
        }
        check_numbers(&request)?;
        let open = self.store().jobs()?.iter().filter(|job| !job.status.is_over()).count();
        let most = self.shared.options.limits.jobs;
        if open >= most {
            let message = format!("There are {open} jobs that are not over, which is the limit.");
            return Err(Refusal::bad(message).code("job_limit_exceeded"));
        }
        let job = JobRecord {
            id: unique("ftjob-"),
            order: order(),
            created_at: now(),
            finished_at: None,
            estimated_finish: None,
            model: request.model,
            base: self.shared.base().to_owned(),
            status: Status::ValidatingFiles,
            training_file: request.training_file,
            validation_file: request.validation_file,
            method: if request.dpo { Method::Dpo } else { Method::Supervised },
            hyper: request.hyper,
            suffix: request.suffix,
            seed: request.seed.unwrap_or(order() % 2_147_483_648),
            metadata: request.metadata,
            integrations: request.integrations,
            fine_tuned_model: None,
            result_files: Vec::new(),
            trained_tokens: 0,
            error: None,
        };
        self.store().change(|change| {
            change.put_job(&job)?;
            change.add_event(&job.id, &event("info", format!("Created fine-tuning job: {}", job.id)))?;
            change.add_event(
                &job.id,
                &event("info", format!("Validating training file: {}", job.training_file)),
            )?;
            if !job.integrations.is_empty() {
                let message = "integrations are remembered and nothing is sent to them: figures are in the events and in \
                               the result file";
                change.add_event(&job.id, &event("warn", message.into()))?;
            }
            Ok(())
        })?;
        self.note(Note::Kick);
        Ok(job)
    }

    /// Changes a job's status where it has one of `from`; then tells whoever works on it.
    fn turn_to(&self, id: &str, verb: &str, from: &[Status], to: Status, words: &str) -> Result<JobRecord, Refusal> {
        self.job(id)?;
        // Under the lock, so that a job that is starting either sees the new status or can be told.
        let active = self.shared.active();
        let changed = self.store().change(|change| {
            let Some(mut job) = change.job(id)? else { return Ok(Err(Status::Failed)) };
            if !from.contains(&job.status) {
                return Ok(Err(job.status));
            }
            job.status = to;
            job.finished_at = to.is_over().then(now);
            change.put_job(&job)?;
            change.add_event(id, &event("info", words.to_owned()))?;
            Ok(Ok(job))
        })?;
        let job = changed.map_err(|status| {
            let message = match status.is_over() {
                true => format!("Job has already completed: {id}"),
                false => format!("Cannot {verb} the job {id}: its status is '{}'", status.word()),
            };
            Refusal::bad(message).code("invalid_job_status")
        })?;
        if let Some((running, control)) = &*active
            && running == id
        {
            control.cancel.store(to == Status::Cancelled, Ordering::SeqCst);
            control.pause.store(to == Status::Paused, Ordering::SeqCst);
        }
        drop(active);
        self.shared.engine.wake();
        self.note(Note::Kick);
        Ok(job)
    }

    /// Ends a job.
    ///
    /// # Errors
    /// [`Refusal`] for a job that is over.
    pub fn cancel(&self, id: &str) -> Result<JobRecord, Refusal> {
        let from = [Status::ValidatingFiles, Status::Queued, Status::Running, Status::Paused];
        self.turn_to(id, "cancel", &from, Status::Cancelled, "Fine-tuning job cancelled")
    }

    /// Has a job leave the device until it is resumed.
    ///
    /// # Errors
    /// [`Refusal`] for a job that neither runs nor waits.
    pub fn pause(&self, id: &str) -> Result<JobRecord, Refusal> {
        let from = [Status::Queued, Status::Running];
        self.turn_to(id, "pause", &from, Status::Paused, "Fine-tuning job paused")
    }

    /// Puts a paused job back in the queue.
    ///
    /// # Errors
    /// [`Refusal`] for a job that is not paused.
    pub fn resume(&self, id: &str) -> Result<JobRecord, Refusal> {
        self.turn_to(id, "resume", &[Status::Paused], Status::Queued, "Fine-tuning job resumed")
    }

    /// A job's events, the newest first.
    ///
    /// # Errors
    /// As [`Tuner::job`].
    pub fn events(&self, id: &str) -> Result<Vec<EventRecord>, Refusal> {
        self.job(id)?;
        let mut events = self.store().events(id)?;
        events.reverse();
        Ok(events)
    }

    /// A job's checkpoints, the newest first.
    ///
    /// # Errors
    /// As [`Tuner::job`].
    pub fn checkpoints(&self, id: &str) -> Result<Vec<CheckpointRecord>, Refusal> {
        self.job(id)?;
        let mut checkpoints = self.store().checkpoints(id)?;
        checkpoints.reverse();
        Ok(checkpoints)
    }

    /// Forgets a tuned model.
    ///
    /// # Errors
    /// [`Refusal`] where there is none of that name.
    pub fn delete_model(&self, name: &str) -> Result<(), Refusal> {
        if self.store().model(name)?.is_none() {
            return Err(
                Refusal::not_found("model", format!("The model '{name}' does not exist")).code("model_not_found")
            );
        }
        self.store().change(|change| change.remove_model(name))?;
        let _ = self.shared.engine.unload_adapter(name);
        Ok(())
    }
}

/// An event that is a message.
pub(super) fn event(level: &str, message: String) -> EventRecord {
    let (id, created_at) = (unique("ftevent-"), now());
    EventRecord { id, created_at, level: level.into(), message, kind: "message".into(), data: json!({}) }
}

fn check_numbers(request: &JobRequest) -> Result<(), Refusal> {
    let Hyper { n_epochs, batch_size, learning_rate_multiplier, beta } = request.hyper;
    let wrong = |name: &str, value: String, range: &str| {
        let param = format!("hyperparameters.{name}");
        Err(Refusal::field(&param, format!("{param}: {value} is not within {range}")))
    };
    if let Some(n) = n_epochs.filter(|n| !(1..=50).contains(n)) {
        return wrong("n_epochs", n.to_string(), "1 to 50");
    }
    if let Some(n) = batch_size.filter(|n| !(1..=256).contains(n)) {
        return wrong("batch_size", n.to_string(), "1 to 256");
    }
    if let Some(x) = learning_rate_multiplier.filter(|x| !(*x > 0.0 && *x <= 1000.0)) {
        return wrong("learning_rate_multiplier", x.to_string(), "0 (excluded) to 1000");
    }
    if let Some(x) = beta.filter(|x| !(*x > 0.0 && *x <= 2.0)) {
        return wrong("beta", x.to_string(), "0 (excluded) to 2");
    }
    if beta.is_some() && !request.dpo {
        return Err(Refusal::field("hyperparameters.beta", "beta is for the method 'dpo'"));
    }
    let suffix = request.suffix.as_deref().unwrap_or_default();
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if suffix.len() > 64 || !suffix.chars().all(fits) {
        let message = "suffix must have at most 64 characters: letters, digits, '-', '_' and '.'";
        return Err(Refusal::field("suffix", message));
    }
    Ok(())
}

/// A file on its way. Nothing is left of it unless it was kept.
pub struct Upload<'a> {
    tuner: &'a Tuner,
    id: String,
    path: PathBuf,
    file: File,
    bytes: u64,
    /// Bytes that all files together may still grow by.
    room: u64,
    kept: bool,
}

impl Upload<'_> {
    /// The next bytes.
    ///
    /// # Errors
    /// [`Refusal`] for more than there may be; the disk's errors.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        self.bytes += bytes.len() as u64;
        let most = self.tuner.shared.options.limits.file_bytes;
        if self.bytes > most {
            let message = format!("The file is larger than the limit of {most} bytes.");
            return Err(Refusal { kind: Kind::TooLarge, ..Refusal::field("file", message).code("file_too_large") });
        }
        if self.bytes > self.room {
            let message = "There is no room for this file among those that are kept; delete some first.";
            return Err(Refusal::field("file", message).code("storage_limit_exceeded"));
        }
        self.file.write_all(bytes).map_err(|e| Error::io(&self.path, e).into())
    }

    /// Keeps it, if it is what it claims to be.
    ///
    /// # Errors
    /// [`Refusal`] for a name that is a path, for another purpose than fine-tuning, and for what is no JSON Lines.
    pub fn finish(mut self, filename: &str, purpose: &str) -> Result<FileRecord, Refusal> {
        check_name(filename)?;
        check_purpose(purpose)?;
        self.file.flush().map_err(|e| Error::io(&self.path, e))?;
        check::lines(&self.path)?;
        let (id, bytes) = (self.id.clone(), self.bytes);
        let (filename, purpose) = (filename.to_owned(), purpose.to_owned());
        let record = FileRecord { id, order: order(), bytes, created_at: now(), filename, purpose };
        self.tuner.store().keep(&record)?;
        self.kept = true;
        Ok(record)
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Names are shown and sent, never used as paths; those that try to be one are refused all the same.
fn check_name(name: &str) -> Result<(), Refusal> {
    let path =
        name.contains(['/', '\\', '\0']) || Path::new(name).components().count() != 1 || matches!(name, "." | "..");
    if name.is_empty() || name.len() > 255 || path || name.chars().any(char::is_control) {
        let message = format!("Invalid file name {name:?}: expected 1 to 255 characters that are no path.");
        return Err(Refusal::field("file", message).code("invalid_file_name"));
    }
    Ok(())
}

fn check_purpose(purpose: &str) -> Result<(), Refusal> {
    match purpose {
        "fine-tune" => Ok(()),
        "assistants" | "batch" | "vision" | "user_data" | "evals" => {
            let message = format!("files of purpose '{purpose}' have no use on this server: expected 'fine-tune'");
            Err(Refusal::field("purpose", message))
        }
        other => {
            let message = format!("'{other}' is not one of ['fine-tune'] - 'purpose'");
            Err(Refusal::field("purpose", message).code("invalid_purpose"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_paths_are_refused() {
        for name in ["train.jsonl", "..jsonl", "a b.jsonl", "ä.jsonl"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "..", ".", "../x", "/etc/passwd", "a/b", "a\\b", "a\0b", "a\nb", &"x".repeat(256)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
