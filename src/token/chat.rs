//! Chat templates: a conversation as the text the model was trained on.

use std::ops::Range;
use std::sync::Arc;

use minijinja::Environment;
use minijinja::value::Serde;
use serde_json::{Map, Value};

use super::jinja::{self, GENERATION_END, GENERATION_START, Raised};
use super::tokenizer::{Tokenizer, special_token};
use crate::{Error, Result};

/// Special tokens that templates may name.
const SPECIAL_NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Names a message's reasoning is passed under; templates read the first.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
/// Stands at the end of the final message while it is rendered; transformers' own word.
const CONTINUE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// How a conversation is rendered.
#[derive(Debug, Clone, Default)]
pub struct RenderOptions {
    /// End with the header of an assistant's turn.
    pub add_generation_prompt: bool,
    /// Leave the last message open, so that the model goes on with it.
    pub continue_final_message: bool,
    /// Tools as JSON schemas (OpenAI's `tools`).
    pub tools: Option<Value>,
    /// Documents for retrieval, where the template knows them.
    pub documents: Option<Value>,
    /// Further variables, for example `enable_thinking`; they win over everything else but `messages`.
    pub kwargs: Map<String, Value>,
}

/// A compiled chat template. Cheap to clone, shared between threads.
#[derive(Clone, Debug)]
pub struct ChatTemplate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    env: Environment<'static>,
    /// Another template for requests with tools, where the model has one.
    tool_use: Option<String>,
    special: Map<String, Value>,
    source: String,
    generation: bool,
}

impl ChatTemplate {
    /// Compiles a template; `special` are variables such as `bos_token`.
    ///
    /// # Errors
    /// [`Error::Text`] with the line of a syntax error.
    pub fn new(source: &str, special: Map<String, Value>) -> Result<Self> {
        Self::compile(source, None, special)
    }

    fn compile(source: &str, tool_use: Option<&str>, special: Map<String, Value>) -> Result<Self> {
        let mut env = jinja::environment().map_err(|error| template_error(&error))?;
        let mut generation = false;
        for (name, source) in [("default", Some(source)), ("tool_use", tool_use)] {
            let Some(source) = source else { continue };
            let (source, found) = jinja::rewrite_generation(source);
            generation |= found;
            env.add_template_owned(name, source).map_err(|error| template_error(&error))?;
        }
        let tool_use = tool_use.map(str::to_owned);
        Ok(Self(Arc::new(Inner { env, tool_use, special, source: source.to_owned(), generation })))
    }

    /// The template of a Hugging Face folder: chat_template.jinja where it exists, else `chat_template`
    /// in tokenizer_config.json (one template, or a list of named ones). `None` where there is none.
    pub fn from_hf(jinja: Option<&str>, tokenizer_config: &Value, special_tokens_map: &Value) -> Result<Option<Self>> {
        let files = [tokenizer_config, special_tokens_map];
        let mut special: Map<String, Value> = SPECIAL_NAMES
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), Value::String(special_token(&files, name)?))))
            .collect();
        // Model-specific names, such as `image_token`.
        for (name, token) in tokenizer_config["extra_special_tokens"].as_object().into_iter().flatten() {
            if let Some(token) = token.as_str().or_else(|| token["content"].as_str()) {
                special.insert(name.clone(), token.into());
            }
        }
        let configured = &tokenizer_config["chat_template"];
        let named = |wanted: &str| {
            let entries = configured.as_array()?;
            entries.iter().find(|entry| entry["name"] == wanted)?["template"].as_str()
        };
        match jinja.or_else(|| configured.as_str()).or_else(|| named("default")) {
            Some(source) => Self::compile(source, named("tool_use").filter(|_| jinja.is_none()), special).map(Some),
            None => Ok(None),
        }
    }

    /// The template of a GGUF file (`tokenizer.chat_template`); special tokens come from its vocabulary.
    pub fn from_gguf(source: Option<&str>, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let ids = [("bos_token", tokenizer.bos()), ("eos_token", tokenizer.eos()), ("pad_token", tokenizer.pad())];
        let special = ids
            .iter()
            .filter_map(|(name, id)| Some(((*name).to_owned(), tokenizer.token_str((*id)?)?.into())))
            .collect();
        source.map(|source| Self::new(source, special)).transpose()
    }

    /// The error for a model that has no template.
    #[must_use]
    pub fn missing() -> Error {
        Error::Text(
            "the model has no chat template; pass one (chat_template.jinja in its folder, `chat_template` in \
             tokenizer_config.json, or tokenizer.chat_template in the GGUF file), or use plain text without --chat"
                .into(),
        )
    }

    /// The template's text.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.0.source
    }

    /// The text that is used where a request has tools; the same one for most models.
    #[must_use]
    pub fn tool_source(&self) -> &str {
        self.0.tool_use.as_deref().unwrap_or(&self.0.source)
    }

    /// The variables that every rendering gets, such as `bos_token`.
    #[must_use]
    pub fn special(&self) -> &Map<String, Value> {
        &self.0.special
    }

    /// Renders `messages`, a list of objects with `role` and `content`.
    ///
    /// # Errors
    /// [`Error::Text`]: the message of the template's `raise_exception`, or what failed in which line;
    /// [`Error::Invalid`] where `messages` is not a list of objects.
    pub fn render(&self, messages: &Value, options: &RenderOptions) -> Result<String> {
        self.render_with_spans(messages, options).map(|(text, _)| text)
    }

    /// As [`Self::render`], with the byte ranges of its `{% generation %}` blocks.
    pub fn render_with_spans(&self, messages: &Value, options: &RenderOptions) -> Result<(String, Vec<Range<usize>>)> {
        let inner = &*self.0;
        let mut messages = prepared(messages)?;
        if inner.generation && Value::Array(messages.clone()).to_string().contains('\u{FDD0}') {
            return Err(Error::Text("a message contains U+FDD0, which marks generation blocks".into()));
        }
        let last = if options.continue_final_message { Some(tag_final(&mut messages)?) } else { None };

        let mut context = inner.special.clone();
        let mut set = |name: &str, value: Value| context.insert(name.to_owned(), value);
        set("tools", options.tools.clone().unwrap_or(Value::Null));
        set("documents", options.documents.clone().unwrap_or(Value::Null));
        set("add_generation_prompt", options.add_generation_prompt.into());
        context.extend(options.kwargs.clone());
        context.insert("messages".into(), Value::Array(messages));

        let name = if options.tools.is_some() && inner.tool_use.is_some() { "tool_use" } else { "default" };
        let text = inner
            .env
            .get_template(name)
            .and_then(|template| template.render(Serde(&context)))
            .map_err(|error| template_error(&error))?;
        let (mut text, mut spans) = if inner.generation { generation_spans(&text) } else { (text, Vec::new()) };
        if let Some(last) = last {
            cut_at_tag(&mut text, &last)?;
            spans.iter_mut().for_each(|span| *span = span.start.min(text.len())..span.end.min(text.len()));
        }
        Ok((text, spans))
    }
}

/// One line: what the template raised, or what is wrong with it and where.
fn template_error(error: &minijinja::Error) -> Error {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = source {
        if let Some(Raised(message)) = current.downcast_ref() {
            return Error::Text(message.clone());
        }
        source = current.source();
    }
    let line = error.line().map_or_else(String::new, |line| format!(" in line {line}"));
    let detail = error.detail().map_or_else(String::new, |detail| format!(": {}", detail.replace('\n', " ")));
    Error::Text(format!("chat template{line}: {}{detail}", error.kind()))
}

/// The messages as the template sees them; reasoning is filled in under each name templates use.
fn prepared(messages: &Value) -> Result<Vec<Value>> {
    let list = messages.as_array().ok_or_else(|| Error::invalid("messages must be a list"))?;
    let mut out = Vec::with_capacity(list.len());
    for (i, message) in list.iter().enumerate() {
        let mut message =
            message.as_object().cloned().ok_or_else(|| Error::invalid(format!("messages[{i}] must be an object")))?;
        let reasoning = REASONING.iter().find_map(|name| message.get(*name).filter(|value| !value.is_null())).cloned();
        if let Some(reasoning) = reasoning {
            message.entry("thinking").or_insert_with(|| reasoning.clone());
            message.insert("reasoning_content".into(), reasoning);
        }
        out.push(Value::Object(message));
    }
    Ok(out)
}

/// Appends [`CONTINUE_TAG`] to the text of the last message; returns that text.
fn tag_final(messages: &mut [Value]) -> Result<String> {
    let no_text = || Error::invalid("continue_final_message: the last message has no text to continue");
    let content = messages.last_mut().and_then(|message| message.get_mut("content")).ok_or_else(no_text)?;
    let content = match content {
        Value::Array(parts) => parts.iter_mut().rev().find_map(|part| part.get_mut("text")).ok_or_else(no_text)?,
        content => content,
    };
    let text = content.as_str().ok_or_else(no_text)?.to_owned();
    *content = Value::String(format!("{text}{CONTINUE_TAG}"));
    Ok(text)
}

/// Removes the tag and all that follows it.
fn cut_at_tag(text: &mut String, last: &str) -> Result<()> {
    let at = text.rfind(CONTINUE_TAG.trim_end()).filter(|_| text.contains(last.trim())).ok_or_else(|| {
        Error::Text("continue_final_message: the chat template drops a part of the last message".into())
    })?;
    let kept = if text[at..].starts_with(CONTINUE_TAG) { at } else { text[..at].trim_end().len() };
    text.truncate(kept);
    Ok(())
}

/// Takes the marks out of a rendered text and says where they were.
fn generation_spans(marked: &str) -> (String, Vec<Range<usize>>) {
    let (mut text, mut spans, mut open) = (String::with_capacity(marked.len()), Vec::new(), Vec::new());
    let mut rest = marked;
    while let Some(at) = rest.find('\u{FDD0}') {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix(GENERATION_START) {
            open.push(text.len());
            rest = after;
        } else if let Some(after) = rest.strip_prefix(GENERATION_END) {
            // Blocks may nest; the outermost counts.
            if let (Some(start), true) = (open.pop(), open.is_empty()) {
                spans.push(start..text.len());
            }
            rest = after;
        } else {
            text.push('\u{FDD0}');
            rest = &rest['\u{FDD0}'.len_utf8()..];
        }
    }
    text.push_str(rest);
    (text, spans)
}
