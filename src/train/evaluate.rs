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

    /// Mean loss over the counted tokens of all rows, each once; each process of `group` takes every so-manieth row. `room`:
    /// tokens and rows that the trainer takes at once.
    ///
    /// # Errors
    /// [`Error::Device`], [`Error::Network`]; [`Error::Invalid`] where the loss is not finite.
    pub fn run(
        &self,
        trainer: &mut Trainer,
        room: (usize, usize),
        step: usize,
        group: &dyn Collective,
    ) -> Result<EvalReport> {
        let began = Instant::now();
        let (mut sum, mut counted, mut tokens) = (0.0, 0, 0);
        let (mut at, next) = (group.rank(), group.world_size());
        while at < self.rows.len() {
            let mut batch = vec![self.rows.get(at)?];
            let mut used = batch[0].ids.len();
            at += next;
            while at < self.rows.len() && batch.len() < room.1 && used + self.rows.tokens(at) <= room.0 {
                used += self.rows.tokens(at);
                batch.push(self.rows.get(at)?);
                at += next;
            }
            let batch = MicroBatch::new(&batch);
            sum += trainer.losses(&batch)?;
            counted += batch.counted();
            tokens += used;
        }
        let mut all = [sum, counted as f64, tokens as f64];
        group.sum(&mut all)?;
        let [sum, counted, tokens] = all;
        let loss = sum / counted;
        if !loss.is_finite() {
            return Err(Error::invalid(format!("step {step}: the loss of eval_data is {loss}")));
        }
        let seconds = began.elapsed().as_secs_f64();
        Ok(EvalReport { step, loss, counted: counted as usize, tok_s: tokens / seconds.max(1e-9), best: false })
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
