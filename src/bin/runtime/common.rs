//! What the commands share: the model and device arguments, an engine for one caller, and printing.

use crate::speculative::Speculation;
use clap::Args;
use runtime::backend::{BackendChoice, ComputeType};
use runtime::engine::{Engine, EngineOptions, KvType};
use runtime::format::peft::Adapter;
use runtime::model::{LoadOptions, LoadedModel};
use runtime::tensor::DType;
use runtime::{Error, Result};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Which device, and in which type it computes.
#[derive(Args, Clone, Copy, Debug)]
pub struct DeviceArgs {
    /// auto takes CUDA, then a hardware adapter of wgpu, then the CPU
    #[arg(long, value_name = "auto|cuda|wgpu|cpu", default_value = "auto", value_parser = parse_backend)]
    pub backend: BackendChoice,
    /// Position among the backend's devices, see `runtime devices`
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub device: usize,
    /// Type of the products; also float32, float16, half, bfloat16
    #[arg(long, value_name = "auto|f32|f16|bf16", default_value = "auto", value_parser = parse_dtype)]
    pub dtype: ComputeType,
}

/// The model, and where it runs.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// A .gguf file, a Hugging Face folder, or the name of a pulled repository
    #[arg(short, long, value_name = "MODEL")]
    pub model: String,
    #[command(flatten)]
    pub weights: WeightArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// How the weights lie on the device.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct WeightArgs {
    /// Quantise the layers' matrices while a model in 16 bits is loaded [default: as in the file]
    #[arg(long, value_name = "nf4|q4_0|q4_k|q5_0|q6_k|q8_0", value_parser = parse_weights)]
    pub weight_type: Option<DType>,
    /// The same as --weight-type nf4: bitsandbytes' 4 bits with double quantisation, for QLoRA
    #[arg(long, conflicts_with = "weight_type")]
    pub load_in_4bit: bool,
}

impl WeightArgs {
    /// What was asked for.
    pub fn dtype(self) -> Option<DType> {
        if self.load_in_4bit { Some(DType::NF4) } else { self.weight_type }
    }
}

fn parse_weights(text: &str) -> Result<DType> {
    runtime::train::weight_type(text)
}

fn parse_backend(text: &str) -> Result<BackendChoice> {
    text.parse()
}

fn parse_dtype(text: &str) -> Result<ComputeType> {
    match text {
        "auto" => Ok(ComputeType::Auto),
        "f32" | "float32" | "float" => Ok(ComputeType::F32),
        "f16" | "float16" | "half" => Ok(ComputeType::F16),
        "bf16" | "bfloat16" => Ok(ComputeType::BF16),
        other => Err(Error::invalid(format!("unknown type '{other}': use auto, f32, f16 or bf16"))),
    }
}

/// `true` or `false`, as a word.
pub fn parse_bool(text: &str) -> Result<bool> {
    match text {
        "true" | "yes" | "1" => Ok(true),
        "false" | "no" | "0" => Ok(false),
        other => Err(Error::invalid(format!("'{other}' is neither true nor false"))),
    }
}

/// Comma-separated token ids; at least one.
#[derive(Clone, Debug)]
pub struct Ids(pub Vec<u32>);

impl std::str::FromStr for Ids {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = |part: &str| {
            part.trim().parse().map_err(|_| Error::invalid(format!("'{part}' is no token id: use --ids 1,2,3")))
        };
        text.split(',').map(parse).collect::<Result<_>>().map(Ids)
    }
}

impl ModelArgs {
    /// Puts the model on its device.
    pub fn load(&self) -> Result<Arc<LoadedModel>> {
        load(&self.model, self.weights, self.device)
    }
}

/// Puts a model on its device.
pub fn load(model: &str, weights: WeightArgs, device: DeviceArgs) -> Result<Arc<LoadedModel>> {
    load_as(model, weights.dtype(), device)
}

/// The same, with the type that weights are quantised to.
pub fn load_as(model: &str, weights: Option<DType>, device: DeviceArgs) -> Result<Arc<LoadedModel>> {
    let DeviceArgs { backend, device, dtype: compute } = device;
    let options = LoadOptions { backend, device, compute, weights };
    LoadedModel::open(&resolve(model)?, &options)
}

/// A path as it stands; else the local copy of a hub repository.
pub fn resolve(model: &str) -> Result<PathBuf> {
    let path = PathBuf::from(model);
    if path.exists() {
        return Ok(path);
    }
    if let Some(pulled) = runtime::format::hub::cached(model) {
        return Ok(pulled);
    }
    let repo = model.split_once('/').is_some_and(|(owner, name)| !owner.is_empty() && !name.contains('/'));
    let looks_local = [".", "/", "~"].iter().any(|start| model.starts_with(start));
    let known_end = [".gguf", ".safetensors"].iter().any(|end| model.ends_with(end));
    let hint = match repo && !looks_local && !known_end {
        true => format!("no such file or folder; if it is a repository of the hub, run `runtime pull {model}` first"),
        false => "no such file or folder".into(),
    };
    Err(Error::invalid(format!("{model}: {hint}")))
}

fn parse_kv_type(text: &str) -> Result<KvType> {
    text.parse()
}

/// The key/value cache.
#[derive(Args, Clone, Copy, Debug)]
pub struct CacheArgs {
    /// Type of the key/value cache: 8 bits hold about twice the tokens in the same memory
    #[arg(long, value_name = "auto|fp8|fp8_e4m3|int8", default_value = "auto", value_parser = parse_kv_type)]
    pub kv_cache_dtype: KvType,
}

/// An engine for one caller with, at most, one adapter, called `adapter`.
pub fn engine(
    model: Arc<LoadedModel>,
    adapter: Option<&Path>,
    cache: CacheArgs,
    speculation: Speculation,
) -> Result<Engine> {
    let adapter = adapter.map(|folder| Adapter::read(folder, model.config())).transpose()?;
    let options = EngineOptions {
        max_seqs: 1,
        kv_type: cache.kv_cache_dtype,
        guesses: speculation.guesses,
        guess_runs: speculation.runs,
        draft: speculation.draft,
        max_adapters: usize::from(adapter.is_some()),
        max_rank: adapter.as_ref().map_or(0, largest_rank),
        dora: adapter.as_ref().is_some_and(|adapter| adapter.config.use_dora),
        ..EngineOptions::default()
    };
    let engine = Engine::start(model, options)?;
    if let Some(adapter) = &adapter {
        engine.load_adapter(ADAPTER, adapter)?;
    }
    Ok(engine)
}

/// The name under which [`engine`] loads its adapter.
pub const ADAPTER: &str = "adapter";

/// The largest rank in an adapter; modules may differ.
pub fn largest_rank(adapter: &Adapter) -> usize {
    adapter.modules.values().map(|module| module.a.rows()).max().unwrap_or(0)
}

/// Text to stdout, at once.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| Error::io("stdout", error))
}

/// One JSON object on one line.
pub fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string(value).map_err(|error| Error::internal(error.to_string()))?;
    print(&(text + "\n"))
}

/// `1.5 GiB`, `270 MiB`, `12 KiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, size)| n >= *size) {
        Some((unit, size)) if n / size >= 100 => format!("{} {unit}", n / size),
        Some((unit, size)) => format!("{:.1} {unit}", n as f64 / *size as f64),
        None => format!("{n} B"),
    }
}
