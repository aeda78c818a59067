//! `runtime bench`

use crate::common::{self, CacheArgs, DeviceArgs, WeightArgs};
#[cfg(feature = "serve")]
use crate::together::{Sizes, TogetherArgs};
use runtime::backend;
use runtime::engine::bench::traffic::{self, Lengths};
use runtime::engine::bench::{self, BenchOptions, BenchReport};
use runtime::engine::profile::{ProfileOptions, ProfileReport, profile};
use runtime::engine::{EngineOptions, KvSize, Request, SamplingParams};
use runtime::format::random::{random_adapter, random_checkpoint};
use runtime::model::{LoadOptions, LoadedModel};
use runtime::tensor::DType;
use runtime::train::Optim;
use runtime::train::bench::{self as train_bench, TrainBenchOptions, TrainBenchReport};
use runtime::{Error, Result};
use std::fmt::Write;
use std::path::PathBuf;
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
    /// Instead: push a mixed traffic through, all requests at once (benches/traffic.py writes such files)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "max_tokens", "batch", "train", "profile"])]
    traffic: Option<PathBuf>,
    /// Spread the traffic, or the step that --profile shows, over this many adapters of --rank
    #[arg(long, value_name = "N", default_value_t = 0)]
    adapters: usize,
    /// Requests of the traffic that run at once [default: as in `runtime serve`]
    #[arg(long, value_name = "N", requires = "traffic")]
    max_num_seqs: Option<usize>,
    /// Share of the device's memory that the traffic may take, as in `runtime serve`
    #[arg(long, value_name = "SHARE", default_value_t = 0.9, requires = "traffic")]
    gpu_memory_utilization: f64,
    /// Report log-probabilities with this many alternatives, to see what that costs
    #[arg(long, value_name = "N")]
    logprobs: Option<usize>,
    /// Repetition penalty of every request, to see what that costs
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    repetition_penalty: f32,
    #[command(flatten)]
    cache: CacheArgs,
    #[cfg(feature = "serve")]
    #[command(flatten)]
    together: TogetherArgs,
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
    /// Keep the layers' inputs in host memory until the backward pass, with --recompute
    #[arg(long, requires = "recompute")]
    activation_offloading: bool,
    /// Keep the embedding table in host memory
    #[arg(long)]
    offload_embedding: bool,
    /// Optimizer of the training steps
    #[arg(long, value_name = "adamw|adamw_8bit", default_value = "adamw", value_parser = parse_optim)]
    optim: Optim,
    /// Show what each kernel of a decode step takes, too (wgpu, cuda)
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
    if args.adapters > 0 && args.traffic.is_none() && !args.profile {
        return Err(Error::invalid("--adapters is for --traffic and --profile"));
    }
    let model = load(args)?;
    #[cfg(feature = "serve")]
    if args.together.train_while_serving {
        let sizes = Sizes {
            prompt: args.prompt,
            batch: args.train_batch,
            length: args.train_length,
            rank: args.rank,
            optim: args.optim,
            recompute: args.recompute,
            json: args.json,
        };
        return args.together.run(&model, &sizes);
    }
    if let Some(path) = &args.traffic {
        return run_traffic(args, model, &traffic::read(path)?);
    }
    let options = BenchOptions {
        prompt_tokens: args.prompt,
        new_tokens: args.max_tokens,
        batches: args.batch.clone(),
        runs: args.runs,
        max_step_tokens: args.max_num_batched_tokens,
        request: Request {
            logprobs: args.logprobs,
            sampling: SamplingParams { repetition_penalty: args.repetition_penalty, ..SamplingParams::default() },
            ..Request::default()
        },
        kv_type: args.cache.kv_cache_dtype,
        started,
    };
    let serve = bench::run(model.clone(), &options)?;
    let train = args.train.then(|| {
        let options = TrainBenchOptions {
            batch: args.train_batch,
            length: args.train_length,
            rank: args.rank,
            recompute: args.recompute,
            offload: args.activation_offloading,
            optim: args.optim,
            runs: args.runs,
        };
        train_bench::run(&model, &options)
    });
    let batches = args.batch.iter().filter(|_| args.profile);
    let kv = args.cache.kv_cache_dtype;
    let step = |batch| ProfileOptions { context: args.prompt, batch, kv, adapters: args.adapters, rank: args.rank };
    let profiles = batches.map(|batch| profile(model.clone(), &step(*batch))).collect::<Result<_>>()?;
    let report = Report { serve, train: train.transpose()?, profiles };
    if args.json { common::print_json(&report) } else { common::print(&table(&report)) }
}

fn run_traffic(args: &Args, model: Arc<LoadedModel>, requests: &[Lengths]) -> Result<()> {
    let defaults = EngineOptions::for_server(&model);
    let longest = requests.iter().map(|request| request.prompt_tokens + request.max_tokens).max();
    let options = EngineOptions {
        max_seqs: args.max_num_seqs.unwrap_or(defaults.max_seqs),
        max_step_tokens: args.max_num_batched_tokens.unwrap_or(defaults.max_step_tokens),
        max_len: longest,
        kv: KvSize::Share(args.gpu_memory_utilization),
        kv_type: args.cache.kv_cache_dtype,
        max_adapters: args.adapters,
        max_rank: args.rank,
        ..defaults
    };
    // One adapter's numbers under many names take as long as many adapters' numbers.
    let adapter = random_adapter(model.config(), args.rank)?;
    let t = traffic::run(model, options, requests, &vec![adapter; args.adapters])?;
    if args.json {
        return common::print_json(&t);
    }
    common::print(&format!(
        "{} requests, {} adapters: {} tokens in, {} out, in {:.1} s\n  {:.1} tok/s of answers, {:.2} requests/s\n  \
         first token after {:.2} s (median), {:.1} µs of the engine's thread a token\n  {} steps, {} preemptions\n",
        t.requests,
        t.adapters,
        t.prompt_tokens,
        t.output_tokens,
        t.seconds,
        t.output_tok_s,
        t.requests_s,
        t.median_first_token_s,
        1e6 * t.host_s_per_token,
        t.stats.steps,
        t.stats.preemptions,
    ))
}

fn load(args: &Args) -> Result<Arc<LoadedModel>> {
    let Some(config) = &args.random_weights else {
        let weights = WeightArgs { offload_embedding: args.offload_embedding, ..WeightArgs::default() };
        return common::load(args.model.as_deref().unwrap_or_default(), weights, args.device);
    };
    let device = backend::open(args.device.backend, args.device.device, args.device.dtype)?;
    // Where the host is the device, tensors that share their bytes would share the caches, too.
    let shared = device.info().backend != "cpu";
    let options = LoadOptions { offload_embedding: args.offload_embedding, ..LoadOptions::default() };
    LoadedModel::load_placed(random_checkpoint(config, args.weight_type, shared)?, device, &options)
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
             {:.0} % of the copy bandwidth\n  \
             cached  {:>9.1} ms to the first token; {:.1} µs of the engine's thread a token\n",
            b.prefill_tok_s,
            b.batch,
            serve.prompt_tokens,
            b.decode_tok_s,
            b.batch,
            serve.new_tokens,
            100.0 * b.decode_bandwidth_share,
            1e3 * b.cached_first_token_s,
            1e6 * b.host_s_per_token
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
        let _ = writeln!(
            text,
            "  a decode step of {} sequences, {} adapters: {:.0} µs on the host's clock",
            p.batch,
            p.adapters,
            1e6 * p.step_s
        );
        for k in &p.kernels {
            let each = 1e6 * k.seconds / k.launches as f64;
            let _ = writeln!(text, "    {:>9.1} µs  {:4} × {each:>7.1} µs  {}", 1e6 * k.seconds, k.launches, k.label);
        }
        let sum: f64 = p.kernels.iter().map(|k| k.seconds).sum();
        let _ = writeln!(text, "    {:>9.1} µs  together", 1e6 * sum);
    }
    text
}
