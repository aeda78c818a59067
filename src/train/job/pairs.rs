//! A step of preference tuning.

use super::{Accumulated, Job, rows_of};
use crate::error::{Error, Result};
use crate::train::data::Row;
use crate::train::preference::{PairBatch, PairReport, Preference, PreferenceLoss};
use crate::train::rows::Rows;
use crate::train::trainer::Reference;

/// What a job of pairs has besides.
pub struct Pairs {
    pub preference: Preference,
    /// The model that is not trained, where the loss compares with it.
    pub reference: Option<Reference>,
    /// Its log-probability of each row's answer, once it was asked.
    pub known: Vec<Option<f32>>,
}

impl Pairs {
    /// The reference's log-probabilities of some rows.
    fn reference(&mut self, rows: &Rows, chosen: &[u32], pairs: &PairBatch) -> Result<Vec<f32>> {
        let Some(model) = &mut self.reference else { return Ok(vec![0.0; chosen.len()]) };
        if chosen.iter().any(|row| self.known[*row as usize].is_none()) {
            let losses = model.losses(&pairs.batch)?;
            let mut at = 0;
            for row in chosen {
                let end = at + rows.tokens(*row as usize);
                let counted = losses[at..end].iter().zip(&pairs.kinds[at..end]).filter(|(_, kind)| **kind & 1 != 0);
                self.known[*row as usize] = Some(-counted.map(|(loss, _)| loss).sum::<f32>());
                at = end;
            }
        }
        Ok(chosen.iter().filter_map(|row| self.known[*row as usize]).collect())
    }
}

impl Job {
    /// As [`Job::accumulate`], over pairs.
    pub(super) fn accumulate_pairs(&mut self, stop: &dyn Fn() -> bool) -> Result<Option<Accumulated>> {
        let (first, end) = (self.position(self.done), self.position(self.done + 1));
        let groups = self.groups(first..end);
        let seeds: Vec<u32> = (0..groups.len()).map(|i| self.dropout_seed(i)).collect();
        let Some(pairs) = &mut self.pairs else { return Err(Error::internal("a job without pairs")) };
        let preference = pairs.preference;
        let answers = groups.iter().map(|group| rows_of(&self.rows, group)).collect::<Result<Vec<_>>>()?;
        let batches: Vec<PairBatch> = answers.iter().map(|rows| PairBatch::new(rows, &preference)).collect();
        let own = groups.iter().map(Vec::len).sum::<usize>() as f64 / 2.0;
        let mut all = [own, batches.iter().map(PairBatch::likely).sum::<usize>() as f64];
        self.group.sum(&mut all)?;
        let (count, likely) = (all[0], all[1].max(1.0));
        // The mean over pairs, and over the likelihood's tokens: the loss's scale divides both by the number of pairs.
        let hyper = preference.hyper(preference.likelihood() * count / likely);
        let (mut loss, mut report) = (0.0, PairReport::default());
        let (mut tokens, mut counted, mut stopped) = (0, 0, false);
        for (i, (batch, (rows, answers))) in batches.iter().zip(groups.iter().zip(&answers)).enumerate() {
            stopped = stop();
            if stopped {
                break;
            }
            let reference = pairs.reference(&self.rows, rows, batch)?;
            let seed = seeds[i];
            let results = self.trainer.pair_batch(batch, &reference, hyper, (1.0 / count) as f32, seed)?;
            let answers = answers.iter().map(Row::counted);
            tokens += batch.batch.ids.len();
            counted += answers.clone().sum::<usize>();
            let lengths: Vec<usize> = answers.collect();
            for (p, [value, chosen, rejected, kept]) in results.into_iter().enumerate() {
                loss += f64::from(value) / count + preference.likelihood() * f64::from(kept) / likely;
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
        }
        let PairReport { rewards_chosen, rewards_rejected, accuracy } = report;
        let mut sums = [loss, tokens as f64, counted as f64, rewards_chosen, rewards_rejected, accuracy];
        if !self.together(&mut sums, stopped)? {
            return Ok(None);
        }
        let [loss, tokens, counted, rewards_chosen, rewards_rejected, accuracy] = sums;
        self.finite("loss", loss)?;
        let report = PairReport { rewards_chosen, rewards_rejected, accuracy };
        let (tokens, counted) = (tokens as usize, counted as usize);
        Ok(Some(Accumulated { loss, tokens, counted, pairs: Some(report) }))
    }
}
