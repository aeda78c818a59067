//! The engine: one thread owns the device and serves many requests at once from one copy of the weights.

mod request;
pub mod text;

pub use request::{Event, EventSink, FinishReason, Request, SamplingParams, TokenLogprobs, Usage};

use crate::error::{Error, Result};
use crate::format::peft::Adapter;
use crate::model::LoadedModel;
use std::sync::Arc;

/// Sizes of the engine.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Requests that run at once; more wait in a queue.
    pub max_seqs: usize,
    /// Longest prompt and answer together; `None`: the model's own, up to 8192.
    pub max_len: Option<usize>,
    /// Most prompt tokens in one step.
    pub max_step_tokens: usize,
    /// Tokens that the KV cache holds, for all requests together; `None`: `max_seqs` requests of `max_len`, within reason.
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

/// A handle on a running engine; cheap to clone, safe to share. The thread ends with the last handle.
#[derive(Clone)]
pub struct Engine {}

/// Names a submitted request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(pub u64);

impl Engine {
    /// Starts the thread and sizes the cache.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] for the cache; [`Error::Invalid`] for options that cannot work.
    pub fn start(_model: Arc<LoadedModel>, _options: EngineOptions) -> Result<Self> {
        Err(Error::internal("unfinished"))
    }

    /// The model that it serves.
    pub fn model(&self) -> &Arc<LoadedModel> {
        unreachable!()
    }

    /// Longest prompt and answer together.
    pub fn max_len(&self) -> usize {
        0
    }

    /// Queues a request; its events go to `sink`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty or too long prompt, an unknown adapter, or parameters out of range.
    pub fn submit(&self, _request: Request, _sink: EventSink) -> Result<RequestId> {
        Err(Error::internal("unfinished"))
    }

    /// Ends a request at the next step; its sink gets `Done` with [`FinishReason::Cancelled`].
    pub fn cancel(&self, _id: RequestId) {}

    /// Makes an adapter available under `name` (replaces one of that name; running requests keep theirs).
    ///
    /// # Errors
    /// [`Error::Invalid`] where it does not fit the model, or no slot or rank is left.
    pub fn load_adapter(&self, _name: &str, _adapter: &Adapter) -> Result<()> {
        Err(Error::internal("unfinished"))
    }

    /// Forgets an adapter.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is none of that name or requests are using it.
    pub fn unload_adapter(&self, _name: &str) -> Result<()> {
        Err(Error::internal("unfinished"))
    }

    /// Names of the loaded adapters.
    pub fn adapters(&self) -> Vec<String> {
        Vec::new()
    }

    /// Teacher-forced log-probabilities of `ids` (at least one token); waits for the result.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn score(&self, _ids: &[u32], _adapter: Option<&str>) -> Result<Scores> {
        Err(Error::internal("unfinished"))
    }
}
