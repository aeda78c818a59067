//! Chooses the next token from a row of logits.

use super::grammar::Mask;
use super::request::{SamplingParams, TokenLogprobs};
use crate::backend::cpu::sample;
use crate::error::{Error, Result};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;

impl SamplingParams {
    /// Checks ranges; names the field and what is accepted.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn check(&self, vocab: usize) -> Result<()> {
        let range = |name: &str, value: f32, low: f32, high: f32| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            Err(Error::invalid(format!("{name} must lie between {low} and {high}, got {value}")))
        };
        range("temperature", self.temperature, 0.0, 100.0)?;
        range("min_p", self.min_p, 0.0, 1.0)?;
        range("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::invalid(format!("top_p must be more than 0 and at most 1, got {}", self.top_p)));
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            let got = self.repetition_penalty;
            return Err(Error::invalid(format!("repetition_penalty must be more than 0, got {got}")));
        }
        match self.logit_bias.iter().find(|(id, bias)| *id as usize >= vocab || !bias.is_finite()) {
            Some((id, bias)) => Err(Error::invalid(format!(
                "logit_bias: token {id} with {bias}: tokens lie below {vocab}, biases are finite"
            ))),
            None => Ok(()),
        }
    }
}

/// The sampling state of one request.
pub struct Sampler {
    params: SamplingParams,
    rng: ChaCha8Rng,
    /// Tokens of the prompt, and how often each was generated.
    seen: HashMap<u32, u32>,
    /// Tokens that may not be chosen yet.
    pub forbidden: Vec<u32>,
}

impl Sampler {
    /// `seed` is used where the parameters have none.
    pub fn new(params: SamplingParams, prompt: &[u32], seed: u64) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(params.seed.unwrap_or(seed));
        let mut sampler = Self { params, rng, seen: HashMap::new(), forbidden: Vec::new() };
        if sampler.tracks() {
            sampler.seen = prompt.iter().map(|id| (*id, 0)).collect();
        }
        sampler
    }

    /// Whether nothing but the four numbers of [`Sampler::how`] decides: the device can choose.
    pub fn is_plain(&self) -> bool {
        !self.tracks() && self.params.logit_bias.is_empty() && self.forbidden.is_empty()
    }

    fn tracks(&self) -> bool {
        let p = &self.params;
        p.repetition_penalty != 1.0 || p.presence_penalty != 0.0 || p.frequency_penalty != 0.0
    }

    /// Temperature, top-k, top-p and min-p, as [`crate::program::Op::Sample`] takes them.
    pub fn how(&self) -> [f32; 4] {
        let p = &self.params;
        [p.temperature, p.top_k as f32, p.top_p, p.min_p]
    }

    /// The random number, from [0, 1), that the answer's token at `position` is drawn with, wherever that happens.
    pub fn uniform(&mut self, position: usize) -> f32 {
        if self.params.temperature == 0.0 {
            return 0.0;
        }
        self.rng.set_word_pos(position as u128);
        self.rng.random()
    }

    /// The next token, which `allowed` lets pass. `logits` are changed.
    pub fn next(&mut self, logits: &mut [f32], uniform: f32, allowed: Option<&Mask>) -> u32 {
        self.adjust(logits);
        if let Some(allowed) = allowed {
            allowed.apply(logits);
        }
        let id = sample(logits, self.how(), uniform);
        if self.tracks() {
            *self.seen.entry(id).or_default() += 1;
        }
        id
    }

    /// Penalties and biases, as vLLM and OpenAI define them.
    fn adjust(&self, logits: &mut [f32]) {
        let p = &self.params;
        for (id, count) in &self.seen {
            let Some(logit) = logits.get_mut(*id as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / p.repetition_penalty } else { *logit * p.repetition_penalty };
            if *count > 0 {
                *logit -= p.presence_penalty + p.frequency_penalty * *count as f32;
            }
        }
        for (id, bias) in &p.logit_bias {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit += bias;
            }
        }
        for id in &self.forbidden {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// The `n` largest logits, best first; ties by id.
fn top(logits: &[f32], n: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = logits.iter().enumerate().map(|(id, l)| (id as u32, *l)).collect();
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if n < all.len() && n > 0 {
        all.select_nth_unstable_by(n - 1, order);
    }
    all.truncate(n);
    all.sort_by(order);
    all
}

/// `log Σ exp` of a row, in f64.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + logits.iter().map(|l| (f64::from(*l) - max).exp()).sum::<f64>().ln()
}

/// Log-probabilities of the `n` likeliest tokens, best first.
pub fn top_logprobs(logits: &[f32], n: usize) -> Vec<(u32, f32)> {
    let sum = log_sum_exp(logits);
    top(logits, n).into_iter().map(|(id, logit)| (id, (f64::from(logit) - sum) as f32)).collect()
}

/// Log-probability of `id` and of the `n` likeliest tokens.
pub fn logprobs_of(logits: &[f32], id: u32, n: usize) -> TokenLogprobs {
    let sum = log_sum_exp(logits);
    let logprob = |logit: f32| (f64::from(logit) - sum) as f32;
    let top = top(logits, n).into_iter().map(|(id, logit)| (id, logprob(logit))).collect();
    TokenLogprobs { logprob: logits.get(id as usize).map_or(f32::NEG_INFINITY, |l| logprob(*l)), top }
}
