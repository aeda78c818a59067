//! How much of the device the engine takes, and when.

use crate::engine::pacing::Shares;
use std::time::{Duration, Instant};

/// What comes first where requests and training want the device at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PacingMode {
    /// Requests get three quarters of the time.
    #[default]
    Balanced,
    /// Training only runs while no request does.
    RequestsFirst,
    /// Requests get a quarter of the time.
    TrainingFirst,
}

impl PacingMode {
    /// The share of the time that training has while requests run.
    fn training(self) -> f64 {
        match self {
            PacingMode::Balanced => 0.25,
            PacingMode::RequestsFirst => 0.0,
            PacingMode::TrainingFirst => 0.75,
        }
    }
}

/// Limits on the work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pacing {
    /// What comes first.
    pub mode: PacingMode,
    /// Longest slice of the engine's own thread.
    pub max_slice: Duration,
    /// Tokens that all answers together may get in a second; 0: as many as there is time for.
    pub tokens_per_s: f64,
}

impl Default for Pacing {
    /// 10 ms: cancelling is felt to be immediate.
    fn default() -> Self {
        Self { mode: PacingMode::default(), max_slice: Duration::from_millis(10), tokens_per_s: 0.0 }
    }
}

/// Decides whose turn it is.
#[derive(Default)]
pub struct Turns {
    shares: Shares,
    /// Before this no answer gets another token.
    resume: Option<Instant>,
}

impl Turns {
    /// Whether training is next, where both could be.
    pub fn training_next(&self) -> bool {
        self.shares.training_next()
    }

    /// Takes note of a slice while both wanted to work.
    pub fn note(&mut self, mode: PacingMode, training: bool, seconds: f64) {
        self.shares.note(mode.training(), training, seconds);
    }

    /// Takes note of new tokens.
    pub fn tokens(&mut self, pacing: &Pacing, n: u64) {
        if pacing.tokens_per_s > 0.0 && n > 0 {
            let now = Instant::now();
            let from = self.resume.filter(|at| *at > now).unwrap_or(now);
            let pause = Duration::try_from_secs_f64(n as f64 / pacing.tokens_per_s).unwrap_or(Duration::from_secs(60));
            self.resume = from.checked_add(pause);
        }
    }

    /// When answers may go on, where that is later than now.
    pub fn wait_until(&self, pacing: &Pacing) -> Option<Instant> {
        self.resume.filter(|at| pacing.tokens_per_s > 0.0 && *at > Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_the_time_come_out() {
        for (mode, expected) in
            [(PacingMode::Balanced, 0.25), (PacingMode::RequestsFirst, 0.0), (PacingMode::TrainingFirst, 0.75)]
        {
            let mut turns = Turns::default();
            let (mut training, mut all) = (0.0, 0.0);
            for _ in 0..10_000 {
                let (next, seconds) = (turns.training_next(), 0.01);
                training += if next { seconds } else { 0.0 };
                all += seconds;
                turns.note(mode, next, seconds);
            }
            let share: f64 = training / all;
            assert!((share - expected).abs() < 0.01, "{mode:?}: {share}");
        }
    }

    #[test]
    fn tokens_are_paid_for_with_time() {
        let pacing = Pacing { tokens_per_s: 10.0, ..Pacing::default() };
        let mut turns = Turns::default();
        assert_eq!(turns.wait_until(&pacing), None);
        turns.tokens(&pacing, 20);
        let wait = turns.wait_until(&pacing).map(|at| at - Instant::now());
        assert!(wait.is_some_and(|wait| wait > Duration::from_millis(1500) && wait <= Duration::from_secs(2)));
    }
}
