//! What the engine took: slices, first tokens.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many of the latest slices and first tokens are looked at.
const LATEST: usize = 1024;

/// Figures over the latest slices and requests; seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Metrics {
    /// Slices of work so far.
    pub slices: u64,
    /// Half of the latest slices took no longer.
    pub slice_p50: f64,
    /// 99 of 100 took no longer.
    pub slice_p99: f64,
    /// Slices that took more than 1.25 times what they were given.
    pub overruns: u64,
    /// Tokens of answers so far.
    pub tokens: u64,
    /// Tokens a second, over the time in which there were requests.
    pub tokens_per_s: f64,
    /// Requests that ended.
    pub requests: u64,
    /// Half of the latest requests had their first token after this.
    pub ttft_p50: f64,
    /// 99 of 100 had.
    pub ttft_p99: f64,
}

#[derive(Default)]
struct Latest {
    values: Vec<f32>,
    next: usize,
}

impl Latest {
    fn push(&mut self, value: f64) {
        match self.values.get_mut(self.next) {
            Some(place) => *place = value as f32,
            None => self.values.push(value as f32),
        }
        self.next = (self.next + 1) % LATEST;
    }

    fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_unstable_by(f32::total_cmp);
        let at = (q * sorted.len() as f64).ceil() as usize;
        sorted.get(at.saturating_sub(1)).map_or(0.0, |value| f64::from(*value))
    }
}

#[derive(Default)]
struct Counts {
    slices: u64,
    overruns: u64,
    tokens: u64,
    requests: u64,
    busy: f64,
    latest: Latest,
    ttft: Latest,
}

/// Counts as work is done.
#[derive(Default)]
pub struct Meter(Mutex<Counts>);

impl Meter {
    fn with<R>(&self, f: impl FnOnce(&mut Counts) -> R) -> R {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A slice that began at `began` and was given `budget`.
    pub fn slice(&self, began: Instant, budget: Duration, serving: bool) {
        let took = began.elapsed();
        self.with(|c| {
            c.slices += 1;
            c.overruns += u64::from(took.as_secs_f64() > 1.25 * budget.as_secs_f64());
            c.busy += if serving { took.as_secs_f64() } else { 0.0 };
            c.latest.push(took.as_secs_f64());
        });
    }

    /// More tokens of answers.
    pub fn tokens(&self, n: usize) {
        self.with(|c| c.tokens += n as u64);
    }

    /// A request that ended, and when its first token came.
    pub fn request(&self, ttft: Option<f64>) {
        self.with(|c| {
            c.requests += 1;
            if let Some(ttft) = ttft {
                c.ttft.push(ttft);
            }
        });
    }

    /// The figures.
    pub fn read(&self) -> Metrics {
        self.with(|c| Metrics {
            slices: c.slices,
            slice_p50: c.latest.quantile(0.5),
            slice_p99: c.latest.quantile(0.99),
            overruns: c.overruns,
            tokens: c.tokens,
            tokens_per_s: if c.busy > 0.0 { c.tokens as f64 / c.busy } else { 0.0 },
            requests: c.requests,
            ttft_p50: c.ttft.quantile(0.5),
            ttft_p99: c.ttft.quantile(0.99),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_the_latest() {
        let mut latest = Latest::default();
        assert_eq!(latest.quantile(0.5), 0.0);
        (1..=2000).for_each(|i| latest.push(f64::from(i)));
        assert_eq!(latest.values.len(), LATEST);
        assert_eq!((latest.quantile(0.5), latest.quantile(1.0)), (1488.0, 2000.0));
    }
}
