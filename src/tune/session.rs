//! The building blocks of training, one call at a time: gradients of tokens that the caller weighs, optimizer steps, samples from
//! the weights as they are, and states to come back to. Names are those of Tinker's API (<https://tinker-docs.thinkingmachines.ai>).
//!
//! A session is an adapter in training on the engine's weights. Its work is done by the engine's thread, in the slices that
//! requests leave; per-token log-probabilities are those of the kernels that also serve.

use crate::engine::{DeviceAdapter, House};
use crate::error::{Error, Result};
use crate::format::peft::{Adapter, AdapterConfig};
use crate::model::LoadedModel;
use crate::model::decoder::Objective;
use crate::tensor::DType;
use crate::train::adapter::{Start, existing, fresh, to_adapter};
use crate::train::batch::MicroBatch;
use crate::train::data::Row;
use crate::train::trainer::{Trainer, TrainerOptions, Update};
use crate::train::{Recipe, Snapshot};
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Some tokens, and how much each of them counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Datum {
    /// At least two.
    pub tokens: Vec<u32>,
    /// For each token, how much its prediction counts; that of the first never does.
    pub weights: Vec<f32>,
    /// For [`LossFn::ImportanceSampling`]: the log-probabilities with which the tokens were drawn.
    pub logprobs: Option<Vec<f32>>,
}

/// What is minimised; sums over all tokens, with no mean taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LossFn {
    /// `−Σ weight · log p(token)`
    #[default]
    CrossEntropy,
    /// `−Σ weight · p(token) / q(token)`: weights are advantages, q is what the tokens were drawn with.
    ImportanceSampling,
}

/// What [`Session::forward_backward`] gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Passed {
    /// Of each datum's tokens after the first, in nat.
    pub logprobs: Vec<Vec<f32>>,
    /// The loss.
    pub loss: f64,
}

/// One optimizer step's numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimStep {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Norm to which the gradient is clipped; 0: not at all.
    pub max_grad_norm: f64,
}

type Reply<T> = Sender<Result<T>>;

/// What a session is asked.
enum Ask {
    Pass { data: Vec<Datum>, loss: LossFn, backward: bool, reply: Reply<Passed> },
    Step { step: OptimStep, reply: Reply<(usize, f32)> },
    Publish { reply: Reply<String> },
    Save { reply: Reply<Box<Snapshot>> },
    Load { snapshot: Box<Snapshot>, reply: Reply<()> },
}

/// The queue between a session and its trainer.
#[derive(Default)]
struct Queue {
    asks: Mutex<(VecDeque<Ask>, bool)>,
}

/// A handle on an adapter in training; it ends when this is dropped.
pub struct Session {
    queue: Arc<Queue>,
    wake: Box<dyn Fn() + Send + Sync>,
    /// Under which its weights are sampled.
    model: String,
    tokens: usize,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.queue.asks.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        (self.wake)();
    }
}

impl Session {
    fn ask<T>(&self, ask: impl FnOnce(Reply<T>) -> Ask) -> Result<T> {
        let (reply, answer): (Reply<T>, Receiver<Result<T>>) = channel();
        self.queue.asks.lock().unwrap_or_else(PoisonError::into_inner).0.push_back(ask(reply));
        (self.wake)();
        answer.recv().map_err(|_| Error::internal("the engine's thread has ended"))?
    }

    /// Forward and, unless `backward` says otherwise, backward pass: adds to the gradients. Waits for the result.
    ///
    /// # Errors
    /// [`Error::Invalid`] for data that do not fit; [`Error::Device`].
    pub fn forward_backward(&self, data: Vec<Datum>, loss: LossFn, backward: bool) -> Result<Passed> {
        for (i, datum) in data.iter().enumerate() {
            let (tokens, weights) = (datum.tokens.len(), datum.weights.len());
            if tokens < 2 || tokens > self.tokens || weights != tokens {
                let most = self.tokens;
                return Err(Error::invalid(format!(
                    "data[{i}] has {tokens} tokens and {weights} weights, expected 2 to {most} of both"
                )));
            }
            if let Some(at) = datum.weights.iter().position(|weight| !weight.is_finite()) {
                return Err(Error::invalid(format!("data[{i}].weights[{at}] is {}", datum.weights[at])));
            }
            let drawn = datum.logprobs.as_ref().map(Vec::len);
            if loss == LossFn::ImportanceSampling && drawn != Some(tokens) {
                return Err(Error::invalid(format!(
                    "data[{i}].logprobs: importance_sampling needs one for each of the {tokens} tokens"
                )));
            }
        }
        if data.is_empty() {
            return Err(Error::invalid("data is empty"));
        }
        self.ask(|reply| Ask::Pass { data, loss, backward, reply })
    }

    /// Updates the adapter and clears the gradients; gives the number of the step and the gradient's norm before clipping.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a gradient that is not finite; [`Error::Device`].
    pub fn optim_step(&self, step: OptimStep) -> Result<(usize, f32)> {
        self.ask(|reply| Ask::Step { step, reply })
    }

    /// Publishes the adapter as it is; gives the name under which requests sample from it.
    ///
    /// # Errors
    /// Those of [`House::publish`].
    pub fn publish(&self) -> Result<String> {
        self.ask(|reply| Ask::Publish { reply })
    }

    /// Everything that training goes on from, gradients left out.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn save_state(&self) -> Result<Box<Snapshot>> {
        self.ask(|reply| Ask::Save { reply })
    }

    /// Goes on from a state of the same rank.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a state that does not fit.
    pub fn load_state(&self, snapshot: Box<Snapshot>) -> Result<()> {
        self.ask(|reply| Ask::Load { snapshot, reply })
    }

    /// The name of its published versions.
    pub fn model(&self) -> &str {
        &self.model
    }
}

/// A pass that is being computed in slices.
struct Pass {
    data: Vec<Datum>,
    loss: LossFn,
    backward: bool,
    reply: Reply<Passed>,
    at: usize,
    /// The part to go on with, of the first pass (which finds log-probabilities) or of the one with gradients.
    part: Option<usize>,
    /// The log-probabilities are known, and gradients are next.
    second: bool,
    passed: Passed,
}

/// A session's half on the engine's thread.
pub struct Trained {
    queue: Arc<Queue>,
    trainer: Trainer,
    placed: DeviceAdapter,
    config: AdapterConfig,
    scale: f32,
    recipe: Recipe,
    name: String,
    steps: usize,
    pass: Option<Pass>,
    /// The version that is published is the present one.
    fresh: bool,
}

/// Makes a session: programs, buffers, and an adapter that `recipe` begins with (rank, alpha, modules, seed, optimizer).
/// `tokens`: the longest row; `wake`: tells the engine's thread.
///
/// # Errors
/// [`Error::Invalid`] for a recipe that does not fit; [`Error::OutOfMemory`].
pub fn open(
    model: &LoadedModel,
    recipe: &Recipe,
    name: &str,
    tokens: usize,
    wake: Box<dyn Fn() + Send + Sync>,
) -> Result<(Session, Trained)> {
    recipe.validate()?;
    let Start { config, layout, scale, params } = fresh(recipe, model.config())?;
    let options = TrainerOptions {
        tokens,
        max_len: tokens,
        recompute: recipe.recompute,
        scale,
        optim: recipe.optimizer(),
        scale_loss: model.device.limits().activations == DType::F16,
        objective: Objective::Weighted,
        ..TrainerOptions::default()
    };
    let mut trainer = Trainer::new(model.device.clone(), model.config(), &model.weights, layout.clone(), &options)?;
    trainer.set_params(&params)?;
    let placed = DeviceAdapter::new(trainer.param_buffer().clone(), layout.lora, scale);
    let queue: Arc<Queue> = Arc::default();
    let session = Session { queue: queue.clone(), wake, model: name.to_owned(), tokens };
    let (recipe, name) = (recipe.clone(), name.to_owned());
    let trained = Trained { queue, trainer, placed, config, scale, recipe, name, steps: 0, pass: None, fresh: false };
    Ok((session, trained))
}

/// What a turn of a session came to.
pub enum Did {
    /// Nothing was asked.
    Nothing,
    /// Something was done.
    Something,
    /// Its handle is gone.
    Over,
}

impl Trained {
    /// The name of its published versions.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Works on what was asked until `deadline`.
    pub fn turn(&mut self, model: &LoadedModel, deadline: Instant, house: &mut dyn House) -> Did {
        if let Some(pass) = self.pass.take() {
            self.go_on(pass, deadline);
            return Did::Something;
        }
        let ask = {
            let mut asks = self.queue.asks.lock().unwrap_or_else(PoisonError::into_inner);
            match asks.0.pop_front() {
                Some(ask) => ask,
                None if asks.1 => return Did::Over,
                None => return Did::Nothing,
            }
        };
        // Nobody waits for an answer to a question that was given up.
        match ask {
            Ask::Pass { data, loss, backward, reply } => {
                let passed = Passed { logprobs: Vec::with_capacity(data.len()), loss: 0.0 };
                let second = loss == LossFn::CrossEntropy && backward;
                self.go_on(Pass { data, loss, backward, reply, at: 0, part: None, second, passed }, deadline);
            }
            Ask::Step { step, reply } => drop(reply.send(self.step(&step))),
            Ask::Publish { reply } => drop(reply.send(self.publish(house))),
            Ask::Save { reply } => drop(reply.send(self.snapshot().map(Box::new))),
            Ask::Load { snapshot, reply } => drop(reply.send(self.load(model, &snapshot))),
        }
        Did::Something
    }

    fn go_on(&mut self, mut pass: Pass, deadline: Instant) {
        match self.work(&mut pass, deadline) {
            Ok(false) => self.pass = Some(pass),
            Ok(true) => drop(pass.reply.send(Ok(pass.passed))),
            Err(error) => drop(pass.reply.send(Err(error))),
        }
    }

    /// True once all data are done.
    fn work(&mut self, pass: &mut Pass, deadline: Instant) -> Result<bool> {
        while let Some(datum) = pass.data.get(pass.at) {
            let row = Row { ids: datum.tokens.clone(), counted: vec![true; datum.tokens.len()], line: pass.at + 1 };
            let batch = MicroBatch::new([&row]);
            let count = datum.tokens.len();
            let part = match pass.part {
                Some(part) => part,
                None => {
                    let weights = pass.weights(datum);
                    self.trainer.begin_weighted(&batch, &weights, 1.0, 0)?;
                    0
                }
            };
            pass.part = self.trainer.go_on(part, deadline)?;
            if pass.part.is_none() {
                let losses = self.trainer.token_losses(count)?;
                pass.take(&losses);
            }
            if Instant::now() >= deadline && pass.at < pass.data.len() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn step(&mut self, step: &OptimStep) -> Result<(usize, f32)> {
        let OptimStep { learning_rate: lr, weight_decay, max_grad_norm } = *step;
        for (name, value) in [("learning_rate", lr), ("weight_decay", weight_decay), ("max_grad_norm", max_grad_norm)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::invalid(format!("{name} is {value}, expected a number of 0 or more")));
            }
        }
        let norm = self.trainer.update(&Update { lr, weight_decay, max_grad_norm, step: self.steps + 1 })?;
        if !norm.is_finite() {
            return Err(Error::invalid(format!("step {}: the norm of the gradient is {norm}", self.steps + 1)));
        }
        (self.steps, self.fresh) = (self.steps + 1, false);
        Ok((self.steps, norm))
    }

    fn adapter(&self) -> Result<Adapter> {
        to_adapter(&self.config, self.trainer.layout(), self.scale, &self.trainer.params()?)
    }

    fn publish(&mut self, house: &mut dyn House) -> Result<String> {
        if !self.fresh {
            match house.publish(&self.name, &mut self.placed) {
                Err(Error::Busy(_) | Error::Unsupported(_)) => drop(house.load(&self.name, &self.adapter()?)?),
                other => drop(other?),
            }
            self.fresh = true;
        }
        Ok(self.name.clone())
    }

    fn snapshot(&self) -> Result<Snapshot> {
        Ok(Snapshot::new(self.adapter()?, self.trainer.moments()?, self.steps, self.recipe.clone()))
    }

    fn load(&mut self, model: &LoadedModel, snapshot: &Snapshot) -> Result<()> {
        let adapter = snapshot.adapter().ok_or_else(|| Error::invalid("the state is a model's, not an adapter's"))?;
        let start = existing(adapter, "of the state", &self.recipe, model.config())?;
        if start.layout != *self.trainer.layout() {
            return Err(Error::invalid("the state is of an adapter on other modules"));
        }
        self.trainer.set_moments(snapshot.moments())?;
        self.trainer.set_params(&start.params)?;
        self.trainer.clear_gradients()?;
        (self.steps, self.fresh) = (snapshot.step, false);
        Ok(())
    }
}

impl Pass {
    /// The weights of a datum's predictions: each token predicts the one after it.
    fn weights(&self, datum: &Datum) -> Vec<f32> {
        let mut weights = datum.weights[1..].to_vec();
        weights.push(0.0);
        if !self.second {
            // Log-probabilities alone: nothing is added to the gradients.
            weights.fill(0.0);
        } else if let (LossFn::ImportanceSampling, Some(drawn)) = (self.loss, &datum.logprobs) {
            // ∂/∂θ of p/q is p/q · ∂/∂θ log p.
            let now = &self.passed.logprobs[self.at];
            for ((weight, now), drawn) in weights.iter_mut().zip(now).zip(&drawn[1..]) {
                *weight *= (now - drawn).exp();
            }
        }
        weights
    }

    /// Takes in the losses of the datum that has run, and goes to what comes next.
    fn take(&mut self, losses: &[f32]) {
        let datum = &self.data[self.at];
        if self.passed.logprobs.len() == self.at {
            let logprobs: Vec<f32> = losses[..datum.tokens.len() - 1].iter().map(|loss| -loss).collect();
            for (i, logprob) in logprobs.iter().enumerate() {
                let weight = f64::from(datum.weights[i + 1]);
                self.passed.loss -= match (self.loss, &datum.logprobs) {
                    (LossFn::ImportanceSampling, Some(drawn)) => weight * f64::from(logprob - drawn[i + 1]).exp(),
                    _ => weight * f64::from(*logprob),
                };
            }
            self.passed.logprobs.push(logprobs);
            if self.backward && !self.second {
                self.second = true;
                return;
            }
        }
        self.at += 1;
        self.second = self.loss == LossFn::CrossEntropy && self.backward;
    }
}
