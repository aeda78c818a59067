//! The thread that owns the device: takes commands, runs steps, hands out tokens. `texts` has the work that is no answer,
//! `hosting` that of guests.

mod hosting;
mod texts;

use super::adapters::{AdapterBank, Registry, Version};
use super::choice::ChoiceInput;
use super::draft::Draft;
use super::guest::Guest;
use super::kv::{PAGE, PagePool};
use super::pacing::{Pace, Pacer};
use super::request::FinishReason;
use super::scheduler::{Budget, Share, shares};
use super::sequence::{Arrival, Sequence};
use super::stats::Stats;
use super::steps::{Runner, StepInput};
use super::{RequestId, Scores};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, VecDeque};
use std::ops::{ControlFlow, RangeInclusive};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use texts::{Job, Kind};

/// What handles ask of the worker.
pub enum Command {
    Submit(Box<Arrival>),
    Cancel(RequestId),
    Score {
        text: Text,
        reply: Reply<Scores>,
    },
    Embed {
        text: Text,
        reply: Reply<Vec<f32>>,
    },
    Prepare {
        reply: Sender<Result<()>>,
    },
    /// Lets somebody else work in what time is left.
    Host {
        guest: Box<dyn Guest>,
        pace: Pace,
    },
    /// How the guest and requests share the time from now on.
    Pace(Pace),
    /// The guest has something to do.
    Wake,
    Shutdown,
}

/// Told the result of work on a text, on the engine's thread; must not block.
pub type Reply<T> = Box<dyn FnOnce(Result<T>) + Send>;

/// A text that is computed alone, without an answer.
pub struct Text {
    pub ids: Vec<u32>,
    pub adapter: Option<Arc<Version>>,
}

/// A step that did not fit its slice.
struct Flight {
    plan: Vec<Share>,
    input: StepInput,
}

/// What a turn did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There is nothing to do until somebody asks for something.
    Idle,
    /// A slice of work.
    Worked,
    /// What there is to do has to wait.
    Ended,
}

/// What a worker is made of.
pub struct Parts {
    pub inbox: Receiver<Command>,
    pub runner: Box<dyn Runner + Send>,
    pub pool: PagePool,
    pub bank: Option<AdapterBank>,
    /// What requests may name.
    pub registry: Arc<Mutex<Registry>>,
    /// Tokens that end an answer.
    pub ends: Vec<u32>,
    pub vocab: usize,
    /// Tokens to guess in a step, for each answer; 0: none.
    pub guesses: usize,
    /// Lengths of the endings that are looked for in the text so far.
    pub guess_runs: RangeInclusive<usize>,
    /// What guesses; `None`: the text so far.
    pub draft: Option<Draft>,
    /// The device computes while the host does other things.
    pub runs_ahead: bool,
    /// Prepare the usual steps while there is nothing else to do.
    pub warm: bool,
    pub stats: Arc<Mutex<Stats>>,
}

/// State of the engine's thread.
pub struct Worker {
    parts: Parts,
    /// Those without pages, in the order in which they are to get them.
    waiting: BTreeMap<(i32, RequestId), Sequence>,
    /// In the order of their keys.
    running: Vec<Sequence>,
    /// Requests that are over; their callers may not know yet.
    over: Vec<Sequence>,
    jobs: VecDeque<Job>,
    /// The step that goes on in the next turn.
    flight: Option<Flight>,
    /// Works in what time is left.
    guest: Option<Box<dyn Guest>>,
    /// It wants to.
    guest_awake: bool,
    pacer: Pacer,
    counts: Stats,
    /// For the device, in the present step.
    waited: Duration,
    /// Of the step that was just completed.
    rows: Option<usize>,
}

/// Waiting requests that admission looks past, at most, when it finds one that cannot run yet for a reason of its own.
const LOOK_AHEAD: usize = 64;

impl Worker {
    /// A worker with nothing to do yet.
    pub fn new(parts: Parts) -> Self {
        let counts = Stats { kv_pages: parts.pool.total(), kv_page_size: PAGE, ..Stats::default() };
        let mut worker = Self {
            parts,
            waiting: BTreeMap::new(),
            running: Vec::new(),
            over: Vec::new(),
            jobs: VecDeque::new(),
            flight: None,
            guest: None,
            guest_awake: false,
            pacer: Pacer::default(),
            counts,
            waited: Duration::ZERO,
            rows: None,
        };
        worker.publish();
        worker
    }

    /// Works until told to stop. A panic in a step fails the requests that were in it; the engine lives on.
    pub fn run(mut self) {
        while self.take_commands(true).is_continue() {
            self.share_time();
        }
        self.close();
    }

    /// Takes what was asked for and works until `deadline` at most, but for the device's own smallest unit of work: a part of
    /// an op on the CPU, some launches elsewhere. Never waits for anything to do.
    pub fn turn(&mut self, deadline: Option<Instant>) -> Turn {
        if self.take_commands(false).is_break() {
            return Turn::Ended;
        }
        if self.is_idle() {
            return Turn::Idle;
        }
        self.guarded_work(deadline);
        Turn::Worked
    }

    /// Gives back what can be made again.
    pub fn trim(&mut self) {
        self.flight = None;
        self.parts.runner.trim();
    }

    fn guarded_work(&mut self, deadline: Option<Instant>) {
        match catch_unwind(AssertUnwindSafe(|| self.work(deadline))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.fail_all(&|| error.repeated()),
            Err(panic) => {
                let message = format!("the engine's step: {}", panic_message(&*panic));
                self.fail_all(&|| Error::Panic(message.clone()));
            }
        }
    }

    /// Ends all requests.
    pub fn close(&mut self) {
        self.flight = None;
        let waiting = std::mem::take(&mut self.waiting).into_values();
        for mut sequence in self.running.drain(..).chain(waiting) {
            sequence.finish(FinishReason::Cancelled);
            self.over.push(sequence);
        }
        self.deliver();
    }

    fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty() && self.jobs.is_empty()
    }

    fn take_commands(&mut self, may_wait: bool) -> ControlFlow<()> {
        loop {
            let may_wait = may_wait && self.is_idle() && !self.guest_awake;
            let prepares = may_wait && self.parts.warm;
            let command = if may_wait && !prepares {
                self.parts.inbox.recv().map_err(|_| TryRecvError::Disconnected)
            } else {
                self.parts.inbox.try_recv()
            };
            match command {
                Ok(Command::Shutdown) | Err(TryRecvError::Disconnected) => return ControlFlow::Break(()),
                // What cannot be prepared fails again, and is reported, when it is needed.
                Err(TryRecvError::Empty) if prepares => {
                    self.parts.warm = matches!(catch_unwind(AssertUnwindSafe(|| self.prepare())), Ok(Ok(true)));
                }
                Err(TryRecvError::Empty) => return ControlFlow::Continue(()),
                Ok(command) => self.obey(command),
            }
        }
    }

    /// Prepares one more of the usual steps; false when all are prepared.
    pub fn prepare(&mut self) -> Result<bool> {
        let more = self.parts.draft.as_mut().map_or(Ok(false), Draft::prepare)?;
        Ok(more || self.parts.runner.prepare()?)
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(arrival) => {
                let sequence = Sequence::new(*arrival, &self.parts.ends);
                self.waiting.insert(sequence.key(), sequence);
            }
            Command::Cancel(id) => self.cancel(id),
            Command::Score { text, reply } => self.jobs.push_back(Job::new(text, Kind::Score(reply))),
            Command::Embed { text, reply } => self.jobs.push_back(Job::new(text, Kind::Embed(reply))),
            // Nobody waits for an answer to a question that was given up.
            Command::Prepare { reply } => drop(reply.send(self.prepare_all())),
            Command::Host { guest, pace } => {
                (self.guest, self.guest_awake, self.pacer) = (Some(guest), true, Pacer::new(pace));
            }
            Command::Pace(pace) => self.pacer = Pacer::new(pace),
            Command::Wake => self.guest_awake = self.guest.is_some(),
            Command::Shutdown => {}
        }
    }

    fn prepare_all(&mut self) -> Result<()> {
        while self.prepare()? {}
        Ok(())
    }

    fn cancel(&mut self, id: RequestId) {
        // A step that was not completed begins anew, without this request.
        self.flight = None;
        let waiting = self.waiting.keys().find(|key| key.1 == id).copied();
        let found = match self.running.iter().position(|s| s.id == id) {
            Some(at) => Some(self.retire(at)),
            None => waiting.and_then(|key| self.waiting.remove(&key)),
        };
        if let Some(mut sequence) = found {
            sequence.finish(FinishReason::Cancelled);
            self.over.push(sequence);
            self.deliver();
        }
    }

    /// Takes a sequence out of the running ones, its pages back.
    fn retire(&mut self, at: usize) -> Sequence {
        let mut sequence = self.running.remove(at);
        self.parts.pool.give_back(sequence.park());
        sequence
    }

    /// Admits what fits, then runs one step or one job.
    fn work(&mut self, deadline: Option<Instant>) -> Result<()> {
        let began = Instant::now();
        self.waited = Duration::ZERO;
        match (self.flight.take(), deadline) {
            (Some(flight), Some(deadline)) => {
                if !self.parts.runner.go_on(deadline)? {
                    self.flight = Some(flight);
                    return Ok(());
                }
                self.complete(flight)?;
            }
            _ => {
                self.end_late_ones();
                self.run_job(deadline)?;
                // A text that waits for pages gets those that become free.
                if self.jobs.is_empty() {
                    self.admit()?;
                }
                if !self.running.is_empty() && !self.step(deadline)? {
                    return Ok(());
                }
            }
        }
        self.deliver_idle();
        if let Some(rows) = self.rows.take() {
            let bucket = rows.next_power_of_two().ilog2() as usize;
            let (steps, seconds) = &mut self.counts.by_rows[bucket.min(12)];
            (*steps, *seconds) = (*steps + 1, *seconds + began.elapsed().as_secs_f64());
        }
        self.counts.host_s += began.elapsed().saturating_sub(self.waited).as_secs_f64();
        self.publish();
        Ok(())
    }

    fn end_late_ones(&mut self) {
        let now = Instant::now();
        let late: Vec<_> = self.waiting.iter().filter(|(_, s)| s.is_late(now)).map(|(key, _)| *key).collect();
        let mut ended: Vec<Sequence> = late.iter().filter_map(|key| self.waiting.remove(key)).collect();
        for at in (0..self.running.len()).rev() {
            if self.running[at].gone {
                self.retire(at);
            } else if self.running[at].is_late(now) {
                ended.push(self.retire(at));
            }
        }
        for mut sequence in ended {
            sequence.finish(FinishReason::Deadline);
            self.over.push(sequence);
        }
    }

    /// Lets waiting requests run, in order, as far as there are pages. One whose adapter has to wait for a place, or whose
    /// prompt begins with what another one is computing right now, lets others past.
    fn admit(&mut self) -> Result<()> {
        let max_seqs = self.parts.runner.sizes().max_seqs;
        let mut passed = 0;
        let mut after = None;
        while self.running.len() < max_seqs && passed < LOOK_AHEAD {
            let next = match after {
                None => self.waiting.first_key_value(),
                Some(key) => self.waiting.range((std::ops::Bound::Excluded(key), std::ops::Bound::Unbounded)).next(),
            };
            let Some((&key, sequence)) = next else { return Ok(()) };
            let (found, prefix) = match sequence.may_skip() {
                true => self.parts.pool.look_up(sequence.root(), sequence.tokens()),
                false => (Vec::new(), sequence.root()),
            };
            if self.parts.pool.remembers()
                && self.running.iter().any(|other| is_computing(other, sequence, found.len()))
            {
                (passed, after) = (passed + 1, Some(key));
                continue;
            }
            let slot = match (sequence.adapter(), &mut self.parts.bank) {
                (None, _) => None,
                (Some(_), None) => return Err(Error::internal("an adapter without a bank")),
                (Some(version), Some(bank)) => match bank.place(version)? {
                    Some(slot) => Some(slot),
                    None => {
                        (passed, after) = (passed + 1, Some(key));
                        continue;
                    }
                },
            };
            // Those that run will want pages soon: without a reserve the newcomer would be parked at once.
            let free = self.parts.pool.total() - self.parts.pool.used();
            let (positions, reserve) = (sequence.tokens().len() + 1, self.running.len().min(free / 16));
            let needed = positions.div_ceil(PAGE) - found.len();
            if !self.running.is_empty() && free < needed + reserve {
                return Ok(());
            }
            let Some(pages) = self.parts.pool.take(&found, prefix, positions) else { return Ok(()) };
            let Some(mut sequence) = self.waiting.remove(&key) else { return Ok(()) };
            let skipped = found.len() * PAGE;
            if sequence.is_new() {
                self.counts.prompt_tokens += sequence.prompt_len() as u64;
                self.counts.prefix_queries += sequence.prompt_len() as u64;
                self.counts.prefix_hits += skipped as u64;
            }
            sequence.start(pages, skipped, slot);
            let at = self.running.partition_point(|other| other.key() < key);
            self.running.insert(at, sequence);
        }
        Ok(())
    }

    /// The next step's shares, with pages for all of them: while there are too few, the last one in order is parked. One
    /// sequence alone always fits, since the pool holds a whole context.
    fn plan(&mut self) -> Vec<Share> {
        let sizes = self.parts.runner.sizes();
        let budget = Budget { rows: sizes.max_rows, gathered: sizes.max_gathered };
        for sequence in self.running.iter_mut().filter(|_| self.parts.guesses > 0) {
            let runs = self.parts.draft.is_none().then_some(&self.parts.guess_runs);
            sequence.guess(self.parts.guesses, runs);
        }
        loop {
            let needs: Vec<_> = self.running.iter().map(Sequence::need).collect();
            let mut plan = shares(&needs, budget);
            let grown = plan.iter().all(|share| {
                let sequence = &mut self.running[share.index];
                let positions = sequence.computed() + share.rows;
                self.parts.pool.grow(&mut sequence.pages, positions)
            });
            if grown || self.running.len() < 2 {
                // Rows that want more than the step's own draw come first: the choice takes no others. Answers come before
                // prompts, and of both the rows of one adapter lie together, so that its weights are read once for all of them.
                plan.sort_by_key(|share| {
                    let sequence = &self.running[share.index];
                    (sequence.is_plain(), share.rows > 1, sequence.slot_index())
                });
                return plan;
            }
            let parked = self.retire(self.running.len() - 1);
            self.counts.preemptions += 1;
            self.waiting.insert(parked.key(), parked);
        }
    }

    /// Runs a step; false where the deadline came first, and the rest is for later.
    fn step(&mut self, deadline: Option<Instant>) -> Result<bool> {
        let mut plan = self.plan();
        if let Some(draft) = &mut self.parts.draft {
            let (runs_ahead, over) = (self.parts.runs_ahead, &mut self.over);
            let meanwhile = |running: &mut [Sequence]| {
                if runs_ahead {
                    tell(running, over);
                }
            };
            self.waited += draft.propose(&mut self.running, &plan, meanwhile)?;
        }
        let pages = self.parts.runner.sizes().pages_per_seq();
        let mut input = StepInput::default();
        for share in &mut plan {
            self.running[share.index].fill(share, &mut input, pages);
        }
        let complete = match deadline {
            None => self.parts.runner.launch(&input).map(|()| true)?,
            Some(deadline) => self.parts.runner.launch_part(&input, deadline)?,
        };
        let flight = Flight { plan, input };
        match complete {
            true => self.complete(flight)?,
            false => self.flight = Some(flight),
        }
        Ok(complete)
    }

    /// The second half of a step: the choice of tokens, and what follows from it.
    fn complete(&mut self, flight: Flight) -> Result<()> {
        let Flight { plan, input } = flight;
        if let Some(draft) = &mut self.parts.draft {
            draft.follow(&mut self.running, &plan)?;
        }
        if self.parts.runs_ahead {
            self.deliver();
        }
        let mut choice = ChoiceInput::default();
        for share in &plan {
            self.running[share.index].prepare(share, &mut choice, self.parts.vocab);
        }
        if choice.rows() > 0 {
            self.parts.runner.choose(&input, &choice)?;
        }
        let began = Instant::now();
        let chosen = self.parts.runner.finish()?;
        self.waited += began.elapsed();
        self.counts.steps += 1;
        self.rows = Some(input.ids.len());
        let mut over = Vec::new();
        for share in &plan {
            let sequence = &mut self.running[share.index];
            let before = sequence.generated();
            let guesses = sequence.need().guesses as u64;
            self.counts.guesses += u64::from(guesses > 0);
            self.counts.guessed_tokens += guesses;
            let end = sequence.advance(share, &chosen);
            self.counts.generated_tokens += (sequence.generated() - before) as u64;
            self.counts.accepted_tokens += end.accepted as u64;
            sequence.remember(&mut self.parts.pool, self.parts.draft.is_some());
            if end.over || sequence.gone {
                over.push(share.index);
            }
        }
        over.sort_unstable();
        for index in over.into_iter().rev() {
            let sequence = self.retire(index);
            self.over.push(sequence);
        }
        Ok(())
    }

    /// Tells callers what is new. A sequence that nobody listens to ends before the next step.
    fn deliver(&mut self) {
        tell(&mut self.running, &mut self.over);
    }

    /// Where the device runs ahead, callers hear of a step while the next one runs, if there is one.
    fn deliver_idle(&mut self) {
        if !self.parts.runs_ahead || self.running.is_empty() {
            self.deliver();
        }
    }

    fn fail_all(&mut self, error: &dyn Fn() -> Error) {
        self.flight = None;
        for at in (0..self.running.len()).rev() {
            let mut sequence = self.retire(at);
            sequence.fail(error());
            self.over.push(sequence);
        }
        self.deliver();
        self.publish();
    }

    fn publish(&mut self) {
        self.counts.running = self.running.len();
        self.counts.waiting = self.waiting.len();
        self.counts.kv_pages_used = self.parts.pool.used();
        *self.parts.stats.lock().unwrap_or_else(PoisonError::into_inner) = self.counts;
    }
}

/// What a caught panic said.
pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a message".into())
}

fn tell(running: &mut [Sequence], over: &mut Vec<Sequence>) {
    running.iter_mut().for_each(Sequence::deliver);
    over.drain(..).for_each(|mut sequence| sequence.deliver());
}

/// Whether `other` is about to compute the first page that `sequence` lacks: it is then worth waiting for.
fn is_computing(other: &Sequence, sequence: &Sequence, known_pages: usize) -> bool {
    let end = (known_pages + 1) * PAGE;
    sequence.may_skip()
        && other.computed() < end
        && end < sequence.tokens().len()
        && end <= other.tokens().len()
        && other.root() == sequence.root()
        && other.tokens()[end - PAGE..end] == sequence.tokens()[end - PAGE..end]
        && other.tokens()[..end] == sequence.tokens()[..end]
}

#[cfg(test)]
mod tests;
