//! Texts that are computed alone, without an answer: log-probabilities and embeddings.

use super::{PAGE, Reply, Text, Worker};
use crate::engine::Scores;
use crate::engine::adapters::Slot;
use crate::engine::choice::{ChoiceInput, RowChoice};
use crate::engine::kv::{Pages, Prefix};
use crate::engine::steps::StepInput;
use crate::error::{Error, Result};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// Work on a text, done as soon as there is room for it in the cache, a chunk between two steps.
pub(super) struct Job {
    text: Text,
    kind: Kind,
    /// Its pages and its adapter's place, from the first chunk on.
    room: Option<(Pages, Option<Arc<Slot>>)>,
    /// Tokens computed.
    done: usize,
    /// Log-probabilities so far.
    logprobs: Vec<f32>,
}

/// What is wanted of a text.
pub(super) enum Kind {
    Score(Reply<Scores>),
    Embed(Reply<Vec<f32>>),
}

/// What came of a chunk.
enum Computed {
    Part,
    Scores(Scores),
    Embedding(Vec<f32>),
}

impl Job {
    pub(super) fn new(text: Text, kind: Kind) -> Self {
        Self { text, kind, room: None, done: 0, logprobs: Vec::new() }
    }
}

impl Worker {
    /// Computes a chunk of the first text in line.
    pub(super) fn run_job(&mut self, deadline: Option<Instant>) -> Result<()> {
        let Some(mut job) = self.jobs.pop_front() else { return Ok(()) };
        if job.room.is_none() {
            let slot = match (&job.text.adapter, &mut self.parts.bank) {
                (Some(version), Some(bank)) => match bank.place(version)? {
                    Some(slot) => Some(slot),
                    None => {
                        self.jobs.push_front(job);
                        return Ok(());
                    }
                },
                _ => None,
            };
            match self.parts.pool.take(&[], Prefix::root(None), job.text.ids.len()) {
                Some(pages) => job.room = Some((pages, slot)),
                None => {
                    self.jobs.push_front(job);
                    return Ok(());
                }
            }
        }
        let Some((pages, slot)) = job.room.take() else { return Ok(()) };
        let index = slot.as_ref().map_or(u32::MAX, |slot| slot.index);
        let result = match job.kind {
            Kind::Score(_) => self.score(&mut job, index, &pages, deadline),
            Kind::Embed(_) => self.embed(&mut job, index, &pages, deadline),
        };
        if matches!(result, Ok(Computed::Part)) {
            job.room = Some((pages, slot));
            self.jobs.push_front(job);
            return Ok(());
        }
        self.parts.pool.give_back(pages);
        match (job.kind, result) {
            (Kind::Score(reply), Ok(Computed::Scores(scores))) => reply(Ok(scores)),
            (Kind::Embed(reply), Ok(Computed::Embedding(hidden))) => reply(Ok(hidden)),
            (Kind::Score(reply), Err(error)) => reply(Err(error)),
            (Kind::Embed(reply), Err(error)) => reply(Err(error)),
            _ => return Err(Error::internal("a text's result is of another kind")),
        }
        Ok(())
    }

    /// Teacher-forced scoring of a chunk; the last token runs once more for its logits.
    fn score(&mut self, job: &mut Job, slot: u32, pages: &Pages, deadline: Option<Instant>) -> Result<Computed> {
        let ids = &job.text.ids;
        if job.done < ids.len() {
            let rows = job.done..(job.done + self.parts.runner.sizes().max_rows).min(ids.len());
            let labels: Vec<u32> = rows.clone().map(|t| ids.get(t + 1).copied().unwrap_or(u32::MAX)).collect();
            let input = self.rows_of(ids, slot, pages, rows.clone());
            let Some(losses) = self.parts.runner.losses(&input, &labels, deadline)? else { return Ok(Computed::Part) };
            job.logprobs.extend(losses.into_iter().map(|loss| -loss));
            job.done = rows.end;
            return Ok(Computed::Part);
        }
        let mut logprobs = std::mem::take(&mut job.logprobs);
        logprobs.truncate(ids.len() - 1);
        let last = ids.len() - 1;
        let mut input = self.rows_of(ids, slot, pages, last..ids.len());
        input.gather.push(0);
        input.sampling.push([0.0; 4]);
        input.uniforms.push(0.0);
        let mut choice = ChoiceInput::default();
        choice.push(&RowChoice { logprobs: Some(5), ..RowChoice::default() }, self.parts.vocab);
        self.parts.runner.launch(&input)?;
        self.parts.runner.choose(&input, &choice)?;
        Ok(Computed::Scores(Scores { logprobs, next_top5: self.parts.runner.finish()?.logprobs(0, 5).top }))
    }

    /// A chunk of the text; its last row is the result.
    fn embed(&mut self, job: &mut Job, slot: u32, pages: &Pages, deadline: Option<Instant>) -> Result<Computed> {
        let ids = &job.text.ids;
        let rows = job.done..(job.done + self.parts.runner.sizes().max_rows).min(ids.len());
        let mut input = self.rows_of(ids, slot, pages, rows.clone());
        input.gather.push(rows.len() as u32 - 1);
        let Some(hidden) = self.parts.runner.hidden(&input, deadline)? else { return Ok(Computed::Part) };
        job.done = rows.end;
        Ok(if job.done < ids.len() { Computed::Part } else { Computed::Embedding(hidden) })
    }

    /// Keys and values of the pages that a text fills, as far as the cache has them: how it stores them, how many pages, and their
    /// bytes.
    pub fn save_cache(&self, text: &Text) -> Result<(u64, usize, Vec<u8>)> {
        if self.parts.draft.is_some() {
            return Ok((0, 0, Vec::new()));
        }
        // Looking up leaves a token to compute.
        let ids = [&text.ids[..], &[0]].concat();
        let root = Prefix::root(text.adapter.as_ref().map(|version| version.number));
        let (pages, _) = self.parts.pool.look_up(root, &ids);
        Ok((self.parts.runner.cache_format(), pages.len(), self.parts.runner.read_pages(&pages)?))
    }

    /// Puts back what [`Worker::save_cache`] gave. Does nothing where the cache stores in another way or is full: then it is computed
    /// again.
    pub fn load_cache(&mut self, text: &Text, (format, count, bytes): (u64, usize, &[u8])) -> Result<()> {
        let ids = text.ids.get(..count * PAGE).ok_or_else(|| Error::invalid("more pages than the text fills"))?;
        if format == 0 || format != self.parts.runner.cache_format() || self.parts.draft.is_some() || count == 0 {
            return Ok(());
        }
        let root = Prefix::root(text.adapter.as_ref().map(|version| version.number));
        let Some(mut pages) = self.parts.pool.take(&[], root, ids.len()) else { return Ok(()) };
        let written = self.parts.runner.write_pages(pages.as_slice(), bytes);
        if written.is_ok() {
            self.parts.pool.remember(&mut pages, ids);
        }
        self.parts.pool.give_back(pages);
        written
    }

    /// Rows of a text that is computed alone.
    fn rows_of(&self, ids: &[u32], adapter: u32, pages: &Pages, rows: Range<usize>) -> StepInput {
        let mut table = pages.as_slice().to_vec();
        table.resize(self.parts.runner.sizes().pages_per_seq(), 0);
        StepInput {
            ids: ids[rows.clone()].to_vec(),
            positions: rows.clone().map(|t| t as u32).collect(),
            seqs: vec![0; rows.len()],
            slots: rows.clone().map(|t| pages.row(t)).collect(),
            adapters: vec![adapter; rows.len()],
            table,
            ..StepInput::default()
        }
    }
}
