//! Preference tuning: DPO and its relatives, and ORPO, on pairs of a chosen and a rejected answer.
//!
//! Formulas and names are TRL's (`DPOTrainer`, `ORPOTrainer`). The model that is not trained is the same weights without the
//! adapter; what it says of a row is computed once and remembered, since the weights never change.

pub mod data;

use super::batch::MicroBatch;
use super::data::Row;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// Which loss a pair has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PreferenceLoss {
    /// DPO (<https://arxiv.org/abs/2305.18290>).
    #[default]
    Sigmoid,
    /// SLiC's hinge on DPO's margin (<https://arxiv.org/abs/2305.10425>).
    Hinge,
    /// IPO (<https://arxiv.org/abs/2310.12036>), on log-probabilities divided by the answers' lengths.
    Ipo,
    /// ORPO (<https://arxiv.org/abs/2403.07691>): odds ratio beside the likelihood of the chosen row, without a reference.
    Orpo,
}

impl FromStr for PreferenceLoss {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "dpo" | "sigmoid" => Ok(Self::Sigmoid),
            "hinge" => Ok(Self::Hinge),
            "ipo" => Ok(Self::Ipo),
            "orpo" => Ok(Self::Orpo),
            other => Err(Error::invalid(format!("unknown preference loss '{other}': use dpo, hinge, ipo or orpo"))),
        }
    }
}

/// TRL's default β.
pub const DEFAULT_BETA: f64 = 0.1;

/// What makes a run one of preference tuning.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Preference {
    /// Which loss.
    pub loss: PreferenceLoss,
    /// β: how near the model stays to the reference; in ORPO the odds ratio's weight (the paper's λ).
    pub beta: f64,
    /// Adds so many times the mean cross-entropy of the chosen answers (RPO, <https://arxiv.org/abs/2404.19733>); 0: nothing.
    pub rpo_alpha: f64,
    /// Conservative DPO (<https://ericmitchell.ai/cdpo.pdf>): the share of pairs that are taken to be the wrong way round; 0: none.
    pub label_smoothing: f64,
}

impl Default for Preference {
    fn default() -> Self {
        Self { loss: PreferenceLoss::Sigmoid, beta: DEFAULT_BETA, rpo_alpha: 0.0, label_smoothing: 0.0 }
    }
}

impl Preference {
    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the field, its value and what is accepted.
    pub fn validate(&self) -> Result<()> {
        let Self { loss, beta, rpo_alpha, label_smoothing } = *self;
        if !(beta.is_finite() && beta > 0.0) {
            return Err(Error::invalid(format!("beta is {beta}, expected a number above 0")));
        }
        if !(rpo_alpha.is_finite() && rpo_alpha >= 0.0) {
            return Err(Error::invalid(format!("rpo_alpha is {rpo_alpha}, expected a number of 0 or more")));
        }
        if !(0.0..0.5).contains(&label_smoothing) {
            let accepted = "0 or more and less than 0.5 with pairs of answers";
            return Err(Error::invalid(format!("label_smoothing is {label_smoothing}, expected {accepted}")));
        }
        if loss != PreferenceLoss::Sigmoid && label_smoothing > 0.0 {
            return Err(Error::invalid(format!(
                "label_smoothing is {label_smoothing}: of pairs of answers, it is dpo's alone"
            )));
        }
        if loss == PreferenceLoss::Orpo && rpo_alpha != 0.0 {
            return Err(Error::invalid("rpo_alpha with orpo, which has the likelihood of the chosen rows already"));
        }
        Ok(())
    }

    /// Whether the loss compares with the model that is not trained.
    pub fn needs_reference(&self) -> bool {
        self.loss != PreferenceLoss::Orpo
    }

    /// The likelihood's weight.
    pub(super) fn likelihood(&self) -> f64 {
        if self.loss == PreferenceLoss::Orpo { 1.0 } else { self.rpo_alpha }
    }

    /// The numbers that the device reads: which loss, β, ν, ε.
    pub(super) fn hyper(&self, nu: f64) -> [f32; 4] {
        let which = match self.loss {
            PreferenceLoss::Sigmoid => 0.0,
            PreferenceLoss::Hinge => 1.0,
            PreferenceLoss::Ipo => 2.0,
            PreferenceLoss::Orpo => 3.0,
        };
        [which, self.beta as f32, nu as f32, self.label_smoothing as f32]
    }
}

/// The training program's inputs for some pairs.
pub struct PairBatch {
    /// Rows one after another: chosen, rejected, chosen, …
    pub batch: MicroBatch,
    /// For each token, which sums its label counts in: bit 0 the answer's, bit 1 the likelihood's.
    pub kinds: Vec<u32>,
}

impl PairBatch {
    /// Lays out rows of whole pairs.
    pub fn new<'a>(rows: impl IntoIterator<Item = &'a Row>, preference: &Preference) -> Self {
        let (mut laid, mut kinds) = (Vec::new(), Vec::new());
        for (at, row) in rows.into_iter().enumerate() {
            let chosen = at % 2 == 0;
            let likely = |counted: bool| {
                chosen && (preference.loss == PreferenceLoss::Orpo || (preference.rpo_alpha > 0.0 && counted))
            };
            let kind = |counted: &bool| u32::from(*counted) | u32::from(likely(*counted)) << 1;
            // What a token's label is, the next token says; the last has none.
            kinds.extend(row.counted.iter().skip(1).map(kind).chain([0]).take(row.ids.len()));
            let counted = row.counted.iter().enumerate().map(|(i, c)| i > 0 && (*c || likely(*c))).collect();
            laid.push(Row { counted, ..row.clone() });
        }
        Self { batch: MicroBatch::new(&laid), kinds }
    }

    /// Tokens of the likelihood.
    pub fn likely(&self) -> usize {
        self.kinds.iter().filter(|kind| **kind & 2 != 0).count()
    }
}

/// What the pairs of a step came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PairReport {
    /// Mean over the chosen answers of β (log p − log p of the reference); of ORPO: of β log p a token.
    pub rewards_chosen: f64,
    /// The same of the rejected answers.
    pub rewards_rejected: f64,
    /// Share of the pairs whose chosen answer has the higher reward.
    pub accuracy: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_knows_which_tokens_count_where() {
        let row = |counted: [bool; 4]| Row { ids: vec![5, 6, 7, 8], counted: counted.to_vec(), line: 1 };
        let rows = [row([false, false, true, true]), row([false, false, false, true])];
        let dpo = PairBatch::new(&rows, &Preference::default());
        assert_eq!(dpo.kinds, [0, 1, 1, 0, 0, 0, 1, 0]);
        assert_eq!(dpo.batch.labels, [u32::MAX, 7, 8, u32::MAX, u32::MAX, u32::MAX, 8, u32::MAX]);
        let orpo = PairBatch::new(&rows, &Preference { loss: PreferenceLoss::Orpo, ..Preference::default() });
        assert_eq!(orpo.kinds, [2, 3, 3, 0, 0, 0, 1, 0]);
        assert_eq!(orpo.batch.labels, [6, 7, 8, u32::MAX, u32::MAX, u32::MAX, 8, u32::MAX]);
        assert_eq!(orpo.likely(), 3);
    }

    #[test]
    fn wrong_values_are_named() {
        let error = |p: Preference| p.validate().map_err(|e| e.to_string()).err().unwrap_or_default();
        assert!(error(Preference { beta: 0.0, ..Preference::default() }).contains("beta is 0"));
        assert!(error(Preference { rpo_alpha: -1.0, ..Preference::default() }).contains("rpo_alpha is -1"));
        assert!(error(Preference { label_smoothing: 0.7, ..Preference::default() }).contains("label_smoothing is 0.7"));
        assert!(
            error(Preference { loss: PreferenceLoss::Orpo, rpo_alpha: 1.0, ..Preference::default() }).contains("orpo")
        );
    }
}
