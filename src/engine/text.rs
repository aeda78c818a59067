//! Text on top of the engine's tokens: decoding without split characters, and stop strings.
//!
//! Works inside the request's event sink, so on the engine's thread: a stop string ends its request before
//! another token is computed for it.

mod assembler;

use super::{Engine, Event, EventSink, FinishReason, Request, RequestId, TokenLogprobs, Usage};
use crate::error::{Error, Result};
use crate::token::Tokenizer;
use assembler::{Assembler, Output};
use std::ops::ControlFlow;
use std::time::Instant;

/// How tokens become text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextOptions {
    /// The answer ends before the first of these that appears in it (once `min_tokens` tokens are there).
    pub stop: Vec<String>,
    /// Leave special tokens out of the text.
    pub skip_special: bool,
    /// Keep the stop string that ended the answer.
    pub include_stop: bool,
    /// The text continues the prompt's last word or sentence: a space that some tokenizers (SentencePiece)
    /// write before every text is then a part of it.
    pub continues_prompt: bool,
}

impl Default for TextOptions {
    fn default() -> Self {
        Self { stop: Vec::new(), skip_special: true, include_stop: false, continues_prompt: false }
    }
}

/// One generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenPiece {
    /// The token.
    pub id: u32,
    /// What it stands for; may be a part of a character.
    pub bytes: Vec<u8>,
    /// The same as text, with U+FFFD for what is not UTF-8.
    pub text: String,
    /// Where they were asked for.
    pub logprobs: Option<TokenLogprobs>,
}

/// What happened to a request, as text. Exactly one `Done` or `Failed` comes, last.
#[derive(Debug)]
pub enum TextEvent {
    /// Log-probabilities of the prompt's tokens after the first, where they were asked for; comes first.
    Prompt(Vec<TokenLogprobs>),
    /// More of the answer.
    Delta {
        /// Whole characters that no stop string will take back. Empty only at the end of an answer whose last
        /// tokens have no text.
        text: String,
        /// The tokens that end in this text.
        tokens: Vec<TokenPiece>,
    },
    /// The end.
    Done {
        /// Why.
        reason: FinishReason,
        /// Counts and times.
        usage: Usage,
        /// The stop string that ended the answer.
        stop: Option<String>,
    },
    /// The end, by an error.
    Failed(Error),
}

/// Receives a request's text on the engine's thread; must not block. `Break` cancels the request.
pub type TextSink = Box<dyn FnMut(TextEvent) -> ControlFlow<()> + Send>;

/// A whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Generated tokens, without the end-of-text token and without those of a stop string.
    pub ids: Vec<u32>,
    /// Their text.
    pub text: String,
    /// Why it ended.
    pub reason: FinishReason,
    /// Counts and times.
    pub usage: Usage,
    /// The stop string that ended it.
    pub stop: Option<String>,
    /// The tokens in detail.
    pub tokens: Vec<TokenPiece>,
    /// Log-probabilities of the prompt's tokens after the first, where they were asked for.
    pub prompt: Vec<TokenLogprobs>,
}

/// Submits a request whose answer is wanted as text. Of a model without a tokenizer there are only ids: they
/// come at the end, with an empty text.
///
/// # Errors
/// As [`Engine::submit`], and [`Error::Invalid`] for an empty stop string, or any where there is no text.
pub fn submit_text(engine: &Engine, request: Request, options: TextOptions, sink: TextSink) -> Result<RequestId> {
    let sink = text_sink(engine.model().tokenizer.as_ref(), &request, options, sink)?;
    engine.submit(request, sink)
}

/// Submits a request and waits for the whole answer.
///
/// # Errors
/// As [`submit_text`], and whatever ended the request early.
pub fn generate_text(engine: &Engine, request: Request, options: TextOptions) -> Result<Completion> {
    let (sender, events) = std::sync::mpsc::channel();
    let sink = move |event| match sender.send(event) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    };
    submit_text(engine, request, options, Box::new(sink))?;
    let (mut text, mut tokens, mut prompt) = (String::new(), Vec::new(), Vec::new());
    for event in events {
        match event {
            TextEvent::Prompt(logprobs) => prompt = logprobs,
            TextEvent::Delta { text: more, tokens: pieces } => {
                text.push_str(&more);
                tokens.extend(pieces);
            }
            TextEvent::Done { reason, usage, stop } => {
                let ids = tokens.iter().map(|piece: &TokenPiece| piece.id).collect();
                return Ok(Completion { ids, text, reason, usage, stop, tokens, prompt });
            }
            TextEvent::Failed(error) => return Err(error),
        }
    }
    Err(Error::internal("the engine dropped a request"))
}

fn text_sink(
    tokenizer: Option<&Tokenizer>,
    request: &Request,
    options: TextOptions,
    mut sink: TextSink,
) -> Result<EventSink> {
    if options.stop.iter().any(String::is_empty) {
        return Err(Error::invalid("a stop string is empty"));
    }
    if tokenizer.is_none() && !options.stop.is_empty() {
        return Err(Error::invalid("stop strings need a tokenizer, and the model has none"));
    }
    let mut assembler = Assembler::new(tokenizer, options, request.min_tokens);
    let mut usage = Usage { prompt_tokens: request.prompt.len(), ..Usage::default() };
    let mut started = Instant::now();
    let mut first_token = None;
    Ok(Box::new(move |event| match event {
        Event::Started { cached_tokens, queue_s } => {
            started = Instant::now();
            usage = Usage { cached_tokens, queue_s, ..usage };
            ControlFlow::Continue(())
        }
        Event::Prompt(logprobs) => sink(TextEvent::Prompt(logprobs)),
        Event::Token { id, logprobs } => {
            let first = *first_token.get_or_insert_with(Instant::now);
            let Output { text, tokens, stop } = assembler.push(id, logprobs);
            if !text.is_empty() {
                sink(TextEvent::Delta { text, tokens })?;
            }
            if stop.is_none() {
                return ControlFlow::Continue(());
            }
            usage.completion_tokens = assembler.count;
            usage.prefill_s = (first - started).as_secs_f64();
            usage.decode_s = first.elapsed().as_secs_f64();
            let _ = sink(TextEvent::Done { reason: FinishReason::Stop, usage, stop });
            ControlFlow::Break(())
        }
        Event::Done { reason, usage } => {
            let Output { text, tokens, stop } = assembler.finish();
            if !text.is_empty() || !tokens.is_empty() {
                sink(TextEvent::Delta { text, tokens })?;
            }
            let reason = if stop.is_some() { FinishReason::Stop } else { reason };
            sink(TextEvent::Done { reason, usage, stop })
        }
        Event::Failed(error) => sink(TextEvent::Failed(error)),
    }))
}

#[cfg(test)]
mod tests;
