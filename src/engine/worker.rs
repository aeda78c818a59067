//! The thread that owns the device: takes commands, runs steps, hands out tokens.

use super::adapters::{AdapterBank, Slot};
use super::kv::{PAGE, PagePool};
use super::request::{Event, EventSink, FinishReason, Request, Usage};
use super::sampler::top_logprobs;
use super::scheduler::{Next, Sequence, Share, shares};
use super::steps::{StepInput, StepSizes, Steps};
use super::{EngineOptions, RequestId, Scores};
use crate::backend::Bindings;
use crate::error::{Error, Result};
use crate::format::peft::Adapter;
use crate::model::LoadedModel;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};

/// What handles ask of the worker.
pub enum Command {
    Submit { id: RequestId, request: Request, sink: EventSink },
    Cancel(RequestId),
    LoadAdapter { name: String, adapter: Box<Adapter>, reply: Sender<Result<()>> },
    UnloadAdapter { name: String, reply: Sender<Result<()>> },
    Score { ids: Vec<u32>, adapter: Option<String>, reply: Sender<Result<Scores>> },
    Shutdown,
}

/// A request without pages yet. It holds its adapter from the start, so unloading cannot pull it away.
struct Waiting {
    id: RequestId,
    request: Request,
    sink: EventSink,
    adapter: Option<Arc<Slot>>,
}

struct ScoreJob {
    ids: Vec<u32>,
    adapter: Option<Arc<Slot>>,
    reply: Sender<Result<Scores>>,
}

/// State of the engine's thread.
pub struct Worker {
    inbox: Receiver<Command>,
    max_seqs: usize,
    ends: Vec<u32>,
    vocab: usize,
    pool: PagePool,
    steps: Steps,
    bank: Option<AdapterBank>,
    waiting: VecDeque<Waiting>,
    /// In order of arrival.
    running: Vec<Sequence>,
    /// Sequences that had to give up their pages, oldest first; they come before those that wait.
    parked: VecDeque<Sequence>,
    scores: VecDeque<ScoreJob>,
}

/// Memory for keys and values unless the user says otherwise.
const DEFAULT_KV_BYTES: usize = 512 << 20;

impl Worker {
    /// Allocates cache and adapter bank.
    pub fn new(
        model: Arc<LoadedModel>,
        options: &EngineOptions,
        max_len: usize,
        inbox: Receiver<Command>,
    ) -> Result<Self> {
        let c = model.config();
        let limits = model.device.limits();
        let bytes_per_token = 2 * c.layers * c.kv_heads * c.head_dim * limits.kv_dtype.block_bytes();
        let whole = max_len.next_multiple_of(PAGE);
        let affordable = (DEFAULT_KV_BYTES / bytes_per_token).max(whole);
        let tokens = options.kv_tokens.unwrap_or(affordable.min(whole.saturating_mul(options.max_seqs)));
        if tokens < whole {
            return Err(Error::invalid(format!("a cache of {tokens} tokens cannot hold one context of {max_len}")));
        }
        let pool = PagePool::new(tokens / PAGE);
        let bank = match options.max_adapters {
            0 => None,
            slots => Some(AdapterBank::new(model.clone(), slots, options.max_rank)?),
        };
        let sizes = StepSizes {
            max_rows: options.max_step_tokens.min(limits.max_step_rows).max(options.max_seqs),
            max_seqs: options.max_seqs,
            max_len,
            kv_rows: pool.total() * PAGE,
        };
        let none = Bindings::new();
        let adapters = bank.as_ref().map_or(&none, AdapterBank::bindings);
        let steps = Steps::new(model.clone(), sizes, bank.as_ref().map(|b| b.layout().clone()), adapters)?;
        let mut ends = c.eos.clone();
        ends.extend(model.tokenizer.iter().flat_map(|t| t.end_ids()));
        ends.sort_unstable();
        ends.dedup();
        Ok(Self {
            inbox,
            max_seqs: options.max_seqs,
            ends,
            vocab: c.vocab,
            pool,
            steps,
            bank,
            waiting: VecDeque::new(),
            running: Vec::new(),
            parked: VecDeque::new(),
            scores: VecDeque::new(),
        })
    }

    /// Works until told to stop. A panic in a step fails the requests that were in it; the engine lives on.
    pub fn run(mut self) {
        while self.take_commands().is_continue() {
            let step = catch_unwind(AssertUnwindSafe(|| self.work()));
            let failure = match step {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "a panic in the engine's step".into(),
            };
            self.fail_all(&failure);
        }
        for mut sequence in self.running.drain(..).chain(self.parked.drain(..)) {
            sequence.finish(FinishReason::Cancelled);
        }
        for mut waiting in self.waiting.drain(..) {
            cancelled(&mut waiting);
        }
    }

    fn take_commands(&mut self) -> ControlFlow<()> {
        loop {
            let idle =
                self.running.is_empty() && self.parked.is_empty() && self.waiting.is_empty() && self.scores.is_empty();
            let command =
                if idle { self.inbox.recv().map_err(|_| TryRecvError::Disconnected) } else { self.inbox.try_recv() };
            match command {
                Ok(Command::Shutdown) | Err(TryRecvError::Disconnected) => return ControlFlow::Break(()),
                Err(TryRecvError::Empty) => return ControlFlow::Continue(()),
                Ok(command) => self.obey(command),
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit { id, request, mut sink } => match self.adapter(request.adapter.as_deref()) {
                Ok(adapter) => self.waiting.push_back(Waiting { id, request, sink, adapter }),
                Err(error) => {
                    let _ = sink(Event::Failed(error));
                }
            },
            Command::Cancel(id) => self.cancel(id),
            Command::LoadAdapter { name, adapter, reply } => {
                let done = match &mut self.bank {
                    Some(bank) => bank.load(&name, &adapter),
                    None => Err(Error::invalid("this engine was started without room for adapters (max_adapters 0)")),
                };
                let _ = reply.send(done);
            }
            Command::UnloadAdapter { name, reply } => {
                let done = self.bank.as_mut().map_or(Ok(()), |bank| bank.unload(&name));
                let _ = reply.send(done);
            }
            Command::Score { ids, adapter, reply } => match self.adapter(adapter.as_deref()) {
                Ok(adapter) => self.scores.push_back(ScoreJob { ids, adapter, reply }),
                Err(error) => {
                    let _ = reply.send(Err(error));
                }
            },
            Command::Shutdown => {}
        }
    }

    fn adapter(&self, name: Option<&str>) -> Result<Option<Arc<Slot>>> {
        let Some(name) = name else { return Ok(None) };
        let slot = self.bank.as_ref().and_then(|bank| bank.get(name));
        slot.map(Some).ok_or_else(|| Error::invalid(format!("no adapter '{name}' is loaded")))
    }

    fn cancel(&mut self, id: RequestId) {
        if let Some(at) = self.running.iter().position(|s| s.id == id) {
            let mut sequence = self.running.remove(at);
            sequence.finish(FinishReason::Cancelled);
            self.pool.give_back(sequence.pages);
        } else if let Some(at) = self.parked.iter().position(|s| s.id == id)
            && let Some(mut sequence) = self.parked.remove(at)
        {
            sequence.finish(FinishReason::Cancelled);
        } else if let Some(at) = self.waiting.iter().position(|w| w.id == id)
            && let Some(mut waiting) = self.waiting.remove(at)
        {
            cancelled(&mut waiting);
        }
    }

    /// Admits what fits, then runs one step or one scoring job.
    fn work(&mut self) -> Result<()> {
        self.admit();
        if !self.running.is_empty() {
            self.step()?;
        }
        if let Some(job) = self.scores.pop_front() {
            match self.pool.take(job.ids.len()) {
                None => self.scores.push_front(job),
                Some(pages) => {
                    let scores = self.score(&job, &pages);
                    self.pool.give_back(pages);
                    let _ = job.reply.send(scores);
                }
            }
        }
        Ok(())
    }

    fn admit(&mut self) {
        while self.running.len() < self.max_seqs {
            // Room for what is there and the next token.
            if let Some(next) = self.parked.front() {
                let Some(pages) = self.pool.take(next.len() + 1) else { return };
                let Some(mut sequence) = self.parked.pop_front() else { return };
                sequence.pages = pages;
                self.running.push(sequence);
                self.running.sort_by_key(|s| s.id);
                continue;
            }
            let Some(next) = self.waiting.front() else { return };
            let Some(pages) = self.pool.take(next.request.prompt.len() + 1) else { return };
            let Some(Waiting { id, request, sink, adapter }) = self.waiting.pop_front() else { return };
            self.running.push(Sequence::new(id, request, sink, pages, adapter, &self.ends));
        }
    }

    /// The next step's shares, with pages for all of them: while there are too few, the youngest is parked. One
    /// sequence alone always fits, since the pool holds a whole context.
    fn plan(&mut self) -> Vec<Share> {
        loop {
            let plan = shares(&self.running, self.steps.max_rows());
            let grown = plan.iter().all(|share| {
                let sequence = &mut self.running[share.index];
                let positions = sequence.positions_after(share.rows);
                self.pool.grow(&mut sequence.pages, positions)
            });
            if grown || self.running.len() < 2 {
                return plan;
            }
            if let Some(mut youngest) = self.running.pop() {
                self.pool.give_back(youngest.park());
                self.parked.push_front(youngest);
            }
        }
    }

    fn step(&mut self) -> Result<()> {
        let plan = self.plan();
        let pages = self.steps.pages_per_seq();
        let mut input = StepInput::default();
        let mut plain = true;
        for share in &plan {
            let sequence = &mut self.running[share.index];
            sequence.fill(share, &mut input, pages);
            plain &= sequence.is_plain() || share.gathered.is_none();
        }
        // One row that needs its logits brings those of all: the tokens are the same either way.
        let (tokens, logits) =
            if plain { (self.steps.tokens(&input)?, &mut [][..]) } else { (Vec::new(), self.steps.logits(&input)?) };
        let mut over = Vec::new();
        for share in &plan {
            let next = share.gathered.map(|at| match tokens.get(at) {
                Some(id) => Next::Token(*id),
                None => Next::Logits(&mut logits[at * self.vocab..(at + 1) * self.vocab], input.uniforms[at]),
            });
            if self.running[share.index].advance(share, next).is_break() {
                over.push(share.index);
            }
        }
        for index in over.into_iter().rev() {
            let sequence = self.running.remove(index);
            self.pool.give_back(sequence.pages);
        }
        Ok(())
    }

    /// Teacher-forced scoring, chunk by chunk; the last token runs once more for its logits.
    fn score(&mut self, job: &ScoreJob, pages: &super::kv::Pages) -> Result<Scores> {
        let mut logprobs = Vec::with_capacity(job.ids.len());
        let all = 0..job.ids.len();
        for start in all.clone().step_by(self.steps.max_rows()) {
            let rows = start..(start + self.steps.max_rows()).min(all.end);
            let labels: Vec<u32> = rows.clone().map(|t| job.ids.get(t + 1).copied().unwrap_or(u32::MAX)).collect();
            let losses = self.steps.losses(&rows_of(job, pages, rows, self.steps.pages_per_seq()), &labels)?;
            logprobs.extend(losses.into_iter().map(|loss| -loss));
        }
        logprobs.truncate(job.ids.len() - 1);
        let last = all.end - 1;
        let mut input = rows_of(job, pages, last..all.end, self.steps.pages_per_seq());
        input.gather.push(0);
        let next_top5 = top_logprobs(self.steps.logits(&input)?, 5);
        Ok(Scores { logprobs, next_top5 })
    }

    fn fail_all(&mut self, message: &str) {
        for mut sequence in self.running.drain(..) {
            sequence.fail(Error::internal(message));
            self.pool.give_back(sequence.pages);
        }
    }
}

/// Rows of a text that is scored alone.
fn rows_of(job: &ScoreJob, pages: &super::kv::Pages, rows: std::ops::Range<usize>, pages_per_seq: usize) -> StepInput {
    let mut table = pages.as_slice().to_vec();
    table.resize(pages_per_seq, 0);
    let adapter = job.adapter.as_ref().map_or(u32::MAX, |slot| slot.index);
    StepInput {
        ids: job.ids[rows.clone()].to_vec(),
        positions: rows.clone().map(|t| t as u32).collect(),
        seqs: vec![0; rows.len()],
        slots: rows.clone().map(|t| pages.row(t)).collect(),
        adapters: vec![adapter; rows.len()],
        table,
        ..StepInput::default()
    }
}

fn cancelled(waiting: &mut Waiting) {
    let usage = Usage { prompt_tokens: waiting.request.prompt.len(), ..Usage::default() };
    let _ = (waiting.sink)(Event::Done { reason: FinishReason::Cancelled, usage });
}
