//! Parts of every reply.

use super::logprobs::PromptLogprobs;
use crate::engine::{FinishReason, Usage};
use crate::serve::http::{unique_id, unix_time};
use serde::Serialize;

/// What all objects of one reply begin with.
pub struct Head {
    pub id: String,
    pub created: u64,
    /// As the client named it.
    pub model: String,
}

impl Head {
    pub fn new(prefix: &str, model: String) -> Self {
        Self { id: unique_id(prefix), created: unix_time(), model }
    }
}

/// A reply, or a chunk of one.
#[derive(Serialize)]
pub struct Envelope<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [C],
    /// vLLM's, of a chat's prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs>,
    /// Absent, `null` (a chunk before the last of a stream that ends with counts), or the counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Counts>>,
    system_fingerprint: Option<String>,
}

impl<'a, C> Envelope<'a, C> {
    pub fn new(head: &'a Head, object: &'static str, choices: &'a [C], usage: Option<Option<Counts>>) -> Self {
        let Head { id, created, model } = head;
        let prompt_logprobs = None;
        Self { id, object, created: *created, model, choices, prompt_logprobs, usage, system_fingerprint: None }
    }

    pub fn with_prompt(self, prompt_logprobs: Option<PromptLogprobs>) -> Self {
        Self { prompt_logprobs, ..self }
    }
}

/// `usage`
#[derive(Clone, Copy, Default, Serialize)]
pub struct Counts {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    /// `None` until the first answer to a prompt has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_tokens_details: Option<PromptDetails>,
    /// `None` where nothing tells reasoning from the rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    completion_tokens_details: Option<CompletionDetails>,
}

#[derive(Clone, Copy, Default, Serialize)]
struct PromptDetails {
    cached_tokens: usize,
}

#[derive(Clone, Copy, Default, Serialize)]
struct CompletionDetails {
    reasoning_tokens: usize,
}

impl Counts {
    /// Adds a prompt. All answers to it share it.
    pub fn prompt(&mut self, tokens: usize) {
        self.prompt_tokens += tokens;
        self.total();
    }

    /// Adds a prompt's tokens that were found in the prefix cache: those of the first answer to it, since the others find what
    /// that one has computed.
    pub fn cached(&mut self, tokens: usize) {
        self.prompt_tokens_details.get_or_insert_default().cached_tokens += tokens;
    }

    /// Adds tokens of an answer that goes on.
    pub fn more(&mut self, tokens: usize) {
        self.completion_tokens += tokens;
        self.total();
    }

    /// Adds what an answer that has ended took beyond the `counted` tokens of it that were added before.
    pub fn end(&mut self, usage: &Usage, counted: usize) {
        self.more(usage.completion_tokens.saturating_sub(counted));
    }

    /// Adds tokens that were reasoning.
    pub fn reasoned(&mut self, tokens: usize) {
        if tokens > 0 {
            self.completion_tokens_details.get_or_insert_default().reasoning_tokens += tokens;
        }
    }

    fn total(&mut self) {
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}

/// `finish_reason`
pub fn finish_reason(reason: Option<FinishReason>) -> Option<&'static str> {
    reason.map(FinishReason::as_str)
}
