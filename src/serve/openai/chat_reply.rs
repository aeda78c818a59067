//! `POST /v1/chat/completions`: the answer, whole or in chunks.

use super::ApiError;
use super::logprobs::{ChatLogprobs, PromptLogprobs};
use super::params::Params;
use super::reply::{Counts, Envelope, Head, finish_reason};
use crate::engine::FinishReason;
use crate::engine::text::{TextEvent, TokenPiece};
use crate::error::Error;
use crate::serve::answer::{Form, Part, Reader, read_whole, reasoning_tokens};
use crate::serve::http::unique_id;
use crate::serve::running::Finished;
use crate::serve::sse::{Lines, Render};
use crate::serve::tools::Choice as ToolChoice;
use crate::token::Tokenizer;
use serde::Serialize;
use serde_json::Value;

const CHUNK: &str = "chat.completion.chunk";

/// Writes one reply.
pub struct ChatReply {
    head: Head,
    params: Params,
    form: Form,
    tool_choice: ToolChoice,
    include_reasoning: bool,
    tokenizer: Tokenizer,
    /// The prompt, where log-probabilities of its tokens are wanted.
    prompt: Vec<u32>,
    counts: Counts,
    streams: Vec<Stream>,
}

/// A choice that is being streamed.
struct Stream {
    reader: Reader,
    /// Its first chunk, with the role, is written.
    started: bool,
    /// Tokens that no chunk has reported yet.
    tokens: Vec<TokenPiece>,
    /// Tokens so far.
    counted: usize,
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

#[derive(Default, Serialize)]
struct Message {
    role: &'static str,
    content: Option<String>,
    refusal: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
    /// One text under vLLM's newer and its older name, which is DeepSeek's.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
}

#[derive(Default, Serialize)]
struct ToolCall {
    /// In chunks: which call goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: Function,
}

#[derive(Default, Serialize)]
struct Function {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

impl ToolCall {
    fn begin(name: String) -> Self {
        let function = Function { name: Some(name), arguments: String::new() };
        Self { index: None, id: Some(unique_id("call_")), kind: Some("function"), function }
    }

    fn more(arguments: String) -> Self {
        Self { function: Function { name: None, arguments }, ..Self::default() }
    }
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
}

impl ChatReply {
    pub fn new(model: String, params: Params, form: Form, tool_choice: ToolChoice, tokenizer: Tokenizer) -> Self {
        let stream = |_| Stream { reader: Reader::new(&form), started: false, tokens: Vec::new(), counted: 0 };
        Self {
            head: Head::new("chatcmpl-", model),
            streams: (0..params.n).map(stream).collect(),
            params,
            form,
            tool_choice,
            include_reasoning: true,
            tokenizer,
            prompt: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// States how many tokens the prompt has, which are counted from the start, and which, where that matters.
    pub fn with_prompt(mut self, tokens: usize, prompt: Vec<u32>) -> Self {
        self.counts.prompt(tokens);
        Self { prompt, ..self }
    }

    /// Whether clients get to see reasoning.
    pub fn with_reasoning(self, include_reasoning: bool) -> Self {
        Self { include_reasoning, ..self }
    }

    /// The answer in one piece.
    pub fn whole(mut self, finished: Vec<Finished>) -> Value {
        for choice in &finished {
            self.counts.end(&choice.usage, 0);
            self.counts.reasoned(reasoning_tokens(&self.form, &choice.tokens));
        }
        let first = finished.first();
        first.into_iter().for_each(|choice| self.counts.cached(choice.usage.cached_tokens));
        let prompt_logprobs = first
            .filter(|_| self.params.request.prompt_logprobs.is_some())
            .map(|choice| PromptLogprobs::new(&self.prompt, &choice.prompt, &self.tokenizer));
        let best = self.params.best(finished);
        let choices: Vec<Choice> = best.into_iter().enumerate().map(|(i, choice)| self.choice(i, choice)).collect();
        let envelope = Envelope::new(&self.head, "chat.completion", &choices, Some(Some(self.counts)))
            .with_prompt(prompt_logprobs);
        serde_json::to_value(envelope).unwrap_or_default()
    }

    fn choice(&self, index: usize, choice: Finished) -> Choice {
        let mut message = Message { role: "assistant", ..Message::default() };
        for part in read_whole(&self.form, &choice.text) {
            match part {
                Part::Reasoning(text) if self.include_reasoning => {
                    (message.reasoning, message.reasoning_content) = (Some(text.clone()), Some(text));
                }
                Part::Reasoning(_) => {}
                Part::Content(text) => message.content.get_or_insert_default().push_str(&text),
                Part::Call(name) => message.tool_calls.push(ToolCall::begin(name)),
                Part::Arguments(text) => {
                    message.tool_calls.last_mut().into_iter().for_each(|call| call.function.arguments.push_str(&text));
                }
            }
        }
        if message.tool_calls.is_empty() && message.reasoning.is_none() {
            message.content.get_or_insert_default();
        }
        Choice {
            index,
            finish_reason: self.finish_reason(choice.reason, message.tool_calls.len()),
            message,
            logprobs: self.params.request.logprobs.map(|_| ChatLogprobs::new(choice.tokens, &self.tokenizer)),
            stop_reason: choice.stop,
        }
    }

    /// As at OpenAI, a call that the client named leaves the reason as it is.
    fn finish_reason(&self, reason: Option<FinishReason>, calls: usize) -> Option<&'static str> {
        let named = matches!(self.tool_choice, ToolChoice::Named(_));
        match reason {
            Some(FinishReason::Stop) if calls > 0 && !named => Some("tool_calls"),
            reason => finish_reason(reason),
        }
    }

    fn write(&mut self, mut choice: ChunkChoice, lines: &mut Lines) {
        if self.params.request.logprobs.is_some() && choice.delta.role.is_none() {
            let tokens = std::mem::take(&mut self.streams[choice.index].tokens);
            choice.logprobs = (!tokens.is_empty()).then(|| ChatLogprobs::new(tokens, &self.tokenizer));
        }
        let usage = self.params.include_usage.then_some(self.params.usage_each.then_some(self.counts));
        lines.push(&Envelope::new(&self.head, CHUNK, &[choice], usage));
    }

    fn parts(&mut self, index: usize, parts: Vec<Part>, lines: &mut Lines) {
        // The reader has counted all calls of these parts already.
        let begun = parts.iter().filter(|part| matches!(part, Part::Call(_))).count();
        let mut call = self.streams[index].reader.calls() - begun;
        for part in parts {
            let mut delta = Delta::default();
            match part {
                Part::Reasoning(_) if !self.include_reasoning => continue,
                Part::Reasoning(text) => {
                    (delta.reasoning, delta.reasoning_content) = (Some(text.clone()), Some(text));
                }
                Part::Content(text) => delta.content = Some(text),
                Part::Call(name) => {
                    delta.tool_calls.push(ToolCall { index: Some(call), ..ToolCall::begin(name) });
                    call += 1;
                }
                Part::Arguments(text) => {
                    delta.tool_calls.push(ToolCall { index: call.checked_sub(1), ..ToolCall::more(text) });
                }
            }
            self.write(ChunkChoice { index, delta, ..ChunkChoice::default() }, lines);
        }
    }
}

impl Render for ChatReply {
    fn event(&mut self, index: usize, event: TextEvent, lines: &mut Lines) -> Result<(), ApiError> {
        if !std::mem::replace(&mut self.streams[index].started, true) {
            let delta = Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
            self.write(ChunkChoice { index, delta, ..ChunkChoice::default() }, lines);
        }
        match event {
            // Asked for in no stream.
            TextEvent::Prompt(_) => {}
            TextEvent::Delta { text, tokens } => {
                let stream = &mut self.streams[index];
                let before = stream.reader.is_reasoning();
                let parts = stream.reader.push(&text);
                stream.counted += tokens.len();
                self.counts.more(tokens.len());
                self.counts.reasoned(if before || stream.reader.is_reasoning() { tokens.len() } else { 0 });
                stream.tokens.extend(tokens);
                self.parts(index, parts, lines);
            }
            TextEvent::Done { reason: FinishReason::Cancelled, .. } => return Err(Error::Cancelled.into()),
            TextEvent::Done { reason, usage, stop } => {
                let parts = self.streams[index].reader.finish();
                self.parts(index, parts, lines);
                self.counts.end(&usage, self.streams[index].counted);
                if index == 0 {
                    self.counts.cached(usage.cached_tokens);
                }
                let finish_reason = self.finish_reason(Some(reason), self.streams[index].reader.calls());
                let end = ChunkChoice { index, finish_reason, stop_reason: stop, ..ChunkChoice::default() };
                self.write(end, lines);
            }
            TextEvent::Failed(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn end(&mut self, lines: &mut Lines) {
        if self.params.include_usage {
            lines.push(&Envelope::<ChunkChoice>::new(&self.head, CHUNK, &[], Some(Some(self.counts))));
        }
    }
}
