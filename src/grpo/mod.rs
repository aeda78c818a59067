//! GRPO: a model answers prompts, a judge scores the answers, and the adapter learns from what was better than its group
//! (<https://arxiv.org/abs/2402.03300>).
//!
//! One copy of the weights: the engine answers with the adapter that the trainer has just changed, on the same device and
//! through the same kernels, so that a step is exactly on policy and its ratio of probabilities is 1. The loss is TRL's default
//! (`loss_type="dapo"`, β = 0, one iteration): the mean over all answer tokens of −A · log p, where the advantage A of an
//! answer is its reward less its group's mean, divided by the group's standard deviation + 1e-4.
//!
//! - `reward`: judges behind a command or a URL
//! - `rollout`: answers from the engine

mod reward;
mod rollout;

pub use reward::{Answer, CommandReward, HttpReward, Reward};

use crate::engine::{Engine, EngineOptions};
use crate::error::{Error, Result};
use crate::format::peft::Adapter;
use crate::model::LoadedModel;
use crate::model::decoder::Objective;
use crate::tensor::DType;
use crate::train::Recipe;
use crate::train::adapter::{Start, existing, fresh, to_adapter};
use crate::train::batch::MicroBatch;
use crate::train::data::Row;
use crate::train::trainer::{Trainer, TrainerOptions, Update};
use rollout::{Prompts, Rollout, roll_out};
use serde::Serialize;
use std::io::Write;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

/// The adapter's name in the engine.
const POLICY: &str = "policy";
/// Tokens of a training micro-batch, where sequences are shorter.
const MICRO_TOKENS: usize = 2048;
/// Added to a group's standard deviation, as TRL does.
const EPS: f64 = 1e-4;

/// What GRPO needs beside a [`Recipe`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrpoOptions {
    /// Prompts of a step.
    pub prompts: usize,
    /// Answers to each.
    pub generations: usize,
    /// Most tokens of an answer.
    pub max_tokens: usize,
}

impl Default for GrpoOptions {
    fn default() -> Self {
        Self { prompts: 4, generations: 8, max_tokens: 256 }
    }
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct GrpoReport {
    /// From 1.
    pub step: usize,
    /// Steps of the whole run.
    pub total_steps: usize,
    /// Mean over the step's answers.
    pub reward: f64,
    /// Mean over the groups of their standard deviations.
    pub reward_std: f64,
    /// Mean tokens of an answer.
    pub length: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f32,
    /// Learning rate that this step used.
    pub lr: f64,
    /// Seconds of this step.
    pub step_s: f64,
}

fn check(recipe: &Recipe, options: &GrpoOptions) -> Result<usize> {
    recipe.validate()?;
    let GrpoOptions { prompts, generations, max_tokens } = *options;
    for (name, value, least) in
        [("prompts", prompts, 1), ("generations", generations, 2), ("max_tokens", max_tokens, 1)]
    {
        if value < least {
            return Err(Error::invalid(format!("{name} is {value}, expected at least {least}")));
        }
    }
    let without = [
        ("preference", recipe.preference.is_some()),
        ("packing", recipe.packing),
        ("epochs", recipe.epochs.is_some()),
        ("resume", recipe.resume.is_some()),
        ("neftune_noise_alpha", recipe.neftune_noise_alpha.is_some()),
        ("label_smoothing", recipe.label_smoothing > 0.0),
        ("eval_data", !recipe.eval_data.is_empty()),
        ("save_steps", recipe.save_steps.is_some()),
        ("dropout", recipe.dropout > 0.0),
        ("full_finetuning", recipe.full_finetuning),
        ("modules_to_save", !recipe.modules_to_save.is_empty()),
    ];
    if let Some((name, _)) = without.iter().find(|(_, set)| *set) {
        return Err(Error::unsupported(format!("{name} in a GRPO run")));
    }
    recipe.max_steps.ok_or_else(|| Error::invalid("max_steps is not set: a GRPO run has no other end"))
}

/// A whole run: the adapter goes to `recipe.output`, a line for each step to `recipe.log`. Prompts come from `recipe.data`, in
/// turn: JSONL with `prompt`, a text or a list of messages; the judge gets the whole row. `observe` sees each step and may end
/// the run.
///
/// # Errors
/// [`Error::Invalid`] for a recipe or data that do not fit, and for rewards that are not one finite number an answer; those
/// of the engine, the trainer and the judge.
pub fn run(
    model: &Arc<LoadedModel>,
    recipe: &Recipe,
    options: &GrpoOptions,
    reward: &mut dyn Reward,
    observe: &mut dyn FnMut(&GrpoReport) -> ControlFlow<()>,
) -> Result<()> {
    let total_steps = check(recipe, options)?;
    let mut prompts = Prompts::read(recipe, model)?;
    let longest = prompts.longest() + options.max_tokens;
    let seqs = options.prompts * options.generations;
    let start = match &recipe.init_adapter {
        Some(folder) => {
            let adapter = Adapter::read(folder, model.config())?;
            adapter.only_low_rank(&folder.display().to_string())?;
            existing(&adapter, &folder.display().to_string(), recipe, model.config())?
        }
        None => fresh(recipe, model.config())?,
    };
    let engine = Engine::start(
        model.clone(),
        EngineOptions {
            max_seqs: seqs.min(64),
            max_len: Some(longest),
            max_adapters: 1,
            max_rank: start.layout.lora.rank,
            dora: start.config.use_dora,
            seed: Some(recipe.seed),
            ..EngineOptions::default()
        },
    )?;
    let Start { config: mut adapter, layout, scale, params } = start;
    adapter.base_model.get_or_insert_with(|| model.name.clone());
    let sizes = TrainerOptions {
        tokens: longest.max(MICRO_TOKENS.min(longest * seqs)),
        seqs,
        max_len: longest,
        recompute: recipe.recompute,
        scale,
        optim: recipe.optimizer(),
        scale_loss: model.device.limits().activations == DType::F16,
        objective: Objective::Weighted,
        ..TrainerOptions::default()
    };
    let mut trainer = Trainer::new(model.device.clone(), model.config(), &model.weights, layout, &sizes)?;
    trainer.set_params(&params)?;
    if recipe.init_adapter.is_none() {
        trainer.start_magnitudes()?;
    }
    std::fs::create_dir_all(&recipe.output).map_err(|e| Error::io(&recipe.output, e))?;
    let mut log = recipe.log.as_deref().map(crate::train::open_log).transpose()?;
    let current = |trainer: &Trainer| to_adapter(&adapter, trainer.layout(), scale, &trainer.params()?);
    for done in 0..total_steps {
        let began = Instant::now();
        engine.load_adapter(POLICY, &current(&trainer)?)?;
        let rollouts = roll_out(&engine, &mut prompts, options, POLICY)?;
        let rewards = judged(reward, &rollouts)?;
        let advantages = advantages(&rewards, options.generations);
        learn(&mut trainer, &rollouts, &advantages, sizes.tokens)?;
        let lr = recipe.curve(total_steps).at(done);
        let (weight_decay, max_grad_norm) = (recipe.weight_decay, recipe.max_grad_norm);
        let grad_norm = trainer.update(&Update { lr, weight_decay, max_grad_norm, step: done + 1 })?;
        let mean = |numbers: &mut dyn Iterator<Item = f64>| numbers.sum::<f64>() / rollouts.len() as f64;
        let report = GrpoReport {
            step: done + 1,
            total_steps,
            reward: mean(&mut rewards.iter().copied()),
            reward_std: rewards.chunks(options.generations).map(|g| spread(g).1).sum::<f64>() / options.prompts as f64,
            length: mean(&mut rollouts.iter().map(|r| r.answer.len() as f64)),
            grad_norm,
            lr,
            step_s: began.elapsed().as_secs_f64(),
        };
        if let (Some(log), Some(path)) = (&mut log, &recipe.log) {
            let line = serde_json::to_string(&report).map_err(|e| Error::internal(e.to_string()))?;
            writeln!(log, "{line}").map_err(|e| Error::io(path, e))?;
        }
        if observe(&report).is_break() {
            break;
        }
    }
    current(&trainer)?.write(&recipe.output)
}

/// A reward for each answer.
fn judged(reward: &mut dyn Reward, rollouts: &[Rollout]) -> Result<Vec<f64>> {
    let answers: Vec<Answer> = rollouts.iter().map(|r| Answer { row: &r.row, answer: &r.text }).collect();
    let rewards = reward.score(&answers)?;
    let bad = rewards.iter().position(|r| !r.is_finite());
    match (rewards.len() == rollouts.len(), bad) {
        (true, None) => Ok(rewards),
        (false, _) => {
            Err(Error::invalid(format!("the judge gave {} rewards for {} answers", rewards.len(), rollouts.len())))
        }
        (true, Some(at)) => Err(Error::invalid(format!("the reward of answer {at} is {}", rewards[at]))),
    }
}

/// Mean and standard deviation (of a sample).
fn spread(group: &[f64]) -> (f64, f64) {
    let mean = group.iter().sum::<f64>() / group.len() as f64;
    let square: f64 = group.iter().map(|r| (r - mean).powi(2)).sum();
    (mean, (square / (group.len().max(2) - 1) as f64).sqrt())
}

fn advantages(rewards: &[f64], generations: usize) -> Vec<f64> {
    let group = |group: &[f64]| {
        let (mean, std) = spread(group);
        group.iter().map(|r| (r - mean) / (std + EPS)).collect::<Vec<_>>()
    };
    rewards.chunks(generations).flat_map(group).collect()
}

/// Adds up the gradients of the step, in micro-batches of at most `room` tokens.
fn learn(trainer: &mut Trainer, rollouts: &[Rollout], advantages: &[f64], room: usize) -> Result<()> {
    let total: usize = rollouts.iter().map(|r| r.answer.len()).sum();
    let (mut rows, mut weights): (Vec<Row>, Vec<f32>) = (Vec::new(), Vec::new());
    let mut flush = |rows: &mut Vec<Row>, weights: &mut Vec<f32>| -> Result<()> {
        if !rows.is_empty() {
            trainer.weighted_batch(&MicroBatch::new(rows.iter()), weights, 1.0 / total.max(1) as f32, 0)?;
            rows.clear();
            weights.clear();
        }
        Ok(())
    };
    // An answer as good as its group's mean teaches nothing.
    for (rollout, advantage) in rollouts.iter().zip(advantages).filter(|(_, a)| **a != 0.0) {
        let ids = [&rollout.prompt[..], &rollout.answer].concat();
        if weights.len() + ids.len() > room {
            flush(&mut rows, &mut weights)?;
        }
        weights.extend(std::iter::repeat_n(*advantage as f32, ids.len()));
        let counted = (0..ids.len()).map(|i| i >= rollout.prompt.len()).collect();
        rows.push(Row { ids, counted, line: 0 });
    }
    flush(&mut rows, &mut weights)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advantages_are_within_the_group() {
        let a = advantages(&[1.0, 0.0, 0.0, 1.0, 5.0, 5.0, 5.0, 5.0], 4);
        // The standard deviation of 1, 0, 0, 1 is √(1/3).
        let want = 0.5 / ((1.0f64 / 3.0).sqrt() + EPS);
        assert!((a[0] - want).abs() < 1e-12 && (a[1] + want).abs() < 1e-12);
        assert_eq!(a[4..], [0.0; 4]);
    }

    #[test]
    fn wrong_options_are_named() {
        let recipe = Recipe { max_steps: Some(3), ..Recipe::default() };
        let error = |r: &Recipe, o: GrpoOptions| check(r, &o).map_err(|e| e.to_string()).err().unwrap_or_default();
        assert!(error(&recipe, GrpoOptions { generations: 1, ..GrpoOptions::default() }).contains("generations is 1"));
        assert!(error(&Recipe { dropout: 0.1, ..recipe.clone() }, GrpoOptions::default()).contains("dropout"));
        assert!(error(&Recipe::default(), GrpoOptions::default()).contains("max_steps"));
    }
}
