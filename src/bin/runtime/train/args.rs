//! Options of `runtime train`. Each is a field of the recipe; names of Unsloth, TRL and PEFT are understood, too.

use crate::common::{DeviceArgs, WeightArgs, parse_bool};
use crate::preference::PreferenceArgs;
use runtime::collective::CollectiveChoice;
use runtime::train::{BadRows, DataFile, LossOn, Optim, Recipe, Schedule, recipe_file};
use runtime::{Error, Result};
use serde::Serialize;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// Recipe (.toml, .yaml, .json) that holds any of these options under their names; options here go before it
    #[arg(long, value_name = "FILE", alias = "config")]
    recipe: Option<PathBuf>,
    /// Print the recipe that would run, as TOML, and end
    #[arg(long)]
    pub print_recipe: bool,
    #[command(flatten)]
    pub weights: WeightArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    fields: Fields,
    #[command(flatten)]
    preference: PreferenceArgs,
}

#[derive(clap::Args, Serialize)]
struct Fields {
    /// A .gguf file, a Hugging Face folder, or the name of a pulled repository
    #[arg(short, long, value_name = "MODEL", aliases = ["model-name", "model_name", "model_name_or_path"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// JSON Lines, JSON or Parquet; rows are {"messages": […]}, {"conversations": […]}, {"instruction": …, "output": …},
    /// {"prompt": …, "completion": …} or {"text": …}. Several times: several files; FILE=0.5 uses half of the rows an epoch
    #[arg(long, value_name = "FILE[=WEIGHT]", alias = "dataset", value_parser = parse_data)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    data: Vec<DataFile>,
    /// Rows that cannot be read: end with an error (the default), or leave them out
    #[arg(long, value_name = "error|skip", alias = "bad_rows")]
    #[serde(skip_serializing_if = "Option::is_none")]
    bad_rows: Option<BadRows>,
    /// Folder for the adapter (PEFT's format) or the model, and checkpoints
    #[arg(short, long, value_name = "DIR", aliases = ["output-dir", "output_dir"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<PathBuf>,
    /// Rank of the adapter [default: 16, or the initial adapter's]
    #[arg(long, value_name = "R", aliases = ["r", "lora-r", "lora_r"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    rank: Option<usize>,
    /// The adapter's product is scaled by alpha / rank [default: 16, or the initial adapter's]
    #[arg(long, value_name = "ALPHA", aliases = ["lora-alpha", "lora_alpha"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    alpha: Option<f64>,
    /// rsLoRA: scale by alpha / √rank
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true", value_parser = parse_bool, alias = "use_rslora")]
    #[serde(skip_serializing_if = "Option::is_none")]
    use_rslora: Option<bool>,
    /// DoRA: learn the lengths of the weights' rows besides
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true", value_parser = parse_bool, alias = "use_dora")]
    #[serde(skip_serializing_if = "Option::is_none")]
    use_dora: Option<bool>,
    /// Dropout on the adapter's input [default: 0]
    #[arg(long, value_name = "P", aliases = ["lora-dropout", "lora_dropout"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    dropout: Option<f32>,
    /// Projections that get an adapter, for example q_proj,v_proj [default: all seven]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', alias = "target_modules")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    target_modules: Vec<String>,
    /// Train every weight of the model instead of adapters: writes a model. Weights must be in 16 or 32 bits
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true", value_parser = parse_bool, aliases = ["full_finetuning", "full-finetune"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    full_finetuning: Option<bool>,
    /// Modules that are trained whole beside the adapter, for example embed_tokens,lm_head
    #[arg(long, value_name = "NAMES", value_delimiter = ',', aliases = ["modules_to_save", "lora-modules-to-save", "additional-target", "additional_target"])]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    modules_to_save: Vec<String>,
    /// LoRA+: learning rate of B as a multiple of A's
    #[arg(long, value_name = "RATIO", alias = "loraplus_lr_ratio")]
    #[serde(skip_serializing_if = "Option::is_none")]
    loraplus_lr_ratio: Option<f64>,
    /// NEFTune: noise on the embeddings, for example 5
    #[arg(long, value_name = "ALPHA", alias = "neftune_noise_alpha")]
    #[serde(skip_serializing_if = "Option::is_none")]
    neftune_noise_alpha: Option<f64>,
    /// Rows of a micro-batch [default: 2]
    #[arg(long, value_name = "N", aliases = ["per-device-train-batch-size", "per_device_train_batch_size"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    batch_size: Option<usize>,
    /// Micro-batches of an optimizer step [default: 4]
    #[arg(long, value_name = "N", aliases = ["gradient-accumulation-steps", "gradient_accumulation_steps"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    grad_accum: Option<usize>,
    /// Longer rows are cut [default: 1024]
    #[arg(long, value_name = "TOKENS", aliases = ["max-seq-length", "max_seq_length", "max_length"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_length: Option<usize>,
    /// Peak learning rate [default: 2e-4]
    #[arg(long, value_name = "LR", aliases = ["learning-rate", "learning_rate"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    lr: Option<f64>,
    /// Steps over which the rate rises from 0 [default: 5]
    #[arg(long, value_name = "N", alias = "warmup_steps")]
    #[serde(skip_serializing_if = "Option::is_none")]
    warmup_steps: Option<usize>,
    /// The same as a share of all steps
    #[arg(long, value_name = "SHARE", alias = "warmup_ratio", conflicts_with = "warmup_steps")]
    #[serde(skip_serializing_if = "Option::is_none")]
    warmup_ratio: Option<f64>,
    /// Optimizer steps
    #[arg(long, value_name = "N", conflicts_with = "epochs", alias = "max_steps")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_steps: Option<usize>,
    /// Passes over the data [default: 3, where --max-steps is not given]
    #[arg(long, value_name = "N", aliases = ["num-train-epochs", "num_train_epochs"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    epochs: Option<f64>,
    /// Decoupled weight decay [default: 0.01]
    #[arg(long, value_name = "D", alias = "weight_decay")]
    #[serde(skip_serializing_if = "Option::is_none")]
    weight_decay: Option<f64>,
    /// Norm to which the gradient is clipped; 0: not at all [default: 1]
    #[arg(long, value_name = "NORM", alias = "max_grad_norm")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_grad_norm: Option<f64>,
    /// Learning rate after the warm-up: linear (the default), cosine, cosine_with_restarts, constant (without a
    /// warm-up), constant_with_warmup, inverse_sqrt, polynomial
    #[arg(long, value_name = "NAME", aliases = ["lr-scheduler-type", "lr_scheduler_type"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule: Option<Schedule>,
    /// Waves of the cosine schedules
    #[arg(long, value_name = "N", alias = "num_cycles")]
    #[serde(skip_serializing_if = "Option::is_none")]
    num_cycles: Option<f64>,
    /// Exponent of the polynomial schedule [default: 1]
    #[arg(long, value_name = "P")]
    #[serde(skip_serializing_if = "Option::is_none")]
    power: Option<f64>,
    /// Where the polynomial schedule ends [default: 1e-7]
    #[arg(long, value_name = "LR", alias = "lr_end")]
    #[serde(skip_serializing_if = "Option::is_none")]
    lr_end: Option<f64>,
    /// Optimizer: adamw (the default), adamw_8bit, lion, lion_8bit, sgd; with paged_ before it (paged_adamw) all but sgd keep
    /// their state in host memory
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    optim: Option<Optim>,
    /// Decay rate of the first moment [default: 0.9]
    #[arg(long, value_name = "BETA", alias = "adam_beta1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    adam_beta1: Option<f64>,
    /// Decay rate of the second moment [default: 0.999; Lion's: 0.99]
    #[arg(long, value_name = "BETA", alias = "adam_beta2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    adam_beta2: Option<f64>,
    /// AdamW's epsilon [default: 1e-8]
    #[arg(long, value_name = "EPS", alias = "adam_epsilon")]
    #[serde(skip_serializing_if = "Option::is_none")]
    adam_epsilon: Option<f64>,
    /// SGD's momentum [default: 0]
    #[arg(long, value_name = "M")]
    #[serde(skip_serializing_if = "Option::is_none")]
    momentum: Option<f64>,
    /// Decides the initial adapter, the order of rows, the dropout and the noise [default: 3407]
    #[arg(long, value_name = "SEED")]
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    /// Which tokens count [default: assistant]
    #[arg(long, value_name = "assistant|all")]
    #[serde(skip_serializing_if = "Option::is_none")]
    loss: Option<LossOn>,
    /// What share of a label's weight is spread over the vocabulary [default: 0]
    #[arg(long, value_name = "SHARE", aliases = ["label-smoothing-factor", "label_smoothing_factor", "label_smoothing"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    label_smoothing: Option<f32>,
    /// Put several rows into one sequence of --max-length tokens; they do not see each other
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true", value_parser = parse_bool)]
    #[serde(skip_serializing_if = "Option::is_none")]
    packing: Option<bool>,
    /// Compute activations again in the backward pass instead of keeping them
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true", value_parser = parse_bool, aliases = ["gradient-checkpointing", "gradient_checkpointing"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    recompute: Option<bool>,
    /// Keep the layers' inputs in host memory until the backward pass: what Unsloth's gradient checkpointing does, with
    /// --recompute (CUDA, CPU)
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true", value_parser = parse_bool, alias = "activation_offloading")]
    #[serde(skip_serializing_if = "Option::is_none")]
    activation_offloading: Option<bool>,
    /// A new order of rows in each epoch (the default); false: file order
    #[arg(long, value_name = "true|false", value_parser = parse_bool)]
    #[serde(skip_serializing_if = "Option::is_none")]
    shuffle: Option<bool>,
    /// Adapter to start from
    #[arg(long, value_name = "DIR", alias = "init_adapter")]
    #[serde(skip_serializing_if = "Option::is_none")]
    init_adapter: Option<PathBuf>,
    /// Go on from a checkpoint, or from the latest one in an output folder; auto: from the latest in --output, if there is one
    #[arg(long, value_name = "DIR|auto", aliases = ["resume-from-checkpoint", "resume_from_checkpoint"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    resume: Option<PathBuf>,
    /// Write one JSON object for each step
    #[arg(long, value_name = "FILE.jsonl")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<PathBuf>,
    /// Write TensorBoard's event files
    #[arg(long, value_name = "DIR", aliases = ["logging-dir", "logging_dir"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    tensorboard: Option<PathBuf>,
    /// Write the loss curves, anew every few seconds
    #[arg(long, value_name = "FILE.svg")]
    #[serde(skip_serializing_if = "Option::is_none")]
    plot: Option<PathBuf>,
    /// Write a checkpoint every N steps, besides the one at the end
    #[arg(long, value_name = "N", alias = "save_steps")]
    #[serde(skip_serializing_if = "Option::is_none")]
    save_steps: Option<usize>,
    /// Keep N checkpoints, the best and the latest among them
    #[arg(long, value_name = "N", alias = "save_total_limit")]
    #[serde(skip_serializing_if = "Option::is_none")]
    save_total_limit: Option<usize>,
    /// Rows whose loss is measured on the way
    #[arg(long, value_name = "FILE", value_parser = parse_data, aliases = ["eval-dataset", "eval_dataset", "eval_data"])]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    eval_data: Vec<DataFile>,
    /// Measure it every N steps [default: after each epoch]
    #[arg(long, value_name = "N", alias = "eval_steps")]
    #[serde(skip_serializing_if = "Option::is_none")]
    eval_steps: Option<usize>,
    /// End after N evaluations without a better loss
    #[arg(long, value_name = "N", alias = "early_stopping_patience")]
    #[serde(skip_serializing_if = "Option::is_none")]
    early_stopping_patience: Option<usize>,
    /// How much lower a loss must be to be better [default: 0]
    #[arg(long, value_name = "NAT", alias = "early_stopping_threshold")]
    #[serde(skip_serializing_if = "Option::is_none")]
    early_stopping_threshold: Option<f64>,
    /// The adapter at the end is that of the best evaluation
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true", value_parser = parse_bool, alias = "load_best_model_at_end")]
    #[serde(skip_serializing_if = "Option::is_none")]
    load_best_model_at_end: Option<bool>,
    /// A prompt that the model answers every --sample-steps steps; several times: several prompts
    #[arg(long = "sample-prompt", value_name = "TEXT")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sample_prompts: Vec<String>,
    /// Answer them every N steps
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    sample_steps: Option<usize>,
    /// Most tokens of such an answer [default: 64]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    sample_tokens: Option<usize>,
    /// With several processes (torchrun, mpirun, srun): what sums their gradients [default: auto, NCCL where all have it]
    #[arg(long, value_name = "auto|nccl|tcp", alias = "ddp_backend")]
    #[serde(skip_serializing_if = "Option::is_none")]
    ddp_backend: Option<CollectiveChoice>,
    /// With several processes: how long one may keep the others waiting [default: 1800]
    #[arg(long, value_name = "SECONDS", alias = "ddp_timeout")]
    #[serde(skip_serializing_if = "Option::is_none")]
    ddp_timeout: Option<u64>,
}

/// With its weight; clap would take the text as a path.
fn parse_data(text: &str) -> Result<DataFile> {
    text.parse()
}

impl Args {
    /// The recipe file with these options put over it, and notes on what has no effect.
    pub fn recipe(&self) -> Result<(Recipe, Vec<String>)> {
        let (mut recipe, notes) = match &self.recipe {
            Some(path) => recipe_file::read(path)?,
            None => (Recipe::default(), Vec::new()),
        };
        let fields = serde_json::to_value(&self.fields).map_err(|e| Error::internal(e.to_string()))?;
        let mut fields = fields.as_object().cloned().unwrap_or_default();
        if let Some(preference) = self.preference.preference() {
            let value = serde_json::to_value(preference).map_err(|e| Error::internal(e.to_string()))?;
            fields.insert("preference".into(), value);
        }
        if let Some(dtype) = self.weights.dtype() {
            fields.insert("weight_type".into(), dtype.name().into());
        }
        // One of two that exclude each other goes before the file's other one.
        if fields.contains_key("epochs") {
            recipe.max_steps = None;
        }
        if fields.contains_key("max_steps") {
            recipe.epochs = None;
        }
        if fields.contains_key("warmup_steps") {
            recipe.warmup_ratio = None;
        }
        Ok((recipe.with(fields)?, notes))
    }
}
