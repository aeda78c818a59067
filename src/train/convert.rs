//! Rows of other forms as rows of messages: ShareGPT's `conversations`, and Alpaca's instructions.

use crate::error::{Error, Result};
use serde_json::{Map, Value, json};

/// A row with `conversations` as one with `messages`. Turns are ShareGPT's `{"from", "value"}`, or messages already.
///
/// # Errors
/// [`Error::Invalid`] naming the turn that is wrong.
pub fn conversations(row: &Value) -> Result<Value> {
    let list =
        row["conversations"].as_array().ok_or_else(|| Error::invalid("'conversations' must be a list of turns"))?;
    let mut messages = Vec::with_capacity(list.len() + 1);
    if let Some(system) = row["system"].as_str().filter(|text| !text.is_empty()) {
        messages.push(json!({"role": "system", "content": system}));
    }
    for (i, turn) in list.iter().enumerate() {
        messages.push(message(turn).map_err(|why| Error::invalid(format!("conversations[{i}]: {why}")))?);
    }
    let mut out = Map::new();
    out.insert("messages".into(), Value::Array(messages));
    for key in ["tools", "chat_template_kwargs"] {
        if let Some(value) = row.get(key) {
            out.insert(key.into(), value.clone());
        }
    }
    Ok(Value::Object(out))
}

fn message(turn: &Value) -> std::result::Result<Value, String> {
    if turn["role"].is_string() {
        return Ok(turn.clone());
    }
    let (Some(from), Some(value)) = (turn["from"].as_str(), turn["value"].as_str()) else {
        return Err("expected an object with the strings 'from' and 'value', or 'role' and 'content'".into());
    };
    let role = match from.to_ascii_lowercase().as_str() {
        "system" => "system",
        "human" | "user" => "user",
        "gpt" | "assistant" | "chatgpt" | "model" | "bing" | "bard" => "assistant",
        "tool" | "observation" | "function" | "function_response" | "ipython" => "tool",
        "function_call" => return call(value),
        _ => {
            return Err(format!(
                "unknown 'from' \"{from}\": expected system, human, gpt, tool, observation or function_call"
            ));
        }
    };
    Ok(json!({"role": role, "content": value}))
}

/// A turn that calls a function: JSON with `name` and `arguments`, or a list of such objects.
fn call(value: &str) -> std::result::Result<Value, String> {
    let parsed: Value = serde_json::from_str(value).map_err(|_| "the function_call is not JSON".to_owned())?;
    let calls = if let Value::Array(list) = parsed { list } else { vec![parsed] };
    if calls.iter().any(|call| !call["name"].is_string()) {
        return Err("the function_call has no 'name'".into());
    }
    let calls: Vec<Value> = calls.into_iter().map(|call| json!({"type": "function", "function": call})).collect();
    Ok(json!({"role": "assistant", "content": "", "tool_calls": calls}))
}

/// The parts of an Alpaca row: what the user says, and what the model answers, with a system prompt and earlier
/// (question, answer) pairs where there are some.
///
/// # Errors
/// [`Error::Invalid`] naming the key that is wrong.
pub fn alpaca(row: &Value) -> Result<Vec<Value>> {
    let text = |key: &str, needed: bool| match &row[key] {
        Value::String(text) => Ok(text.as_str()),
        Value::Null if !needed => Ok(""),
        _ => Err(Error::invalid(format!("'{key}' must be a string"))),
    };
    let (instruction, input) = (text("instruction", true)?, text("input", false)?);
    let (output, system) = (text("output", true)?, text("system", false)?);
    let mut messages = Vec::new();
    if !system.is_empty() {
        messages.push(json!({"role": "system", "content": system}));
    }
    match &row["history"] {
        Value::Null => {}
        Value::Array(pairs) => {
            for pair in pairs {
                let (Some(question), Some(answer)) = (pair[0].as_str(), pair[1].as_str()) else {
                    return Err(Error::invalid("'history' must be a list of [question, answer] pairs"));
                };
                messages.push(json!({"role": "user", "content": question}));
                messages.push(json!({"role": "assistant", "content": answer}));
            }
        }
        _ => return Err(Error::invalid("'history' must be a list of [question, answer] pairs")),
    }
    let asked = if input.is_empty() { instruction.to_owned() } else { format!("{instruction}\n{input}") };
    messages.push(json!({"role": "user", "content": asked}));
    messages.push(json!({"role": "assistant", "content": output}));
    Ok(messages)
}

/// Stanford's text for a model without a chat template: everything before the output.
/// Source: `PROMPT_DICT` of <https://github.com/tatsu-lab/stanford_alpaca>.
pub fn alpaca_prompt(row: &Value) -> String {
    let (instruction, input) = (row["instruction"].as_str().unwrap_or(""), row["input"].as_str().unwrap_or(""));
    if input.is_empty() {
        format!(
            "Below is an instruction that describes a task. Write a response that appropriately completes the \
             request.\n\n### Instruction:\n{instruction}\n\n### Response:"
        )
    } else {
        format!(
            "Below is an instruction that describes a task, paired with an input that provides further context. Write \
             a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### \
             Input:\n{input}\n\n### Response:"
        )
    }
}
