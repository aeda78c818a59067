//! Learning-rate schedules, as `transformers.optimization` defines them.

use crate::error::Error;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;
use std::str::FromStr;

/// What the learning rate does after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", rename_all = "snake_case")]
pub enum Schedule {
    /// Falls to 0 along a line (`get_linear_schedule_with_warmup`).
    #[default]
    Linear,
    /// Falls to 0 along half a cosine wave, or `num_cycles` waves (`get_cosine_schedule_with_warmup`).
    Cosine,
    /// Falls to 0 along half a cosine wave, `num_cycles` times (`get_cosine_with_hard_restarts_schedule_with_warmup`).
    CosineWithRestarts,
    /// Is the same in every step: there is no warm-up (`get_constant_schedule`).
    Constant,
    /// Stays after the warm-up (`get_constant_schedule_with_warmup`).
    ConstantWithWarmup,
    /// Falls with the root of the step (`get_inverse_sqrt_schedule`).
    InverseSqrt,
    /// Falls to `lr_end` along `(1 − progress)^power` (`get_polynomial_decay_schedule_with_warmup`).
    Polynomial,
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "linear" => Ok(Self::Linear),
            "cosine" => Ok(Self::Cosine),
            "cosine_with_restarts" => Ok(Self::CosineWithRestarts),
            "constant" => Ok(Self::Constant),
            "constant_with_warmup" => Ok(Self::ConstantWithWarmup),
            "inverse_sqrt" => Ok(Self::InverseSqrt),
            "polynomial" => Ok(Self::Polynomial),
            other => Err(Error::invalid(format!(
                "unknown schedule '{other}': use linear, cosine, cosine_with_restarts, constant, \
                 constant_with_warmup, inverse_sqrt or polynomial"
            ))),
        }
    }
}

impl TryFrom<String> for Schedule {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

/// A schedule with its numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LrCurve {
    /// Its form.
    pub schedule: Schedule,
    /// Peak rate.
    pub lr: f64,
    /// Steps over which the rate rises from 0.
    pub warmup_steps: usize,
    /// Steps of the run.
    pub total_steps: usize,
    /// Waves of the two cosines; `None`: half a wave, one restart.
    pub num_cycles: Option<f64>,
    /// Exponent of the polynomial.
    pub power: f64,
    /// Where the polynomial ends.
    pub lr_end: f64,
}

impl LrCurve {
    /// The rate of an optimizer step. `step` counts from 0, so with a warm-up the first step has rate 0.
    #[must_use]
    pub fn at(&self, step: usize) -> f64 {
        self.lr * self.factor(step)
    }

    fn factor(&self, step: usize) -> f64 {
        let (step, warmup, total) = (step as f64, self.warmup_steps as f64, self.total_steps as f64);
        if step < warmup && self.schedule != Schedule::Constant {
            return step / warmup.max(1.0);
        }
        let rest = (total - warmup).max(1.0);
        let progress = (step - warmup) / rest;
        match self.schedule {
            Schedule::Linear => ((total - step) / rest).max(0.0),
            Schedule::Cosine => (0.5 * (1.0 + (PI * self.num_cycles.unwrap_or(0.5) * 2.0 * progress).cos())).max(0.0),
            Schedule::CosineWithRestarts if progress >= 1.0 => 0.0,
            Schedule::CosineWithRestarts => {
                (0.5 * (1.0 + (PI * (self.num_cycles.unwrap_or(1.0) * progress % 1.0)).cos())).max(0.0)
            }
            Schedule::Constant | Schedule::ConstantWithWarmup => 1.0,
            Schedule::InverseSqrt => {
                let timescale = if self.warmup_steps > 0 { warmup } else { 10_000.0 };
                ((step + timescale - warmup) / timescale).sqrt().recip()
            }
            Schedule::Polynomial if self.lr == 0.0 => 0.0,
            Schedule::Polynomial if step > total => self.lr_end / self.lr,
            Schedule::Polynomial => {
                let left = 1.0 - (step - warmup) / (total - warmup);
                ((self.lr - self.lr_end) * left.powf(self.power) + self.lr_end) / self.lr
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(schedule: Schedule, warmup_steps: usize, total_steps: usize) -> Vec<f64> {
        let curve =
            LrCurve { schedule, lr: 1.0, warmup_steps, total_steps, num_cycles: None, power: 1.0, lr_end: 1e-7 };
        (0..total_steps).map(|step| curve.at(step)).collect()
    }

    fn close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() < 1e-12, "{found:?} is not {expected:?}");
        }
    }

    // Longer curves of every schedule are held against transformers' own in tests/train_recipe.rs.
    #[test]
    fn without_warmup_the_first_step_has_the_full_rate() {
        close(&all(Schedule::Linear, 0, 2), &[1.0, 0.5]);
    }

    #[test]
    fn a_warmup_longer_than_the_run_never_ends() {
        close(&all(Schedule::Linear, 5, 3), &[0.0, 0.2, 0.4]);
    }
}
