//! Learning-rate schedules, as `transformers.optimization` defines them.

use crate::error::Error;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;
use std::str::FromStr;

/// What the learning rate does after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Falls to 0 along a line (`get_linear_schedule_with_warmup`).
    #[default]
    Linear,
    /// Falls to 0 along half a cosine wave (`get_cosine_schedule_with_warmup`).
    Cosine,
    /// Stays (`get_constant_schedule_with_warmup`).
    Constant,
}

impl Schedule {
    /// Multiplier of the peak rate in an optimizer step. `step` counts from 0, so with a warm-up the first
    /// step multiplies by 0.
    pub fn factor(self, step: usize, warmup_steps: usize, total_steps: usize) -> f64 {
        let (step, warmup, total) = (step as f64, warmup_steps as f64, total_steps as f64);
        if step < warmup {
            return step / warmup.max(1.0);
        }
        let rest = (total - warmup).max(1.0);
        match self {
            Self::Linear => ((total - step) / rest).max(0.0),
            Self::Cosine => (0.5 * (1.0 + (PI * (step - warmup) / rest).cos())).max(0.0),
            Self::Constant => 1.0,
        }
    }
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "linear" => Ok(Self::Linear),
            "cosine" => Ok(Self::Cosine),
            "constant" => Ok(Self::Constant),
            other => Err(Error::invalid(format!("unknown schedule '{other}': use linear, cosine or constant"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(schedule: Schedule, warmup: usize, total: usize) -> Vec<f64> {
        (0..total).map(|step| schedule.factor(step, warmup, total)).collect()
    }

    fn close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() < 1e-12, "{found:?} is not {expected:?}");
        }
    }

    // Expected values: LambdaLR.get_last_lr() of transformers 5.23 with a base rate of 1.
    #[test]
    fn like_transformers() {
        close(&all(Schedule::Linear, 2, 6), &[0.0, 0.5, 1.0, 0.75, 0.5, 0.25]);
        let c = |x: f64| 0.5 * (1.0 + (PI * x).cos());
        close(&all(Schedule::Cosine, 2, 6), &[0.0, 0.5, 1.0, c(0.25), c(0.5), c(0.75)]);
        close(&all(Schedule::Constant, 2, 4), &[0.0, 0.5, 1.0, 1.0]);
    }

    #[test]
    fn without_warmup_the_first_step_has_the_full_rate() {
        close(&all(Schedule::Linear, 0, 2), &[1.0, 0.5]);
    }

    #[test]
    fn a_warmup_longer_than_the_run_never_ends() {
        close(&all(Schedule::Linear, 5, 3), &[0.0, 0.2, 0.4]);
    }
}
