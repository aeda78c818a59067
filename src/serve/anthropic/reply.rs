//! `POST /v1/messages`: the answer, whole or as events.

use super::error;
use crate::engine::FinishReason;
use crate::engine::text::TextEvent;
use crate::serve::answer::{Block, Change, Form, Kind};
use crate::serve::http::unique_id;
use crate::serve::openai::ApiError;
use crate::serve::progress::{End, Progress};
use crate::serve::running::Running;
use crate::serve::sse::{Lines, Render};
use serde_json::{Value, json};

/// Writes one reply.
pub struct MessagesReply {
    id: String,
    /// As the client named it.
    model: String,
    prompt_tokens: usize,
    progress: Progress,
    /// Blocks that a stream has opened.
    blocks: usize,
    /// Some of them are calls.
    calls: bool,
    /// What the open block's pieces are called.
    kind: Kind,
}

impl MessagesReply {
    pub fn new(model: String, form: &Form, prompt_tokens: usize) -> Self {
        let progress = Progress::new(form);
        Self { id: unique_id("msg_"), model, prompt_tokens, progress, blocks: 0, calls: false, kind: Kind::Text }
    }

    /// The answer in one piece.
    pub async fn whole(mut self, running: Running) -> Result<Value, ApiError> {
        let (blocks, end) = self.progress.finish(running).await?;
        self.calls = blocks.iter().any(|block| matches!(block.kind, Kind::Call(_)));
        let content: Vec<Value> = blocks.iter().map(block).collect();
        let (reason, sequence) = self.stop_reason(&end);
        Ok(self.message(&content, json!(reason), sequence, usage(&end)))
    }

    fn message(&self, content: &[Value], stop_reason: Value, stop_sequence: Value, usage: Value) -> Value {
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content,
            "stop_reason": stop_reason, "stop_sequence": stop_sequence, "usage": usage,
        })
    }

    /// `stop_reason` and `stop_sequence`.
    fn stop_reason(&self, end: &End) -> (&'static str, Value) {
        let reason = match (&end.reason, &end.stop) {
            (FinishReason::Stop, Some(_)) => "stop_sequence",
            (FinishReason::Stop, None) if self.calls => "tool_use",
            (FinishReason::Stop, None) => "end_turn",
            _ => "max_tokens",
        };
        (reason, json!(end.stop))
    }
}

/// A complete block.
fn block(block: &Block) -> Value {
    let mut object = begun(&block.kind);
    match &block.kind {
        Kind::Reasoning => object["thinking"] = block.text.as_str().into(),
        Kind::Text => object["text"] = block.text.as_str().into(),
        // Arguments that `max_tokens` has cut off are no JSON.
        Kind::Call(_) => object["input"] = serde_json::from_str(&block.text).unwrap_or_else(|_| json!({})),
    }
    object
}

/// A block without its content. Reasoning needs no signature: nobody checks it.
fn begun(kind: &Kind) -> Value {
    match kind {
        Kind::Reasoning => json!({"type": "thinking", "thinking": "", "signature": ""}),
        Kind::Text => json!({"type": "text", "text": ""}),
        Kind::Call(name) => json!({"type": "tool_use", "id": unique_id("toolu_"), "name": name, "input": {}}),
    }
}

/// As at Anthropic, what was found in the cache is no part of `input_tokens`.
fn usage(end: &End) -> Value {
    let usage = &end.usage;
    json!({
        "input_tokens": usage.prompt_tokens - usage.cached_tokens.min(usage.prompt_tokens),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    })
}

impl Render for MessagesReply {
    const DONE: bool = false;

    fn begin(&mut self, lines: &mut Lines) {
        // What the cache holds of it is known, and said, at the end.
        let usage = json!({
            "input_tokens": self.prompt_tokens, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
            "output_tokens": 0,
        });
        let message = self.message(&[], Value::Null, Value::Null, usage);
        lines.push_named("message_start", &json!({"type": "message_start", "message": message}));
        lines.push_named("ping", &json!({"type": "ping"}));
    }

    fn event(&mut self, _: usize, event: TextEvent, lines: &mut Lines) -> Result<(), ApiError> {
        for change in self.progress.event(event)? {
            match change {
                Change::Open(kind) => {
                    self.blocks += 1;
                    self.calls |= matches!(kind, Kind::Call(_));
                    let fields = json!({
                        "type": "content_block_start", "index": self.blocks - 1, "content_block": begun(&kind),
                    });
                    lines.push_named("content_block_start", &fields);
                    self.kind = kind;
                }
                Change::More { text, .. } => {
                    let delta = match self.kind {
                        Kind::Reasoning => json!({"type": "thinking_delta", "thinking": text}),
                        Kind::Text => json!({"type": "text_delta", "text": text}),
                        Kind::Call(_) => json!({"type": "input_json_delta", "partial_json": text}),
                    };
                    let fields = json!({"type": "content_block_delta", "index": self.blocks - 1, "delta": delta});
                    lines.push_named("content_block_delta", &fields);
                }
                Change::Close(_) => {
                    let fields = json!({"type": "content_block_stop", "index": self.blocks - 1});
                    lines.push_named("content_block_stop", &fields);
                }
            }
        }
        Ok(())
    }

    fn end(&mut self, lines: &mut Lines) {
        let Some(end) = self.progress.end.take() else { return };
        let (reason, sequence) = self.stop_reason(&end);
        let delta = json!({"stop_reason": reason, "stop_sequence": sequence});
        lines.push_named("message_delta", &json!({"type": "message_delta", "delta": delta, "usage": usage(&end)}));
        lines.push_named("message_stop", &json!({"type": "message_stop"}));
    }

    fn error(&mut self, error: ApiError, lines: &mut Lines) {
        lines.push_named("error", &error::body(&error));
    }
}
