//! The loss on rows that are not trained on.

use super::batch::MicroBatch;
use super::checkpoint::Best;
use super::data::{self, DataReport};
use super::recipe::Recipe;
use super::report::EvalReport;
use super::rows::Rows;
use super::trainer::Trainer;
use crate::collective::Collective;
use crate::error::{Error, Result};
use crate::model::LoadedModel;
use std::time::Instant;

/// An evaluation set.
pub struct Evaluation {
    rows: Rows,
    report: DataReport,
}

impl Evaluation {
    /// Reads `recipe.eval_data`; `None` where there is none.
    ///
    /// # Errors
    /// Those of [`data::read`].
    pub fn new(recipe: &Recipe, model: &LoadedModel) -> Result<Option<Self>> {
        if recipe.eval_data.is_empty() {
            return Ok(None);
        }
        let (rows, report) = data::read_files(&recipe.eval_data, recipe, model.tokenizer()?, model.chat.as_ref())?;
        Ok(Some(Self { rows, report }))
    }

    /// What was read.
    pub fn data(&self) -> &DataReport {
        &self.report
    }

    /// Tokens of the longest row: a trainer must have room for it.
    pub fn longest(&self) -> usize {
        self.report.longest
    }

    /// Hash of the rows.
    pub fn hash(&self) -> u64 {
        self.rows.hash()
    }

    /// Mean loss over the counted tokens of all rows, each once; each process of `group` takes every so-manieth row. `None` where
    /// the deadline comes first. `room`: tokens and rows that the trainer takes at once.
    ///
    /// # Errors
    /// [`Error::Device`], [`Error::Network`]; [`Error::Invalid`] where the loss is not finite.
    pub fn go_on(
        &self,
        state: &mut Evaluating,
        trainer: &mut Trainer,
        room: (usize, usize),
        step: usize,
        group: &dyn Collective,
        deadline: Instant,
    ) -> Result<Option<EvalReport>> {
        let began = Instant::now();
        let next = group.world_size();
        while state.batch.is_some() || state.at < self.rows.len() {
            let (batch, first) = match state.batch.take() {
                Some(begun) => begun,
                None => {
                    let batch = self.batch(&mut state.at, next, room)?;
                    trainer.begin_losses(&batch)?;
                    (batch, 0)
                }
            };
            match trainer.go_on_losses(first, deadline)? {
                Some(next) => state.batch = Some((batch, next)),
                None => {
                    state.sum += trainer.losses(&batch)?;
                    state.counted += batch.counted();
                    state.tokens += batch.ids.len();
                }
            }
            if Instant::now() >= deadline {
                state.seconds += began.elapsed().as_secs_f64();
                return Ok(None);
            }
        }
        let mut all = [state.sum, state.counted as f64, state.tokens as f64];
        group.sum(&mut all)?;
        let [sum, counted, tokens] = all;
        let loss = sum / counted;
        if !loss.is_finite() {
            return Err(Error::invalid(format!("step {step}: the loss of eval_data is {loss}")));
        }
        let seconds = state.seconds + began.elapsed().as_secs_f64();
        Ok(Some(EvalReport { step, loss, counted: counted as usize, tok_s: tokens / seconds.max(1e-9), best: false }))
    }

    /// Every `next`-th row from `at` on, as many as fit the trainer.
    fn batch(&self, at: &mut usize, next: usize, room: (usize, usize)) -> Result<MicroBatch> {
        let mut rows = vec![self.rows.get(*at)?];
        let mut used = rows[0].ids.len();
        *at += next;
        while *at < self.rows.len() && rows.len() < room.1 && used + self.rows.tokens(*at) <= room.0 {
            used += self.rows.tokens(*at);
            rows.push(self.rows.get(*at)?);
            *at += next;
        }
        Ok(MicroBatch::new(&rows))
    }
}

/// An evaluation between two turns.
#[derive(Default)]
pub struct Evaluating {
    /// The first row that no batch has had.
    at: usize,
    /// What is being computed, and the part that it goes on with.
    batch: Option<(MicroBatch, usize)>,
    sum: f64,
    counted: usize,
    tokens: usize,
    /// Seconds of computing.
    seconds: f64,
}

impl Evaluating {
    /// From the first row of this process on.
    pub fn new(group: &dyn Collective) -> Self {
        Self { at: group.rank(), ..Self::default() }
    }
}

impl Best {
    /// Takes a loss into account; true where it is the lowest so far.
    pub fn see(&mut self, step: usize, loss: f64, threshold: f64) -> bool {
        let before = self.loss;
        // As transformers' EarlyStoppingCallback: what counts against patience is less than a threshold better.
        self.worse = if before.is_none_or(|best| loss < best - threshold) { 0 } else { self.worse + 1 };
        let lowest = before.is_none_or(|best| loss < best);
        if lowest {
            (self.step, self.loss) = (Some(step), Some(loss));
        }
        lowest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_counts_what_is_not_better_by_a_threshold() {
        let mut best = Best::default();
        assert!(best.see(1, 2.0, 0.1));
        assert!(best.see(2, 1.95, 0.1));
        assert_eq!((best.step, best.worse), (Some(2), 1));
        assert!(!best.see(3, 1.96, 0.1));
        assert_eq!((best.step, best.worse), (Some(2), 2));
        assert!(best.see(4, 1.0, 0.1));
        assert_eq!((best.loss, best.worse), (Some(1.0), 0));
    }
}
