//! `runtime grpo`

use crate::common::ModelArgs;
use runtime::grpo::{self, CommandReward, GrpoOptions, GrpoReport, HttpReward, LossType, Reward, ScaleRewards};
use runtime::train::{Recipe, Schedule};
use runtime::{Error, Result};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// JSONL with prompt: a text, or a list of messages
    #[arg(long, value_name = "FILE.jsonl")]
    data: PathBuf,
    /// Folder for the adapter (PEFT's format)
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    judge: Judge,
    /// Prompts of a step
    #[arg(long, value_name = "N", default_value_t = 4)]
    prompts: usize,
    /// Answers to each prompt
    #[arg(long, value_name = "N", default_value_t = 8, aliases = ["num-generations", "num_generations"])]
    generations: usize,
    /// Most tokens of an answer
    #[arg(short = 'n', long, value_name = "TOKENS", default_value_t = 256, aliases = ["max-completion-length", "max_completion_length"])]
    max_tokens: usize,
    /// How strongly the divergence from the model without adapter counts (KL); 0: it is not computed
    #[arg(long, value_name = "BETA", default_value_t = 0.0)]
    beta: f64,
    /// Multiply the divergence by the ratio of probabilities, so that its gradient has no bias
    #[arg(long, value_name = "true|false", default_value_t = true, action = clap::ArgAction::Set, alias = "use_bias_correction_kl")]
    use_bias_correction_kl: bool,
    /// Optimizer steps on the same answers
    #[arg(long, value_name = "N", default_value_t = 1, alias = "num_iterations")]
    num_iterations: usize,
    /// How far the ratio of probabilities counts: from 1 − EPS to 1 + EPS
    #[arg(long, value_name = "EPS", default_value_t = 0.2)]
    epsilon: f64,
    /// How far above 1 it counts [default: as far as below]
    #[arg(long, value_name = "EPS", alias = "epsilon_high")]
    epsilon_high: Option<f64>,
    /// What the loss is divided by: dapo (all tokens), bnpo (the same here), grpo (each answer's tokens), dr_grpo (most tokens)
    #[arg(long, value_name = "NAME", default_value = "dapo", value_parser = parse_loss, alias = "loss_type")]
    loss_type: LossType,
    /// What advantages are divided by: the standard deviation of the group, of the batch, or nothing
    #[arg(long, value_name = "group|batch|none", default_value = "group", value_parser = parse_scale, alias = "scale_rewards")]
    scale_rewards: ScaleRewards,
    /// Learn nothing from answers that reached --max-tokens
    #[arg(long, alias = "mask_truncated_completions")]
    mask_truncated_completions: bool,
    /// Optimizer steps
    #[arg(long, value_name = "N", alias = "max_steps")]
    max_steps: usize,
    /// Rank of the adapter [default: 16, or the initial adapter's]
    #[arg(long, value_name = "R")]
    rank: Option<usize>,
    /// The adapter's product is scaled by alpha / rank [default: 16, or the initial adapter's]
    #[arg(long, value_name = "ALPHA")]
    alpha: Option<f64>,
    /// DoRA: learn the lengths of the weights' rows besides
    #[arg(long, alias = "use_dora")]
    use_dora: bool,
    /// Peak learning rate
    #[arg(long, value_name = "LR", default_value_t = 1e-4)]
    lr: f64,
    /// Steps over which the rate rises from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    warmup_steps: usize,
    /// Learning rate after the warm-up
    #[arg(long, value_name = "linear|cosine|constant_with_warmup|…", default_value = "constant_with_warmup")]
    schedule: Schedule,
    /// Decoupled weight decay
    #[arg(long, value_name = "D", default_value_t = 0.0)]
    weight_decay: f64,
    /// Norm to which the gradient is clipped; 0: not at all
    #[arg(long, value_name = "NORM", default_value_t = 1.0)]
    max_grad_norm: f64,
    /// Decides the initial adapter and the answers
    #[arg(long, value_name = "SEED", default_value_t = 3407)]
    seed: u64,
    /// Compute activations again in the backward pass instead of keeping them
    #[arg(long)]
    recompute: bool,
    /// Adapter to start from
    #[arg(long, value_name = "DIR")]
    init_adapter: Option<PathBuf>,
    /// Write a checkpoint every N steps and at the end
    #[arg(long, value_name = "N", alias = "save_steps")]
    save_steps: Option<usize>,
    /// Keep N checkpoints
    #[arg(long, value_name = "N", alias = "save_total_limit")]
    save_total_limit: Option<usize>,
    /// Go on from a checkpoint, or from the latest one in an output folder; auto: from the latest in --output, if there is one
    #[arg(long, value_name = "DIR|auto", aliases = ["resume-from-checkpoint", "resume_from_checkpoint"])]
    resume: Option<PathBuf>,
    /// Write one JSON object for each step
    #[arg(long, value_name = "FILE.jsonl")]
    log: Option<PathBuf>,
}

fn parse_loss(text: &str) -> Result<LossType> {
    text.parse()
}

fn parse_scale(text: &str) -> Result<ScaleRewards> {
    text.parse()
}

/// Who scores the answers; one of them.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Judge {
    /// Run once a step: reads {"prompts", "completions", "rows"} as JSON, writes a list of numbers
    #[arg(long, value_name = "COMMAND")]
    reward_command: Option<String>,
    /// The same over HTTP: a POST
    #[arg(long, value_name = "http://…")]
    reward_url: Option<String>,
}

impl Judge {
    fn reward(&self) -> Result<Box<dyn Reward>> {
        match (&self.reward_command, &self.reward_url) {
            (Some(command), _) => Ok(Box::new(CommandReward { command: command.clone() })),
            (None, Some(url)) => Ok(Box::new(HttpReward { url: url.clone() })),
            (None, None) => Err(Error::invalid("pass --reward-command or --reward-url")),
        }
    }
}

pub fn run(args: &Args) -> Result<()> {
    let recipe = Recipe {
        data: vec![args.data.clone().into()],
        output: args.output.clone(),
        rank: args.rank,
        alpha: args.alpha,
        use_dora: args.use_dora.then_some(true),
        lr: args.lr,
        warmup_steps: args.warmup_steps,
        max_steps: Some(args.max_steps),
        weight_decay: args.weight_decay,
        max_grad_norm: args.max_grad_norm,
        schedule: args.schedule,
        seed: args.seed,
        recompute: args.recompute,
        init_adapter: args.init_adapter.clone(),
        log: args.log.clone(),
        save_steps: args.save_steps,
        save_total_limit: args.save_total_limit,
        resume: args.resume.clone(),
        ..Recipe::default()
    };
    if let Some(launch) = runtime::collective::Launch::from_env()? {
        return Err(Error::unsupported(format!("grpo in several processes ({launch}): start one")));
    }
    let options = GrpoOptions {
        prompts: args.prompts,
        generations: args.generations,
        max_tokens: args.max_tokens,
        beta: args.beta,
        use_bias_correction_kl: args.use_bias_correction_kl,
        num_iterations: args.num_iterations,
        epsilon: args.epsilon,
        epsilon_high: args.epsilon_high,
        loss_type: args.loss_type,
        scale_rewards: args.scale_rewards,
        mask_truncated_completions: args.mask_truncated_completions,
    };
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stop);
    let handler = move || {
        if asked.swap(true, Ordering::Relaxed) {
            // A second Ctrl-C: the user means it.
            std::process::exit(130);
        }
        eprintln!("stopping after this step (Ctrl-C again: at once, without the adapter)");
    };
    ctrlc::set_handler(handler).map_err(|error| Error::internal(format!("cannot catch Ctrl-C: {error}")))?;
    let model = args.model.load()?;
    eprintln!("{} on {}", model.name, model.device.info().name);
    let mut reward = args.judge.reward()?;
    let mut show = |report: &GrpoReport| {
        let GrpoReport { step, total_steps, reward, reward_std, length, grad_norm, step_s, kl, .. } = report;
        let kl = if options.beta > 0.0 { format!("  kl {kl:.4}") } else { String::new() };
        eprintln!(
            "step {step}/{total_steps}  reward {reward:.3} ± {reward_std:.3}{kl}  {length:.0} tokens  grad {grad_norm:.2}  {step_s:.1} s"
        );
        if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    grpo::run(&model, &recipe, &options, &mut *reward, &mut show)?;
    eprintln!("the adapter is in {}", args.output.display());
    Ok(())
}
