//! `system` and `messages`: texts, or lists of blocks.

use crate::serve::history::History;
use crate::serve::openai::ApiError;
use serde_json::Value;

/// The conversation that they are.
pub fn history(system: Option<Value>, messages: &[Value]) -> Result<History, ApiError> {
    let mut history = History::default();
    if let Some(system) = system {
        history.message("system", text("system", &system)?);
    }
    if messages.is_empty() {
        return Err(ApiError::field("messages", "`messages` must not be empty"));
    }
    for (i, message) in messages.iter().enumerate() {
        let place = format!("messages[{i}]");
        let content = format!("{place}.content");
        match message["role"].as_str() {
            Some("user") => user(&mut history, &content, &message["content"])?,
            Some("assistant") => assistant(&mut history, &content, &message["content"])?,
            Some("system") => history.message("system", text(&content, &message["content"])?),
            _ => return Err(ApiError::field(&place, format!("`{place}.role` must be user or assistant"))),
        }
    }
    Ok(history)
}

/// Results of calls, and what the user says besides.
fn user(history: &mut History, place: &str, content: &Value) -> Result<(), ApiError> {
    let mut said: Vec<&str> = Vec::new();
    for block in blocks(place, content)? {
        match block {
            Block::Text(text) => said.push(text),
            Block::Other { place, kind: "tool_result", block } => {
                if !said.is_empty() {
                    history.message("user", std::mem::take(&mut said).join("\n"));
                }
                let result = match &block["content"] {
                    Value::Null => String::new(),
                    content => text(&format!("{place}.content"), content)?,
                };
                history.result(string(&place, block, "tool_use_id")?, result);
            }
            Block::Other { place, kind, .. } => return Err(unsupported(&place, kind)),
        }
    }
    if !said.is_empty() {
        history.message("user", said.join("\n"));
    }
    Ok(())
}

/// Thoughts, text and calls, in this order.
fn assistant(history: &mut History, place: &str, content: &Value) -> Result<(), ApiError> {
    let (mut thoughts, mut said, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    for block in blocks(place, content)? {
        match block {
            Block::Text(text) => said.push(text),
            Block::Other { place, kind: "thinking", block } => thoughts.push(string(&place, block, "thinking")?),
            Block::Other { place, kind: "tool_use", block } => {
                calls.push((string(&place, block, "id")?, string(&place, block, "name")?, block["input"].clone()));
            }
            Block::Other { place, kind, .. } => return Err(unsupported(&place, kind)),
        }
    }
    if !thoughts.is_empty() {
        history.thought(thoughts.join("\n"));
    }
    if !said.is_empty() || calls.is_empty() {
        history.said(said.join("\n"));
    }
    calls.into_iter().for_each(|(id, name, input)| history.called(id, name, input));
    Ok(())
}

enum Block<'a> {
    Text(&'a str),
    Other { place: String, kind: &'a str, block: &'a Value },
}

/// A string is one block of text.
fn blocks<'a>(place: &str, content: &'a Value) -> Result<Vec<Block<'a>>, ApiError> {
    let list = match content {
        Value::String(text) => return Ok(vec![Block::Text(text)]),
        Value::Array(list) => list,
        _ => return Err(ApiError::field(place, format!("`{place}` must be a string or a list of blocks"))),
    };
    let read = |(i, block): (usize, &'a Value)| {
        let place = format!("{place}[{i}]");
        match block["type"].as_str() {
            Some("text") => Ok(Block::Text(string(&place, block, "text")?)),
            Some(kind) => Ok(Block::Other { place, kind, block }),
            None => Err(ApiError::field(&place, format!("`{place}.type` must be a string"))),
        }
    };
    list.iter().enumerate().map(read).collect()
}

/// Blocks of text only, one a line.
fn text(place: &str, content: &Value) -> Result<String, ApiError> {
    let read = |block| match block {
        Block::Text(text) => Ok(text),
        Block::Other { place, kind, .. } => Err(unsupported(&place, kind)),
    };
    Ok(blocks(place, content)?.into_iter().map(read).collect::<Result<Vec<_>, _>>()?.join("\n"))
}

fn unsupported(place: &str, kind: &str) -> ApiError {
    ApiError::field(place, format!("`{place}`: content of type '{kind}' is not supported here"))
}

fn string<'a>(place: &str, block: &'a Value, name: &str) -> Result<&'a str, ApiError> {
    block[name].as_str().ok_or_else(|| ApiError::field(place, format!("`{place}.{name}` must be a string")))
}
