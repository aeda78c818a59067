//! One request from its arrival to its end: tokens, pages, sampler, and what its caller has not been told yet.

use super::RequestId;
use super::adapters::{Slot, Version};
use super::choice::{ChoiceInput, Chosen, RowChoice};
use super::grammar::Constraint;
use super::guess;
use super::kv::{PagePool, Pages, Prefix};
use super::request::{Event, EventSink, FinishReason, Request, TokenLogprobs, Usage};
use super::sampler::Sampler;
use super::scheduler::{Need, Share};
use super::steps::StepInput;
use crate::error::Error;
use std::ops::{ControlFlow, Range, RangeInclusive};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// What a request needs to become a sequence.
pub struct Arrival {
    /// The caller's name for it; later ones are larger.
    pub id: RequestId,
    /// What is asked for.
    pub request: Request,
    /// Who hears of it.
    pub sink: EventSink,
    /// The adapter's version that it is served with.
    pub adapter: Option<Arc<Version>>,
    /// The grammar of its answer, ready to use.
    pub constraint: Option<Constraint>,
    /// Its place in the queue.
    pub ticket: Ticket,
}

/// Counts a request as waiting until it is dropped.
pub struct Ticket(Arc<AtomicUsize>);

impl Ticket {
    /// One more waits.
    pub fn new(waiting: &Arc<AtomicUsize>) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting.clone())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request, waiting or running.
pub struct Sequence {
    /// The caller's name for it.
    pub id: RequestId,
    /// Its part of the cache; none while it waits.
    pub pages: Pages,
    /// Its adapter's place on the device, held while it runs.
    pub slot: Option<Arc<Slot>>,
    /// Nobody listens any more.
    pub gone: bool,
    adapter: Option<Arc<Version>>,
    request: Request,
    sink: EventSink,
    events: Vec<Event>,
    sampler: Sampler,
    constraint: Option<Constraint>,
    /// Why the grammar cannot go on.
    stuck: Option<Error>,
    ticket: Option<Ticket>,
    /// Prompt and answer.
    tokens: Vec<u32>,
    /// Positions whose keys and values are in the cache.
    computed: usize,
    /// Positions that a draft model has in its cache, where there is one.
    drafted: usize,
    /// Guesses at the tokens that follow.
    guesses: Vec<u32>,
    /// A bit for each token that may come, that of token 0 the lowest of the first word; `None`: all may.
    allowed: Option<Vec<u32>>,
    /// Of the prompt's tokens after the first, those so far.
    prompt_logprobs: Vec<TokenLogprobs>,
    /// Tokens that end the answer.
    ends: Vec<u32>,
    cached: usize,
    arrived: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
}

/// A bit for each token up to the largest of `ids`, 1 for those.
fn mask_of(ids: &[u32]) -> Vec<u32> {
    let mut mask = vec![0; ids.iter().max().map_or(0, |id| *id as usize / 32 + 1)];
    ids.iter().for_each(|id| mask[*id as usize / 32] |= 1 << (id % 32));
    mask
}

/// How a sequence came out of a step.
pub struct Advance {
    /// Guesses that were right.
    pub accepted: usize,
    /// The request is over, and its pages can be given back.
    pub over: bool,
}

impl Sequence {
    /// A sequence that waits.
    pub fn new(arrival: Arrival, model_ends: &[u32]) -> Self {
        let Arrival { id, request, sink, adapter, constraint, ticket } = arrival;
        let mut ends = request.stop_ids.clone();
        if !request.ignore_eos {
            ends.extend_from_slice(model_ends);
        }
        let sampler = Sampler::new(request.sampling.clone(), &request.prompt, rand::random());
        let tokens = request.prompt.clone();
        let allowed = request.allowed_ids.as_deref().map(mask_of);
        Self {
            id,
            pages: Pages::none(),
            slot: None,
            gone: false,
            adapter,
            request,
            sink,
            events: Vec::new(),
            sampler,
            constraint,
            stuck: None,
            ticket: Some(ticket),
            tokens,
            computed: 0,
            drafted: 0,
            guesses: Vec::new(),
            allowed,
            prompt_logprobs: Vec::new(),
            ends,
            cached: 0,
            arrived: Instant::now(),
            started: None,
            first_token: None,
        }
    }

    /// Sequences with smaller keys come first.
    pub fn key(&self) -> (i32, RequestId) {
        (self.request.priority, self.id)
    }

    /// The adapter's version that it is served with.
    pub fn adapter(&self) -> Option<&Arc<Version>> {
        self.adapter.as_ref()
    }

    /// What its pages are found by.
    pub fn root(&self) -> Prefix {
        Prefix::root(self.adapter.as_ref().map(|version| version.number))
    }

    /// Tokens whose keys and values must be in the cache before the next one can be sampled.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens of the prompt.
    pub fn prompt_len(&self) -> usize {
        self.request.prompt.len()
    }

    /// Tokens of the answer so far.
    pub fn generated(&self) -> usize {
        self.tokens.len() - self.request.prompt.len()
    }

    /// Positions that are in the cache.
    pub fn computed(&self) -> usize {
        self.computed
    }

    /// Whether it has never run.
    pub fn is_new(&self) -> bool {
        self.started.is_none()
    }

    /// Whether cached pages may stand in for computing: not where every position's logits are wanted.
    pub fn may_skip(&self) -> bool {
        !self.wants_prompt_logprobs()
    }

    /// Whether its time is over.
    pub fn is_late(&self, now: Instant) -> bool {
        self.request.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Begins to run on `pages`, of which the first `computed` positions are in the cache already.
    pub fn start(&mut self, pages: Pages, computed: usize, slot: Option<Arc<Slot>>) {
        self.pages = pages;
        (self.computed, self.drafted) = (computed, computed);
        self.slot = slot;
        self.ticket = None;
        if self.started.is_none() {
            self.started = Some(Instant::now());
            self.cached = computed.min(self.prompt_len());
            let queue_s = self.arrived.elapsed().as_secs_f64();
            self.events.push(Event::Started { cached_tokens: self.cached, queue_s });
        }
    }

    /// Gives up pages and adapter; what was computed is found or computed again when it has new ones.
    pub fn park(&mut self) -> Pages {
        (self.computed, self.drafted) = (0, 0);
        self.slot = None;
        self.guesses.clear();
        if self.first_token.is_none() {
            self.prompt_logprobs.clear();
        }
        std::mem::replace(&mut self.pages, Pages::none())
    }

    fn wants_prompt_logprobs(&self) -> bool {
        self.request.prompt_logprobs.is_some() && self.generated() == 0
    }

    /// Guesses up to `most` of the next tokens from the text so far ([`guess::look_up`]); or makes room for them, where a draft model
    /// guesses.
    pub fn guess(&mut self, most: usize, runs: Option<&RangeInclusive<usize>>) {
        self.guesses.clear();
        let missing = self.tokens.len() - self.computed;
        let room = most.min(self.request.max_tokens.saturating_sub(self.generated() + 1));
        if missing != 1 || self.constraint.is_some() || self.wants_prompt_logprobs() {
            return;
        }
        match runs {
            None => self.guesses.resize(room, 0),
            Some(runs) => self.guesses.extend_from_slice(guess::look_up(&self.tokens, runs, room)),
        }
    }

    /// What it could use in the next step.
    pub fn need(&self) -> Need {
        Need {
            rows: self.tokens.len() - self.computed + self.guesses.len(),
            guesses: self.guesses.len(),
            all_logits: self.wants_prompt_logprobs(),
        }
    }

    /// Whether a step's own draw chooses the next tokens: nobody asks for more.
    pub fn is_plain(&self) -> bool {
        self.request.logprobs.is_none()
            && !self.wants_prompt_logprobs()
            && self.constraint.is_none()
            && self.allowed.is_none()
            && self.request.bad_words.is_empty()
            && self.sampler.is_plain()
            && (self.generated() >= self.request.min_tokens || self.ends.is_empty())
    }

    /// The adapter's place on the device; `u32::MAX` without one.
    pub fn slot_index(&self) -> u32 {
        self.slot.as_ref().map_or(u32::MAX, |slot| slot.index)
    }

    /// Appends this sequence's rows to a step.
    pub fn fill(&mut self, share: &mut Share, input: &mut StepInput, pages_per_seq: usize) {
        self.keep_guesses(share);
        let start = input.gather.len();
        let positions = self.computed..self.computed + share.rows;
        self.fill_rows(positions, self.first_gathered(), self.slot_index(), input, pages_per_seq);
        share.gathered = start..input.gather.len();
    }

    /// Appends the rows of some positions; those from `first_gathered` on are gathered.
    fn fill_rows(
        &mut self,
        positions: Range<usize>,
        first_gathered: usize,
        adapter: u32,
        input: &mut StepInput,
        pages_per_seq: usize,
    ) {
        let seq = (input.table.len() / pages_per_seq) as u32;
        let known = self.tokens.len();
        for position in positions {
            if position >= first_gathered {
                input.gather.push(input.ids.len() as u32);
                input.sampling.push(self.sampler.how());
                input.uniforms.push(self.sampler.uniform((position + 1).saturating_sub(self.prompt_len())));
            }
            let id = if position < known { self.tokens[position] } else { self.guesses[position - known] };
            input.ids.push(id);
            input.positions.push(position as u32);
            input.seqs.push(seq);
            input.slots.push(self.pages.row(position));
            input.adapters.push(adapter);
        }
        input.table.extend_from_slice(self.pages.as_slice());
        input.table.resize((seq as usize + 1) * pages_per_seq, 0);
    }

    /// Forgets guesses that a share has no rows for.
    pub fn keep_guesses(&mut self, share: &Share) {
        self.guesses.truncate((self.computed + share.rows).saturating_sub(self.tokens.len()));
    }

    /// Appends the rows that a draft model, which knows `vocab` tokens, needs for guess `n`.
    pub fn fill_draft(
        &mut self,
        n: usize,
        input: &mut StepInput,
        choice: &mut ChoiceInput,
        vocab: usize,
        pages_per_seq: usize,
    ) {
        let last = self.tokens.len() - 1 + n;
        self.fill_rows(self.drafted..last + 1, last, u32::MAX, input, pages_per_seq);
        self.drafted = last + 1;
        if !self.is_plain() {
            let row = RowChoice { repetition: self.sampler.repetition(), ..RowChoice::default() };
            let start = choice.entries.len();
            self.sampler.entries(&self.guesses[..n], &self.banned(n), &mut choice.entries);
            choice.keep_below(start, vocab);
            choice.push(&row, vocab);
        }
    }

    /// Takes a draft model's guess.
    pub fn set_guess(&mut self, n: usize, id: u32) {
        self.guesses[n] = id;
    }

    /// Appends the rows of a step that a draft model has not computed.
    pub fn fill_follower(&mut self, share: &Share, input: &mut StepInput, pages_per_seq: usize) {
        let end = (self.computed + share.rows).min(self.tokens.len());
        if self.drafted < end {
            self.fill_rows(self.drafted..end, end, u32::MAX, input, pages_per_seq);
            self.drafted = end;
        }
    }

    /// Works out, while the device is busy, what the choice of the next tokens is to respect; nothing where the step's own
    /// draw is all that is wanted.
    pub fn prepare(&mut self, share: &Share, choice: &mut ChoiceInput, vocab: usize) {
        self.stuck = self.constraint.as_mut().and_then(|constraint| constraint.prepare().err());
        if self.is_plain() {
            return;
        }
        let first = self.first_gathered();
        for position in (first..).take(share.gathered.len()) {
            let mut row = RowChoice { repetition: self.sampler.repetition(), ..RowChoice::default() };
            match self.request.prompt.get(position + 1) {
                Some(id) => (row.label, row.logprobs) = (Some(*id), self.request.prompt_logprobs),
                None => {
                    let guessed = position + 1 - self.tokens.len();
                    let banned = self.banned(guessed);
                    self.sampler.entries(&self.guesses[..guessed], &banned, &mut choice.entries);
                    row.mask = self.constraint.as_ref().and_then(Constraint::mask).or(self.allowed.as_deref());
                    row.logprobs = self.request.logprobs;
                }
            }
            choice.push(&row, vocab);
        }
    }

    /// Tokens that must not come next if the answer goes on with this many guesses.
    fn banned(&self, guessed: usize) -> Vec<u32> {
        let early = self.generated() + guessed < self.request.min_tokens;
        let mut banned = if early { self.ends.clone() } else { Vec::new() };
        for word in &self.request.bad_words {
            let Some((last, begin)) = word.split_last() else { continue };
            let answer = self.tokens[self.prompt_len()..].iter().chain(&self.guesses[..guessed]);
            if answer.rev().take(begin.len()).eq(begin.iter().rev()) {
                banned.push(*last);
            }
        }
        banned
    }

    /// The first position of a step whose next token is wanted.
    fn first_gathered(&self) -> usize {
        if self.wants_prompt_logprobs() { self.computed } else { self.tokens.len() - 1 }
    }

    /// Takes note of a step's results.
    pub fn advance(&mut self, share: &Share, chosen: &Chosen) -> Advance {
        let complete = self.computed + share.rows >= self.tokens.len();
        let guesses = std::mem::take(&mut self.guesses);
        if let (Some(n), true) = (self.request.prompt_logprobs, self.wants_prompt_logprobs()) {
            self.note_prompt(chosen, share, n);
        }
        if !complete {
            self.computed += share.rows;
            return Advance { accepted: 0, over: false };
        }
        if self.wants_prompt_logprobs() {
            self.events.push(Event::Prompt(std::mem::take(&mut self.prompt_logprobs)));
        }
        let first = share.gathered.end - 1 - guesses.len();
        let known = self.tokens.len();
        let mut accepted = 0;
        loop {
            self.computed = self.tokens.len();
            let row = first + accepted;
            let over = match (self.stuck.take(), chosen.tokens.get(row)) {
                (None, Some(id)) => self.push(*id, self.request.logprobs.map(|n| chosen.logprobs(row, n))),
                (error, _) => {
                    self.fail(error.unwrap_or_else(|| Error::internal("a step without its token")));
                    ControlFlow::Break(())
                }
            };
            if over.is_break() {
                return Advance { accepted, over: true };
            }
            if guesses.get(accepted) != self.tokens.last() {
                // What a draft model computed after the wrong guess is of no use.
                self.drafted = self.drafted.min(known + accepted);
                return Advance { accepted, over: false };
            }
            accepted += 1;
        }
    }

    /// Keeps the log-probabilities of the prompt's tokens that follow a step's rows.
    fn note_prompt(&mut self, chosen: &Chosen, share: &Share, n: usize) {
        for (row, position) in share.gathered.clone().zip(self.computed..) {
            if position + 1 < self.request.prompt.len() {
                self.prompt_logprobs.push(chosen.logprobs(row, n));
            }
        }
    }

    /// Adds a token to the answer. `Break` when it was the last one.
    fn push(&mut self, id: u32, logprobs: Option<TokenLogprobs>) -> ControlFlow<()> {
        self.first_token.get_or_insert_with(Instant::now);
        self.tokens.push(id);
        self.sampler.note(id);
        if self.ends.contains(&id) {
            self.finish(FinishReason::Stop);
            return ControlFlow::Break(());
        }
        self.events.push(Event::Token { id, logprobs });
        let complete = match self.constraint.as_mut().map_or(Ok(false), |constraint| constraint.accept(id)) {
            Ok(complete) => complete,
            Err(error) => {
                self.fail(error);
                return ControlFlow::Break(());
            }
        };
        if complete {
            self.finish(FinishReason::Stop);
            return ControlFlow::Break(());
        }
        if self.generated() >= self.request.max_tokens {
            self.finish(FinishReason::Length);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    /// Makes its full pages known to sequences that begin in the same way: those that a draft model has computed, too, where
    /// there is one.
    pub fn remember(&mut self, pool: &mut PagePool, drafts: bool) {
        let computed = if drafts { self.computed.min(self.drafted) } else { self.computed };
        pool.remember(&mut self.pages, &self.tokens[..computed]);
    }

    /// Ends the request; its caller hears of it at the next [`Sequence::deliver`].
    pub fn finish(&mut self, reason: FinishReason) {
        let between = |from: Option<Instant>, to: Option<Instant>| {
            from.zip(to).map_or(0.0, |(from, to)| to.duration_since(from).as_secs_f64())
        };
        let now = Some(Instant::now());
        let usage = Usage {
            prompt_tokens: self.prompt_len(),
            cached_tokens: self.cached,
            completion_tokens: self.generated(),
            queue_s: between(Some(self.arrived), self.started.or(now)),
            prefill_s: between(self.started, self.first_token),
            decode_s: between(self.first_token, self.first_token.and(now)),
        };
        self.events.push(Event::Done { reason, usage });
    }

    /// Ends the request with an error.
    pub fn fail(&mut self, error: Error) {
        self.events.push(Event::Failed(error));
    }

    /// Tells the caller what happened since the last time.
    pub fn deliver(&mut self) {
        for event in self.events.drain(..) {
            self.gone = self.gone || (self.sink)(event).is_break();
            if self.gone {
                break;
            }
        }
    }
}
