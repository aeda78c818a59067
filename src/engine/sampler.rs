//! What a request's parameters and its answer so far make of the choice of the next token; the choice itself is the device's.

use super::choice::LogitEntry;
use super::request::SamplingParams;
use crate::error::{Error, Result};
use crate::program::{IMPOSSIBLE, SEEN};
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
    /// What penalties and biases make of the logits, a token each.
    entries: Vec<LogitEntry>,
    /// Where the entry of a token is.
    places: HashMap<u32, Place>,
}

#[derive(Clone, Copy, Default)]
struct Place {
    index: usize,
    /// In prompt or answer.
    seen: bool,
    /// Times in the answer.
    count: u32,
    bias: f32,
}

impl Sampler {
    /// `seed` is used where the parameters have none.
    pub fn new(params: SamplingParams, prompt: &[u32], seed: u64) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(params.seed.unwrap_or(seed));
        let biases = params.logit_bias.clone();
        let mut sampler = Self { params, rng, entries: Vec::new(), places: HashMap::new() };
        biases.into_iter().for_each(|(id, bias)| sampler.change(id, |place| place.bias += bias));
        if sampler.tracks() {
            prompt.iter().for_each(|id| sampler.change(*id, |place| place.seen = true));
        }
        sampler
    }

    /// Whether nothing but the four numbers of [`Sampler::how`] decides.
    pub fn is_plain(&self) -> bool {
        !self.tracks() && self.entries.is_empty()
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

    /// What logits of seen tokens are divided or multiplied by.
    pub fn repetition(&self) -> f32 {
        self.params.repetition_penalty
    }

    /// The random number, from [0, 1), that the answer's token at `position` is drawn with.
    pub fn uniform(&mut self, position: usize) -> f32 {
        if self.params.temperature == 0.0 {
            return 0.0;
        }
        self.rng.set_word_pos(position as u128);
        self.rng.random()
    }

    /// Takes note of a token of the answer.
    pub fn note(&mut self, id: u32) {
        if self.tracks() {
            self.change(id, |place| (place.seen, place.count) = (true, place.count + 1));
        }
    }

    /// Appends what changes the logits if the answer goes on with `guesses`, and the `banned` tokens must not come.
    pub fn entries(&self, guesses: &[u32], banned: &[u32], out: &mut Vec<LogitEntry>) {
        let start = out.len();
        out.extend_from_slice(&self.entries);
        // Few tokens differ from what is known; those without an entry are at the end.
        let mut set = |id: u32, entry: LogitEntry| {
            let known = self.places.get(&id).map(|place| start + place.index);
            let added = start + self.entries.len();
            let own = |at: usize| out[at..].iter().position(|e| e[0] & !SEEN == id).map(|i| at + i);
            match known.or_else(|| own(added)) {
                Some(at) => out[at] = entry,
                None => out.push(entry),
            }
        };
        if self.tracks() {
            for (i, &id) in guesses.iter().enumerate() {
                let mut place = self.places.get(&id).copied().unwrap_or_default();
                place.seen = true;
                place.count += guesses[..=i].iter().filter(|other| **other == id).count() as u32;
                set(id, self.entry(id, &place));
            }
        }
        banned.iter().for_each(|&id| set(id, [id, IMPOSSIBLE.to_bits()]));
    }

    fn change(&mut self, id: u32, change: impl FnOnce(&mut Place)) {
        let next = self.entries.len();
        let place = self.places.entry(id).or_insert(Place { index: next, ..Place::default() });
        change(place);
        let place = *place;
        let entry = self.entry(id, &place);
        match self.entries.get_mut(place.index) {
            Some(known) => *known = entry,
            None => self.entries.push(entry),
        }
    }

    /// Penalties and biases, as vLLM and OpenAI define them.
    fn entry(&self, id: u32, place: &Place) -> LogitEntry {
        let p = &self.params;
        let mut add = place.bias;
        if place.count > 0 {
            add -= p.presence_penalty + p.frequency_penalty * place.count as f32;
        }
        [if place.seen { id | SEEN } else { id }, add.to_bits()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(sampler: &Sampler, guesses: &[u32], banned: &[u32]) -> Vec<(u32, bool, f32)> {
        let mut list = vec![[9, 9]];
        sampler.entries(guesses, banned, &mut list);
        list[1..].iter().map(|[id, add]| (id & !SEEN, id & SEEN != 0, f32::from_bits(*add))).collect()
    }

    #[test]
    fn entries_follow_the_answer() {
        let params = SamplingParams {
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            logit_bias: vec![(7, 2.0), (3, 1.0)],
            ..SamplingParams::default()
        };
        let mut sampler = Sampler::new(params, &[3, 4, 3], 0);
        assert!(!sampler.is_plain());
        assert_eq!(entries(&sampler, &[], &[]), [(7, false, 2.0), (3, true, 1.0), (4, true, 0.0)]);
        sampler.note(4);
        sampler.note(4);
        sampler.note(5);
        let known = [(7, false, 2.0), (3, true, 1.0), (4, true, -1.0), (5, true, -0.75)];
        assert_eq!(entries(&sampler, &[], &[]), known);
        let guessed = [(7, true, 1.0), (3, true, 1.0), (4, true, -1.0), (5, true, -0.75), (6, true, -1.0)];
        assert_eq!(entries(&sampler, &[6, 7, 6, 7], &[]), guessed, "what is only guessed counts for this list alone");
        assert_eq!(entries(&sampler, &[], &[]), known);
        let banned = entries(&sampler, &[6], &[8, 3, 8, 6]);
        assert_eq!(banned[1], (3, false, IMPOSSIBLE));
        assert_eq!(banned[4..], [(6, false, IMPOSSIBLE), (8, false, IMPOSSIBLE)]);
    }

    #[test]
    fn a_bias_or_a_penalty_is_more_than_the_four_numbers() {
        let plain = |change: fn(&mut SamplingParams)| {
            let mut params = SamplingParams { temperature: 0.7, top_k: 5, ..SamplingParams::default() };
            change(&mut params);
            Sampler::new(params, &[1], 0).is_plain()
        };
        assert!(plain(|_| {}));
        assert!(!plain(|p| p.repetition_penalty = 1.1));
        assert!(!plain(|p| p.logit_bias = vec![(1, 0.0)]));
    }
}
