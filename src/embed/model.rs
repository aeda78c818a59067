//! A model of a host: being loaded, ready, or failed.

use super::adapter::Blends;
use super::event::{Emitter, Event, EventKind};
use super::host::Host;
use super::load::{self, Loaded, ModelSource};
use super::log::Level;
use super::pump::{Shared, Task};
use super::request::Request;
use crate::engine::{Driver, Engine, EngineOptions, KvSize, KvType, Requirements, Turn, panic_message};
use crate::error::{Error, Result};
use crate::format::Checkpoint;
use crate::model::LoadedModel;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Sizes of a model's engine; 0 in a field: its default.
#[derive(Clone, Copy, Debug, Default)]
pub struct ModelOptions {
    /// Longest prompt and answer together.
    pub max_tokens: usize,
    /// Requests that run at once. 0: 4.
    pub max_requests: usize,
    /// Tokens of one step. 0: 512, and 32 where the host is stepped.
    pub max_step_tokens: usize,
    /// Bytes of the key/value cache. 0: 512 MiB, or less where fewer can be used.
    pub kv_bytes: u64,
    /// Type of the key/value cache.
    pub kv_type: KvType,
    /// Adapters on the device at once. 0: 4; `None`: no adapters.
    pub max_adapters: Option<usize>,
    /// Largest rank. 0: 16.
    pub max_rank: usize,
}

impl ModelOptions {
    fn engine(&self, stepped: bool) -> EngineOptions {
        let or = |value: usize, default: usize| if value == 0 { default } else { value };
        EngineOptions {
            max_seqs: or(self.max_requests, 4),
            max_len: (self.max_tokens > 0).then_some(self.max_tokens),
            max_step_tokens: or(self.max_step_tokens, if stepped { 32 } else { 512 }),
            kv: if self.kv_bytes == 0 { KvSize::default() } else { KvSize::Bytes(self.kv_bytes) },
            kv_type: self.kv_type,
            max_adapters: self.max_adapters.map_or(0, |n| or(n, 4)),
            max_rank: or(self.max_rank, 16),
            ..EngineOptions::default()
        }
    }
}

/// A model that can be used.
pub(super) struct Ready {
    /// Dropped before the task: then nobody asks for more.
    pub engine: Engine,
    /// Stands for the weights, in saved sessions.
    pub hash: u64,
    /// Adapters that were mixed for a request.
    pub blends: Mutex<Blends>,
    task: Arc<ServeTask>,
    shared: Arc<Shared>,
}

impl Ready {
    /// What computes; waits for a slice where one is being worked on.
    pub fn driver(&self) -> MutexGuard<'_, Driver> {
        self.task.driver.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        self.shared.remove(&*self.task);
        self.shared.events.announce();
    }
}

struct ServeTask {
    driver: Mutex<Driver>,
}

impl Task for ServeTask {
    fn turn(&self, deadline: Instant) -> Turn {
        self.driver.lock().unwrap_or_else(PoisonError::into_inner).turn(Some(deadline))
    }

    fn trains(&self) -> bool {
        false
    }

    fn trim(&self) {
        self.driver.lock().unwrap_or_else(PoisonError::into_inner).trim();
    }
}

enum Stage {
    New,
    Loading,
    Ready(Arc<Ready>),
    Failed(Error),
}

/// What the loading thread and the model share.
pub(super) struct ModelState {
    stage: Mutex<Stage>,
    changed: Condvar,
    cancelled: AtomicBool,
}

/// A model of a host.
pub struct Model {
    state: Arc<ModelState>,
    host: Arc<Host>,
}

impl Drop for Model {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl ModelState {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody wants the model any more.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }
}

impl Model {
    /// Nothing loaded yet.
    pub fn new(host: &Arc<Host>) -> Arc<Self> {
        let state =
            ModelState { stage: Mutex::new(Stage::New), changed: Condvar::new(), cancelled: AtomicBool::new(false) };
        Arc::new(Self { state: Arc::new(state), host: host.clone() })
    }

    /// The host that it belongs to.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Begins to load, on a thread of its own; progress and end come as events of `object`.
    ///
    /// # Errors
    /// [`Error::Internal`] where no thread can be started, or for a second call.
    pub fn load(&self, source: ModelSource, options: &ModelOptions, object: u64, userdata: u64) -> Result<()> {
        let mut stage = self.state.stage();
        if !matches!(*stage, Stage::New) {
            return Err(Error::internal("a model is loaded once"));
        }
        let shared = self.host.shared().clone();
        let emitter = Emitter { events: shared.events.clone(), object, userdata };
        let (state, device) = (self.state.clone(), self.host.device().clone());
        let options = options.engine(self.host.options().stepped);
        self.host.spawn("runtime-load", move || {
            let began = Instant::now();
            shared.log.line(Level::Info, || format!("loading {}", source.name()));
            let load = || load::load(source, device, options, &shared, &state, &emitter);
            let loaded = catch_unwind(AssertUnwindSafe(load))
                .unwrap_or_else(|panic| Err(Error::Panic(format!("loading: {}", panic_message(&*panic)))));
            let loaded = if state.is_cancelled() { Err(Error::Cancelled) } else { loaded };
            let seconds = began.elapsed().as_secs_f64();
            let error = loaded.as_ref().err().map(repeated);
            match &error {
                None => shared.log.line(Level::Info, || format!("loaded in {seconds:.2} s")),
                Some(error) => shared.log.line(Level::Error, || error.to_string()),
            }
            let stage = match loaded {
                Ok(Loaded { engine, driver, hash }) => {
                    let task = Arc::new(ServeTask { driver: Mutex::new(driver) });
                    shared.add(task.clone());
                    let blends = Mutex::default();
                    Stage::Ready(Arc::new(Ready { engine, hash, blends, task, shared: shared.clone() }))
                }
                Err(error) => Stage::Failed(error),
            };
            *state.stage() = stage;
            state.changed.notify_all();
            emitter.post(Event { kind: EventKind::ModelReady, error, seconds, ..Event::default() });
            shared.events.announce();
        })?;
        *stage = Stage::Loading;
        Ok(())
    }

    /// Gives up loading; the event that ends it says so. Nothing happens to a model that is ready.
    pub fn cancel(&self) {
        self.state.cancelled.store(true, Ordering::SeqCst);
    }

    /// Waits until loading has ended; false when `timeout` came first.
    ///
    /// # Errors
    /// Why it failed.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<bool> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut stage = self.state.stage();
        loop {
            match &*stage {
                Stage::Ready(_) => return Ok(true),
                Stage::Failed(error) => return Err(repeated(error)),
                Stage::New | Stage::Loading => {}
            }
            stage = match deadline {
                None => self.state.changed.wait(stage).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(false);
                    }
                    self.state.changed.wait_timeout(stage, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    pub(super) fn ready(&self) -> Result<Arc<Ready>> {
        match &*self.state.stage() {
            Stage::Ready(ready) => Ok(ready.clone()),
            Stage::Failed(error) => Err(repeated(error)),
            Stage::New | Stage::Loading => Err(Error::Busy("the model is being loaded".into())),
        }
    }

    /// The weights, the tokenizer and the chat template.
    ///
    /// # Errors
    /// [`Error::Busy`] while it is being loaded; why loading failed.
    pub fn loaded(&self) -> Result<Arc<LoadedModel>> {
        Ok(self.ready()?.engine.model().clone())
    }

    /// Longest prompt and answer together.
    ///
    /// # Errors
    /// As [`Model::loaded`].
    pub fn max_tokens(&self) -> Result<usize> {
        Ok(self.ready()?.engine.max_len())
    }

    /// Asks for the embedding of a text, through `request`.
    ///
    /// # Errors
    /// Those of [`Engine::embed`], and of [`Model::loaded`].
    pub fn embed(&self, ids: &[u32], request: &Arc<Request>) -> Result<()> {
        let request = request.clone();
        let reply = move |result: Result<Vec<f32>>| request.end_with(EventKind::Embedding, result.map(|v| (v, vec![])));
        self.ready()?.engine.embed_then(ids, None, Box::new(reply))?;
        self.host.shared().notify();
        Ok(())
    }

    /// Asks for the log-probabilities of a text's tokens, through `request`.
    ///
    /// # Errors
    /// As [`Model::embed`].
    pub fn score(&self, ids: &[u32], request: &Arc<Request>) -> Result<()> {
        let request = request.clone();
        self.ready()?.engine.score_then(
            ids,
            None,
            Box::new(move |result| request.end_with(EventKind::Scores, result.map(|s| (s.logprobs, vec![])))),
        )?;
        self.host.shared().notify();
        Ok(())
    }

    /// What a model would need of the host's device; reads the file's header only.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`] and [`Requirements::of`].
    pub fn requirements(host: &Host, path: &Path, options: &ModelOptions) -> Result<Requirements> {
        let checkpoint = Checkpoint::open(path)?;
        Requirements::of(&checkpoint, &host.device().limits(), &options.engine(host.options().stepped))
    }
}

/// An error once more: its kind and its words.
pub(super) fn repeated(error: &Error) -> Error {
    match error {
        Error::Cancelled => Error::Cancelled,
        Error::Panic(message) => Error::Panic(message.clone()),
        Error::Text(message) => Error::Text(message.clone()),
        Error::Busy(message) => Error::Busy(message.clone()),
        Error::Format { file, place, message } => Error::format(file, place, message),
        Error::Io { path, source } => {
            let again = match source.raw_os_error() {
                Some(code) => std::io::Error::from_raw_os_error(code),
                None => std::io::Error::new(source.kind(), source.to_string()),
            };
            Error::io(path, again)
        }
        other => other.repeated(),
    }
}
