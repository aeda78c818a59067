//! `POST /v1/chat/completions`: the answer, whole or in chunks.

use super::ApiError;
use super::logprobs::ChatLogprobs;
use super::params::Params;
use super::reply::{Counts, Envelope, Head, finish_reason};
use crate::engine::FinishReason;
use crate::engine::text::TextEvent;
use crate::error::Error;
use crate::serve::running::Finished;
use crate::serve::sse::{Lines, Render};
use crate::token::Tokenizer;
use serde::Serialize;
use serde_json::Value;

const CHUNK: &str = "chat.completion.chunk";

/// Writes one reply.
pub struct ChatReply {
    head: Head,
    n: usize,
    include_usage: bool,
    logprobs: bool,
    tokenizer: Tokenizer,
    counts: Counts,
    /// Choices whose first chunk, with the role, is written.
    started: Vec<bool>,
}

#[derive(Serialize)]
struct Choice {
    index: usize,
    message: Message,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    /// vLLM's: the stop string.
    stop_reason: Option<String>,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: String,
    refusal: Option<String>,
}

#[derive(Default, Serialize)]
struct ChunkChoice {
    index: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<String>,
}

#[derive(Default, Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

impl ChatReply {
    pub fn new(model: String, params: &Params, tokenizer: Tokenizer) -> Self {
        Self {
            head: Head::new("chatcmpl", model),
            n: params.n,
            include_usage: params.include_usage,
            logprobs: params.request.logprobs.is_some(),
            tokenizer,
            counts: Counts::default(),
            started: vec![false; params.n],
        }
    }

    /// The answer in one piece.
    pub fn whole(mut self, finished: Vec<Finished>) -> Value {
        let mut choices = Vec::new();
        for (index, choice) in finished.into_iter().enumerate() {
            self.counts.add(index, self.n, &choice.usage);
            choices.push(Choice {
                index,
                message: Message { role: "assistant", content: choice.text, refusal: None },
                logprobs: self.logprobs.then(|| ChatLogprobs::new(choice.tokens, &self.tokenizer)),
                finish_reason: finish_reason(choice.reason),
                stop_reason: choice.stop,
            });
        }
        let envelope = Envelope::new(&self.head, "chat.completion", &choices, Some(Some(self.counts)));
        serde_json::to_value(envelope).unwrap_or_default()
    }

    fn write(&self, choice: ChunkChoice, lines: &mut Lines) {
        let usage = self.include_usage.then_some(None);
        lines.push(&Envelope::new(&self.head, CHUNK, &[choice], usage));
    }
}

impl Render for ChatReply {
    fn event(&mut self, index: usize, event: TextEvent, lines: &mut Lines) -> Result<(), ApiError> {
        if !std::mem::replace(&mut self.started[index], true) {
            let delta = Delta { role: Some("assistant"), content: Some(String::new()) };
            self.write(ChunkChoice { index, delta, ..ChunkChoice::default() }, lines);
        }
        match event {
            // Asked for in no stream.
            TextEvent::Prompt(_) => {}
            TextEvent::Delta { text, tokens } => {
                let delta = Delta { role: None, content: Some(text) };
                let logprobs = self.logprobs.then(|| ChatLogprobs::new(tokens, &self.tokenizer));
                self.write(ChunkChoice { index, delta, logprobs, ..ChunkChoice::default() }, lines);
            }
            TextEvent::Done { reason: FinishReason::Cancelled, .. } => return Err(Error::Cancelled.into()),
            TextEvent::Done { reason, usage, stop } => {
                self.counts.add(index, self.n, &usage);
                let finish_reason = finish_reason(Some(reason));
                let end = ChunkChoice { index, finish_reason, stop_reason: stop, ..ChunkChoice::default() };
                self.write(end, lines);
            }
            TextEvent::Failed(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn end(&mut self, lines: &mut Lines) {
        if self.include_usage {
            lines.push(&Envelope::<ChunkChoice>::new(&self.head, CHUNK, &[], Some(Some(self.counts))));
        }
    }
}
