//! Conversations as chat templates expect them.

use super::ApiError;
use serde_json::{Map, Value};

/// Checks OpenAI's `messages` and puts them in the form that chat templates are written for: content as one
/// string, tool-call arguments as objects, `developer` as the `system` that models know.
pub fn for_template(messages: Value) -> Result<Value, ApiError> {
    let Value::Array(messages) = messages else {
        return Err(ApiError::field("messages", "`messages` must be a list"));
    };
    if messages.is_empty() {
        return Err(ApiError::field("messages", "`messages` must not be empty"));
    }
    let messages = messages.into_iter().enumerate().map(|(i, message)| one(&format!("messages[{i}]"), message));
    messages.collect::<Result<Vec<Value>, ApiError>>().map(Value::Array)
}

fn one(place: &str, message: Value) -> Result<Value, ApiError> {
    let Value::Object(mut message) = message else {
        return Err(ApiError::field(place, format!("`{place}` must be an object")));
    };
    let role = match message.get("role") {
        Some(Value::String(role)) if role == "developer" => "system".to_owned(),
        Some(Value::String(role)) => role.clone(),
        _ => return Err(ApiError::field(place, format!("`{place}.role` must be a string"))),
    };
    message.insert("role".into(), role.clone().into());
    let place = format!("{place}.content");
    let content = match message.get_mut("content").map(Value::take) {
        Some(Value::String(text)) => text.into(),
        Some(Value::Array(parts)) => joined(&place, parts)?.into(),
        // An assistant's turn may consist of tool calls only.
        None | Some(Value::Null) if role == "assistant" && message.contains_key("tool_calls") => Value::Null,
        _ => return Err(ApiError::field(&place, format!("`{place}` must be a string or a list of parts"))),
    };
    message.insert("content".into(), content);
    parse_arguments(&mut message);
    Ok(message.into())
}

/// Text parts, one a line, as in vLLM.
fn joined(place: &str, parts: Vec<Value>) -> Result<String, ApiError> {
    let texts = parts.into_iter().enumerate().map(|(i, mut part)| {
        let place = format!("{place}[{i}]");
        match part["type"].as_str() {
            Some("text") => match part["text"].take() {
                Value::String(text) => Ok(text),
                _ => Err(ApiError::field(&place, format!("`{place}.text` must be a string"))),
            },
            Some(kind) => Err(ApiError::field(
                &place,
                format!("`{place}`: content of type '{kind}' is not supported, only 'text'"),
            )),
            None => Err(ApiError::field(&place, format!("`{place}.type` must be a string"))),
        }
    });
    Ok(texts.collect::<Result<Vec<String>, ApiError>>()?.join("\n"))
}

/// OpenAI sends a call's arguments as JSON in a string; templates write them as JSON themselves.
fn parse_arguments(message: &mut Map<String, Value>) {
    for call in message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
        let parsed = arguments.as_str().and_then(|text| serde_json::from_str::<Map<String, Value>>(text).ok());
        if let Some(parsed) = parsed {
            *arguments = parsed.into();
        }
    }
}
