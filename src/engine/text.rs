//! Text on top of the engine's tokens: decoding without split characters, and stop strings.
//!
//! Works inside the request's event sink, so on the engine's thread: a stop string ends its request before
//! another token is computed for it.

use super::{Engine, Event, EventSink, FinishReason, Request, RequestId, TokenLogprobs, Usage};
use crate::error::{Error, Result};
use crate::token::{StopMatcher, StreamDecoder, Tokenizer};
use std::collections::VecDeque;
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
        /// Counts and times. After a stop string they are counted here, with queueing as a part of prefill.
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
}

/// Submits a request whose answer is wanted as text.
///
/// # Errors
/// As [`Engine::submit`], and [`Error::Invalid`] for an empty stop string.
pub fn submit_text(engine: &Engine, request: Request, options: TextOptions, sink: TextSink) -> Result<RequestId> {
    let sink = text_sink(&engine.model().tokenizer, &request, options, sink)?;
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
    let (mut text, mut tokens) = (String::new(), Vec::new());
    for event in events {
        match event {
            TextEvent::Delta { text: more, tokens: pieces } => {
                text.push_str(&more);
                tokens.extend(pieces);
            }
            TextEvent::Done { reason, usage, stop } => {
                let ids = tokens.iter().map(|piece: &TokenPiece| piece.id).collect();
                return Ok(Completion { ids, text, reason, usage, stop, tokens });
            }
            TextEvent::Failed(error) => return Err(error),
        }
    }
    Err(Error::internal("the engine dropped a request"))
}

fn text_sink(tokenizer: &Tokenizer, request: &Request, options: TextOptions, mut sink: TextSink) -> Result<EventSink> {
    if options.stop.iter().any(String::is_empty) {
        return Err(Error::invalid("a stop string is empty"));
    }
    let mut assembler = Assembler::new(tokenizer.clone(), options, request.min_tokens);
    let prompt_tokens = request.prompt.len();
    let submitted = Instant::now();
    let mut first_token = None;
    Ok(Box::new(move |event| match event {
        Event::Token { id, logprobs } => {
            let first = *first_token.get_or_insert_with(Instant::now);
            let Output { text, tokens, stop } = assembler.push(id, logprobs);
            if !text.is_empty() {
                sink(TextEvent::Delta { text, tokens })?;
            }
            if stop.is_none() {
                return ControlFlow::Continue(());
            }
            let usage = Usage {
                prompt_tokens,
                completion_tokens: assembler.count,
                prefill_s: (first - submitted).as_secs_f64(),
                decode_s: first.elapsed().as_secs_f64(),
            };
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

/// What has become certain with one more token.
#[derive(Default)]
struct Output {
    text: String,
    tokens: Vec<TokenPiece>,
    stop: Option<String>,
}

/// A token whose text is not out yet, with its place in the answer's text, in bytes.
struct Waiting {
    start: usize,
    end: usize,
    piece: TokenPiece,
}

struct Assembler {
    tokenizer: Tokenizer,
    decoder: StreamDecoder,
    matcher: StopMatcher,
    options: TextOptions,
    min_tokens: usize,
    /// Tokens so far.
    count: usize,
    /// Bytes of text that the tokens so far have made.
    decoded: usize,
    /// Bytes of it that are out; the matcher holds the rest.
    released: usize,
    waiting: VecDeque<Waiting>,
}

impl Assembler {
    fn new(tokenizer: Tokenizer, options: TextOptions, min_tokens: usize) -> Self {
        let decoder = tokenizer.stream(options.skip_special);
        let decoder = if options.continues_prompt { decoder.continuing() } else { decoder };
        let matcher = StopMatcher::new(options.stop.clone());
        let waiting = VecDeque::new();
        Self { tokenizer, decoder, matcher, options, min_tokens, count: 0, decoded: 0, released: 0, waiting }
    }

    fn push(&mut self, id: u32, logprobs: Option<TokenLogprobs>) -> Output {
        self.count += 1;
        let bytes = self.tokenizer.token_bytes(id).to_vec();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let piece = TokenPiece { id, bytes, text, logprobs };
        let start = self.decoded;
        let decoded = self.decoder.push(id);
        self.decoded += decoded.as_ref().map_or(0, String::len);
        // A token without text of its own (a part of a character) goes out with the text that follows.
        let end = if decoded.is_some() { self.decoded } else { self.decoded + 1 };
        self.waiting.push_back(Waiting { start, end, piece });
        decoded.map_or_else(Output::default, |text| self.matched(text))
    }

    /// Ends the answer: nothing is held back any more.
    fn finish(&mut self) -> Output {
        let tail = self.decoder.flush().unwrap_or_default();
        let mut output = self.matched(tail);
        output.text.push_str(&self.matcher.flush());
        output.tokens.extend(self.waiting.drain(..).map(|waiting| waiting.piece));
        output
    }

    /// Takes new text; lets out what no stop string can claim.
    fn matched(&mut self, text: String) -> Output {
        if self.count <= self.min_tokens {
            self.released += text.len();
            return Output { text, tokens: self.released_tokens(), stop: None };
        }
        let found = self.matcher.push(&text);
        let mut text = found.text;
        let stop = found.stop.and_then(|i| self.options.stop.get(i).cloned());
        if let Some(stop) = stop.as_deref().filter(|_| self.options.include_stop) {
            text.push_str(stop);
        }
        self.released += text.len();
        let mut tokens = self.released_tokens();
        if stop.is_some() {
            // The token that the cut goes through belongs to the answer; those behind it do not.
            let rest = self.waiting.drain(..).filter(|waiting| waiting.start < self.released);
            tokens.extend(rest.map(|waiting| waiting.piece));
        }
        Output { text, tokens, stop }
    }

    fn released_tokens(&mut self) -> Vec<TokenPiece> {
        let out = self.waiting.iter().take_while(|waiting| waiting.end <= self.released).count();
        self.waiting.drain(..out).map(|waiting| waiting.piece).collect()
    }
}
