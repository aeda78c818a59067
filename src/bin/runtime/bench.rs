//! `runtime bench`

use crate::common::{self, DeviceArgs};
use runtime::Result;
use runtime::backend;
use runtime::engine::bench::{self, BenchOptions, BenchReport};
use runtime::engine::profile::{ProfileReport, profile};
use runtime::format::random::random_checkpoint;
use runtime::model::LoadedModel;
use runtime::tensor::DType;
use runtime::train::Optim;
use runtime::train::bench::{self as train_bench, TrainBenchOptions, TrainBenchReport};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Instant;

#[derive(clap::Args)]
pub struct Args {
    /// A .gguf file, a Hugging Face folder, or the name of a pulled repository
    #[arg(short, long, value_name = "MODEL", required_unless_present = "random_weights")]
    model: Option<String>,
    /// Instead of a model, a config.json (or qwen3-0.6b, qwen3-1.7b, qwen3-8b) with random weights
    #[arg(long, value_name = "CONFIG", conflicts_with = "model")]
    random_weights: Option<String>,
    /// Type of the random weights
    #[arg(long, value_name = "TYPE", default_value = "bf16", requires = "random_weights", value_parser = parse_type)]
    weight_type: DType,
    #[command(flatten)]
    device: DeviceArgs,
    /// Tokens of the prompt
    #[arg(short, long, value_name = "TOKENS", default_value_t = 512)]
    prompt: usize,
    /// Tokens to generate
    #[arg(short = 'n', long = "max-tokens", value_name = "TOKENS", default_value_t = 128)]
    max_tokens: usize,
    /// Requests at once; several numbers are measured one after another
    #[arg(short, long, value_name = "N,…", default_value = "1", value_delimiter = ',')]
    batch: Vec<usize>,
    /// Most tokens in one step, as in `runtime serve`
    #[arg(long, value_name = "TOKENS")]
    max_num_batched_tokens: Option<usize>,
    /// Runs after the warm-up; medians are reported
    #[arg(short, long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// Measure LoRA training steps, too, with adapters on all seven projections
    #[arg(long)]
    train: bool,
    /// Sequences of a training step
    #[arg(long, value_name = "N", default_value_t = 2)]
    train_batch: usize,
    /// Tokens of each
    #[arg(long, value_name = "TOKENS", default_value_t = 1024)]
    train_length: usize,
    /// Rank of the adapters
    #[arg(long, value_name = "R", default_value_t = 16)]
    rank: usize,
    /// Compute activations again in the backward pass instead of keeping them
    #[arg(long)]
    recompute: bool,
    /// Optimizer of the training steps
    #[arg(long, value_name = "adamw|adamw_8bit", default_value = "adamw", value_parser = parse_optim)]
    optim: Optim,
    /// Show what each kernel of a decode step takes, too (wgpu)
    #[arg(long)]
    profile: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

fn parse_type(text: &str) -> Result<DType> {
    text.parse()
}

fn parse_optim(text: &str) -> Result<Optim> {
    text.parse()
}

#[derive(serde::Serialize)]
struct Report {
    #[serde(flatten)]
    serve: BenchReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    train: Option<TrainBenchReport>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    profiles: Vec<ProfileReport>,
}

pub fn run(args: &Args) -> Result<()> {
    let started = Instant::now();
    let model = load(args)?;
    let options = BenchOptions {
        prompt_tokens: args.prompt,
        new_tokens: args.max_tokens,
        batches: args.batch.clone(),
        runs: args.runs,
        max_step_tokens: args.max_num_batched_tokens,
        started,
    };
    let serve = bench::run(model.clone(), &options)?;
    let train = args.train.then(|| {
        let options = TrainBenchOptions {
            batch: args.train_batch,
            length: args.train_length,
            rank: args.rank,
            recompute: args.recompute,
            optim: args.optim,
            runs: args.runs,
        };
        train_bench::run(&model, &options)
    });
    let batches = args.batch.iter().filter(|_| args.profile);
    let profiles = batches.map(|batch| profile(model.clone(), args.prompt, *batch)).collect::<Result<_>>()?;
    let report = Report { serve, train: train.transpose()?, profiles };
    if args.json { common::print_json(&report) } else { common::print(&table(&report)) }
}

fn load(args: &Args) -> Result<Arc<LoadedModel>> {
    let Some(config) = &args.random_weights else {
        return common::load(args.model.as_deref().unwrap_or_default(), args.device);
    };
    let device = backend::open(args.device.backend, args.device.device, args.device.dtype)?;
    // Where the host is the device, tensors that share their bytes would share the caches, too.
    let shared = device.info().backend != "cpu";
    LoadedModel::load(random_checkpoint(config, args.weight_type, shared)?, device)
}

fn table(report: &Report) -> String {
    let Report { serve, train, profiles } = report;
    let mut text = format!(
        "{} on {}\n  {:.1} s to the weights on the device, {:.1} s to the first token\n",
        serve.model, serve.device, serve.load_s, serve.first_token_s
    );
    for b in &serve.batches {
        let _ = write!(
            text,
            "  prefill {:>9.1} tok/s  ({} × {} tokens)\n  decode  {:>9.1} tok/s  ({} × {} tokens)  \
             {:.0} % of the copy bandwidth\n",
            b.prefill_tok_s,
            b.batch,
            serve.prompt_tokens,
            b.decode_tok_s,
            b.batch,
            serve.new_tokens,
            100.0 * b.decode_bandwidth_share
        );
    }
    let weights = common::bytes(serve.weight_bytes);
    let _ = writeln!(text, "  {weights} of weights a decode step, {:.1} GB/s of copy bandwidth", serve.copy_gb_s);
    if let Some(t) = train {
        let again = if t.recompute { ", recompute" } else { "" };
        let _ = write!(
            text,
            "  train   {:>9.1} tok/s  ({} × {} tokens, rank {}{again}; {:.3} s a step)\n  {}\n",
            t.tok_s, t.batch, t.length, t.rank, t.step_s, t.memory
        );
    }
    for p in profiles {
        let _ =
            writeln!(text, "  a decode step of {} sequences: {:.0} µs on the host's clock", p.batch, 1e6 * p.step_s);
        for k in &p.kernels {
            let each = 1e6 * k.seconds / k.launches as f64;
            let _ = writeln!(text, "    {:>9.1} µs  {:4} × {each:>7.1} µs  {}", 1e6 * k.seconds, k.launches, k.label);
        }
        let sum: f64 = p.kernels.iter().map(|k| k.seconds).sum();
        let _ = writeln!(text, "    {:>9.1} µs  together", 1e6 * sum);
    }
    text
}
