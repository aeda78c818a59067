//! `POST /v1/completions`: the answer, whole or in chunks.

use super::ApiError;
use super::logprobs::TextLogprobs;
use super::params::Params;
use super::reply::{Counts, Envelope, Head, finish_reason};
use crate::engine::FinishReason;
use crate::engine::text::{TextEvent, TokenPiece};
use crate::error::Error;
use crate::serve::running::Finished;
use crate::serve::sse::{Lines, Render};
use crate::token::Tokenizer;
use serde::Serialize;
use serde_json::Value;

/// Whole and in chunks it has the same name.
const OBJECT: &str = "text_completion";

/// Writes one reply.
pub struct CompletionsReply {
    head: Head,
    params: Params,
    tokenizer: Tokenizer,
    counts: Counts,
    /// What each choice's next piece of text begins with: its prompt, if that is echoed.
    echo: Vec<String>,
    /// Where the next token of each choice starts in its text.
    offsets: Vec<usize>,
    /// Tokens so far of each choice.
    counted: Vec<usize>,
}

#[derive(Serialize)]
struct Choice {
    index: usize,
    text: String,
    logprobs: Option<TextLogprobs>,
    finish_reason: Option<&'static str>,
    /// vLLM's: the stop string.
    stop_reason: Option<String>,
}

impl CompletionsReply {
    /// `prompts`: tokens of each; `echoed`: the text of each, if wanted.
    pub fn new(model: String, params: Params, prompts: &[usize], echoed: &[String], tokenizer: Tokenizer) -> Self {
        let choices = prompts.len() * params.n;
        let echo = |choice: usize| echoed.get(choice / params.n).cloned().unwrap_or_default();
        let mut counts = Counts::default();
        prompts.iter().for_each(|tokens| counts.prompt(*tokens));
        Self {
            head: Head::new("cmpl-", model),
            tokenizer,
            counts,
            echo: (0..choices).map(echo).collect(),
            offsets: vec![0; choices],
            counted: vec![0; choices],
            params,
        }
    }

    /// The answer in one piece.
    pub fn whole(mut self, finished: Vec<Finished>) -> Value {
        finished.iter().for_each(|choice| self.counts.end(&choice.usage, 0));
        let mut choices = Vec::new();
        for (index, choice) in self.params.best(finished).into_iter().enumerate() {
            choices.push(Choice {
                finish_reason: finish_reason(choice.reason),
                stop_reason: choice.stop,
                ..self.piece(index, choice.text, choice.tokens)
            });
        }
        let envelope = Envelope::new(&self.head, OBJECT, &choices, Some(Some(self.counts)));
        serde_json::to_value(envelope).unwrap_or_default()
    }

    fn piece(&mut self, index: usize, text: String, tokens: Vec<TokenPiece>) -> Choice {
        let text = std::mem::take(&mut self.echo[index]) + &text;
        let wanted = self.params.request.logprobs.is_some();
        let logprobs = wanted.then(|| TextLogprobs::new(tokens, &self.tokenizer, &mut self.offsets[index]));
        Choice { index, text, logprobs, finish_reason: None, stop_reason: None }
    }

    fn write(&self, choice: Choice, lines: &mut Lines) {
        let usage = self.params.include_usage.then_some(self.params.usage_each.then_some(self.counts));
        lines.push(&Envelope::new(&self.head, OBJECT, &[choice], usage));
    }
}

impl Render for CompletionsReply {
    fn event(&mut self, index: usize, event: TextEvent, lines: &mut Lines) -> Result<(), ApiError> {
        match event {
            // Asked for in no stream.
            TextEvent::Prompt(_) => {}
            TextEvent::Delta { text, tokens } => {
                self.counts.more(tokens.len());
                self.counted[index] += tokens.len();
                let choice = self.piece(index, text, tokens);
                self.write(choice, lines);
            }
            TextEvent::Done { reason: FinishReason::Cancelled, .. } => return Err(Error::Cancelled.into()),
            TextEvent::Done { reason, usage, stop } => {
                self.counts.end(&usage, self.counted[index]);
                // With the echo, where no text came at all.
                let end = self.piece(index, String::new(), Vec::new());
                let choice =
                    Choice { finish_reason: finish_reason(Some(reason)), logprobs: None, stop_reason: stop, ..end };
                self.write(choice, lines);
            }
            TextEvent::Failed(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn end(&mut self, lines: &mut Lines) {
        if self.params.include_usage {
            lines.push(&Envelope::<Choice>::new(&self.head, OBJECT, &[], Some(Some(self.counts))));
        }
    }
}
