//! `POST /v1/responses`: the answer, whole or as its typed events.

use super::ApiError;
use super::logprobs::ChatLogprobs;
use super::reply::Head;
use crate::engine::FinishReason;
use crate::engine::text::{TextEvent, TokenPiece};
use crate::serve::answer::{Block, Change, Form, Kind};
use crate::serve::http::{unique_id, unix_time};
use crate::serve::progress::{End, Progress};
use crate::serve::running::Running;
use crate::serve::sse::{Lines, Render};
use crate::token::Tokenizer;
use serde_json::{Map, Value, json};

const COMPLETED: &str = "completed";
const INCOMPLETE: &str = "incomplete";

/// Writes one reply.
pub struct ResponsesReply {
    head: Head,
    /// Fields that repeat the request.
    echo: Map<String, Value>,
    tokenizer: Tokenizer,
    progress: Progress,
    /// Complete items of a stream.
    output: Vec<Value>,
    /// Of the open item: its kind, and what its ids end with.
    kind: Kind,
    id: String,
    /// Events so far.
    events: usize,
}

impl ResponsesReply {
    pub fn new(model: String, echo: Map<String, Value>, form: &Form, tokenizer: Tokenizer) -> Self {
        let head = Head::new("resp_", model);
        let progress = Progress::new(form);
        Self { head, echo, tokenizer, progress, output: Vec::new(), kind: Kind::Text, id: String::new(), events: 0 }
    }

    /// The answer in one piece.
    pub async fn whole(mut self, running: Running) -> Result<Value, ApiError> {
        let (blocks, end) = self.progress.finish(running).await?;
        let last = blocks.len().saturating_sub(1);
        for (i, block) in blocks.into_iter().enumerate() {
            let status = if i == last { status(&end) } else { COMPLETED };
            self.output.push(self.item(block, &unique_id(""), status));
        }
        Ok(self.ended(&end))
    }

    /// The response object.
    fn object(&self, status: &str, output: &[Value]) -> Map<String, Value> {
        let Head { id, created, model } = &self.head;
        let mut object = json!({
            "id": id, "object": "response", "created_at": created, "status": status, "completed_at": null,
            "error": null, "incomplete_details": null, "model": model, "output": output, "usage": null,
        });
        let mut object = object.as_object_mut().map(std::mem::take).unwrap_or_default();
        object.extend(self.echo.clone());
        object
    }

    fn ended(&self, end: &End) -> Value {
        let mut object = self.object(status(end), &self.output);
        match end.reason {
            FinishReason::Length => {
                object.insert("incomplete_details".into(), json!({"reason": "max_output_tokens"}));
            }
            _ => drop(object.insert("completed_at".into(), unix_time().into())),
        }
        let usage = &end.usage;
        let (input, output) = (usage.prompt_tokens, usage.completion_tokens);
        let usage = json!({
            "input_tokens": input,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": end.reasoning_tokens},
            "total_tokens": input + output,
        });
        object.insert("usage".into(), usage);
        object.into()
    }

    /// A block as an item. `id`: what its ids end with.
    fn item(&self, block: Block, id: &str, status: &str) -> Value {
        let Block { kind, text, tokens } = block;
        let part = self.part(&kind, &text, tokens);
        // An item that begins has no content yet.
        let content = if text.is_empty() { json!([]) } else { json!([part]) };
        let id = item_id(&kind, id);
        match kind {
            Kind::Reasoning => json!({
                "id": id, "type": "reasoning", "summary": [], "content": content, "encrypted_content": null,
                "status": status,
            }),
            Kind::Text => {
                json!({"id": id, "type": "message", "role": "assistant", "content": content, "status": status})
            }
            Kind::Call(name) => json!({
                "id": id, "type": "function_call", "call_id": id.replacen("fc_", "call_", 1), "name": name,
                "arguments": text, "status": status,
            }),
        }
    }

    fn part(&self, kind: &Kind, text: &str, tokens: Vec<TokenPiece>) -> Value {
        match kind {
            Kind::Reasoning => json!({"type": "reasoning_text", "text": text}),
            _ => {
                let logprobs = ChatLogprobs::new(tokens, &self.tokenizer).content;
                json!({"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs})
            }
        }
    }

    fn write(&mut self, name: &'static str, fields: Value, lines: &mut Lines) {
        let mut event = Map::from_iter([("type".into(), name.into()), ("sequence_number".into(), self.events.into())]);
        if let Value::Object(fields) = fields {
            event.extend(fields);
        }
        self.events += 1;
        lines.push_named(name, &event);
    }

    /// An event about the content of the open item.
    fn write_content(&mut self, name: &'static str, mut fields: Value, lines: &mut Lines) {
        fields["item_id"] = item_id(&self.kind, &self.id).into();
        fields["output_index"] = self.output.len().into();
        if !matches!(self.kind, Kind::Call(_)) {
            fields["content_index"] = 0.into();
        }
        self.write(name, fields, lines);
    }

    fn open(&mut self, kind: Kind, lines: &mut Lines) {
        self.id = unique_id("");
        let begun = Block { kind: kind.clone(), text: String::new(), tokens: Vec::new() };
        let item = self.item(begun, &self.id, "in_progress");
        self.write("response.output_item.added", json!({"output_index": self.output.len(), "item": item}), lines);
        self.kind = kind;
        if !matches!(self.kind, Kind::Call(_)) {
            let part = self.part(&self.kind, "", Vec::new());
            self.write_content("response.content_part.added", json!({"part": part}), lines);
        }
    }

    fn more(&mut self, text: String, tokens: Vec<TokenPiece>, lines: &mut Lines) {
        let (name, fields) = match self.kind {
            Kind::Reasoning => ("response.reasoning_text.delta", json!({"delta": text})),
            Kind::Call(_) => ("response.function_call_arguments.delta", json!({"delta": text})),
            Kind::Text => {
                let logprobs = ChatLogprobs::new(tokens, &self.tokenizer).content;
                ("response.output_text.delta", json!({"delta": text, "logprobs": logprobs}))
            }
        };
        self.write_content(name, fields, lines);
    }

    fn close(&mut self, block: Block, status: &str, lines: &mut Lines) {
        if let Kind::Call(name) = &block.kind {
            let fields = json!({"name": name, "arguments": block.text});
            self.write_content("response.function_call_arguments.done", fields, lines);
        } else {
            let part = self.part(&block.kind, &block.text, block.tokens.clone());
            let (name, fields) = match block.kind {
                Kind::Reasoning => ("response.reasoning_text.done", json!({"text": part["text"]})),
                _ => ("response.output_text.done", json!({"text": part["text"], "logprobs": part["logprobs"]})),
            };
            self.write_content(name, fields, lines);
            self.write_content("response.content_part.done", json!({"part": part}), lines);
        }
        let item = self.item(block, &self.id, status);
        self.write("response.output_item.done", json!({"output_index": self.output.len(), "item": item}), lines);
        self.output.push(item);
    }
}

impl Render for ResponsesReply {
    const DONE: bool = false;

    fn begin(&mut self, lines: &mut Lines) {
        let response = json!({"response": self.object("in_progress", &[])});
        self.write("response.created", response.clone(), lines);
        self.write("response.in_progress", response, lines);
    }

    fn event(&mut self, _: usize, event: TextEvent, lines: &mut Lines) -> Result<(), ApiError> {
        let changes = self.progress.event(event)?;
        let last = changes.len().saturating_sub(1);
        for (i, change) in changes.into_iter().enumerate() {
            match change {
                Change::Open(kind) => self.open(kind, lines),
                Change::More { text, tokens } => self.more(text, tokens, lines),
                Change::Close(block) => {
                    let end = self.progress.end.as_ref().filter(|_| i == last);
                    let status = end.map_or(COMPLETED, status);
                    self.close(block, status, lines);
                }
            }
        }
        Ok(())
    }

    fn end(&mut self, lines: &mut Lines) {
        let Some(end) = self.progress.end.take() else { return };
        let name = if status(&end) == INCOMPLETE { "response.incomplete" } else { "response.completed" };
        let response = self.ended(&end);
        self.write(name, json!({"response": response}), lines);
    }

    fn error(&mut self, error: ApiError, lines: &mut Lines) {
        let mut response = self.object("failed", &self.output);
        let message = &error.body()["error"]["message"];
        response.insert("error".into(), json!({"code": "server_error", "message": message}));
        self.write("response.failed", json!({"response": response}), lines);
    }
}

/// Of a response that has ended, and of its last item.
fn status(end: &End) -> &'static str {
    if end.reason == FinishReason::Length { INCOMPLETE } else { COMPLETED }
}

fn item_id(kind: &Kind, id: &str) -> String {
    let prefix = match kind {
        Kind::Reasoning => "rs_",
        Kind::Text => "msg_",
        Kind::Call(_) => "fc_",
    };
    format!("{prefix}{id}")
}
