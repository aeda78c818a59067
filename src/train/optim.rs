//! Which optimizers there are, and what others call them.

use crate::error::{Error, Result};
use crate::model::optimizer::Rule;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// The optimizer, under the names of transformers' `optim`. Paged ones keep their state in host memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub enum Optim {
    /// AdamW with f32 state.
    #[default]
    #[serde(rename = "adamw")]
    AdamW,
    /// AdamW with the moments in 8 bits, in bitsandbytes' dynamic type by blocks of 256; the rest as [`Optim::AdamW`].
    #[serde(rename = "adamw_8bit")]
    AdamW8bit,
    /// Lion (<https://arxiv.org/abs/2302.06675>): one moment, steps of one size.
    #[serde(rename = "lion")]
    Lion,
    /// SGD, with momentum where the recipe has `momentum`.
    #[serde(rename = "sgd")]
    Sgd,
    /// [`Optim::AdamW`], paged.
    #[serde(rename = "paged_adamw")]
    PagedAdamW,
    /// [`Optim::AdamW8bit`], paged.
    #[serde(rename = "paged_adamw_8bit")]
    PagedAdamW8bit,
    /// [`Optim::Lion`], paged.
    #[serde(rename = "paged_lion")]
    PagedLion,
    /// Lion with its moment in 8 bits, as those of [`Optim::AdamW8bit`].
    #[serde(rename = "lion_8bit")]
    Lion8bit,
    /// [`Optim::Lion8bit`], paged.
    #[serde(rename = "paged_lion_8bit")]
    PagedLion8bit,
}

impl Optim {
    /// The update rule.
    #[must_use]
    pub fn rule(self) -> Rule {
        match self {
            Self::AdamW | Self::PagedAdamW => Rule::AdamW,
            Self::AdamW8bit | Self::PagedAdamW8bit => Rule::AdamW8bit,
            Self::Lion | Self::PagedLion => Rule::Lion,
            Self::Lion8bit | Self::PagedLion8bit => Rule::Lion8bit,
            Self::Sgd => Rule::Sgd,
        }
    }

    /// True where the state is in host memory.
    #[must_use]
    pub fn paged(self) -> bool {
        matches!(self, Self::PagedAdamW | Self::PagedAdamW8bit | Self::PagedLion | Self::PagedLion8bit)
    }

    /// Decay rates of the moments where the recipe has none: those of `torch.optim.AdamW` and of bitsandbytes' Lion.
    #[must_use]
    pub fn betas(self) -> (f64, f64) {
        match self.rule() {
            Rule::AdamW | Rule::AdamW8bit => (0.9, 0.999),
            Rule::Lion | Rule::Lion8bit => (0.9, 0.99),
            Rule::Sgd => (0.0, 0.0),
        }
    }
}

impl FromStr for Optim {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "adamw" | "adamw_torch" | "adamw_torch_fused" | "adamw_hf" => Ok(Self::AdamW),
            "adamw_8bit" | "adamw_bnb_8bit" => Ok(Self::AdamW8bit),
            "lion" | "lion_32bit" => Ok(Self::Lion),
            "sgd" => Ok(Self::Sgd),
            "paged_adamw" | "paged_adamw_32bit" => Ok(Self::PagedAdamW),
            "paged_adamw_8bit" => Ok(Self::PagedAdamW8bit),
            "paged_lion" | "paged_lion_32bit" => Ok(Self::PagedLion),
            "lion_8bit" => Ok(Self::Lion8bit),
            "paged_lion_8bit" => Ok(Self::PagedLion8bit),
            other => Err(Error::unsupported(format!(
                "optim '{other}'; there are adamw (f32 state), adamw_8bit, lion, lion_8bit, sgd, and paged_adamw, \
                 paged_adamw_8bit, paged_lion, paged_lion_8bit (state in host memory)"
            ))),
        }
    }
}

impl TryFrom<String> for Optim {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_optimizers_say_which_exist() {
        let error = "adafactor".parse::<Optim>().map_err(|e| e.to_string()).err().unwrap_or_default();
        assert!(
            error.starts_with("unsupported: optim 'adafactor'; there are adamw (f32 state), adamw_8bit, lion"),
            "{error}"
        );
        assert_eq!("adamw_bnb_8bit".parse::<Optim>().ok(), Some(Optim::AdamW8bit));
    }
}
