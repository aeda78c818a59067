//! What callers ask of the engine, and what they get back, in tokens. Text is `engine::text`'s business.

use super::grammar::{Grammar, GrammarStart};
use crate::error::Error;
use std::ops::ControlFlow;
use std::time::Instant;

/// How the next token is chosen. The default is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0: always the most likely token.
    pub temperature: f32,
    /// Smallest set of tokens whose probability reaches this; 1: all.
    pub top_p: f32,
    /// The k most likely tokens; 0: all.
    pub top_k: usize,
    /// Tokens at least this share as likely as the most likely one; 0: all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or answer; 1: off.
    pub repetition_penalty: f32,
    /// Subtracted from logits of tokens seen in the answer; 0: off.
    pub presence_penalty: f32,
    /// Subtracted once for each time a token was seen in the answer; 0: off.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Same seed, same text, whatever else is in the batch; `None`: a fresh one.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

/// One generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// At least one token.
    pub prompt: Vec<u32>,
    /// Most tokens to generate; prompt and answer together must fit the engine's `max_len`.
    pub max_tokens: usize,
    /// End-of-text tokens are not sampled before this many.
    pub min_tokens: usize,
    /// Go on past the model's end-of-text tokens.
    pub ignore_eos: bool,
    /// Further tokens that end the answer.
    pub stop_ids: Vec<u32>,
    /// Runs of tokens that must not come in the answer.
    pub bad_words: Vec<Vec<u32>>,
    /// The only tokens that may come, those that end the answer among them; `None`: all.
    pub allowed_ids: Option<Vec<u32>>,
    /// How to choose tokens.
    pub sampling: SamplingParams,
    /// Report log-probabilities, with this many alternatives.
    pub logprobs: Option<usize>,
    /// Report log-probabilities of the prompt's tokens, with this many alternatives.
    pub prompt_logprobs: Option<usize>,
    /// Name of a loaded adapter; `None`: the base model.
    pub adapter: Option<String>,
    /// What the answer must look like.
    pub grammar: Option<Grammar>,
    /// From where on.
    pub grammar_start: GrammarStart,
    /// Requests with smaller numbers are served first, and give up their pages last.
    pub priority: i32,
    /// When the request ends even if its answer has not.
    pub deadline: Option<Instant>,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            prompt: Vec::new(),
            max_tokens: 128,
            min_tokens: 0,
            ignore_eos: false,
            stop_ids: Vec::new(),
            bad_words: Vec::new(),
            allowed_ids: None,
            sampling: SamplingParams::default(),
            logprobs: None,
            prompt_logprobs: None,
            adapter: None,
            grammar: None,
            grammar_start: GrammarStart::default(),
            priority: 0,
            deadline: None,
        }
    }
}

/// Log-probability (nat, of the unmodified model distribution) of a token and of the likeliest ones.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Of the chosen token.
    pub logprob: f32,
    /// The likeliest tokens, best first.
    pub top: Vec<(u32, f32)>,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end-of-text token, a stop token or a stop string.
    Stop,
    /// `max_tokens` or the context was used up.
    Length,
    /// The caller cancelled.
    Cancelled,
    /// The deadline came.
    Deadline,
}

impl FinishReason {
    /// OpenAI's word for it, vLLM's where OpenAI has none.
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
            FinishReason::Deadline => "abort",
        }
    }
}

/// Counts and times of a finished request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// How many of them were found in the prefix cache.
    pub cached_tokens: usize,
    /// Tokens generated, the end-of-text token included.
    pub completion_tokens: usize,
    /// Seconds from its arrival to the first prefill step.
    pub queue_s: f64,
    /// Seconds from the first prefill step to the first token.
    pub prefill_s: f64,
    /// Seconds from the first token to the last.
    pub decode_s: f64,
}

/// What the engine reports about a request. Exactly one `Done` or `Failed` comes, last.
#[derive(Debug)]
pub enum Event {
    /// Computing began.
    Started {
        /// Tokens of the prompt that were found in the prefix cache.
        cached_tokens: usize,
        /// Seconds that the request waited.
        queue_s: f64,
    },
    /// Log-probabilities of the prompt's tokens after the first, where they were asked for; comes before the first token.
    Prompt(Vec<TokenLogprobs>),
    /// One more token. End-of-text and stop tokens are not reported.
    Token {
        /// The token.
        id: u32,
        /// Where they were asked for.
        logprobs: Option<TokenLogprobs>,
    },
    /// The end.
    Done {
        /// Why.
        reason: FinishReason,
        /// Counts and times.
        usage: Usage,
    },
    /// The end, by an error.
    Failed(Error),
}

/// Receives the events of one request on the engine's thread; must not block. `Break` cancels the request
/// (no further event comes then).
pub type EventSink = Box<dyn FnMut(Event) -> ControlFlow<()> + Send>;
