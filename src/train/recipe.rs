//! Everything that decides a run, as plain data: what `runtime train` takes, and what a checkpoint keeps.

use super::preference::Preference;
use super::schedule::Schedule;
use crate::error::{Error, Result};
use crate::model::lora::Projection;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::str::FromStr;

/// Which tokens the loss counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossOn {
    /// What the model itself has to say: assistant turns, or the completion.
    #[default]
    Assistant,
    /// Every token but a row's first.
    All,
}

impl FromStr for LossOn {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "assistant" => Ok(Self::Assistant),
            "all" => Ok(Self::All),
            other => Err(Error::invalid(format!("unknown loss '{other}': use assistant or all"))),
        }
    }
}

/// The optimizer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optim {
    /// AdamW with f32 state; betas 0.9 and 0.999, ε 1e-8.
    #[default]
    AdamW,
    /// AdamW with the moments in 8 bits, in bitsandbytes' dynamic type by blocks of 256; the rest as [`Optim::AdamW`].
    #[serde(rename = "adamw_8bit")]
    AdamW8bit,
}

impl FromStr for Optim {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "adamw" | "adamw_torch" => Ok(Self::AdamW),
            "adamw_8bit" | "adamw_bnb_8bit" => Ok(Self::AdamW8bit),
            other => Err(Error::unsupported(format!("optim '{other}'; there are adamw (f32 state) and adamw_8bit"))),
        }
    }
}

/// Rank where neither the recipe nor an initial adapter says.
pub const DEFAULT_RANK: usize = 16;
/// Alpha where neither the recipe nor an initial adapter says.
pub const DEFAULT_ALPHA: f64 = 16.0;
/// Passes over the data where neither `max_steps` nor `epochs` is given (transformers' default).
pub const DEFAULT_EPOCHS: f64 = 3.0;

/// A fine-tuning run. Field names are the command line's options.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// JSONL file, one training row a line.
    pub data: PathBuf,
    /// Folder for the adapter and the checkpoints.
    pub output: PathBuf,
    /// LoRA rank; `None`: the initial adapter's, else [`DEFAULT_RANK`].
    pub rank: Option<usize>,
    /// LoRA alpha: the product is scaled by alpha / rank; `None`: the initial adapter's, else [`DEFAULT_ALPHA`].
    pub alpha: Option<f64>,
    /// Dropout on the adapters' input.
    pub dropout: f32,
    /// Projections that get an adapter (`q_proj`, …, or `all-linear`); empty: the initial adapter's, else all seven.
    pub target_modules: Vec<String>,
    /// Rows (bins when packing) of a micro-batch.
    pub batch_size: usize,
    /// Micro-batches of an optimizer step.
    pub grad_accum: usize,
    /// Tokens after which a row is cut; with packing also the size of a bin.
    pub max_length: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Steps over which the rate rises from 0.
    pub warmup_steps: usize,
    /// Optimizer steps; excludes `epochs`.
    pub max_steps: Option<usize>,
    /// Passes over the data; excludes `max_steps`. Neither: [`DEFAULT_EPOCHS`].
    pub epochs: Option<f64>,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Norm to which the gradient is clipped; 0: not at all.
    pub max_grad_norm: f64,
    /// Learning rate after the warm-up.
    pub schedule: Schedule,
    /// Optimizer.
    pub optim: Optim,
    /// Decides the initial adapter, the order of rows and the dropout masks.
    pub seed: u64,
    /// Which tokens count.
    pub loss: LossOn,
    /// Put several rows into one bin of `max_length` tokens; they do not see each other.
    pub packing: bool,
    /// Compute activations again in the backward pass instead of keeping them.
    pub recompute: bool,
    /// A new order of rows in each epoch; else file order.
    pub shuffle: bool,
    /// Adapter to start from (PEFT's format).
    pub init_adapter: Option<PathBuf>,
    /// Checkpoint to go on from, or an output folder that holds some (the latest is taken).
    pub resume: Option<PathBuf>,
    /// JSONL file that gets a line for each step.
    pub log: Option<PathBuf>,
    /// Write a checkpoint every so many steps, besides the one at the end.
    pub save_steps: Option<usize>,
    /// Train on pairs of answers instead of single ones.
    pub preference: Option<Preference>,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            data: PathBuf::new(),
            output: PathBuf::new(),
            rank: None,
            alpha: None,
            dropout: 0.0,
            target_modules: Vec::new(),
            batch_size: 2,
            grad_accum: 4,
            max_length: 1024,
            lr: 2e-4,
            warmup_steps: 5,
            max_steps: None,
            epochs: None,
            weight_decay: 0.01,
            max_grad_norm: 1.0,
            schedule: Schedule::Linear,
            optim: Optim::AdamW,
            seed: 3407,
            loss: LossOn::Assistant,
            packing: false,
            recompute: false,
            shuffle: true,
            init_adapter: None,
            resume: None,
            log: None,
            save_steps: None,
            preference: None,
        }
    }
}

impl Recipe {
    /// Checks every value on its own; what depends on model or data is checked when a job is made.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the field, its value and what is accepted.
    pub fn validate(&self) -> Result<()> {
        let must = |ok: bool, field: &str, value: &dyn std::fmt::Display, accepted: &str| {
            if ok { Ok(()) } else { Err(Error::invalid(format!("{field} is {value}, expected {accepted}"))) }
        };
        let not_negative = |x: f64| x.is_finite() && x >= 0.0;
        let positive = |x: f64| x.is_finite() && x > 0.0;
        if let Some(rank) = self.rank {
            must((1..=1024).contains(&rank), "rank", &rank, "1 to 1024")?;
        }
        if let Some(alpha) = self.alpha {
            must(positive(alpha), "alpha", &alpha, "a number above 0")?;
        }
        must((0.0..1.0).contains(&self.dropout), "dropout", &self.dropout, "0 or more and less than 1")?;
        must(self.batch_size >= 1, "batch_size", &self.batch_size, "at least 1")?;
        must(self.grad_accum >= 1, "grad_accum", &self.grad_accum, "at least 1")?;
        must(self.max_length >= 2, "max_length", &self.max_length, "at least 2 (a token and the one before it)")?;
        must(not_negative(self.lr), "lr", &self.lr, "a number of 0 or more")?;
        must(not_negative(self.weight_decay), "weight_decay", &self.weight_decay, "a number of 0 or more")?;
        must(not_negative(self.max_grad_norm), "max_grad_norm", &self.max_grad_norm, "a number of 0 (off) or more")?;
        if let Some(steps) = self.max_steps {
            must(steps >= 1, "max_steps", &steps, "at least 1")?;
        }
        if let Some(epochs) = self.epochs {
            must(positive(epochs), "epochs", &epochs, "a number above 0")?;
            if let Some(steps) = self.max_steps {
                return Err(Error::invalid(format!(
                    "max_steps is {steps} and epochs is {epochs}: give one of the two"
                )));
            }
        }
        if let Some(steps) = self.save_steps {
            must(steps >= 1, "save_steps", &steps, "at least 1")?;
        }
        if let Some(preference) = &self.preference {
            preference.validate()?;
            must(!self.packing, "packing", &self.packing, "false with pairs of answers")?;
            must(self.loss == LossOn::Assistant, "loss", &"all", "assistant with pairs of answers")?;
        }
        self.projections().map(drop)
    }

    /// The target modules, in the order of the forward pass; `None` where the recipe leaves them open.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an unknown name, listing the known ones.
    pub fn projections(&self) -> Result<Option<Vec<Projection>>> {
        if self.target_modules.is_empty() {
            return Ok(None);
        }
        if self.target_modules == ["all-linear"] {
            return Ok(Some(Projection::ALL.to_vec()));
        }
        let named = self.target_modules.iter().map(|name| Projection::parse(name)).collect::<Result<Vec<_>>>()?;
        Ok(Some(Projection::ALL.into_iter().filter(|p| named.contains(p)).collect()))
    }

    /// The first field in which a checkpoint's recipe would make this run's numbers differ, with both values.
    /// Length of the run, paths and recomputation may change on the way; rank, alpha and target modules are
    /// compared with the checkpoint's adapter.
    pub(super) fn conflict(&self, saved: &Self) -> Option<String> {
        let adopted = Self {
            data: self.data.clone(),
            output: self.output.clone(),
            rank: self.rank,
            alpha: self.alpha,
            target_modules: self.target_modules.clone(),
            max_steps: self.max_steps,
            epochs: self.epochs,
            recompute: self.recompute,
            init_adapter: self.init_adapter.clone(),
            resume: self.resume.clone(),
            log: self.log.clone(),
            save_steps: self.save_steps,
            ..saved.clone()
        };
        let (mine, theirs) = (serde_json::to_value(self).ok()?, serde_json::to_value(adopted).ok()?);
        let (field, value) = mine.as_object()?.iter().find(|(field, value)| theirs[field.as_str()] != **value)?;
        Some(format!("{field} is {value}, the checkpoint was made with {}", theirs[field.as_str()]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut Recipe), part: &str) {
        let mut recipe = Recipe::default();
        change(&mut recipe);
        let message = recipe.validate().map_err(|e| e.to_string()).err().unwrap_or_default();
        assert!(message.contains(part), "'{message}' does not contain '{part}'");
    }

    #[test]
    fn wrong_values_are_named() {
        assert!(Recipe::default().validate().is_ok());
        refused(|r| r.rank = Some(0), "rank is 0, expected 1 to 1024");
        refused(|r| r.dropout = 1.0, "dropout is 1");
        refused(|r| r.lr = f64::NAN, "lr is NaN");
        refused(|r| r.batch_size = 0, "batch_size is 0");
        refused(|r| r.target_modules = vec!["w1".into()], "unknown target module 'w1'");
        refused(|r| (r.max_steps, r.epochs) = (Some(3), Some(1.0)), "give one of the two");
    }

    #[test]
    fn unknown_optimizers_say_which_exist() {
        let error = "lion".parse::<Optim>().map_err(|e| e.to_string());
        assert_eq!(error, Err("unsupported: optim 'lion'; there are adamw (f32 state) and adamw_8bit".into()));
        assert_eq!("adamw_bnb_8bit".parse::<Optim>().ok(), Some(Optim::AdamW8bit));
    }

    #[test]
    fn what_changes_the_numbers_conflicts() {
        let saved = Recipe { rank: Some(8), max_steps: Some(6), ..Recipe::default() };
        assert_eq!(Recipe { max_steps: Some(12), ..Recipe::default() }.conflict(&saved), None);
        let other = Recipe { lr: 1e-3, ..saved.clone() };
        assert_eq!(other.conflict(&saved).as_deref(), Some("lr is 0.001, the checkpoint was made with 0.0002"));
    }
}
