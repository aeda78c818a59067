//! `input` of `/v1/responses`: a text, or the items of a conversation.

use super::ApiError;
use crate::serve::history::History;
use serde_json::Value;

/// The conversation that they are.
pub fn history(instructions: Option<String>, input: Value) -> Result<History, ApiError> {
    let mut history = History::default();
    if let Some(instructions) = instructions {
        history.message("system", instructions);
    }
    match input {
        Value::String(text) => history.message("user", text),
        Value::Array(items) if !items.is_empty() => {
            for (i, item) in items.iter().enumerate() {
                add(&mut history, &format!("input[{i}]"), item)?;
            }
        }
        _ => return Err(ApiError::field("input", "`input` must be a string or a list of at least one item")),
    }
    Ok(history)
}

fn add(history: &mut History, place: &str, item: &Value) -> Result<(), ApiError> {
    // Items without a type are messages.
    match (item["type"].as_str(), item["role"].as_str()) {
        (Some("message") | None, Some(role)) => {
            let text = text(&format!("{place}.content"), &item["content"])?;
            match role {
                "assistant" => history.said(text),
                "developer" | "system" => history.message("system", text),
                "user" => history.message("user", text),
                role => return Err(ApiError::field(place, format!("`{place}.role`: there is no role '{role}'"))),
            }
        }
        (Some("function_call"), _) => {
            let arguments = string(place, item, "arguments")?;
            // What a model wrote need not be JSON.
            let arguments = serde_json::from_str(arguments).unwrap_or_else(|_| arguments.into());
            history.called(string(place, item, "call_id")?, string(place, item, "name")?, arguments);
        }
        (Some("function_call_output"), _) => {
            let output = text(&format!("{place}.output"), &item["output"])?;
            history.result(string(place, item, "call_id")?, output);
        }
        (Some("reasoning"), _) => {
            // Its own words where they are there, else what is known of them.
            let part = |name: &str| text(&format!("{place}.{name}"), &item[name]);
            let content = if item["content"].is_null() { String::new() } else { part("content")? };
            let thought = if content.is_empty() { part("summary")? } else { content };
            if thought.is_empty() && !item["encrypted_content"].is_null() {
                let message = format!("`{place}`: encrypted reasoning of another server cannot be read here");
                return Err(ApiError::field(place, message));
            }
            history.thought(thought);
        }
        (Some(kind), _) if kind != "message" => {
            return Err(ApiError::field(place, format!("`{place}`: items of type '{kind}' are not supported")));
        }
        _ => return Err(ApiError::field(place, format!("`{place}` must have a type or a role"))),
    }
    Ok(())
}

fn string<'a>(place: &str, item: &'a Value, name: &str) -> Result<&'a str, ApiError> {
    item[name].as_str().ok_or_else(|| ApiError::field(place, format!("`{place}.{name}` must be a string")))
}

/// A string, or parts with text, one a line.
fn text(place: &str, content: &Value) -> Result<String, ApiError> {
    let parts = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts,
        _ => return Err(ApiError::field(place, format!("`{place}` must be a string or a list of parts"))),
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (i, part) in parts.iter().enumerate() {
        let place = format!("{place}[{i}]");
        let name = match part["type"].as_str() {
            Some("input_text" | "output_text" | "reasoning_text" | "summary_text" | "text") => "text",
            Some("refusal") => "refusal",
            kind => {
                let message = format!("`{place}`: content of type '{}' is not supported", kind.unwrap_or("null"));
                return Err(ApiError::field(&place, message));
            }
        };
        texts.push(string(&place, part, name)?);
    }
    Ok(texts.join("\n"))
}
