//! GRPO: a model answers prompts, a judge scores the answers, and the adapter learns from what was better than its group
//! (<https://arxiv.org/abs/2402.03300>).
//!
//! One copy of the weights: the engine answers with the adapter that the trainer has just changed, on the same device and
//! through the same kernels, so that a first step is exactly on policy and its ratio of probabilities is 1. Options are those of
//! TRL's `GRPOConfig`, with its defaults. What a token weighs in the gradient depends on its log-probability where answers are
//! learned from several times or the reference is kept near: then a forward pass comes before the step's own.
//!
//! - `reward`: judges behind a command or a URL
//! - `rollout`: answers from the engine
//! - `loss`: advantages, the loss, and what each token weighs
//! - `state`: checkpoints

mod loss;
mod reward;
mod rollout;
mod state;

pub use loss::{AnswerTokens, LossType, ScaleRewards, StepLoss, advantages, step_loss};
pub use reward::{Answer, CommandReward, HttpReward, Reward};

use crate::engine::{Engine, EngineOptions};
use crate::error::{Error, Result};
use crate::format::peft::Adapter;
use crate::model::LoadedModel;
use crate::model::decoder::Objective;
use crate::tensor::DType;
use crate::train::adapter::{Start, existing, fresh, to_adapter};
use crate::train::batch::MicroBatch;
use crate::train::data::Row;
use crate::train::trainer::{Reference, Trainer, TrainerOptions, Update};
use crate::train::{Outcome, Recipe};
use loss::spread;
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

/// What GRPO needs beside a [`Recipe`], under the names of TRL's `GRPOConfig` but for the first three.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct GrpoOptions {
    /// Prompts of a step.
    pub prompts: usize,
    /// Answers to each (`num_generations`).
    pub generations: usize,
    /// Most tokens of an answer (`max_completion_length`).
    pub max_tokens: usize,
    /// How strongly the divergence from the model without adapter counts; 0: not at all, and it is not computed.
    pub beta: f64,
    /// Multiply that divergence by the ratio of probabilities, so that its gradient is that of the divergence itself
    /// (<https://arxiv.org/abs/2512.02556>).
    pub use_bias_correction_kl: bool,
    /// Optimizer steps on the same answers.
    pub num_iterations: usize,
    /// How far below 1 the ratio of probabilities counts.
    pub epsilon: f64,
    /// How far above; `None`: as far.
    pub epsilon_high: Option<f64>,
    /// What the sum over the tokens is divided by.
    pub loss_type: LossType,
    /// What advantages are divided by.
    pub scale_rewards: ScaleRewards,
    /// Answers that reached `max_tokens` teach nothing.
    pub mask_truncated_completions: bool,
}

impl Default for GrpoOptions {
    fn default() -> Self {
        Self {
            prompts: 4,
            generations: 8,
            max_tokens: 256,
            beta: 0.0,
            use_bias_correction_kl: true,
            num_iterations: 1,
            epsilon: 0.2,
            epsilon_high: None,
            loss_type: LossType::Dapo,
            scale_rewards: ScaleRewards::Group,
            mask_truncated_completions: false,
        }
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
    /// Share of the groups whose answers are all as good: nothing is learned from them.
    pub frac_reward_zero_std: f64,
    /// Mean tokens of an answer.
    pub length: f64,
    /// Share of the answers that reached the most tokens.
    pub truncated: f64,
    /// The loss.
    pub loss: f64,
    /// Mean over the tokens of the estimated divergence from the model without adapter, in nat; 0 where β is 0.
    pub kl: f64,
    /// Share of the tokens whose ratio of probabilities is clipped.
    pub clip_ratio: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f32,
    /// Learning rate that this step used.
    pub lr: f64,
    /// Seconds of this step.
    pub step_s: f64,
}

fn check(recipe: &Recipe, options: &GrpoOptions) -> Result<usize> {
    recipe.validate()?;
    let GrpoOptions { prompts, generations, max_tokens, num_iterations, .. } = *options;
    for (name, value, least) in [
        ("prompts", prompts, 1),
        ("generations", generations, 2),
        ("max_tokens", max_tokens, 1),
        ("num_iterations", num_iterations, 1),
    ] {
        if value < least {
            return Err(Error::invalid(format!("{name} is {value}, expected at least {least}")));
        }
    }
    let high = options.epsilon_high.unwrap_or(options.epsilon);
    for (name, value, most) in
        [("beta", options.beta, f64::MAX), ("epsilon", options.epsilon, 1.0), ("epsilon_high", high, f64::MAX)]
    {
        if !(0.0..=most).contains(&value) {
            let accepted = if most == 1.0 { "0 to 1" } else { "a number of 0 or more" };
            return Err(Error::invalid(format!("{name} is {value}, expected {accepted}")));
        }
    }
    let without = [
        ("preference", recipe.preference.is_some()),
        ("packing", recipe.packing),
        ("epochs", recipe.epochs.is_some()),
        ("neftune_noise_alpha", recipe.neftune_noise_alpha.is_some()),
        ("label_smoothing", recipe.label_smoothing > 0.0),
        ("eval_data", !recipe.eval_data.is_empty()),
        ("dropout", recipe.dropout > 0.0),
        ("full_finetuning", recipe.full_finetuning),
        ("modules_to_save", !recipe.modules_to_save.is_empty()),
    ];
    if let Some((name, _)) = without.iter().find(|(_, set)| *set) {
        return Err(Error::unsupported(format!("{name} in a GRPO run")));
    }
    if let Some(steps) = recipe.save_steps.filter(|steps| !steps.is_multiple_of(num_iterations)) {
        return Err(Error::invalid(format!(
            "save_steps is {steps}, expected a multiple of num_iterations, {num_iterations}: answers are not kept"
        )));
    }
    recipe.max_steps.ok_or_else(|| Error::invalid("max_steps is not set: a GRPO run has no other end"))
}

/// A whole run: the adapter goes to `recipe.output`, a line for each step to `recipe.log`, checkpoints as `recipe.save_steps` and
/// `recipe.resume` say. Prompts come from `recipe.data`, in turn: JSONL with `prompt`, a text or a list of messages; the judge
/// gets the whole row. `observe` sees each step and may end the run, which then leaves a checkpoint beside the adapter.
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
    let rows = state::rows(&prompts)?;
    let saved = state::resume(recipe, options, model, &rows)?;
    let longest = prompts.longest() + options.max_tokens;
    let seqs = options.prompts * options.generations;
    let start = match (&saved, &recipe.init_adapter) {
        (Some(saved), _) => {
            let Outcome::Adapter(adapter) = &saved.outcome else {
                return Err(Error::internal("a GRPO checkpoint without an adapter"));
            };
            existing(adapter, &saved.folder.display().to_string(), recipe, model.config())?
        }
        (None, Some(folder)) => {
            let adapter = Adapter::read(folder, model.config())?;
            adapter.only_low_rank(&folder.display().to_string())?;
            existing(&adapter, &folder.display().to_string(), recipe, model.config())?
        }
        (None, None) => fresh(recipe, model.config())?,
    };
    let Start { config: mut adapter, layout, scale, params } = start;
    let engine = Engine::start(
        model.clone(),
        EngineOptions {
            max_seqs: seqs.min(64),
            max_len: Some(longest),
            max_adapters: 1,
            max_rank: layout.lora.rank,
            dora: adapter.use_dora,
            ..EngineOptions::default()
        },
    )?;
    adapter.base_model.get_or_insert_with(|| model.name.clone());
    // Whether a token's weight follows from its advantage alone.
    let plain = options.beta == 0.0 && options.num_iterations == 1;
    let sizes = TrainerOptions {
        tokens: longest.max(MICRO_TOKENS.min(longest * seqs)),
        seqs,
        max_len: longest,
        recompute: recipe.recompute,
        offload: recipe.activation_offloading,
        scale,
        optim: recipe.optimizer(),
        scale_loss: model.device.limits().activations == DType::F16,
        objective: Objective::Weighted,
        evaluate: !plain,
        ..TrainerOptions::default()
    };
    let mut learner = Learner {
        trainer: Trainer::new(model.device.clone(), model.config(), &model.weights, layout, &sizes)?,
        reference: (options.beta != 0.0)
            .then(|| {
                let sizes = [sizes.tokens, sizes.seqs, sizes.max_len];
                Reference::new(&*model.device, model.config(), &model.weights, sizes)
            })
            .transpose()?,
        options: *options,
        room: sizes.tokens,
        plain,
    };
    learner.trainer.set_params(&params)?;
    let mut done = 0;
    if let Some(saved) = &saved {
        learner.trainer.set_moments(&saved.moments)?;
        done = saved.step;
        prompts.skip(done / options.num_iterations * options.prompts);
    } else if recipe.init_adapter.is_none() {
        learner.trainer.start_magnitudes()?;
    }
    std::fs::create_dir_all(&recipe.output).map_err(|e| Error::io(&recipe.output, e))?;
    let mut log = recipe.log.as_deref().map(|path| crate::train::continue_log(path, done)).transpose()?;
    let current = |trainer: &Trainer| to_adapter(&adapter, trainer.layout(), scale, &trainer.params()?);
    let mut stopped = false;
    while done < total_steps && !stopped {
        let mut began = Instant::now();
        engine.load_adapter(POLICY, &current(&learner.trainer)?)?;
        let rollouts = roll_out(&engine, &mut prompts, options, POLICY, recipe.seed, done)?;
        let rewards = judged(reward, &rollouts)?;
        let batch = learner.batch(rollouts, &rewards)?;
        for _ in 0..options.num_iterations.min(total_steps - done) {
            let step = learner.learn(&batch)?;
            let lr = recipe.curve(total_steps).at(done);
            let (weight_decay, max_grad_norm) = (recipe.weight_decay, recipe.max_grad_norm);
            done += 1;
            let grad_norm = learner.trainer.update(&Update { lr, weight_decay, max_grad_norm, step: done })?;
            let numbers = [("loss", step.loss), ("norm of the gradient", f64::from(grad_norm))];
            if let Some((name, value)) = numbers.into_iter().find(|(_, value)| !value.is_finite()) {
                return Err(Error::invalid(format!("step {done}: the {name} is {value}; a lower lr may help")));
            }
            let step_s = began.elapsed().as_secs_f64();
            let report = GrpoReport {
                step: done,
                total_steps,
                loss: step.loss,
                kl: step.kl,
                clip_ratio: step.clip_ratio,
                grad_norm,
                lr,
                step_s,
                ..batch.report
            };
            began = Instant::now();
            if let (Some(log), Some(path)) = (&mut log, &recipe.log) {
                let line = serde_json::to_string(&report).map_err(|e| Error::internal(e.to_string()))?;
                writeln!(log, "{line}").map_err(|e| Error::io(path, e))?;
            }
            // The answers are used up before the run ends: a checkpoint does not keep them.
            stopped |= observe(&report).is_break();
        }
        let due = recipe.save_steps.is_some_and(|every| done.is_multiple_of(every) || done == total_steps);
        if due || (stopped && done.is_multiple_of(options.num_iterations)) {
            let now = (&learner.trainer, current(&learner.trainer)?);
            state::save(recipe, options, &model.checkpoint, now, &rows, done)?;
        }
    }
    current(&learner.trainer)?.write(&recipe.output)
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

/// An answer to learn from.
struct Lesson {
    /// Prompt and answer.
    row: Row,
    /// Tokens of the prompt.
    prompt: usize,
    advantage: f64,
    /// Log-probabilities of the answer's tokens, where they are needed.
    old: Vec<f32>,
    reference: Vec<f32>,
}

/// What was generated for one step, or for several.
struct Batch {
    lessons: Vec<Lesson>,
    /// What does not change from iteration to iteration.
    report: GrpoReport,
}

/// The trainer with what the weights of tokens are worked out from.
struct Learner {
    trainer: Trainer,
    reference: Option<Reference>,
    options: GrpoOptions,
    /// Tokens that the programs take at once.
    room: usize,
    /// Whether a token's weight follows from its advantage alone.
    plain: bool,
}

impl Learner {
    fn batch(&mut self, rollouts: Vec<Rollout>, rewards: &[f64]) -> Result<Batch> {
        let GrpoOptions { generations, prompts, scale_rewards, mask_truncated_completions, .. } = self.options;
        let advantages = advantages(rewards, generations, scale_rewards);
        let mean = |numbers: &mut dyn Iterator<Item = f64>| numbers.sum::<f64>() / rollouts.len().max(1) as f64;
        let spreads: Vec<f64> = rewards.chunks(generations).map(|group| spread(group).1).collect();
        let report = GrpoReport {
            step: 0,
            total_steps: 0,
            reward: mean(&mut rewards.iter().copied()),
            reward_std: spreads.iter().sum::<f64>() / prompts as f64,
            frac_reward_zero_std: spreads.iter().filter(|std| **std == 0.0).count() as f64 / prompts as f64,
            length: mean(&mut rollouts.iter().map(|r| r.answer.len() as f64)),
            truncated: mean(&mut rollouts.iter().map(|r| f64::from(u8::from(!r.ended)))),
            loss: 0.0,
            kl: 0.0,
            clip_ratio: 0.0,
            grad_norm: 0.0,
            lr: 0.0,
            step_s: 0.0,
        };
        let lesson = |(rollout, advantage): (Rollout, f64)| {
            let prompt = rollout.prompt.len();
            // TRL keeps a masked answer in the count of answers, without tokens.
            let kept = rollout.ended || !mask_truncated_completions;
            let ids = [rollout.prompt, rollout.answer].concat();
            let counted = (0..ids.len()).map(|i| kept && i >= prompt).collect();
            Lesson { row: Row { ids, counted, line: 0 }, prompt, advantage, old: Vec::new(), reference: Vec::new() }
        };
        let mut lessons: Vec<Lesson> = rollouts.into_iter().zip(advantages).map(lesson).collect();
        if !self.plain {
            let old = self.log_probabilities(&lessons, false)?;
            let reference = self.log_probabilities(&lessons, true)?;
            for (lesson, (old, reference)) in lessons.iter_mut().zip(old.into_iter().zip(reference)) {
                (lesson.old, lesson.reference) = (old, reference);
            }
        }
        Ok(Batch { lessons, report })
    }

    /// Which lessons run together: as many as the programs take.
    fn groups(&self, lessons: &[Lesson], needed: &dyn Fn(usize) -> bool) -> Vec<Vec<usize>> {
        let (mut groups, mut taken): (Vec<Vec<usize>>, usize) = (Vec::new(), usize::MAX);
        for (i, lesson) in lessons.iter().enumerate().filter(|(i, _)| needed(*i)) {
            let tokens = lesson.row.ids.len();
            match groups.last_mut() {
                Some(group) if taken + tokens <= self.room => {
                    group.push(i);
                    taken += tokens;
                }
                _ => {
                    groups.push(vec![i]);
                    taken = tokens;
                }
            }
        }
        groups
    }

    /// Those of each answer's counted tokens, under the adapter as it is or without it (nothing where that is not asked for).
    fn log_probabilities(&mut self, lessons: &[Lesson], reference: bool) -> Result<Vec<Vec<f32>>> {
        let mut all = vec![Vec::new(); lessons.len()];
        if reference && self.reference.is_none() {
            return Ok(all);
        }
        for group in self.groups(lessons, &|_| true) {
            let batch = MicroBatch::new(group.iter().map(|i| &lessons[*i].row));
            let losses = match &mut self.reference {
                Some(model) if reference => model.run(&batch)?,
                _ => self.trainer.forward_losses(&batch)?,
            };
            let mut at = 0;
            for i in group {
                let Lesson { row, prompt, .. } = &lessons[i];
                // A token's loss stands at the one before it.
                let answer = at + prompt - 1..at + row.ids.len() - 1;
                all[i] = losses[answer.start..answer.start + row.counted()].iter().map(|loss| -loss).collect();
                at += row.ids.len();
            }
        }
        Ok(all)
    }

    /// Adds up the gradients of a step.
    fn learn(&mut self, batch: &Batch) -> Result<StepLoss> {
        let lessons = &batch.lessons;
        let now: Vec<Vec<f32>> = match self.plain {
            // The ratio is 1, whatever the probability.
            true => lessons.iter().map(|lesson| vec![0.0; lesson.row.counted()]).collect(),
            false => self.log_probabilities(lessons, false)?,
        };
        let answers: Vec<AnswerTokens> = lessons
            .iter()
            .zip(&now)
            .map(|(lesson, now)| AnswerTokens {
                advantage: lesson.advantage,
                now,
                old: if self.plain { now } else { &lesson.old },
                reference: &lesson.reference,
            })
            .collect();
        let step = step_loss(&self.options, &answers);
        let scale = 1.0 / now.iter().map(Vec::len).sum::<usize>().max(1) as f64;
        // An answer as good as its group's mean teaches nothing.
        for group in self.groups(lessons, &|i| step.weights[i].iter().any(|w| *w != 0.0)) {
            let data = MicroBatch::new(group.iter().map(|i| &lessons[*i].row));
            let mut weights = Vec::with_capacity(data.ids.len());
            for i in group {
                let Lesson { row, prompt, .. } = &lessons[i];
                weights.extend(std::iter::repeat_n(0.0, prompt - 1));
                weights.extend(step.weights[i].iter().map(|w| (w / scale) as f32));
                weights.resize(weights.len() + row.ids.len() - (prompt - 1) - step.weights[i].len(), 0.0);
            }
            self.trainer.weighted_batch(&data, &weights, scale as f32, 0)?;
        }
        Ok(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_options_are_named() {
        let recipe = Recipe { max_steps: Some(3), ..Recipe::default() };
        let error = |r: &Recipe, o: GrpoOptions| check(r, &o).map_err(|e| e.to_string()).err().unwrap_or_default();
        assert!(error(&recipe, GrpoOptions { generations: 1, ..GrpoOptions::default() }).contains("generations is 1"));
        assert!(error(&Recipe { dropout: 0.1, ..recipe.clone() }, GrpoOptions::default()).contains("dropout"));
        assert!(error(&recipe, GrpoOptions { beta: -0.1, ..GrpoOptions::default() }).contains("beta is -0.1"));
        assert!(error(&recipe, GrpoOptions { epsilon: 1.5, ..GrpoOptions::default() }).contains("epsilon is 1.5"));
        let two = GrpoOptions { num_iterations: 2, ..GrpoOptions::default() };
        assert!(error(&Recipe { save_steps: Some(3), ..recipe.clone() }, two).contains("save_steps is 3"));
        assert!(error(&Recipe::default(), GrpoOptions::default()).contains("max_steps"));
    }
}
