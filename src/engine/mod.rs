//! The engine: one thread owns the device and serves many requests at once from one copy of the weights.
//!
//! ```text
//! Engine (handle, any thread) ──commands──▶ worker thread: scheduler → steps (programs) → sampler → sinks
//! ```

mod adapters;
pub mod bench;
mod choice;
mod draft;
mod grammar;
mod guess;
mod guest;
mod kv;
mod memory;
pub mod pacing;
pub mod profile;
mod request;
mod sampler;
mod scheduler;
mod sequence;
mod stats;
mod steps;
pub mod text;
mod worker;

pub use grammar::{Grammar, GrammarStart};
pub use guest::{DeviceAdapter, Guest, House};
pub use memory::{KvSize, KvType, Requirements};
pub use request::{Event, EventSink, FinishReason, Request, SamplingParams, TokenLogprobs, Usage};
pub use stats::Stats;

use crate::backend::Bindings;
use crate::error::{Error, Result};
use crate::format::peft::Adapter;
use crate::model::LoadedModel;
use adapters::{AdapterBank, Registry};
use choice::MAX_LOGPROBS;
use draft::{Draft, check_vocabulary};
use grammar::Grammars;
use kv::{PAGE, PagePool};
use sequence::{Arrival, Ticket};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;
use steps::{StepSizes, Steps};
use worker::{Command, Parts, Text, Worker};
pub use worker::{Reply, Turn, panic_message};

/// Sizes of the engine.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Requests that run at once; more wait in a queue.
    pub max_seqs: usize,
    /// Longest prompt and answer together; `None`: the model's own, up to 8192.
    pub max_len: Option<usize>,
    /// Most tokens in one step: a long prompt is cut into chunks of this size.
    pub max_step_tokens: usize,
    /// Size of the key/value cache.
    pub kv: KvSize,
    /// Type of the key/value cache.
    pub kv_type: KvType,
    /// Keep what was computed for one prompt for others that begin in the same way.
    pub prefix_cache: bool,
    /// Tokens that may be guessed and checked in one step, for each answer; 0: none.
    pub guesses: usize,
    /// How many tokens at the text's end are looked for further up, the longest run first, where no draft model guesses.
    pub guess_runs: RangeInclusive<usize>,
    /// What requests without a seed of their own draw theirs from, so that the same requests in the same order have the same
    /// answers; `None`: fresh ones.
    pub seed: Option<u64>,
    /// A smaller model with the same vocabulary, on the same device, that guesses; `None`: guesses come from the text so far.
    pub draft: Option<Arc<LoadedModel>>,
    /// Requests that may wait for their turn; a further one is refused with [`Error::Busy`].
    pub max_waiting: Option<usize>,
    /// Adapters on the device at once; any number can be loaded. 0: none.
    pub max_adapters: usize,
    /// Largest rank of an adapter.
    pub max_rank: usize,
    /// Adapters may have magnitudes (DoRA): a step with adapters then makes one more pass over what each product gives.
    pub dora: bool,
    /// Prepare the usual steps while there is nothing to do, not when the first request needs them.
    pub warm: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            max_seqs: 16,
            max_len: None,
            max_step_tokens: 512,
            kv: KvSize::default(),
            kv_type: KvType::Auto,
            prefix_cache: true,
            guesses: 0,
            guess_runs: 2..=4,
            seed: None,
            draft: None,
            max_waiting: None,
            max_adapters: 0,
            max_rank: 16,
            dora: false,
            warm: false,
        }
    }
}

impl EngineOptions {
    /// Sizes for a server on the model's device: vLLM's where there are the memory and the speed for them.
    pub fn for_server(model: &LoadedModel) -> Self {
        match model.device.info().backend {
            "cuda" => Self { max_seqs: 512, max_step_tokens: 2048, warm: true, ..Self::default() },
            _ => Self::default(),
        }
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
    max_waiting: usize,
    seed: Option<u64>,
    next_id: AtomicU64,
    waiting: Arc<AtomicUsize>,
    registry: Arc<Mutex<Registry>>,
    /// Made when the first request needs it.
    grammars: OnceLock<std::result::Result<Grammars, String>>,
    ends: Vec<u32>,
    stats: Arc<Mutex<Stats>>,
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

/// The half of a hosted engine that computes. Dropping it ends all requests as cancelled.
pub struct Driver(Worker);

impl Driver {
    /// Takes what was asked for and works on it until `deadline`, but for the device's smallest unit of work (a part of an op
    /// on the CPU, some launches elsewhere); without one, a whole step. Never waits for anything to do.
    pub fn turn(&mut self, deadline: Option<Instant>) -> Turn {
        self.0.turn(deadline)
    }

    /// Prepares one more of the usual steps, so that no turn has to; false when all are prepared.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::Device`].
    pub fn prepare(&mut self) -> Result<bool> {
        self.0.prepare()
    }

    /// Keys and values of a text, as far as the cache has them, for [`Driver::load_cache`]: how they are stored, pages, bytes.
    ///
    /// # Errors
    /// Those of [`Engine::embed`]; [`Error::Device`].
    pub fn save_cache(&self, engine: &Engine, ids: &[u32], adapter: Option<&str>) -> Result<(u64, usize, Vec<u8>)> {
        self.0.save_cache(&engine.text(ids, adapter)?)
    }

    /// Puts keys and values of a text back, so that it is not computed again. Does nothing where they are stored in another way
    /// here, or there is no room.
    ///
    /// # Errors
    /// As [`Driver::save_cache`]; [`Error::Invalid`] for bytes that do not fit.
    pub fn load_cache(
        &mut self,
        engine: &Engine,
        ids: &[u32],
        adapter: Option<&str>,
        cache: (u64, usize, &[u8]),
    ) -> Result<()> {
        self.0.load_cache(&engine.text(ids, adapter)?, cache)
    }

    /// Gives back programs and their memory; they are made again when they are needed.
    pub fn trim(&mut self) {
        self.0.trim();
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.close();
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
        let (engine, worker) = Self::build(model, options)?;
        let thread = std::thread::Builder::new()
            .name("runtime-engine".into())
            .spawn(move || worker.run())
            .map_err(|e| Error::internal(format!("cannot start the engine's thread: {e}")))?;
        *engine.shared.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(engine)
    }

    /// An engine without a thread: it computes while its [`Driver`] is called.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn hosted(model: Arc<LoadedModel>, options: EngineOptions) -> Result<(Self, Driver)> {
        let (engine, worker) = Self::build(model, options)?;
        Ok((engine, Driver(worker)))
    }

    fn build(model: Arc<LoadedModel>, options: EngineOptions) -> Result<(Self, Worker)> {
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
        let c = model.config();
        let limits = model.device.limits();
        let bank = match options.max_adapters {
            0 => None,
            slots => Some(AdapterBank::new(model.clone(), slots, options.max_rank, options.dora)?),
        };
        let max_rows = options.max_step_tokens.min(limits.max_step_rows).max(options.max_seqs);
        let mut sizes = StepSizes {
            max_rows,
            max_seqs: options.max_seqs,
            // Guesses, and prompts whose log-probabilities are wanted, take more rows than one a sequence.
            max_gathered: (options.max_seqs * (1 + options.guesses)).max(16).min(max_rows),
            max_len,
            kv_rows: 0,
            kv_dtype: options.kv_type.dtype(&model)?,
        };
        if *options.guess_runs.start() == 0 || options.guess_runs.is_empty() {
            let (low, high) = (options.guess_runs.start(), options.guess_runs.end());
            return Err(Error::invalid(format!(
                "runs of {low} to {high} tokens cannot be looked for: 1 ≤ shortest ≤ longest"
            )));
        }
        if let Some(draft) = &options.draft {
            check_vocabulary(&model, draft)?;
            options.kv_type.dtype(draft)?;
            if options.guesses == 0 {
                return Err(Error::invalid("a draft model needs a number of tokens to guess in a step"));
            }
        }
        let pages = options.kv.pages(&model, options.draft.as_deref(), &sizes)?;
        sizes.kv_rows = pages * PAGE;
        let none = Bindings::new();
        let adapters = bank.as_ref().map_or(&none, AdapterBank::bindings);
        let layout = bank.as_ref().map(|bank| bank.layout().clone());
        // Where all its guesses were right a draft has one more token of an answer to compute.
        let max_rows = sizes.max_rows + sizes.max_seqs;
        let draft_sizes = StepSizes { max_rows, max_gathered: sizes.max_seqs, ..sizes };
        let draft = match options.draft {
            None => None,
            Some(draft) => {
                let vocabs = (draft.config().vocab, c.vocab);
                Some(Draft::new(Box::new(Steps::new(draft, draft_sizes, None, &none)?), vocabs))
            }
        };
        let runner = Box::new(Steps::new(model.clone(), sizes, layout.clone(), adapters)?);
        let mut ends = c.eos.clone();
        ends.extend(model.tokenizer.iter().flat_map(|t| t.end_ids()));
        ends.retain(|id| (*id as usize) < c.vocab);
        ends.sort_unstable();
        ends.dedup();
        let stats = Arc::new(Mutex::new(Stats::default()));
        let registry = Arc::new(Mutex::new(Registry::new(layout, model.device.limits().activations)));
        let parts = Parts {
            inbox,
            runner,
            pool: PagePool::new(pages, options.prefix_cache),
            bank,
            registry: registry.clone(),
            ends: ends.clone(),
            vocab: c.vocab,
            guesses: options.guesses,
            guess_runs: options.guess_runs,
            draft,
            runs_ahead: limits.runs_ahead,
            warm: options.warm,
            stats: stats.clone(),
        };
        let worker = Worker::new(parts);
        let shared = Shared {
            model,
            max_len,
            max_waiting: options.max_waiting.unwrap_or(usize::MAX),
            seed: options.seed,
            next_id: AtomicU64::new(1),
            waiting: Arc::default(),
            registry,
            grammars: OnceLock::new(),
            ends,
            stats,
            commands,
            thread: Mutex::new(None),
        };
        Ok((Self { shared: Arc::new(shared) }, worker))
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
    pub fn submit(&self, mut request: Request, sink: EventSink) -> Result<RequestId> {
        self.check_tokens(&request.prompt)?;
        let vocab = self.model().config().vocab;
        request.sampling.check(vocab)?;
        // What is no token never comes.
        request.stop_ids.retain(|id| (*id as usize) < vocab);
        let total = request.prompt.len() + request.max_tokens;
        if request.max_tokens == 0 || total > self.max_len() {
            return Err(Error::invalid(format!(
                "{} prompt tokens and max_tokens {} do not fit the context of {} tokens",
                request.prompt.len(),
                request.max_tokens,
                self.max_len()
            )));
        }
        // A run with a token that is none never comes either.
        request.bad_words.retain(|word| !word.is_empty() && word.iter().all(|id| (*id as usize) < vocab));
        if let Some(allowed) = &request.allowed_ids {
            if request.grammar.is_some() {
                return Err(Error::invalid("an answer is held to allowed_ids or to a grammar, not to both"));
            }
            if allowed.is_empty() || allowed.iter().any(|id| *id as usize >= vocab) {
                return Err(Error::invalid(format!("allowed_ids needs one token at least, all of them below {vocab}")));
            }
            let ends = |id: &u32| self.shared.ends.contains(id) || request.stop_ids.contains(id);
            if request.min_tokens > 0 && !request.ignore_eos && allowed.iter().all(ends) {
                return Err(Error::invalid(
                    "allowed_ids has only tokens that end the answer, which min_tokens forbids",
                ));
            }
        }
        for (name, n) in [("logprobs", request.logprobs), ("prompt_logprobs", request.prompt_logprobs)] {
            if n.is_some_and(|n| n > MAX_LOGPROBS) {
                return Err(Error::invalid(format!("{name} must be at most {MAX_LOGPROBS}")));
            }
        }
        let adapter = request.adapter.as_deref().map(|name| self.registry().get(name)).transpose()?;
        let start = request.grammar_start;
        let constraint =
            request.grammar.as_ref().map(|grammar| self.grammars()?.constraint(grammar, start)).transpose()?;
        let waiting = self.shared.waiting.load(Ordering::Relaxed);
        if waiting >= self.shared.max_waiting {
            return Err(Error::Busy(format!("{waiting} requests are waiting already, which is the limit")));
        }
        let ticket = Ticket::new(&self.shared.waiting);
        let id = RequestId(self.shared.next_id.fetch_add(1, Ordering::Relaxed));
        if let (None, Some(seed)) = (request.sampling.seed, self.shared.seed) {
            // An odd factor: no two requests have the same.
            request.sampling.seed = Some(seed.wrapping_add(id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        }
        let arrival = Arrival { id, request, sink, adapter, constraint, ticket };
        self.send(Command::Submit(Box::new(arrival)))?;
        Ok(id)
    }

    /// Ends a request at the next step; its sink gets `Done` with [`FinishReason::Cancelled`].
    pub fn cancel(&self, id: RequestId) {
        let _ = self.send(Command::Cancel(id));
    }

    /// Makes an adapter available under `name`, in the place of one of that name: requests that began with the older version
    /// end with it. It goes to the device when a request first needs it.
    ///
    /// # Errors
    /// [`Error::Invalid`] where it does not fit the model or the engine's largest rank.
    pub fn load_adapter(&self, name: &str, adapter: &Adapter) -> Result<()> {
        self.registry().load(name, adapter).map(drop)
    }

    /// Tells that the numbers of a version that a guest published ([`House::publish`]) are on the host, too: its place on the
    /// device may then be given to others while nobody uses it. Nothing happens where another version has its name.
    ///
    /// # Errors
    /// As [`Engine::load_adapter`].
    pub fn settle(&self, name: &str, version: u64, adapter: &Adapter) -> Result<()> {
        self.registry().settle(name, version, adapter)
    }

    /// Lets `guest` work on the engine's thread in what time `pace` leaves it, in the place of a guest that was there. An engine
    /// without a thread has no guests.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a pace that is none.
    pub fn host(&self, guest: Box<dyn Guest>, pace: pacing::Pace) -> Result<()> {
        pace.validate()?;
        self.send(Command::Host { guest, pace })
    }

    /// How the guest and requests share the time from now on.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a pace that is none.
    pub fn set_pace(&self, pace: pacing::Pace) -> Result<()> {
        pace.validate()?;
        self.send(Command::Pace(pace))
    }

    /// Tells the guest that there is something to do.
    pub fn wake(&self) {
        let _ = self.send(Command::Wake);
    }

    /// [`Engine::wake`] by itself: what holds it does not keep the engine alive.
    pub fn waker(&self) -> impl Fn() + Send + Sync + use<> {
        let commands = self.shared.commands.clone();
        move || drop(commands.send(Command::Wake))
    }

    /// Adapters that fit on the device at once, and their largest rank; zeros where there is no room for any.
    pub fn adapter_room(&self) -> (usize, usize) {
        self.registry().room()
    }

    /// Forgets an adapter; requests that are using it keep it until they end.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is none of that name.
    pub fn unload_adapter(&self, name: &str) -> Result<()> {
        self.registry().unload(name)
    }

    /// Names of the loaded adapters.
    pub fn adapters(&self) -> Vec<String> {
        self.registry().names()
    }

    /// Teacher-forced log-probabilities of `ids` (at least one token); waits for the result.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn score(&self, ids: &[u32], adapter: Option<&str>) -> Result<Scores> {
        let (sender, answer) = channel();
        self.score_then(ids, adapter, Box::new(move |scores| drop(sender.send(scores))))?;
        answer.recv().map_err(|_| stopped())?
    }

    /// As [`Engine::score`], without waiting: `reply` hears of the result on the engine's thread, and must not block. It is
    /// dropped where the engine ends first.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn score_then(&self, ids: &[u32], adapter: Option<&str>, reply: Reply<Scores>) -> Result<()> {
        let text = self.text(ids, adapter)?;
        self.send(Command::Score { text, reply })
    }

    /// The last token's output of the last layer, after the norm: what models that are trained for it use as the embedding of
    /// the whole text. Not normalised; waits for the result.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn embed(&self, ids: &[u32], adapter: Option<&str>) -> Result<Vec<f32>> {
        let (sender, answer) = channel();
        self.embed_then(ids, adapter, Box::new(move |hidden| drop(sender.send(hidden))))?;
        answer.recv().map_err(|_| stopped())?
    }

    /// As [`Engine::embed`], without waiting: see [`Engine::score_then`].
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn embed_then(&self, ids: &[u32], adapter: Option<&str>, reply: Reply<Vec<f32>>) -> Result<()> {
        let text = self.text(ids, adapter)?;
        self.send(Command::Embed { text, reply })
    }

    /// Compiles the programs of all usual steps now. Without this it happens while there is nothing else to do
    /// ([`EngineOptions::warm`]), or when a step needs one.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::Device`].
    pub fn prepare(&self) -> Result<()> {
        let (reply, answer) = channel();
        self.send(Command::Prepare { reply })?;
        answer.recv().map_err(|_| stopped())?
    }

    /// What the engine is doing and has done, as of its last step.
    pub fn stats(&self) -> Stats {
        let mut stats = *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that have arrived since are counted at once.
        stats.waiting = stats.waiting.max(self.shared.waiting.load(Ordering::Relaxed));
        stats
    }

    /// Whether the engine's thread is there.
    pub fn is_alive(&self) -> bool {
        let thread = self.shared.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    fn text(&self, ids: &[u32], adapter: Option<&str>) -> Result<Text> {
        self.check_tokens(ids)?;
        let adapter = adapter.map(|name| self.registry().get(name)).transpose()?;
        Ok(Text { ids: ids.to_vec(), adapter })
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.shared.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grammars(&self) -> Result<&Grammars> {
        let made = self.shared.grammars.get_or_init(|| match &self.shared.model.tokenizer {
            Some(tokenizer) => Grammars::new(tokenizer, &self.shared.ends).map_err(|error| error.to_string()),
            None => Err("grammars need a tokenizer, and the model has none".into()),
        });
        made.as_ref().map_err(|message| Error::Text(message.clone()))
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

    fn send(&self, command: Command) -> Result<()> {
        self.shared.commands.send(command).map_err(|_| stopped())
    }
}

fn stopped() -> Error {
    Error::internal("the engine's thread has ended")
}
