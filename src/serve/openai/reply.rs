//! Parts of every reply.

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
    /// Absent, `null` (a chunk before the last of a stream that ends with counts), or the counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Counts>>,
    system_fingerprint: Option<String>,
}

impl<'a, C> Envelope<'a, C> {
    pub fn new(head: &'a Head, object: &'static str, choices: &'a [C], usage: Option<Option<Counts>>) -> Self {
        let Head { id, created, model } = head;
        Self { id, object, created: *created, model, choices, usage, system_fingerprint: None }
    }
}

/// `usage`
#[derive(Clone, Copy, Default, Serialize)]
pub struct Counts {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
}

impl Counts {
    /// Adds a choice. The `n` answers to one prompt share it: it counts with the first.
    pub fn add(&mut self, choice: usize, n: usize, usage: &Usage) {
        if choice.is_multiple_of(n) {
            self.prompt_tokens += usage.prompt_tokens;
        }
        self.completion_tokens += usage.completion_tokens;
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}

/// `finish_reason`
pub fn finish_reason(reason: Option<FinishReason>) -> Option<&'static str> {
    reason.map(FinishReason::as_str)
}
