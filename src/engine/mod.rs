//! The engine: one thread owns the device and serves many requests at once from one copy of the weights.
//!
//! ```text
//! Engine (handle, any thread) ──commands──▶ worker thread: scheduler → steps (programs) → sampler → sinks
//! ```

mod adapters;
pub mod bench;
mod kv;
mod request;
mod sampler;
mod scheduler;
mod steps;
pub mod text;
mod worker;

pub use request::{Event, EventSink, FinishReason, Request, SamplingParams, TokenLogprobs, Usage};

use crate::error::{Error, Result};
use crate::format::peft::Adapter;
use crate::model::LoadedModel;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use worker::{Command, Worker};

/// Sizes of the engine.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Requests that run at once; more wait in a queue.
    pub max_seqs: usize,
    /// Longest prompt and answer together; `None`: the model's own, up to 8192.
    pub max_len: Option<usize>,
    /// Most tokens in one step: a long prompt is cut into chunks of this size.
    pub max_step_tokens: usize,
    /// Tokens that the KV cache holds, for all requests together; `None`: `max_seqs` requests of `max_len`, but no
    /// more than 512 MiB or one such request.
    pub kv_tokens: Option<usize>,
    /// Adapters that can be loaded at once; 0: none.
    pub max_adapters: usize,
    /// Largest rank of an adapter.
    pub max_rank: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { max_seqs: 16, max_len: None, max_step_tokens: 512, kv_tokens: None, max_adapters: 0, max_rank: 16 }
    }
}

/// Teacher-forced log-probabilities of a text.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Scores {
    /// Of each token after the first, in nat.
    pub logprobs: Vec<f32>,
    /// The five likeliest next tokens, best first.
    pub next_top5: Vec<(u32, f32)>,
}

/// Names a submitted request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// A handle on a running engine; cheap to clone, safe to share. The thread ends with the last handle.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    model: Arc<LoadedModel>,
    max_len: usize,
    next_id: AtomicU64,
    adapters: Mutex<BTreeSet<String>>,
    commands: Sender<Command>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Shutdown);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The last handle may be dropped by a sink, on the worker's own thread: it cannot wait for itself.
        if let Some(thread) = thread.filter(|t| t.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}

/// Longest context unless the user asks for more: memory for the cache grows with it.
const DEFAULT_MAX_LEN: usize = 8192;

impl Engine {
    /// Starts the thread and sizes the cache.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] for the cache; [`Error::Invalid`] for options that cannot work.
    pub fn start(model: Arc<LoadedModel>, options: EngineOptions) -> Result<Self> {
        let own = model.config().max_positions;
        let max_len = options.max_len.unwrap_or(own.min(DEFAULT_MAX_LEN));
        for (name, value) in
            [("max_seqs", options.max_seqs), ("max_len", max_len), ("max_step_tokens", options.max_step_tokens)]
        {
            if value == 0 {
                return Err(Error::invalid(format!("{name} must be at least 1")));
            }
        }
        if max_len > own {
            return Err(Error::invalid(format!("max_len {max_len} is more than the model's {own} positions")));
        }
        let (commands, inbox) = channel();
        let worker = Worker::new(model.clone(), &options, max_len, inbox)?;
        let thread = std::thread::Builder::new()
            .name("runtime-engine".into())
            .spawn(move || worker.run())
            .map_err(|e| Error::internal(format!("cannot start the engine's thread: {e}")))?;
        let shared = Shared {
            model,
            max_len,
            next_id: AtomicU64::new(1),
            adapters: Mutex::default(),
            commands,
            thread: Mutex::new(Some(thread)),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The model that it serves.
    pub fn model(&self) -> &Arc<LoadedModel> {
        &self.shared.model
    }

    /// Longest prompt and answer together.
    pub fn max_len(&self) -> usize {
        self.shared.max_len
    }

    /// Queues a request; its events go to `sink`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty or too long prompt, an unknown adapter, or parameters out of range.
    pub fn submit(&self, request: Request, sink: EventSink) -> Result<RequestId> {
        self.check_tokens(&request.prompt)?;
        request.sampling.check(self.model().config().vocab)?;
        let total = request.prompt.len() + request.max_tokens;
        if request.max_tokens == 0 || total > self.max_len() {
            return Err(Error::invalid(format!(
                "{} prompt tokens and max_tokens {} do not fit the context of {} tokens",
                request.prompt.len(),
                request.max_tokens,
                self.max_len()
            )));
        }
        self.check_adapter(request.adapter.as_deref())?;
        let id = RequestId(self.shared.next_id.fetch_add(1, Ordering::Relaxed));
        self.send(Command::Submit { id, request, sink })?;
        Ok(id)
    }

    /// Ends a request at the next step; its sink gets `Done` with [`FinishReason::Cancelled`].
    pub fn cancel(&self, id: RequestId) {
        let _ = self.send(Command::Cancel(id));
    }

    /// Makes an adapter available under `name` (replaces one of that name; running requests keep theirs).
    ///
    /// # Errors
    /// [`Error::Invalid`] where it does not fit the model, or no slot or rank is left.
    pub fn load_adapter(&self, name: &str, adapter: &Adapter) -> Result<()> {
        let (reply, answer) = channel();
        self.send(Command::LoadAdapter { name: name.into(), adapter: Box::new(adapter.clone()), reply })?;
        answer.recv().map_err(|_| stopped())??;
        self.names().insert(name.into());
        Ok(())
    }

    /// Forgets an adapter; requests that are using it keep it until they end.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is none of that name.
    pub fn unload_adapter(&self, name: &str) -> Result<()> {
        self.check_adapter(Some(name))?;
        let (reply, answer) = channel();
        self.send(Command::UnloadAdapter { name: name.into(), reply })?;
        answer.recv().map_err(|_| stopped())??;
        self.names().remove(name);
        Ok(())
    }

    /// Names of the loaded adapters.
    pub fn adapters(&self) -> Vec<String> {
        self.names().iter().cloned().collect()
    }

    /// Teacher-forced log-probabilities of `ids` (at least one token); waits for the result.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn score(&self, ids: &[u32], adapter: Option<&str>) -> Result<Scores> {
        self.check_tokens(ids)?;
        self.check_adapter(adapter)?;
        let (reply, answer) = channel();
        self.send(Command::Score { ids: ids.to_vec(), adapter: adapter.map(str::to_owned), reply })?;
        answer.recv().map_err(|_| stopped())?
    }

    fn names(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.shared.adapters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_tokens(&self, ids: &[u32]) -> Result<()> {
        let vocab = self.model().config().vocab;
        if ids.is_empty() {
            return Err(Error::invalid("the prompt has no tokens"));
        }
        if ids.len() > self.max_len() {
            let (len, max) = (ids.len(), self.max_len());
            return Err(Error::invalid(format!("{len} tokens do not fit the context of {max} tokens")));
        }
        match ids.iter().position(|id| *id as usize >= vocab) {
            Some(at) => Err(Error::invalid(format!("token {} at {at} is outside the vocabulary of {vocab}", ids[at]))),
            None => Ok(()),
        }
    }

    fn check_adapter(&self, name: Option<&str>) -> Result<()> {
        match name {
            Some(name) if !self.names().contains(name) => {
                Err(Error::invalid(format!("no adapter '{name}' is loaded; loaded: [{}]", self.adapters().join(", "))))
            }
            _ => Ok(()),
        }
    }

    fn send(&self, command: Command) -> Result<()> {
        self.shared.commands.send(command).map_err(|_| stopped())
    }
}

fn stopped() -> Error {
    Error::internal("the engine's thread has ended")
}
