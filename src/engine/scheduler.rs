//! Which rows go into the next step: one for each running answer, the rest for prompts in order of arrival.

use super::RequestId;
use super::adapters::Slot;
use super::kv::Pages;
use super::request::{Event, EventSink, FinishReason, Request, Usage};
use super::sampler::{Sampler, logprobs_of};
use super::steps::StepInput;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

/// A request that has its pages.
pub struct Sequence {
    /// The caller's name for it.
    pub id: RequestId,
    /// Its part of the cache.
    pub pages: Pages,
    request: Request,
    sink: EventSink,
    adapter: Option<Arc<Slot>>,
    sampler: Sampler,
    /// Prompt and answer.
    tokens: Vec<u32>,
    /// Positions whose keys and values are in the cache.
    computed: usize,
    /// Tokens that end the answer.
    ends: Vec<u32>,
    started: Option<Instant>,
    first_token: Option<Instant>,
}

/// A sequence's share of a step.
#[derive(Clone, Copy)]
pub struct Share {
    /// Position among the running sequences.
    pub index: usize,
    /// Rows.
    pub rows: usize,
    /// Where its logits are, if this step completes its tokens.
    pub gathered: Option<usize>,
}

/// What a step says about the next token of a sequence.
pub enum Next<'a> {
    /// It was chosen on the device.
    Token(u32),
    /// Its logits, and the random number that it is drawn with.
    Logits(&'a mut [f32], f32),
}

/// Splits a step's rows: answers first, one row each, then prompts, oldest first.
pub fn shares(running: &[Sequence], max_rows: usize) -> Vec<Share> {
    let mut left = max_rows;
    let mut taken = vec![0; running.len()];
    for prompts in [false, true] {
        for (index, sequence) in running.iter().enumerate() {
            let missing = sequence.tokens.len() - sequence.computed;
            if (missing > 1) == prompts {
                taken[index] = missing.min(left);
                left -= taken[index];
            }
        }
    }
    let mut gathered = 0;
    let mut list = Vec::with_capacity(running.len());
    for (index, rows) in taken.into_iter().enumerate().filter(|(_, rows)| *rows > 0) {
        let sequence = &running[index];
        let complete = sequence.computed + rows == sequence.tokens.len();
        list.push(Share { index, rows, gathered: complete.then_some(gathered) });
        gathered += usize::from(complete);
    }
    list
}

impl Sequence {
    /// Admits a request.
    pub fn new(
        id: RequestId,
        request: Request,
        sink: EventSink,
        pages: Pages,
        adapter: Option<Arc<Slot>>,
        model_ends: &[u32],
    ) -> Self {
        let mut ends = request.stop_ids.clone();
        if !request.ignore_eos {
            ends.extend_from_slice(model_ends);
        }
        let sampler = Sampler::new(request.sampling.clone(), &request.prompt, rand::random());
        let tokens = request.prompt.clone();
        Self { id, pages, request, sink, adapter, sampler, tokens, computed: 0, ends, started: None, first_token: None }
    }

    /// Positions that are in use after a step with `rows` more.
    pub fn positions_after(&self, rows: usize) -> usize {
        self.computed + rows
    }

    /// Tokens whose keys and values must be in the cache before the next one can be sampled.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Gives up its pages; what was computed is computed again when it has new ones.
    pub fn park(&mut self) -> Pages {
        self.computed = 0;
        std::mem::take(&mut self.pages)
    }

    /// Whether the device can choose the next token: nobody asks for more than it does.
    pub fn is_plain(&mut self) -> bool {
        let generated = self.tokens.len() - self.request.prompt.len();
        self.sampler.forbidden = if generated < self.request.min_tokens { self.ends.clone() } else { Vec::new() };
        self.request.logprobs.is_none() && self.sampler.is_plain()
    }

    /// Appends this sequence's rows to a step.
    pub fn fill(&mut self, share: &Share, input: &mut StepInput, pages_per_seq: usize) {
        self.started.get_or_insert_with(Instant::now);
        let seq = (input.table.len() / pages_per_seq) as u32;
        let adapter = self.adapter.as_ref().map_or(u32::MAX, |slot| slot.index);
        for position in self.computed..self.computed + share.rows {
            input.ids.push(self.tokens[position]);
            input.positions.push(position as u32);
            input.seqs.push(seq);
            input.slots.push(self.pages.row(position));
            input.adapters.push(adapter);
        }
        if share.gathered.is_some() {
            input.gather.push(input.ids.len() as u32 - 1);
            input.sampling.push(self.sampler.how());
            input.uniforms.push(self.sampler.uniform());
        }
        let pages = self.pages.as_slice();
        input.table.extend_from_slice(pages);
        input.table.resize((seq as usize + 1) * pages_per_seq, 0);
    }

    /// Takes note of a step's results, the next token where it has one. `Break` when the request is over and its
    /// pages can be given back.
    pub fn advance(&mut self, share: &Share, next: Option<Next>) -> ControlFlow<()> {
        self.computed += share.rows;
        let (id, original) = match next {
            None => return ControlFlow::Continue(()),
            Some(Next::Token(id)) => (id, None),
            Some(Next::Logits(logits, uniform)) => {
                let original = self.request.logprobs.map(|_| logits.to_vec());
                (self.sampler.next(logits, uniform), original)
            }
        };
        self.first_token.get_or_insert_with(Instant::now);
        self.tokens.push(id);
        let generated = self.tokens.len() - self.request.prompt.len();
        if self.ends.contains(&id) {
            self.finish(FinishReason::Stop);
            return ControlFlow::Break(());
        }
        let logprobs = self.request.logprobs.zip(original).map(|(n, row)| logprobs_of(&row, id, n));
        (self.sink)(Event::Token { id, logprobs })?;
        if generated >= self.request.max_tokens {
            self.finish(FinishReason::Length);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    /// Tells the caller that the request is over.
    pub fn finish(&mut self, reason: FinishReason) {
        let between = |from: Option<Instant>, to: Option<Instant>| {
            from.zip(to).map_or(0.0, |(from, to)| to.duration_since(from).as_secs_f64())
        };
        let usage = Usage {
            prompt_tokens: self.request.prompt.len(),
            completion_tokens: self.tokens.len() - self.request.prompt.len(),
            prefill_s: between(self.started, self.first_token),
            decode_s: between(self.first_token, self.first_token.map(|_| Instant::now())),
        };
        let _ = (self.sink)(Event::Done { reason, usage });
    }

    /// Ends the request with an error.
    pub fn fail(&mut self, error: crate::Error) {
        let _ = (self.sink)(Event::Failed(error));
    }
}
