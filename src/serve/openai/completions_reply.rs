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
    n: usize,
    include_usage: bool,
    logprobs: bool,
    tokenizer: Tokenizer,
    counts: Counts,
    /// What each choice's next piece of text begins with: its prompt, if that is echoed.
    echo: Vec<String>,
    /// Where the next token of each choice starts in its text.
    offsets: Vec<usize>,
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
    /// `echoed`: the text of each prompt, if wanted; `choices`: `n` for each prompt, in the prompts' order.
    pub fn new(model: String, params: &Params, echoed: Vec<String>, choices: usize, tokenizer: Tokenizer) -> Self {
        let echo = |choice: usize| echoed.get(choice / params.n).cloned().unwrap_or_default();
        Self {
            head: Head::new("cmpl", model),
            n: params.n,
            include_usage: params.include_usage,
            logprobs: params.request.logprobs.is_some(),
            tokenizer,
            counts: Counts::default(),
            echo: (0..choices).map(echo).collect(),
            offsets: vec![0; choices],
        }
    }

    /// The answer in one piece.
    pub fn whole(mut self, finished: Vec<Finished>) -> Value {
        let mut choices = Vec::new();
        for (index, choice) in finished.into_iter().enumerate() {
            self.counts.add(index, self.n, &choice.usage);
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
        let logprobs = self.logprobs.then(|| TextLogprobs::new(tokens, &self.tokenizer, &mut self.offsets[index]));
        Choice { index, text, logprobs, finish_reason: None, stop_reason: None }
    }

    fn write(&self, choice: Choice, lines: &mut Lines) {
        let usage = self.include_usage.then_some(None);
        lines.push(&Envelope::new(&self.head, OBJECT, &[choice], usage));
    }
}

impl Render for CompletionsReply {
    fn event(&mut self, index: usize, event: TextEvent, lines: &mut Lines) -> Result<(), ApiError> {
        match event {
            // Asked for in no stream.
            TextEvent::Prompt(_) => {}
            TextEvent::Delta { text, tokens } => {
                let choice = self.piece(index, text, tokens);
                self.write(choice, lines);
            }
            TextEvent::Done { reason: FinishReason::Cancelled, .. } => return Err(Error::Cancelled.into()),
            TextEvent::Done { reason, usage, stop } => {
                self.counts.add(index, self.n, &usage);
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
        if self.include_usage {
            lines.push(&Envelope::<Choice>::new(&self.head, OBJECT, &[], Some(Some(self.counts))));
        }
    }
}
