//! A step of preference tuning.

use super::{Accumulated, Job, rows_of};
use crate::error::{Error, Result};
use crate::train::data::Row;
use crate::train::preference::{PairBatch, PairReport, Preference, PreferenceLoss};
use crate::train::report::StepReport;
use crate::train::trainer::Reference;
use std::time::{Duration, Instant};

/// What a job of pairs has besides.
pub struct Pairs {
    pub preference: Preference,
    /// The model that is not trained, where the loss compares with it.
    pub reference: Option<Reference>,
    /// Its log-probability of each row's answer, once it was asked.
    pub known: Vec<Option<f32>>,
    /// A step that is being computed in turns.
    pub pending: Option<PairStep>,
}

/// A step between two turns.
pub struct PairStep {
    /// Rows of each micro-batch: chosen, rejected, chosen, …
    groups: Vec<Vec<u32>>,
    batches: Vec<PairBatch>,
    /// Counted tokens of each row.
    lengths: Vec<Vec<usize>>,
    /// Pairs of all processes, and tokens whose likelihood is kept up.
    count: f64,
    likely: f64,
    /// The micro-batch that is being computed, and how far it is.
    at: usize,
    stage: Stage,
    loss: f64,
    report: PairReport,
    /// Seconds of computing.
    seconds: f64,
}

enum Stage {
    Begin,
    /// The model that is not trained goes on with this part.
    Reference(usize),
    /// Training goes on with this part; what the reference said of each row.
    Train(usize, Vec<f32>),
}

/// Longer than any step.
const UNHURRIED: Duration = Duration::from_secs(24 * 3600);

impl Job {
    fn pair_step(&mut self) -> Result<PairStep> {
        if self.is_done() {
            return Err(Error::invalid(format!("the run has ended after {} steps", self.done)));
        }
        let (first, end) = (self.position(self.done), self.position(self.done + 1));
        let groups = self.groups(first..end);
        let Some(pairs) = &self.pairs else { return Err(Error::internal("a job without pairs")) };
        let answers = groups.iter().map(|group| rows_of(&self.rows, group)).collect::<Result<Vec<_>>>()?;
        let batches: Vec<PairBatch> = answers.iter().map(|rows| PairBatch::new(rows, &pairs.preference)).collect();
        let own = groups.iter().map(Vec::len).sum::<usize>() as f64 / 2.0;
        let mut all = [own, batches.iter().map(PairBatch::likely).sum::<usize>() as f64];
        self.group.sum(&mut all)?;
        Ok(PairStep {
            count: all[0],
            likely: all[1].max(1.0),
            lengths: answers.iter().map(|rows| rows.iter().map(Row::counted).collect()).collect(),
            groups,
            batches,
            at: 0,
            stage: Stage::Begin,
            loss: 0.0,
            report: PairReport::default(),
            seconds: 0.0,
        })
    }

    /// Works on a micro-batch of pairs until `deadline`; true once it is complete.
    fn pair_part(&mut self, step: &mut PairStep, deadline: Instant) -> Result<bool> {
        let seed = self.dropout_seed(step.at);
        let Some(pairs) = &mut self.pairs else { return Err(Error::internal("a job without pairs")) };
        let preference = pairs.preference;
        let (batch, group) = (&step.batches[step.at], &step.groups[step.at]);
        if let (Stage::Begin, Some(model)) = (&step.stage, &mut pairs.reference)
            && group.iter().any(|row| pairs.known[*row as usize].is_none())
        {
            model.begin(&batch.batch)?;
            step.stage = Stage::Reference(0);
        }
        if let (Stage::Reference(first), Some(model)) = (&step.stage, &mut pairs.reference) {
            if let Some(next) = model.go_on(*first, deadline)? {
                step.stage = Stage::Reference(next);
                return Ok(false);
            }
            let losses = model.losses(batch.batch.ids.len())?;
            let mut at = 0;
            for row in group {
                let end = at + self.rows.tokens(*row as usize);
                let counted = losses[at..end].iter().zip(&batch.kinds[at..end]).filter(|(_, kind)| **kind & 1 != 0);
                pairs.known[*row as usize] = Some(-counted.map(|(loss, _)| loss).sum::<f32>());
                at = end;
            }
        }
        if !matches!(step.stage, Stage::Train(..)) {
            let known = |row: &u32| pairs.known[*row as usize].unwrap_or(0.0);
            let reference: Vec<f32> = group.iter().map(known).collect();
            // The mean over pairs, and over the likelihood's tokens: the loss's scale divides both by the number of pairs.
            let hyper = preference.hyper(preference.likelihood() * step.count / step.likely);
            self.trainer.begin_pairs(batch, &reference, hyper, (1.0 / step.count) as f32, seed)?;
            step.stage = Stage::Train(0, reference);
        }
        let Stage::Train(first, reference) = &mut step.stage else { return Ok(false) };
        if let Some(next) = self.trainer.go_on(*first, deadline)? {
            *first = next;
            return Ok(false);
        }
        let results = self.trainer.pair_results(group.len() / 2)?;
        let lengths = &step.lengths[step.at];
        for (p, [value, chosen, rejected, kept]) in results.into_iter().enumerate() {
            step.loss += f64::from(value) / step.count + preference.likelihood() * f64::from(kept) / step.likely;
            let reward = |at: usize, logprob: f32| {
                let gain = f64::from(logprob) - f64::from(reference[at]);
                let length = if preference.loss == PreferenceLoss::Orpo { lengths[at] as f64 } else { 1.0 };
                preference.beta * gain / length
            };
            let (a, b) = (reward(2 * p, chosen), reward(2 * p + 1, rejected));
            step.report.rewards_chosen += a / step.count;
            step.report.rewards_rejected += b / step.count;
            step.report.accuracy += f64::from(u8::from(a > b)) / step.count;
        }
        (step.at, step.stage) = (step.at + 1, Stage::Begin);
        Ok(true)
    }

    /// Sums over all processes. `None`, with the gradients cleared, where one of them was told to stop.
    fn pairs_added_up(&mut self, step: &PairStep, stopped: bool) -> Result<Option<Accumulated>> {
        let done = step.at;
        let tokens: usize = step.batches[..done].iter().map(|batch| batch.batch.ids.len()).sum();
        let counted: usize = step.lengths[..done].iter().flatten().sum();
        let PairReport { rewards_chosen, rewards_rejected, accuracy } = step.report;
        let mut sums = [step.loss, tokens as f64, counted as f64, rewards_chosen, rewards_rejected, accuracy];
        if !self.together(&mut sums, stopped)? {
            return Ok(None);
        }
        let [loss, tokens, counted, rewards_chosen, rewards_rejected, accuracy] = sums;
        self.finite("loss", loss)?;
        let report = PairReport { rewards_chosen, rewards_rejected, accuracy };
        let (tokens, counted) = (tokens as usize, counted as usize);
        Ok(Some(Accumulated { loss, tokens, counted, pairs: Some(report) }))
    }

    /// As [`Job::accumulate`], over pairs.
    pub(super) fn accumulate_pairs(&mut self, stop: &dyn Fn() -> bool) -> Result<Option<Accumulated>> {
        let mut step = self.pair_step()?;
        let mut stopped = false;
        while step.at < step.batches.len() {
            stopped = stop();
            if stopped {
                break;
            }
            while !self.pair_part(&mut step, Instant::now() + UNHURRIED)? {}
        }
        self.pairs_added_up(&step, stopped)
    }

    /// As [`Job::turn`], over pairs.
    pub(super) fn turn_pairs(&mut self, deadline: Instant) -> Result<Option<StepReport>> {
        let start = Instant::now();
        let mut step = match self.pairs.as_mut().and_then(|pairs| pairs.pending.take()) {
            Some(step) => step,
            None => self.pair_step()?,
        };
        while step.at < step.batches.len() {
            self.pair_part(&mut step, deadline)?;
            if Instant::now() >= deadline {
                step.seconds += start.elapsed().as_secs_f64();
                if let Some(pairs) = &mut self.pairs {
                    pairs.pending = Some(step);
                }
                return Ok(None);
            }
        }
        let Some(sum) = self.pairs_added_up(&step, false)? else { return Ok(None) };
        let (grad_norm, lr) = self.update()?;
        Ok(Some(self.report(sum, grad_norm, lr, step.seconds + start.elapsed().as_secs_f64())))
    }
}
