//! Everything that decides a run, as plain data: what `runtime train` takes, and what a checkpoint keeps. The file is long because
//! it is one list of fields with what each accepts.

use super::files::{DataFile, one_or_many};
use super::optim::Optim;
use super::optimizer::OptimizerOptions;
use super::preference::Preference;
use super::schedule::{LrCurve, Schedule};
use crate::collective::CollectiveChoice;
use crate::error::{Error, Result};
use crate::model::lora::Projection;
use crate::model::optimizer::Rule;
use crate::tensor::DType;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
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

/// What becomes of malformed rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BadRows {
    /// The run does not start; the message names the first, and says how many there are.
    #[default]
    Error,
    /// They are left out, counted and reported.
    Skip,
}

impl FromStr for BadRows {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "error" => Ok(Self::Error),
            "skip" => Ok(Self::Skip),
            other => Err(Error::invalid(format!("unknown bad_rows '{other}': use error or skip"))),
        }
    }
}

/// What weights can be quantised to while a model is loaded; NF4 is bitsandbytes' `load_in_4bit`.
pub const WEIGHT_TYPES: [DType; 6] = [DType::NF4, DType::Q4_0, DType::Q4_K, DType::Q5_0, DType::Q6_K, DType::Q8_0];

/// One of [`WEIGHT_TYPES`] by its name.
///
/// # Errors
/// [`Error::Invalid`] listing them.
pub fn weight_type(text: &str) -> Result<DType> {
    let found = WEIGHT_TYPES.into_iter().find(|t| t.name().eq_ignore_ascii_case(text));
    found.ok_or_else(|| {
        let names = WEIGHT_TYPES.map(DType::name).join(", ");
        Error::invalid(format!("weights are not quantised to '{text}': use {names}"))
    })
}

fn write_type<S: Serializer>(dtype: &Option<DType>, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    dtype.map(DType::name).serialize(serializer)
}

fn read_type<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<DType>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| weight_type(&text).map_err(serde::de::Error::custom)).transpose()
}

/// Rank where neither the recipe nor an initial adapter says.
pub const DEFAULT_RANK: usize = 16;
/// Alpha where neither the recipe nor an initial adapter says.
pub const DEFAULT_ALPHA: f64 = 16.0;
/// Passes over the data where neither `max_steps` nor `epochs` is given (transformers' default).
pub const DEFAULT_EPOCHS: f64 = 3.0;

/// Seconds that a process waits for the others (transformers' `ddp_timeout`).
pub const DEFAULT_DDP_TIMEOUT: u64 = 1800;

/// A fine-tuning run. Field names are the command line's options.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// The model, for whoever opens it: a file, a folder or a repository.
    pub model: Option<String>,
    /// Type that the layers' matrices of a model in 16 bits are quantised to, for whoever opens it; see [`WEIGHT_TYPES`].
    #[serde(serialize_with = "write_type", deserialize_with = "read_type")]
    pub weight_type: Option<DType>,
    /// Files of training rows (JSON Lines, JSON, Parquet).
    #[serde(deserialize_with = "one_or_many")]
    pub data: Vec<DataFile>,
    /// What becomes of rows that cannot be read.
    pub bad_rows: BadRows,
    /// Folder for the adapter, or the model, and the checkpoints.
    pub output: PathBuf,
    /// LoRA rank; `None`: the initial adapter's, else [`DEFAULT_RANK`].
    pub rank: Option<usize>,
    /// LoRA alpha: the product is scaled by alpha / rank; `None`: the initial adapter's, else [`DEFAULT_ALPHA`].
    pub alpha: Option<f64>,
    /// Scale by alpha / √rank instead (<https://arxiv.org/abs/2312.03732>); `None`: as the initial adapter, else not.
    pub use_rslora: Option<bool>,
    /// DoRA (<https://arxiv.org/abs/2402.09353>): the rows of a weight have lengths that are learned; `None`: as the initial
    /// adapter, else not.
    pub use_dora: Option<bool>,
    /// Dropout on the adapters' input.
    pub dropout: f32,
    /// Projections that get an adapter (`q_proj`, …, or `all-linear`); empty: the initial adapter's, else all seven.
    #[serde(deserialize_with = "one_or_many")]
    pub target_modules: Vec<String>,
    /// Train every weight of the model instead of adapters; what comes out is a model.
    pub full_finetuning: bool,
    /// Modules that are trained whole beside the adapters, by the ends of their paths: `embed_tokens`, `lm_head`, `norm`, ….
    #[serde(deserialize_with = "one_or_many")]
    pub modules_to_save: Vec<String>,
    /// LoRA+ (<https://arxiv.org/abs/2402.12354>): B's learning rate is so many times A's.
    pub loraplus_lr_ratio: Option<f64>,
    /// NEFTune's α: noise on the embeddings while training.
    pub neftune_noise_alpha: Option<f64>,
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
    /// The same as a share of all steps; takes the place of `warmup_steps`.
    pub warmup_ratio: Option<f64>,
    /// Optimizer steps; excludes `epochs`.
    pub max_steps: Option<usize>,
    /// Passes over the data; excludes `max_steps`. Neither: [`DEFAULT_EPOCHS`].
    pub epochs: Option<f64>,
    /// Decoupled weight decay (of SGD: added to the gradient).
    pub weight_decay: f64,
    /// Norm to which the gradient is clipped; 0: not at all.
    pub max_grad_norm: f64,
    /// Learning rate after the warm-up.
    pub schedule: Schedule,
    /// Waves of the cosine schedules; `None`: half a wave, one restart.
    pub num_cycles: Option<f64>,
    /// Exponent of the polynomial schedule.
    pub power: f64,
    /// Where the polynomial schedule ends.
    pub lr_end: f64,
    /// Optimizer.
    pub optim: Optim,
    /// Decay rate of the first moment; `None`: the optimizer's own, see [`Optim::betas`].
    pub adam_beta1: Option<f64>,
    /// Decay rate of the second moment.
    pub adam_beta2: Option<f64>,
    /// AdamW's ε.
    pub adam_epsilon: f64,
    /// SGD's momentum.
    pub momentum: f64,
    /// Decides the initial adapter, the order of rows, the dropout masks and the noise.
    pub seed: u64,
    /// Which tokens count.
    pub loss: LossOn,
    /// What share of a label's weight is spread over the vocabulary.
    pub label_smoothing: f32,
    /// Put several rows into one bin of `max_length` tokens; they do not see each other.
    pub packing: bool,
    /// Compute activations again in the backward pass instead of keeping them.
    pub recompute: bool,
    /// Keep what is not computed again, the layers' inputs, in host memory until the backward pass (TRL's name; with
    /// `use_gradient_checkpointing = "unsloth"`, too). Needs `recompute`.
    pub activation_offloading: bool,
    /// A new order of rows in each epoch; else file order.
    pub shuffle: bool,
    /// Adapter to start from (PEFT's format).
    pub init_adapter: Option<PathBuf>,
    /// Checkpoint to go on from, or an output folder that holds some (the latest is taken); `auto`: the latest in `output`,
    /// or from the start where there is none.
    pub resume: Option<PathBuf>,
    /// JSONL file that gets a line for each step.
    pub log: Option<PathBuf>,
    /// Folder for TensorBoard's event files.
    pub tensorboard: Option<PathBuf>,
    /// SVG file of the loss curves, written after evaluations, every few seconds, and at the end.
    pub plot: Option<PathBuf>,
    /// Write a checkpoint every so many steps, besides the one at the end.
    pub save_steps: Option<usize>,
    /// Keep so many checkpoints, the best and the latest among them.
    pub save_total_limit: Option<usize>,
    /// Files of rows whose loss is measured on the way.
    #[serde(deserialize_with = "one_or_many")]
    pub eval_data: Vec<DataFile>,
    /// Measure it every so many steps; `None`: after each epoch. Always at the end.
    pub eval_steps: Option<usize>,
    /// End the run after so many evaluations without a better loss.
    pub early_stopping_patience: Option<usize>,
    /// How much lower a loss must be to be better, for early stopping.
    pub early_stopping_threshold: f64,
    /// The adapter at the end is that of the best evaluation.
    pub load_best_model_at_end: bool,
    /// Prompts that the model answers on the way.
    #[serde(deserialize_with = "one_or_many")]
    pub sample_prompts: Vec<String>,
    /// Answer them every so many steps.
    pub sample_steps: Option<usize>,
    /// Most tokens of such an answer.
    pub sample_tokens: usize,
    /// In a run of several processes: what sums their gradients.
    pub ddp_backend: CollectiveChoice,
    /// In a run of several processes: seconds that one may keep the others waiting.
    pub ddp_timeout: u64,
    /// Train on pairs of answers instead of single ones.
    pub preference: Option<Preference>,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            model: None,
            weight_type: None,
            data: Vec::new(),
            bad_rows: BadRows::Error,
            output: PathBuf::new(),
            rank: None,
            alpha: None,
            use_rslora: None,
            use_dora: None,
            dropout: 0.0,
            target_modules: Vec::new(),
            full_finetuning: false,
            modules_to_save: Vec::new(),
            loraplus_lr_ratio: None,
            neftune_noise_alpha: None,
            batch_size: 2,
            grad_accum: 4,
            max_length: 1024,
            lr: 2e-4,
            warmup_steps: 5,
            warmup_ratio: None,
            max_steps: None,
            epochs: None,
            weight_decay: 0.01,
            max_grad_norm: 1.0,
            schedule: Schedule::Linear,
            num_cycles: None,
            power: 1.0,
            lr_end: 1e-7,
            optim: Optim::AdamW,
            adam_beta1: None,
            adam_beta2: None,
            adam_epsilon: 1e-8,
            momentum: 0.0,
            seed: 3407,
            loss: LossOn::Assistant,
            label_smoothing: 0.0,
            packing: false,
            recompute: false,
            activation_offloading: false,
            shuffle: true,
            init_adapter: None,
            resume: None,
            log: None,
            tensorboard: None,
            plot: None,
            save_steps: None,
            save_total_limit: None,
            eval_data: Vec::new(),
            eval_steps: None,
            early_stopping_patience: None,
            early_stopping_threshold: 0.0,
            load_best_model_at_end: false,
            sample_prompts: Vec::new(),
            sample_steps: None,
            sample_tokens: 64,
            preference: None,
            ddp_backend: CollectiveChoice::Auto,
            ddp_timeout: DEFAULT_DDP_TIMEOUT,
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
        for file in self.data.iter().chain(&self.eval_data) {
            must(
                positive(file.weight),
                &format!("weight of {}", file.path.display()),
                &file.weight,
                "a number above 0",
            )?;
        }
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
        let counts = [
            ("save_steps", self.save_steps),
            ("save_total_limit", self.save_total_limit),
            ("eval_steps", self.eval_steps),
            ("early_stopping_patience", self.early_stopping_patience),
            ("sample_steps", self.sample_steps),
        ];
        for (field, count) in counts {
            if let Some(count) = count {
                must(count >= 1, field, &count, "at least 1")?;
            }
        }
        let shares = [
            ("warmup_ratio", self.warmup_ratio),
            ("adam_beta1", self.adam_beta1),
            ("adam_beta2", self.adam_beta2),
            ("momentum", Some(self.momentum)),
            ("label_smoothing", Some(f64::from(self.label_smoothing))),
        ];
        for (field, share) in shares {
            if let Some(share) = share {
                must((0.0..1.0).contains(&share), field, &share, "0 or more and less than 1")?;
            }
        }
        if let Some(ratio) = self.loraplus_lr_ratio {
            must(positive(ratio), "loraplus_lr_ratio", &ratio, "a number above 0")?;
        }
        if let Some(alpha) = self.neftune_noise_alpha {
            must(not_negative(alpha), "neftune_noise_alpha", &alpha, "a number of 0 or more")?;
        }
        if let Some(cycles) = self.num_cycles {
            must(positive(cycles), "num_cycles", &cycles, "a number above 0")?;
        }
        must(positive(self.power), "power", &self.power, "a number above 0")?;
        must(positive(self.adam_epsilon), "adam_epsilon", &self.adam_epsilon, "a number above 0")?;
        must(not_negative(self.lr_end), "lr_end", &self.lr_end, "a number of 0 or more")?;
        if self.schedule == Schedule::Polynomial {
            must(self.lr_end < self.lr, "lr_end", &self.lr_end, "less than lr")?;
        }
        must(
            not_negative(self.early_stopping_threshold),
            "early_stopping_threshold",
            &self.early_stopping_threshold,
            "a number of 0 or more",
        )?;
        if self.momentum > 0.0 && self.optim.rule() != Rule::Sgd {
            return Err(Error::invalid("momentum is SGD's: use adam_beta1 with the other optimizers"));
        }
        let evaluates = !self.eval_data.is_empty();
        let wants = [
            ("early_stopping_patience", self.early_stopping_patience.is_some()),
            ("load_best_model_at_end", self.load_best_model_at_end),
            ("eval_steps", self.eval_steps.is_some()),
        ];
        if let Some((field, _)) = wants.into_iter().find(|(_, set)| *set && !evaluates) {
            return Err(Error::invalid(format!("{field} needs eval_data, which is empty")));
        }
        if self.sample_steps.is_some() == self.sample_prompts.is_empty() {
            return Err(Error::invalid("sample_steps and sample_prompts go together: give both or neither"));
        }
        if self.activation_offloading && !self.recompute {
            return Err(Error::invalid("activation_offloading needs recompute: without it all activations are kept"));
        }
        must(self.ddp_timeout >= 1, "ddp_timeout", &self.ddp_timeout, "at least 1 second")?;
        if let Some(preference) = &self.preference {
            preference.validate()?;
            must(!self.packing, "packing", &self.packing, "false with pairs of answers")?;
            let smoothing = self.label_smoothing;
            must(
                smoothing == 0.0,
                "label_smoothing",
                &smoothing,
                "0 with pairs of answers: theirs is preference.label_smoothing",
            )?;
            must(self.loss == LossOn::Assistant, "loss", &"all", "assistant with pairs of answers")?;
        }
        self.check_whole()?;
        self.projections().map(drop)
    }

    /// What cannot go with weights that are trained whole.
    fn check_whole(&self) -> Result<()> {
        let adapters = [
            ("rank", self.rank.is_some()),
            ("alpha", self.alpha.is_some()),
            ("use_rslora", self.use_rslora == Some(true)),
            ("dropout", self.dropout > 0.0),
            ("target_modules", !self.target_modules.is_empty()),
            ("modules_to_save", !self.modules_to_save.is_empty()),
            ("loraplus_lr_ratio", self.loraplus_lr_ratio.is_some()),
            ("init_adapter", self.init_adapter.is_some()),
        ];
        if let Some((field, _)) = adapters.into_iter().find(|(_, set)| *set && self.full_finetuning) {
            return Err(Error::invalid(format!(
                "{field} is set, and full_finetuning trains every weight without adapters: leave one of the two out"
            )));
        }
        let whole = if self.full_finetuning { "full_finetuning" } else { "modules_to_save" };
        if self.sample_steps.is_some() && (self.full_finetuning || !self.modules_to_save.is_empty()) {
            return Err(Error::unsupported(format!(
                "sample_prompts with {whole}: answers on the way come from an engine that adds low-rank adapters to the \
                 model as it was loaded"
            )));
        }
        Ok(())
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

    /// The learning rate of a run of `total_steps`.
    #[must_use]
    pub fn curve(&self, total_steps: usize) -> LrCurve {
        let warmup_steps = match self.warmup_ratio {
            Some(ratio) => (ratio * total_steps as f64).ceil() as usize,
            None => self.warmup_steps,
        };
        let Self { schedule, lr, num_cycles, power, lr_end, .. } = *self;
        LrCurve { schedule, lr, warmup_steps, total_steps, num_cycles, power, lr_end }
    }

    /// The optimizer with its numbers.
    #[must_use]
    pub fn optimizer(&self) -> OptimizerOptions {
        let (beta1, beta2) = self.optim.betas();
        let beta1 = if self.optim.rule() == Rule::Sgd { self.momentum } else { self.adam_beta1.unwrap_or(beta1) };
        OptimizerOptions {
            optim: self.optim,
            betas: (beta1, self.adam_beta2.unwrap_or(beta2)),
            epsilon: self.adam_epsilon,
            b_lr_ratio: self.loraplus_lr_ratio,
        }
    }

    /// The first field in which a checkpoint's recipe would make this run's numbers differ, with both values.
    /// Length of the run, paths, what is only watched, and recomputation may change on the way; rank, alpha, target
    /// and saved modules are compared with the checkpoint's adapter.
    pub(super) fn conflict(&self, saved: &Self) -> Option<String> {
        const FREE: [&str; 30] = [
            "bad_rows",
            "model",
            "output",
            "rank",
            "alpha",
            "use_rslora",
            "use_dora",
            "target_modules",
            "modules_to_save",
            "max_steps",
            "epochs",
            "recompute",
            "activation_offloading",
            "init_adapter",
            "resume",
            "log",
            "tensorboard",
            "plot",
            "save_steps",
            "save_total_limit",
            "eval_data",
            "eval_steps",
            "early_stopping_patience",
            "early_stopping_threshold",
            "load_best_model_at_end",
            "sample_prompts",
            "sample_steps",
            "sample_tokens",
            "ddp_backend",
            "ddp_timeout",
        ];
        // Files may have moved; how often their rows come may not change.
        let weights = |recipe: &Self| {
            recipe.data.iter().map(|file| DataFile { path: PathBuf::new(), weight: file.weight }).collect()
        };
        let plain = |recipe: &Self| serde_json::to_value(Self { data: weights(recipe), ..recipe.clone() }).ok();
        let (mine, theirs) = (plain(self)?, plain(saved)?);
        let differs = |(field, value): &(&String, &serde_json::Value)| {
            !FREE.contains(&field.as_str()) && theirs[field.as_str()] != **value
        };
        let (field, value) = mine.as_object()?.iter().find(differs)?;
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
        refused(|r| r.early_stopping_patience = Some(2), "early_stopping_patience needs eval_data");
        refused(|r| r.sample_steps = Some(2), "sample_steps and sample_prompts go together");
        refused(|r| r.momentum = 0.9, "momentum is SGD's");
        refused(|r| r.label_smoothing = 1.0, "label_smoothing is 1");
    }

    #[test]
    fn what_changes_the_numbers_conflicts() {
        let saved = Recipe { rank: Some(8), max_steps: Some(6), ..Recipe::default() };
        assert_eq!(Recipe { max_steps: Some(12), ..Recipe::default() }.conflict(&saved), None);
        let file = |path: &str, weight: f64| vec![DataFile { path: path.into(), weight }];
        let moved = Recipe { data: file("a", 2.0), ..saved.clone() };
        assert_eq!(moved.conflict(&Recipe { data: file("b", 2.0), ..saved.clone() }), None);
        assert!(moved.conflict(&Recipe { data: file("a", 1.0), ..saved.clone() }).is_some());
        let other = Recipe { lr: 1e-3, ..saved.clone() };
        assert_eq!(other.conflict(&saved).as_deref(), Some("lr is 0.001, the checkpoint was made with 0.0002"));
    }
}
