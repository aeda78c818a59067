//! What requests want of the choice of their tokens besides temperature and the like, and what comes of it.

use super::request::TokenLogprobs;
use crate::backend::{Bindings, Executable};
use crate::error::{Error, Result};
use crate::model::LoadedModel;
use crate::model::choice::{ChoiceProgram, ChoiceShape, choice_program};
use crate::program::SEEN;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// Most alternatives of which the log-probabilities are reported: OpenAI's and vLLM's limit.
pub const MAX_LOGPROBS: usize = 20;

/// An entry of [`crate::program::Op::AdjustLogits`].
pub type LogitEntry = [u32; 2];

/// What the first gathered rows of a step want.
#[derive(Default)]
pub struct ChoiceInput {
    /// Entries of all rows, one row after the other.
    pub entries: Vec<LogitEntry>,
    /// Where the entries of each row end.
    ends: Vec<u32>,
    repetition: Vec<f32>,
    masks: Vec<u32>,
    mask_of: Vec<u32>,
    labels: Vec<u32>,
    top: Option<usize>,
}

/// What a row wants besides the entries that were appended for it.
#[derive(Default)]
pub struct RowChoice<'a> {
    /// The repetition penalty of its entries.
    pub repetition: f32,
    /// The tokens that may be chosen: a bit each.
    pub mask: Option<&'a [u32]>,
    /// The token whose log-probability is wanted instead of the chosen one's.
    pub label: Option<u32>,
    /// Alternatives to report, where log-probabilities are wanted.
    pub logprobs: Option<usize>,
}

impl ChoiceInput {
    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.ends.len()
    }

    /// Forgets those of the entries from `start` on that are of no token below `vocab`.
    pub fn keep_below(&mut self, start: usize, vocab: usize) {
        let own = self.entries.split_off(start);
        self.entries.extend(own.into_iter().filter(|entry| ((entry[0] & !SEEN) as usize) < vocab));
    }

    /// Ends a row.
    pub fn push(&mut self, row: &RowChoice, vocab: usize) {
        self.ends.push(self.entries.len() as u32);
        self.repetition.push(row.repetition);
        let words = vocab.div_ceil(32);
        self.mask_of.push(row.mask.map_or(u32::MAX, |_| (self.masks.len() / words) as u32));
        if let Some(mask) = row.mask {
            // The model may have more tokens than the tokenizer: they have no text, and never pass.
            let start = self.masks.len();
            self.masks.extend(mask.iter().take(words));
            self.masks.resize(start + words, 0);
        }
        self.labels.push(row.label.unwrap_or(u32::MAX));
        self.top = self.top.max(row.logprobs);
    }
}

/// The tokens of a step.
#[derive(Default)]
pub struct Chosen {
    /// Of each gathered row.
    pub tokens: Vec<u32>,
    /// Of the first rows: 1 + n log-probabilities each.
    logprobs: Vec<f32>,
    /// And n tokens.
    top: Vec<u32>,
    n: usize,
}

impl Chosen {
    /// Tokens without log-probabilities.
    pub fn tokens(tokens: Vec<u32>) -> Self {
        Self { tokens, ..Self::default() }
    }

    /// Log-probabilities of a row's token and of the `n` likeliest ones, where they were computed.
    pub fn logprobs(&self, row: usize, n: usize) -> TokenLogprobs {
        let own = self.logprobs.chunks_exact(1 + self.n).nth(row).unwrap_or(&[f32::NAN]);
        let top = self.top.chunks_exact(self.n.max(1)).nth(row).unwrap_or(&[]);
        let pairs = top.iter().copied().zip(own[1..].iter().copied());
        TokenLogprobs { logprob: own[0], top: pairs.take(n).collect() }
    }
}

struct Compiled {
    ids: ChoiceProgram,
    executable: Box<dyn Executable>,
}

/// The choices of an engine, compiled for a few sizes.
#[derive(Default)]
pub struct Choices(HashMap<ChoiceShape, Compiled>);

/// A choice that runs, to be read with [`Choices::read`].
pub struct Running {
    shape: ChoiceShape,
    rows: usize,
}

impl Running {
    /// Rows whose tokens it chooses.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

impl Choices {
    /// Begins to choose for the first rows of the logits in `bindings`. `sampling` and `uniforms` are those of these rows at
    /// least; no more than `max_rows` rows are ever asked for.
    pub fn run(
        &mut self,
        model: &LoadedModel,
        bindings: &Bindings,
        max_rows: usize,
        input: &ChoiceInput,
        (sampling, uniforms): (&[[f32; 4]], &[f32]),
    ) -> Result<Running> {
        let rows = input.rows();
        let (Some(sampling), Some(uniforms)) = (sampling.get(..rows), uniforms.get(..rows)) else {
            return Err(Error::internal("a choice of more rows than were gathered"));
        };
        let shape = input.shape(model.config().vocab, max_rows);
        let c = match self.0.entry(shape) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(compile(model, bindings, &shape)?),
        };
        let (ids, e) = (&c.ids, &mut c.executable);
        let counts = e.program().counts;
        e.write(counts, bytemuck::cast_slice(&[0, rows as u32, 0, 0]))?;
        e.write(ids.sampling, bytemuck::cast_slice(sampling))?;
        e.write(ids.uniforms, bytemuck::cast_slice(uniforms))?;
        if let Some(adjust) = ids.adjust {
            e.write(adjust.entries, bytemuck::cast_slice(&input.entries))?;
            let starts: Vec<u32> = std::iter::once(0).chain(input.ends.iter().copied()).collect();
            e.write(adjust.starts, bytemuck::cast_slice(&starts))?;
            e.write(adjust.repetition, bytemuck::cast_slice(&input.repetition))?;
            e.write(adjust.masks, bytemuck::cast_slice(&input.masks))?;
            e.write(adjust.mask_of, bytemuck::cast_slice(&input.mask_of))?;
        }
        if let Some(reported) = ids.logprobs {
            e.write(reported.labels, bytemuck::cast_slice(&input.labels))?;
        }
        e.run()?;
        Ok(Running { shape, rows })
    }

    /// Waits for a choice: its tokens go to the first ones of `chosen`.
    pub fn read(&mut self, running: &Running, chosen: &mut Chosen) -> Result<()> {
        let Some(c) = self.0.get_mut(&running.shape) else { return Err(Error::internal("a choice was lost")) };
        let tokens = &mut chosen.tokens[..running.rows];
        c.executable.read(c.ids.tokens, bytemuck::cast_slice_mut(tokens))?;
        if let Some(reported) = c.ids.logprobs {
            chosen.n = running.shape.top;
            chosen.logprobs = vec![0.0; running.rows * (1 + chosen.n)];
            chosen.top = vec![0; running.rows * chosen.n];
            c.executable.read(reported.logprobs, bytemuck::cast_slice_mut(&mut chosen.logprobs))?;
            c.executable.read(reported.top, bytemuck::cast_slice_mut(&mut chosen.top))?;
        }
        Ok(())
    }
}

impl ChoiceInput {
    /// The bucket: few of them mean few recordings, and what is not live costs little.
    fn shape(&self, vocab: usize, max_rows: usize) -> ChoiceShape {
        let rows = self.rows().next_power_of_two().max(16).min(max_rows);
        let adjusts = !self.entries.is_empty() || !self.masks.is_empty();
        let mut entries = if adjusts { 1024 } else { 0 };
        while entries < self.entries.len() {
            entries *= 4;
        }
        let masks = if self.masks.is_empty() { 1 } else { rows };
        let top = self.top.map_or(0, |n| [1, 5, MAX_LOGPROBS].into_iter().find(|size| n <= *size).unwrap_or(n));
        ChoiceShape { rows, entries, masks: if adjusts { masks } else { 0 }, top: top.min(vocab), vocab }
    }
}

fn compile(model: &LoadedModel, bindings: &Bindings, shape: &ChoiceShape) -> Result<Compiled> {
    let mut ids = choice_program(shape)?;
    let program = Arc::new(std::mem::replace(&mut ids.program, crate::program::Builder::new("").finish()));
    let executable = model.device.compile(program, bindings)?;
    Ok(Compiled { ids, executable })
}
