//! Speculative decoding with a draft model: a smaller one goes ahead of the large one, a step a token, and what it says is
//! checked in one step of the large one. The large model draws every token itself, with the same random numbers as without
//! a draft, so answers do not change; the draft draws with these numbers, too, so that the two agree as often as they can.
//!
//! The draft's cache has the same pages as the large model's, with the same numbers: who holds a page holds it in both, and a
//! prefix that is found is found in both. So that this is true, whatever the large model computes the draft computes, too,
//! in the same step: prompts, and answers that are not guessed.

use super::choice::ChoiceInput;
use super::scheduler::Share;
use super::sequence::Sequence;
use super::steps::{Runner, StepInput};
use crate::error::{Error, Result};
use crate::model::LoadedModel;
use std::time::{Duration, Instant};

/// A draft model that is ready to run.
pub struct Draft {
    runner: Box<dyn Runner + Send>,
    /// Tokens that it knows, and those that the large model knows.
    vocabs: (usize, usize),
}

impl Draft {
    /// `vocabs` are the sizes of the vocabularies of the draft and of the large model.
    pub fn new(runner: Box<dyn Runner + Send>, vocabs: (usize, usize)) -> Self {
        Self { runner, vocabs }
    }

    /// As [`Runner::prepare`].
    pub fn prepare(&mut self) -> Result<bool> {
        self.runner.prepare()
    }

    /// Makes the guesses that the sequences of a step have room for; calls `meanwhile` while the device works on the first
    /// ones. How long the device was waited for.
    pub fn propose(
        &mut self,
        sequences: &mut [Sequence],
        plan: &[Share],
        meanwhile: impl FnOnce(&mut [Sequence]),
    ) -> Result<Duration> {
        plan.iter().for_each(|share| sequences[share.index].keep_guesses(share));
        let pages = self.runner.sizes().pages_per_seq();
        let most = plan.iter().map(|share| sequences[share.index].need().guesses).max().unwrap_or(0);
        let (mut meanwhile, mut waited) = (Some(meanwhile), Duration::ZERO);
        for n in 0..most {
            let (mut input, mut choice) = (StepInput::default(), ChoiceInput::default());
            let guessing: Vec<usize> =
                plan.iter().map(|share| share.index).filter(|index| n < sequences[*index].need().guesses).collect();
            for &index in &guessing {
                sequences[index].fill_draft(n, &mut input, &mut choice, self.vocabs.0, pages);
            }
            self.launch(&mut input)?;
            if choice.rows() > 0 {
                self.runner.choose(&input, &choice)?;
            }
            if let Some(meanwhile) = meanwhile.take() {
                meanwhile(sequences);
            }
            let began = Instant::now();
            let tokens = self.runner.finish()?.tokens;
            waited += began.elapsed();
            for (index, token) in guessing.into_iter().zip(tokens) {
                // What the large model does not know is a wrong guess like any other.
                sequences[index].set_guess(n, if (token as usize) < self.vocabs.1 { token } else { 0 });
            }
        }
        Ok(waited)
    }

    /// Computes what the large model computes in a step that has been launched, as far as the guesses have not.
    pub fn follow(&mut self, sequences: &mut [Sequence], plan: &[Share]) -> Result<()> {
        let pages = self.runner.sizes().pages_per_seq();
        let mut input = StepInput::default();
        for share in plan {
            sequences[share.index].fill_follower(share, &mut input, pages);
        }
        if input.ids.is_empty() { Ok(()) } else { self.launch(&mut input) }
    }

    fn launch(&mut self, input: &mut StepInput) -> Result<()> {
        for id in &mut input.ids {
            *id = if (*id as usize) < self.vocabs.0 { *id } else { 0 };
        }
        self.runner.launch(input)
    }
}

/// Refuses a draft model whose tokens mean something else than the large model's.
///
/// # Errors
/// [`Error::Invalid`] that says what differs.
pub fn check_vocabulary(model: &LoadedModel, draft: &LoadedModel) -> Result<()> {
    let name = &draft.name;
    match (&model.tokenizer, &draft.tokenizer) {
        (Some(own), Some(other)) => {
            let sizes = (own.vocab_size(), other.vocab_size());
            let differs = |id: &u32| own.token_bytes(*id) != other.token_bytes(*id);
            match (0..sizes.0.min(sizes.1) as u32).find(differs) {
                Some(id) => Err(Error::invalid(format!(
                    "the draft model '{name}' has another vocabulary: token {id} is {:?} there and {:?} here",
                    String::from_utf8_lossy(other.token_bytes(id)),
                    String::from_utf8_lossy(own.token_bytes(id)),
                ))),
                None => Ok(()),
            }
        }
        _ if model.config().vocab == draft.config().vocab => Ok(()),
        _ => Err(Error::invalid(format!(
            "the draft model '{name}' has {} tokens and '{}' has {}: without tokenizers the numbers must be equal",
            draft.config().vocab,
            model.name,
            model.config().vocab
        ))),
    }
}
