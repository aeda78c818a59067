//! `POST /v1/completions`: the answer, whole or in chunks.

use super::ApiError;
use super::logprobs::{PromptLogprobs, TextLogprobs};
use super::params::Params;
use super::reply::{Counts, Envelope, Head, finish_reason};
use crate::engine::text::{TextEvent, TokenPiece};
use crate::engine::{FinishReason, TokenLogprobs, Usage};
use crate::error::Error;
use crate::serve::running::Finished;
use crate::serve::sse::{Lines, Render};
use crate::token::Tokenizer;
use serde::Serialize;
use serde_json::Value;

/// Whole and in chunks it has the same name.
const OBJECT: &str = "text_completion";

/// Whether a text begins with its prompt.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Echo {
    No,
    /// The prompt, then the answer.
    First,
    /// The prompt and nothing else: `max_tokens` is 0.
    Only,
}

/// Writes one reply.
pub struct CompletionsReply {
    head: Head,
    params: Params,
    tokenizer: Tokenizer,
    counts: Counts,
    prompts: Vec<Vec<u32>>,
    echo: Echo,
    /// By choice.
    written: Vec<Written>,
}

/// What of a choice is written.
#[derive(Clone, Default)]
struct Written {
    /// The prompt, if it is echoed.
    echo: bool,
    /// Log-probabilities of the prompt's tokens after the first that wait for its text.
    prompt: Vec<TokenLogprobs>,
    /// Where the next token starts in the text.
    offset: usize,
    /// Tokens of the answer so far.
    counted: usize,
}

#[derive(Serialize)]
struct Choice {
    index: usize,
    text: String,
    logprobs: Option<TextLogprobs>,
    finish_reason: Option<&'static str>,
    /// vLLM's: the stop string.
    stop_reason: Option<String>,
    /// vLLM's.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs>,
}

impl CompletionsReply {
    pub fn new(model: String, params: Params, prompts: Vec<Vec<u32>>, echo: Echo, tokenizer: Tokenizer) -> Self {
        let mut counts = Counts::default();
        prompts.iter().for_each(|ids| counts.prompt(ids.len()));
        let written = vec![Written::default(); prompts.len() * params.n];
        Self { head: Head::new("cmpl-", model), params, tokenizer, counts, prompts, echo, written }
    }

    /// The answer in one piece.
    pub fn whole(mut self, finished: Vec<Finished>) -> Value {
        for (i, choice) in finished.iter().enumerate() {
            self.ended(&choice.usage, 0, i.is_multiple_of(self.params.best_of));
        }
        let mut choices = Vec::new();
        let wanted = self.params.request.prompt_logprobs;
        for (index, choice) in self.params.best(finished).into_iter().enumerate() {
            let ids = &self.prompts[index / self.params.n];
            let prompt_logprobs = wanted.map(|_| PromptLogprobs::new(ids, &choice.prompt, &self.tokenizer));
            self.written[index].prompt = choice.prompt;
            choices.push(Choice {
                finish_reason: finish_reason(choice.reason),
                stop_reason: choice.stop,
                prompt_logprobs,
                ..self.piece(index, choice.text, choice.tokens)
            });
        }
        let envelope = Envelope::new(&self.head, OBJECT, &choices, Some(Some(self.counts)));
        serde_json::to_value(envelope).unwrap_or_default()
    }

    /// Counts an answer that has ended; `first`: of those to its prompt.
    fn ended(&mut self, usage: &Usage, counted: usize, first: bool) {
        if self.echo != Echo::Only {
            self.counts.end(usage, counted);
        }
        if first {
            self.counts.cached(usage.cached_tokens);
        }
    }

    fn piece(&mut self, index: usize, text: String, tokens: Vec<TokenPiece>) -> Choice {
        let (written, ids) = (&mut self.written[index], &self.prompts[index / self.params.n]);
        let mut logprobs = self.params.request.logprobs.map(|_| TextLogprobs::default());
        let mut whole = String::new();
        if self.echo != Echo::No && !std::mem::replace(&mut written.echo, true) {
            whole = self.tokenizer.decode(ids, true);
            if let Some(logprobs) = &mut logprobs {
                logprobs.echo(ids, &std::mem::take(&mut written.prompt), &self.tokenizer, &mut written.offset);
            }
        }
        if self.echo != Echo::Only {
            whole.push_str(&text);
            if let Some(logprobs) = &mut logprobs {
                logprobs.answer(tokens, &self.tokenizer, &mut written.offset);
            }
        }
        Choice { index, text: whole, logprobs, finish_reason: None, stop_reason: None, prompt_logprobs: None }
    }

    fn write(&self, choice: Choice, lines: &mut Lines) {
        let usage = self.params.include_usage.then_some(self.params.usage_each.then_some(self.counts));
        lines.push(&Envelope::new(&self.head, OBJECT, &[choice], usage));
    }
}

impl Render for CompletionsReply {
    fn event(&mut self, index: usize, event: TextEvent, lines: &mut Lines) -> Result<(), ApiError> {
        match event {
            TextEvent::Prompt(logprobs) => self.written[index].prompt = logprobs,
            TextEvent::Delta { text, tokens } => {
                if self.echo != Echo::Only {
                    self.counts.more(tokens.len());
                }
                self.written[index].counted += tokens.len();
                let choice = self.piece(index, text, tokens);
                self.write(choice, lines);
            }
            TextEvent::Done { reason: FinishReason::Cancelled, .. } => return Err(Error::Cancelled.into()),
            TextEvent::Done { reason, usage, stop } => {
                self.ended(&usage, self.written[index].counted, index.is_multiple_of(self.params.n));
                // With the echo, where no text came at all.
                let mut end = self.piece(index, String::new(), Vec::new());
                let logprobs = end.logprobs.take().filter(|_| !end.text.is_empty());
                let choice = Choice { finish_reason: finish_reason(Some(reason)), logprobs, stop_reason: stop, ..end };
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
