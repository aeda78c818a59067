//! A step of preference tuning.

use super::{Accumulated, Job, dropout_seed, rows_of};
use crate::error::{Error, Result};
use crate::train::data::Row;
use crate::train::preference::{PairBatch, PairReport, Preference, PreferenceLoss};
use crate::train::rows::Rows;
use crate::train::trainer::Reference;
use std::time::Instant;

/// What a job of pairs has besides.
pub struct Pairs {
    pub preference: Preference,
    /// The model that is not trained, where the loss compares with it.
    pub reference: Option<Reference>,
    /// Its log-probability of each row's answer, once it was asked.
    pub known: Vec<Option<f32>>,
}

impl Pairs {
    /// Asks the reference for its log-probabilities of some rows, where they are not known yet; true once they are.
    fn ask(
        &mut self,
        rows: &Rows,
        chosen: &[u32],
        pairs: &PairBatch,
        next: &mut Option<usize>,
        deadline: Option<Instant>,
    ) -> Result<bool> {
        let Some(model) = &mut self.reference else { return Ok(true) };
        if chosen.iter().all(|row| self.known[*row as usize].is_some()) {
            return Ok(true);
        }
        let Some(losses) = model.losses(&pairs.batch, next, deadline)? else { return Ok(false) };
        let mut at = 0;
        for row in chosen {
            let end = at + rows.tokens(*row as usize);
            let counted = losses[at..end].iter().zip(&pairs.kinds[at..end]).filter(|(_, kind)| **kind & 1 != 0);
            self.known[*row as usize] = Some(-counted.map(|(loss, _)| loss).sum::<f32>());
            at = end;
        }
        Ok(true)
    }

    /// The reference's log-probabilities of rows that it was asked for; 0 without one.
    fn reference(&self, chosen: &[u32]) -> Vec<f32> {
        match &self.reference {
            Some(_) => chosen.iter().filter_map(|row| self.known[*row as usize]).collect(),
            None => vec![0.0; chosen.len()],
        }
    }
}

/// The gradients of a step of pairs, as far as they have come.
pub(super) struct PairStep {
    batches: Vec<Batch>,
    /// Pairs, and tokens whose likelihood is kept up.
    count: f64,
    likely: f64,
    hyper: [f32; 4],
    /// The micro-batch that is being computed, whether it is the trainer's turn, and where it goes on.
    at: usize,
    begun: bool,
    next: Option<usize>,
    loss: f64,
    report: PairReport,
    tokens: usize,
    counted: usize,
}

struct Batch {
    rows: Vec<u32>,
    /// Counted tokens of each row.
    lengths: Vec<usize>,
    pairs: PairBatch,
}

impl Job {
    /// As [`Job::accumulate`], over pairs.
    pub(super) fn accumulate_pairs(&mut self, stop: &dyn Fn() -> bool) -> Result<Option<Accumulated>> {
        let mut step = self.pair_step()?;
        while step.at < step.batches.len() {
            if stop() {
                self.trainer.clear_gradients()?;
                return Ok(None);
            }
            self.pair_batch(&mut step, None)?;
        }
        self.pair_sum(&step).map(Some)
    }

    /// The next step's pairs.
    pub(super) fn pair_step(&mut self) -> Result<PairStep> {
        if self.is_done() {
            return Err(Error::invalid(format!("the run has ended after {} steps", self.done)));
        }
        let (first, end) = (self.position(self.done), self.position(self.done + 1));
        let groups = self.groups(first..end);
        let Some(pairs) = &self.pairs else { return Err(Error::internal("a job without pairs")) };
        let preference = pairs.preference;
        let batch = |rows: Vec<u32>| {
            let answers = rows_of(&self.rows, &rows)?;
            let lengths = answers.iter().map(Row::counted).collect();
            Ok(Batch { rows, lengths, pairs: PairBatch::new(&answers, &preference) })
        };
        let batches = groups.into_iter().map(batch).collect::<Result<Vec<_>>>()?;
        let count = batches.iter().map(|batch| batch.rows.len()).sum::<usize>() as f64 / 2.0;
        let likely = batches.iter().map(|batch| batch.pairs.likely()).sum::<usize>().max(1) as f64;
        // The mean over pairs, and over the likelihood's tokens: the loss's scale divides both by the number of pairs.
        let hyper = preference.hyper(preference.likelihood() * count / likely);
        let (loss, report) = (0.0, PairReport::default());
        Ok(PairStep {
            batches,
            count,
            likely,
            hyper,
            at: 0,
            begun: false,
            next: None,
            loss,
            report,
            tokens: 0,
            counted: 0,
        })
    }

    /// Works on a step until `deadline`; true when its gradients are there.
    pub(super) fn pairs_part(&mut self, step: &mut PairStep, deadline: Option<Instant>) -> Result<bool> {
        while step.at < step.batches.len() {
            if !self.pair_batch(step, deadline)? {
                return Ok(false);
            }
            if step.at < step.batches.len() && deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Works on a micro-batch; true when it is done.
    fn pair_batch(&mut self, step: &mut PairStep, deadline: Option<Instant>) -> Result<bool> {
        let Some(pairs) = &mut self.pairs else { return Err(Error::internal("a job without pairs")) };
        let preference = pairs.preference;
        let Batch { rows, lengths, pairs: batch } = &step.batches[step.at];
        if !step.begun {
            if !pairs.ask(&self.rows, rows, batch, &mut step.next, deadline)? {
                return Ok(false);
            }
            let seed = dropout_seed(self.recipe.seed, self.done * self.recipe.grad_accum + step.at);
            let reference = pairs.reference(rows);
            self.trainer.begin_pairs(batch, &reference, step.hyper, (1.0 / step.count) as f32, seed)?;
            step.begun = true;
        }
        if !self.trainer.go_on(&mut step.next, deadline)? {
            return Ok(false);
        }
        let reference = pairs.reference(rows);
        let (count, report) = (step.count, &mut step.report);
        for (p, [value, chosen, rejected, kept]) in self.trainer.pair_results(rows.len() / 2)?.into_iter().enumerate() {
            step.loss += f64::from(value) / count + preference.likelihood() * f64::from(kept) / step.likely;
            let reward = |at: usize, logprob: f32| {
                let gain = f64::from(logprob) - f64::from(reference[at]);
                let length = if preference.loss == PreferenceLoss::Orpo { lengths[at] as f64 } else { 1.0 };
                preference.beta * gain / length
            };
            let (a, b) = (reward(2 * p, chosen), reward(2 * p + 1, rejected));
            report.rewards_chosen += a / count;
            report.rewards_rejected += b / count;
            report.accuracy += f64::from(u8::from(a > b)) / count;
        }
        step.tokens += batch.batch.ids.len();
        step.counted += lengths.iter().sum::<usize>();
        step.at += 1;
        step.begun = false;
        Ok(true)
    }

    /// What a step whose gradients are there came to.
    pub(super) fn pair_sum(&self, step: &PairStep) -> Result<Accumulated> {
        self.finite("loss", step.loss)?;
        let PairStep { loss, tokens, counted, report, .. } = *step;
        Ok(Accumulated { loss, tokens, counted, pairs: Some(report) })
    }
}
