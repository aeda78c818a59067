//! `runtime serve`: takes vLLM's flags as they are, so that a script needs to change one word.

use crate::common::{self, CacheArgs, DeviceArgs, WeightArgs, largest_rank};
use crate::speculative::SpeculativeArgs;
use runtime::engine::pacing::Pace;
use runtime::engine::{Engine, EngineOptions, KvSize};
use runtime::format::peft::Adapter;
use runtime::serve::{ReasoningStyle, ServeOptions, Shutdown, ToolStyle, serve};
use runtime::token::ChatTemplate;
use runtime::tune::{TuneLimits, TuneOptions};
use runtime::{Error, Result};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

#[derive(clap::Args)]
pub struct Args {
    /// A .gguf file, a Hugging Face folder, or the name of a pulled repository
    #[arg(value_name = "MODEL", required_unless_present = "model_flag")]
    model: Option<String>,
    /// The same, as a flag
    #[arg(long = "model", short = 'm', value_name = "MODEL", conflicts_with = "model", hide = true)]
    model_flag: Option<String>,
    #[command(flatten)]
    weights: WeightArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0: any free one
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    port: u16,
    /// Names of the model in requests [default: the name of its file or folder]
    #[arg(long, value_name = "NAME", num_args = 1..)]
    served_model_name: Vec<String>,
    /// Keys of which a request has to bring one
    #[arg(long, value_name = "KEY", num_args = 1..)]
    api_key: Vec<String>,
    /// A LoRA adapter in PEFT's format and the model name that selects it, or vLLM's {"name": …, "path": …}; several are fine
    #[arg(long, value_name = "NAME=DIR", num_args = 1.., alias = "lora-modules")]
    adapter: Vec<AdapterArg>,
    /// A chat template to use instead of the model's own: a file, or the template itself in one line
    #[arg(long, value_name = "FILE|TEMPLATE")]
    chat_template: Option<String>,
    /// Longest prompt and answer together, in tokens [default: the model's own, up to 8192]
    #[arg(long, value_name = "TOKENS")]
    max_model_len: Option<usize>,
    /// Requests that run at once; more wait [default: 256 on CUDA, else 16]
    #[arg(long, value_name = "N")]
    max_num_seqs: Option<usize>,
    /// Most prompt tokens in one step
    #[arg(long, value_name = "TOKENS")]
    max_num_batched_tokens: Option<usize>,
    /// Leave room for adapters that /v1/load_lora_adapter brings; --adapter needs no more than itself
    #[arg(long)]
    enable_lora: bool,
    /// Adapters on the device at once; any number can be loaded [default: those of --adapter, 1 with --enable-lora]
    #[arg(long, value_name = "N")]
    max_loras: Option<usize>,
    /// Largest rank of an adapter [default: that of --adapter, at least 16 with --enable-lora]
    #[arg(long, value_name = "R")]
    max_lora_rank: Option<usize>,
    /// Room for DoRA's magnitudes in adapters that /v1/load_lora_adapter brings; those of --adapter find it by themselves
    #[arg(long)]
    enable_dora: bool,
    /// How the model writes tool calls: auto (from its chat template), hermes or llama3_json
    #[arg(long, value_name = "NAME", default_value = "auto")]
    tool_call_parser: ToolStyle,
    /// Whether <think>…</think> is set apart: auto, none, qwen3 or deepseek_r1
    #[arg(long, value_name = "NAME", default_value = "auto")]
    reasoning_parser: ReasoningStyle,
    /// Share of the device's memory for weights, steps and the key/value cache together; the cache gets what is left
    /// [default: 0.9, with fine-tuning 0.6]
    #[arg(long, value_name = "SHARE")]
    gpu_memory_utilization: Option<f64>,
    /// Size of the key/value cache in GiB instead
    #[arg(long, value_name = "GIB")]
    kv_cache_gb: Option<f64>,
    #[command(flatten)]
    cache: CacheArgs,
    /// Keep what was computed for one prompt for others that begin in the same way; on unless --no-enable-prefix-caching
    #[arg(long, overrides_with = "no_enable_prefix_caching")]
    enable_prefix_caching: bool,
    /// Compute every prompt in full
    #[arg(long)]
    no_enable_prefix_caching: bool,
    #[command(flatten)]
    speculative: SpeculativeArgs,
    /// Makes the answers to the same requests in the same order the same; a request's own seed comes first
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Requests that may wait; more are refused with status 429 [default: any number]
    #[arg(long, value_name = "N")]
    max_waiting: Option<usize>,
    #[command(flatten)]
    tuning: TuningArgs,
    #[command(flatten)]
    foreign: ForeignArgs,
}

/// Fine-tuning beside serving.
#[derive(clap::Args)]
#[command(next_help_heading = "Fine-tuning")]
struct TuningArgs {
    /// Offer OpenAI's fine-tuning API (/v1/files, /v1/fine_tuning/jobs); any other option of this group says so, too
    #[arg(long)]
    fine_tuning: bool,
    /// Folder for files, jobs and tuned models [default: runtime in the user's state folder]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Training's share of the time while requests run, 0 (only while none does) to 1 [default: 0.5]
    #[arg(long, value_name = "0…1")]
    train_share: Option<f64>,
    /// Longest time between two tokens of an answer that training may lead to, in milliseconds; comes before --train-share
    #[arg(long, value_name = "MS")]
    itl_slo_ms: Option<f64>,
    /// Write a checkpoint to go on from at least so often, in seconds, besides those at the ends of epochs
    #[arg(long, value_name = "SECONDS")]
    checkpoint_seconds: Option<u64>,
}

/// How often a job can be gone on with, unless the user says otherwise.
const CHECKPOINT_SECONDS: u64 = 60;
/// Places for adapters where jobs train: a version that is served, its successor, and some more.
const TUNING_LORAS: usize = 4;
/// Share of the device's memory that serving takes beside training, unless the user says otherwise.
const SERVING_SHARE: f64 = 0.6;

impl TuningArgs {
    fn wanted(&self) -> bool {
        self.fine_tuning
            || self.data_dir.is_some()
            || self.train_share.is_some()
            || self.itl_slo_ms.is_some()
            || self.checkpoint_seconds.is_some()
    }

    fn options(&self) -> Result<Option<TuneOptions>> {
        if !self.wanted() {
            return Ok(None);
        }
        let slo = self.itl_slo_ms.map(|ms| {
            let duration = Duration::try_from_secs_f64(ms / 1e3);
            duration.map_err(|_| Error::invalid(format!("--itl-slo-ms is {ms}, expected a number above 0")))
        });
        let pace =
            Pace { train_share: self.train_share.unwrap_or(Pace::default().train_share), itl_slo: slo.transpose()? };
        pace.validate()?;
        let data_dir = match &self.data_dir {
            Some(folder) => folder.clone(),
            None => state_folder().ok_or_else(|| Error::invalid("there is no home folder: give a --data-dir"))?,
        };
        let save_every = Duration::from_secs(self.checkpoint_seconds.unwrap_or(CHECKPOINT_SECONDS));
        let limits = TuneLimits::default();
        Ok(Some(TuneOptions { data_dir, names: Vec::new(), pace, limits, save_every }))
    }
}

/// Where programs keep what is to survive (XDG Base Directory; elsewhere the system's own place).
fn state_folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = variable("XDG_STATE_HOME").or_else(|| variable("LOCALAPPDATA"));
    let base = base.or_else(|| variable("HOME").map(|home| home.join(".local/state")));
    base.map(|base| base.join("runtime"))
}

/// What vLLM takes and this engine has no use for.
#[derive(clap::Args)]
#[command(next_help_heading = "Accepted for vLLM's sake, without effect")]
struct ForeignArgs {
    /// More than 1 is refused
    #[arg(long, short = None, value_name = "N", default_value_t = 1)]
    tensor_parallel_size: usize,
    /// More than 1 is refused
    #[arg(long, value_name = "N", default_value_t = 1)]
    pipeline_parallel_size: usize,
    /// Prompts are always computed in chunks
    #[arg(long, overrides_with = "no_enable_chunked_prefill")]
    enable_chunked_prefill: bool,
    #[arg(long, hide = true)]
    no_enable_chunked_prefill: bool,
    /// Steps are recorded once and replayed on every backend
    #[arg(long)]
    enforce_eager: bool,
    /// Models bring no code
    #[arg(long)]
    trust_remote_code: bool,
    /// Calls are recognised in any case
    #[arg(long)]
    enable_auto_tool_choice: bool,
    /// There is no log of requests
    #[arg(long, alias = "no-enable-log-requests")]
    disable_log_requests: bool,
    /// There is no log of figures; /metrics has them
    #[arg(long)]
    disable_log_stats: bool,
}

#[derive(Clone)]
struct AdapterArg {
    name: String,
    folder: PathBuf,
    /// What vLLM lists as its parent.
    base: Option<String>,
}

impl FromStr for AdapterArg {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.trim_start().starts_with('{') {
            return Self::from_json(text);
        }
        match text.split_once('=') {
            Some((name, folder)) if !name.is_empty() && !folder.is_empty() => {
                Ok(Self { name: name.into(), folder: folder.into(), base: None })
            }
            _ => Err(Error::invalid(format!("'{text}' is not NAME=DIR"))),
        }
    }
}

impl AdapterArg {
    /// vLLM's `{"name": …, "path": …, "base_model_name": …}`.
    fn from_json(text: &str) -> Result<Self> {
        let wrong = |why: &dyn std::fmt::Display| Error::invalid(format!("'{text}': {why}"));
        let mut fields: Map<String, Value> = serde_json::from_str(text).map_err(|error| wrong(&error))?;
        let mut take = |name: &str| match fields.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(value)) if !value.is_empty() => Ok(Some(value)),
            Some(_) => Err(wrong(&format!("`{name}` must be a string"))),
        };
        let (name, path, base) = (take("name")?, take("path")?, take("base_model_name")?);
        match (name, path, fields.keys().next()) {
            (Some(name), Some(path), None) => Ok(Self { name, folder: path.into(), base }),
            (_, _, Some(other)) => Err(wrong(&format!("`{other}` is not understood"))),
            _ => Err(wrong(&"`name` and `path` are required")),
        }
    }

    /// A base of another name changes nothing but a listing.
    fn check_base(&self, model: &str, served: &[String]) {
        if let Some(base) = self.base.as_ref().filter(|base| *base != model && !served.contains(base)) {
            eprintln!("note: adapter '{}': base_model_name '{base}' is not the name of this model", self.name);
        }
    }
}

/// The text of a template that is named by its file, or stands in the argument itself, as vLLM tells them apart.
fn chat_template(given: &str) -> Result<String> {
    match std::fs::read_to_string(given) {
        Ok(text) => Ok(text),
        Err(_) if given.contains(['{', '}', '\n']) => Ok(given.replace("\\n", "\n").replace("\\t", "\t")),
        Err(error) => Err(Error::io(Path::new(given), error)),
    }
}

impl ForeignArgs {
    fn check(&self) {
        for (flag, size) in [
            ("--tensor-parallel-size", self.tensor_parallel_size),
            ("--pipeline-parallel-size", self.pipeline_parallel_size),
        ] {
            if size != 1 {
                eprintln!("error: {flag} is {size}: a model runs on one device here, so only 1 is possible");
                std::process::exit(crate::WRONG_ARGUMENTS);
            }
        }
        for (given, flag, why) in [
            (self.enable_chunked_prefill, "--enable-chunked-prefill", "prompts are always computed in chunks"),
            (self.no_enable_chunked_prefill, "--no-enable-chunked-prefill", "prompts are always computed in chunks"),
            (self.enforce_eager, "--enforce-eager", "steps are always recorded and replayed"),
            (self.enable_auto_tool_choice, "--enable-auto-tool-choice", "tool calls are always recognised"),
            (self.trust_remote_code, "--trust-remote-code", "no model brings code"),
            (self.disable_log_requests, "--disable-log-requests", "there is no such log"),
            (self.disable_log_stats, "--disable-log-stats", "there is no such log"),
        ] {
            if given {
                eprintln!("note: {flag} has no effect: {why}");
            }
        }
    }
}

pub fn run(args: Args) -> Result<()> {
    args.foreign.check();
    let name = args.model.or(args.model_flag).unwrap_or_default();
    let mut model = common::load(&name, args.weights, args.device)?;
    if let Some(given) = &args.chat_template {
        let source = chat_template(given)?;
        let special = model.chat.as_ref().map(|chat| chat.special().clone()).unwrap_or_default();
        let template = ChatTemplate::new(&source, special)?;
        let owned = Arc::get_mut(&mut model).ok_or_else(|| Error::internal("the model is already in use"))?;
        owned.chat = Some(template);
    }
    let mut adapters = Vec::new();
    for adapter in &args.adapter {
        adapter.check_base(&name, &args.served_model_name);
        adapters.push((&adapter.name, Adapter::read(&adapter.folder, model.config())?));
    }
    let tuning = args.tuning.options()?;
    let share = if tuning.is_some() { SERVING_SHARE } else { 0.9 };
    let places = if tuning.is_some() { TUNING_LORAS } else { usize::from(args.enable_lora || args.enable_dora) };
    let speculation = args.speculative.load(&model)?;
    let ranks = adapters.iter().map(|(_, adapter)| largest_rank(adapter));
    let dora = args.enable_dora || adapters.iter().any(|(_, adapter)| adapter.config.use_dora);
    let more = args.enable_lora || args.enable_dora;
    let defaults = EngineOptions::for_server(&model);
    let usual_rank = (more || tuning.is_some()).then_some(defaults.max_rank);
    let options = EngineOptions {
        max_seqs: args.max_num_seqs.unwrap_or(defaults.max_seqs),
        max_len: args.max_model_len,
        max_step_tokens: args.max_num_batched_tokens.unwrap_or(defaults.max_step_tokens),
        kv: match args.kv_cache_gb {
            Some(gib) => KvSize::Bytes((gib * f64::from(1u32 << 30)) as u64),
            None => KvSize::Share(args.gpu_memory_utilization.unwrap_or(share)),
        },
        kv_type: args.cache.kv_cache_dtype,
        prefix_cache: !args.no_enable_prefix_caching,
        guesses: speculation.guesses,
        guess_runs: speculation.runs,
        draft: speculation.draft,
        seed: args.seed,
        max_waiting: args.max_waiting,
        max_adapters: args.max_loras.unwrap_or(adapters.len().max(places)),
        max_rank: ranks.chain(args.max_lora_rank.or(usual_rank)).max().unwrap_or(defaults.max_rank),
        dora,
        ..defaults
    };
    let max_adapters = options.max_adapters;
    let engine = Engine::start(model.clone(), options)?;
    for (name, adapter) in &adapters {
        engine.load_adapter(name, adapter)?;
    }
    let options = ServeOptions {
        host: args.host,
        port: args.port,
        served_model_names: args.served_model_name,
        api_keys: args.api_key,
        tool_style: args.tool_call_parser,
        reasoning_style: args.reasoning_parser,
        max_adapters,
        kv_type: args.cache.kv_cache_dtype,
        fine_tuning: tuning,
        ..ServeOptions::default()
    };
    let shutdown = Shutdown::new();
    let stopping = shutdown.clone();
    let handler = move || {
        eprintln!("stopping; Ctrl-C again cuts running answers");
        stopping.stop();
    };
    ctrlc::set_handler(handler).map_err(|error| Error::internal(format!("cannot catch Ctrl-C: {error}")))?;
    let device = model.device.info().name.clone();
    let ready = |address| eprintln!("{name} on {device}: http://{address}/v1");
    serve(engine, options, ready, &shutdown)
}
