//! GRPO's loss and its derivative with respect to each token's log-probability. Names and formulas are those of TRL's
//! `GRPOConfig` and `GRPOTrainer._compute_loss`, where one optimizer step takes the whole of what was generated.

use super::GrpoOptions;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// Added to a standard deviation, as TRL does.
const EPS: f64 = 1e-4;

/// What the sum over all tokens is divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// Each answer's mean over its tokens, and the mean of these (<https://arxiv.org/abs/2402.03300>).
    Grpo,
    /// The number of tokens of a batch; a batch here is the whole step, so that it is the same as [`LossType::Dapo`].
    Bnpo,
    /// The number of answers times the most tokens that one may have (<https://arxiv.org/abs/2503.20783>).
    DrGrpo,
    /// The number of tokens of all answers of the step (<https://arxiv.org/abs/2503.14476>).
    #[default]
    Dapo,
}

impl FromStr for LossType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "grpo" => Ok(Self::Grpo),
            "bnpo" => Ok(Self::Bnpo),
            "dr_grpo" => Ok(Self::DrGrpo),
            "dapo" => Ok(Self::Dapo),
            other => Err(Error::unsupported(format!("loss_type '{other}'; there are grpo, bnpo, dr_grpo and dapo"))),
        }
    }
}

/// What a reward's distance from its group's mean is divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleRewards {
    /// The standard deviation of its group.
    #[default]
    Group,
    /// That of all rewards of the step.
    Batch,
    /// Nothing.
    None,
}

impl FromStr for ScaleRewards {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "group" | "true" => Ok(Self::Group),
            "batch" => Ok(Self::Batch),
            "none" | "false" => Ok(Self::None),
            other => Err(Error::invalid(format!("unknown scale_rewards '{other}': use group, batch or none"))),
        }
    }
}

/// Mean and standard deviation (of a sample).
pub fn spread(group: &[f64]) -> (f64, f64) {
    let mean = group.iter().sum::<f64>() / group.len() as f64;
    let square: f64 = group.iter().map(|r| (r - mean).powi(2)).sum();
    (mean, (square / (group.len().max(2) - 1) as f64).sqrt())
}

/// How much better than its group each answer is; `generations` answers are a group.
#[must_use]
pub fn advantages(rewards: &[f64], generations: usize, scale: ScaleRewards) -> Vec<f64> {
    let all = spread(rewards).1;
    let group = |group: &[f64]| {
        let (mean, std) = spread(group);
        let divisor = match scale {
            ScaleRewards::Group => std + EPS,
            ScaleRewards::Batch => all + EPS,
            ScaleRewards::None => 1.0,
        };
        group.iter().map(|r| (r - mean) / divisor).collect::<Vec<_>>()
    };
    rewards.chunks(generations.max(1)).flat_map(group).collect()
}

/// What the loss of an answer's tokens depends on: log-probabilities in nat, one of each for every token.
#[derive(Clone, Copy, Debug)]
pub struct AnswerTokens<'a> {
    /// How much better than its group the answer is.
    pub advantage: f64,
    /// Under the adapter as it is.
    pub now: &'a [f32],
    /// Under the adapter that gave the answer.
    pub old: &'a [f32],
    /// Under the model without adapter; read where β is not 0.
    pub reference: &'a [f32],
}

/// What a step's tokens came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepLoss {
    /// The loss.
    pub loss: f64,
    /// Mean over the tokens of the estimated divergence from the reference, in nat; 0 where β is 0.
    pub kl: f64,
    /// Share of the tokens whose ratio is clipped.
    pub clip_ratio: f64,
    /// For each answer and token the derivative of the loss with respect to −log p.
    pub weights: Vec<Vec<f64>>,
}

/// The loss of a step: over the tokens of its answers
///
/// `−min(r A, clip(r, 1 − ε, 1 + ε_high) A) + β c (exp(q − p) − (q − p) − 1)`, with `r = exp(p − old)`,
///
/// p, old and q the log-probabilities now, when the answer was given, and of the reference; c is r, or 1 without
/// `use_bias_correction_kl`. Added up as `loss_type` says.
#[must_use]
pub fn step_loss(options: &GrpoOptions, answers: &[AnswerTokens]) -> StepLoss {
    let tokens = answers.iter().map(|a| a.now.len()).sum::<usize>().max(1) as f64;
    let count = answers.len().max(1) as f64;
    let (low, high) = (1.0 - options.epsilon, 1.0 + options.epsilon_high.unwrap_or(options.epsilon));
    let mut sums = StepLoss::default();
    for answer in answers {
        let share = match options.loss_type {
            LossType::Grpo => 1.0 / (count * answer.now.len().max(1) as f64),
            LossType::Bnpo | LossType::Dapo => 1.0 / tokens,
            LossType::DrGrpo => 1.0 / (count * options.max_tokens as f64),
        };
        let mut weights = Vec::with_capacity(answer.now.len());
        for (t, now) in answer.now.iter().enumerate() {
            let now = f64::from(*now);
            let ratio = answer.old.get(t).map_or(1.0, |old| (now - f64::from(*old)).exp());
            let (free, bound) = (ratio * answer.advantage, ratio.clamp(low, high) * answer.advantage);
            let mut loss = -free.min(bound);
            let mut weight = if free <= bound { free } else { 0.0 };
            sums.clip_ratio += f64::from(u8::from(free > bound)) / tokens;
            if options.beta != 0.0 {
                let gap = answer.reference.get(t).map_or(0.0, |q| f64::from(*q) - now);
                let (kl, slope) = (gap.exp() - gap - 1.0, gap.exp() - 1.0);
                // With the ratio before it the derivative has a second part, and is r · gap.
                let (kl, slope) = if options.use_bias_correction_kl { (ratio * kl, ratio * gap) } else { (kl, slope) };
                loss += options.beta * kl;
                weight += options.beta * slope;
                sums.kl += kl / tokens;
            }
            sums.loss += loss * share;
            weights.push(weight * share);
        }
        sums.weights.push(weights);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advantages_are_within_the_group() {
        let rewards = [1.0, 0.0, 0.0, 1.0, 5.0, 5.0, 5.0, 5.0];
        let a = advantages(&rewards, 4, ScaleRewards::Group);
        // The standard deviation of 1, 0, 0, 1 is √(1/3).
        let want = 0.5 / ((1.0f64 / 3.0).sqrt() + EPS);
        assert!((a[0] - want).abs() < 1e-12 && (a[1] + want).abs() < 1e-12);
        assert_eq!(a[4..], [0.0; 4]);
        assert_eq!(advantages(&rewards, 4, ScaleRewards::None)[..2], [0.5, -0.5]);
        let all = advantages(&rewards, 4, ScaleRewards::Batch);
        assert!((all[0] - 0.5 / (spread(&rewards).1 + EPS)).abs() < 1e-12);
    }
}
