//! `runtime train`

use crate::common::{ModelArgs, parse_bool};
use crate::preference::PreferenceArgs;
use crate::progress;
use indicatif::ProgressBar;
use runtime::train::{self, DataReport, LossOn, MemoryReport, Observer, Optim, Recipe, Schedule, StepReport};
use runtime::{Error, Result};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// JSONL, one row a line: {"messages": […]}, {"prompt": …, "completion": …} or {"text": …}
    #[arg(long, value_name = "FILE.jsonl")]
    data: PathBuf,
    /// Folder for the adapter (PEFT's format) and its checkpoints
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Rank of the adapter [default: 16, or the initial adapter's]
    #[arg(long, value_name = "R")]
    rank: Option<usize>,
    /// The adapter's product is scaled by alpha / rank [default: 16, or the initial adapter's]
    #[arg(long, value_name = "ALPHA")]
    alpha: Option<f64>,
    /// Dropout on the adapter's input
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    dropout: f32,
    /// Projections that get an adapter, for example q_proj,v_proj [default: all seven]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    target_modules: Vec<String>,
    /// Rows of a micro-batch
    #[arg(long, value_name = "N", default_value_t = 2)]
    batch_size: usize,
    /// Micro-batches of an optimizer step
    #[arg(long, value_name = "N", default_value_t = 4)]
    grad_accum: usize,
    /// Longer rows are cut
    #[arg(long, value_name = "TOKENS", default_value_t = 1024)]
    max_length: usize,
    /// Peak learning rate
    #[arg(long, value_name = "LR", default_value_t = 2e-4)]
    lr: f64,
    /// Steps over which the rate rises from 0
    #[arg(long, value_name = "N", default_value_t = 5)]
    warmup_steps: usize,
    /// Optimizer steps
    #[arg(long, value_name = "N", conflicts_with = "epochs")]
    max_steps: Option<usize>,
    /// Passes over the data [default: 3, where --max-steps is not given]
    #[arg(long, value_name = "N")]
    epochs: Option<f64>,
    /// Decoupled weight decay
    #[arg(long, value_name = "D", default_value_t = 0.01)]
    weight_decay: f64,
    /// Norm to which the gradient is clipped; 0: not at all
    #[arg(long, value_name = "NORM", default_value_t = 1.0)]
    max_grad_norm: f64,
    /// Learning rate after the warm-up
    #[arg(long, value_name = "linear|cosine|constant", default_value = "linear")]
    schedule: Schedule,
    /// Optimizer; adamw_8bit keeps its moments in 8 bits
    #[arg(long, value_name = "adamw|adamw_8bit", default_value = "adamw")]
    optim: Optim,
    /// Decides the initial adapter, the order of rows and the dropout
    #[arg(long, value_name = "SEED", default_value_t = 3407)]
    seed: u64,
    /// Which tokens count
    #[arg(long, value_name = "assistant|all", default_value = "assistant")]
    loss: LossOn,
    /// Put several rows into one sequence of --max-length tokens; they do not see each other
    #[arg(long)]
    packing: bool,
    /// Compute activations again in the backward pass instead of keeping them
    #[arg(long)]
    recompute: bool,
    /// A new order of rows in each epoch; false: file order
    #[arg(long, value_name = "true|false", default_value = "true", value_parser = parse_bool, action = clap::ArgAction::Set)]
    shuffle: bool,
    /// Adapter to start from
    #[arg(long, value_name = "DIR")]
    init_adapter: Option<PathBuf>,
    /// Go on from a checkpoint, or from the latest one in an output folder
    #[arg(long, value_name = "DIR")]
    resume: Option<PathBuf>,
    /// Write one JSON object for each step
    #[arg(long, value_name = "FILE.jsonl")]
    log: Option<PathBuf>,
    /// Write a checkpoint every N steps, besides the one at the end
    #[arg(long, value_name = "N")]
    save_steps: Option<usize>,
    #[command(flatten)]
    preference: PreferenceArgs,
}

impl Args {
    fn recipe(&self) -> Recipe {
        Recipe {
            data: self.data.clone(),
            output: self.output.clone(),
            rank: self.rank,
            alpha: self.alpha,
            dropout: self.dropout,
            target_modules: self.target_modules.clone(),
            batch_size: self.batch_size,
            grad_accum: self.grad_accum,
            max_length: self.max_length,
            lr: self.lr,
            warmup_steps: self.warmup_steps,
            max_steps: self.max_steps,
            epochs: self.epochs,
            weight_decay: self.weight_decay,
            max_grad_norm: self.max_grad_norm,
            schedule: self.schedule,
            optim: self.optim,
            seed: self.seed,
            loss: self.loss,
            packing: self.packing,
            recompute: self.recompute,
            shuffle: self.shuffle,
            init_adapter: self.init_adapter.clone(),
            resume: self.resume.clone(),
            log: self.log.clone(),
            save_steps: self.save_steps,
            preference: self.preference.preference(),
        }
    }
}

pub fn run(args: &Args) -> Result<()> {
    let recipe = args.recipe();
    // Before a large model is loaded for nothing.
    recipe.validate()?;
    for (what, path) in [("--data", Some(&recipe.data)), ("--init-adapter", recipe.init_adapter.as_ref())] {
        if let Some(path) = path.filter(|path| !path.exists()) {
            return Err(Error::invalid(format!("{what} {}: no such file or folder", path.display())));
        }
    }
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stop);
    let handler = move || {
        if asked.swap(true, Ordering::Relaxed) {
            // A second Ctrl-C: the user means it.
            std::process::exit(130);
        }
        eprintln!("stopping after this micro-batch (Ctrl-C again: at once, without a checkpoint)");
    };
    ctrlc::set_handler(handler).map_err(|error| Error::internal(format!("cannot catch Ctrl-C: {error}")))?;
    let model = args.model.load()?;
    eprintln!("{} on {}", model.name, model.device.info().name);
    let mut screen = Screen { stop, bar: None, last: None };
    let result = train::run(model, &recipe, &mut screen);
    if let Some(bar) = screen.bar.take() {
        bar.finish();
    }
    let summary = result?;
    let steps = summary.steps;
    match (&summary.adapter, &summary.checkpoint) {
        (Some(adapter), _) => {
            let loss = summary.loss.map(|loss| format!(", last loss {loss:.4}")).unwrap_or_default();
            let seconds = summary.elapsed_s;
            eprintln!("{steps} steps in {seconds:.0} s{loss}; the adapter is in {}", adapter.display());
        }
        (None, Some(checkpoint)) => {
            eprintln!("stopped after {steps} steps; go on with the same command and --resume {}", checkpoint.display())
        }
        (None, None) => eprintln!("stopped before the first step; nothing was written"),
    }
    Ok(())
}

/// How often a step is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

struct Screen {
    stop: Arc<AtomicBool>,
    bar: Option<ProgressBar>,
    /// When the last plain line was printed.
    last: Option<Instant>,
}

impl Observer for Screen {
    fn data(&mut self, report: &DataReport) {
        let DataReport { rows, tokens, counted, longest, truncated, skipped, bins } = report;
        let packed = if *bins > 0 { format!(" in {bins} bins") } else { String::new() };
        eprintln!("data: {rows} rows{packed}, {tokens} tokens ({counted} count), longest {longest}");
        if *truncated > 0 {
            eprintln!("note: {truncated} rows are cut at --max-length");
        }
        if let Some(first) = skipped.first() {
            eprintln!(
                "note: {} rows have no token that counts and are left out, the first in line {first}",
                skipped.len()
            );
        }
    }

    fn plan(&mut self, report: &MemoryReport) {
        eprintln!("{report}");
    }

    fn step(&mut self, report: &StepReport) {
        let StepReport { step, total_steps, loss, grad_norm, lr, tok_s, .. } = report;
        let pairs = report.pairs.map_or_else(String::new, |p| {
            format!("  margin {:.3}  right {:.0} %", p.rewards_chosen - p.rewards_rejected, 100.0 * p.accuracy)
        });
        let text = format!("loss {loss:.4}{pairs}  lr {lr:.2e}  grad {grad_norm:.2}  {tok_s:.0} tok/s");
        if self.bar.is_none() && self.last.is_none() {
            self.bar = progress::bar(*total_steps as u64, "step {pos}/{len} {wide_bar} {msg}  {eta} left");
        }
        if let Some(bar) = &self.bar {
            bar.set_message(text);
            bar.set_position(*step as u64);
            return;
        }
        let due = self.last.is_none_or(|last| last.elapsed() >= LINE_EVERY);
        if due || step == total_steps {
            eprintln!("step {step}/{total_steps}  {text}");
            self.last = Some(Instant::now());
        }
    }

    fn should_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
