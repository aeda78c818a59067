//! One JSON row to token ids and the mask of counted tokens. See `data` for the forms.

use super::convert::{alpaca, alpaca_prompt, conversations};
use super::recipe::LossOn;
use crate::error::{Error, Result};
use crate::token::{ChatTemplate, RenderOptions, Tokenizer, encode_chat_for_training};
use serde_json::{Value, json};

/// Ids, and for each whether the loss counts it.
type Encoded = (Vec<u32>, Vec<bool>);

/// Tokenizes a row.
///
/// # Errors
/// [`Error::Invalid`] naming the key that is wrong and what is accepted; errors of tokenizer and template.
pub fn encode(row: &Value, loss: LossOn, tokenizer: &Tokenizer, chat: Option<&ChatTemplate>) -> Result<Encoded> {
    let object = row.as_object().ok_or_else(|| Error::invalid("a row must be a JSON object"))?;
    let has = |key: &str| object.get(key).is_some_and(|v| !v.is_null());
    let forms =
        [has("messages"), has("conversations"), has("instruction"), has("prompt") || has("completion"), has("text")];
    match forms {
        [true, false, false, false, false] => conversation(row, loss, tokenizer, chat),
        [false, true, false, false, false] => conversation(&conversations(row)?, loss, tokenizer, chat),
        [false, false, true, false, _] => instruction(row, loss, tokenizer, chat),
        [false, false, false, true, false] => completion(row, loss, tokenizer, chat),
        [false, false, false, false, true] => text(row, loss, tokenizer),
        _ => {
            let keys: Vec<_> = object.keys().map(|k| format!("'{k}'")).collect();
            let found = if keys.is_empty() { "none".into() } else { keys.join(", ") };
            Err(Error::invalid(format!(
                "expected the key 'messages', 'conversations', 'instruction' and 'output', 'prompt' and 'completion', \
                 or 'text'; found {found}"
            )))
        }
    }
}

fn template(chat: Option<&ChatTemplate>) -> Result<&ChatTemplate> {
    chat.ok_or_else(ChatTemplate::missing)
}

/// `tools` and `chat_template_kwargs` of the row.
fn options(row: &Value) -> Result<RenderOptions> {
    let kwargs = match &row["chat_template_kwargs"] {
        Value::Null => serde_json::Map::new(),
        Value::Object(map) => map.clone(),
        _ => return Err(Error::invalid("'chat_template_kwargs' must be an object")),
    };
    let tools = match &row["tools"] {
        Value::Null => None,
        Value::Array(list) if list.is_empty() => None,
        Value::Array(_) => Some(row["tools"].clone()),
        // Columns of data sets hold them as text, since every tool has other parameters.
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => match serde_json::from_str(text) {
            Ok(Value::Array(list)) => Some(Value::Array(list)).filter(|list| *list != json!([])),
            _ => return Err(Error::invalid("'tools' must be a list, or the JSON text of one")),
        },
        _ => return Err(Error::invalid("'tools' must be a list, or the JSON text of one")),
    };
    Ok(RenderOptions { tools, kwargs, ..RenderOptions::default() })
}

fn messages<'a>(row: &'a Value, key: &str) -> Result<&'a [Value]> {
    let list = row[key].as_array().ok_or_else(|| Error::invalid(format!("'{key}' must be a list of messages")))?;
    if list.is_empty() {
        return Err(Error::invalid(format!("'{key}' is empty")));
    }
    for (i, message) in list.iter().enumerate() {
        if !message["role"].is_string() {
            return Err(Error::invalid(format!("{key}[{i}] must be an object with a 'role' and a 'content'")));
        }
        let weight = &message["weight"];
        if !(weight.is_null() || (message["role"] == "assistant" && matches!(weight.as_f64(), Some(0.0 | 1.0)))) {
            return Err(Error::invalid(format!(
                "{key}[{i}]: 'weight' is {weight}, expected 0 or 1 on an assistant's message"
            )));
        }
    }
    Ok(list)
}

fn conversation(row: &Value, loss: LossOn, tokenizer: &Tokenizer, chat: Option<&ChatTemplate>) -> Result<Encoded> {
    messages(row, "messages")?;
    let (template, options) = (template(chat)?, options(row)?);
    match loss {
        LossOn::Assistant => encode_chat_for_training(tokenizer, template, &row["messages"], &options),
        LossOn::All => {
            let ids = tokenizer.encode(&template.render(&row["messages"], &options)?, false)?;
            let counted = vec![true; ids.len()];
            Ok((ids, counted))
        }
    }
}

/// An Alpaca row. Its own `text` column, where it has one, is the same once more.
fn instruction(row: &Value, loss: LossOn, tokenizer: &Tokenizer, chat: Option<&ChatTemplate>) -> Result<Encoded> {
    let messages = alpaca(row)?;
    if chat.is_some() {
        return conversation(&json!({ "messages": messages }), loss, tokenizer, chat);
    }
    if messages.len() > 2 {
        return Err(Error::invalid("'system' and 'history' need a chat template, and the model has none"));
    }
    let (prompt, output) = (alpaca_prompt(row), row["output"].as_str().unwrap_or_default());
    let encoded = from(tokenizer, &format!("{prompt}{output}"), prompt.len(), true, loss)?;
    Ok(with_eos(encoded, tokenizer))
}

fn completion(row: &Value, loss: LossOn, tokenizer: &Tokenizer, chat: Option<&ChatTemplate>) -> Result<Encoded> {
    match (&row["prompt"], &row["completion"]) {
        (Value::String(prompt), Value::String(completion)) => {
            let encoded = from(tokenizer, &format!("{prompt}{completion}"), prompt.len(), true, loss)?;
            Ok(with_eos(encoded, tokenizer))
        }
        (Value::Array(_), Value::Array(_)) => {
            let (prompt, answer) = (messages(row, "prompt")?, messages(row, "completion")?);
            let (template, options) = (template(chat)?, options(row)?);
            let whole = template.render(&Value::Array([prompt, answer].concat()), &options)?;
            let opened = RenderOptions { add_generation_prompt: true, ..options };
            let start = template.render(&row["prompt"], &opened)?;
            if !whole.starts_with(&start) {
                return Err(Error::Text(
                    "the chat template renders the prompt differently once the completion follows".into(),
                ));
            }
            from(tokenizer, &whole, start.len(), false, loss)
        }
        _ => Err(Error::invalid("'prompt' and 'completion' must both be strings or both be lists of messages")),
    }
}

/// Tokens of `text`; those that start at byte `start` or later count, or all.
fn from(tokenizer: &Tokenizer, text: &str, start: usize, add_special: bool, loss: LossOn) -> Result<Encoded> {
    let tokens = tokenizer.encode_with_offsets(text, add_special)?;
    let counted = tokens.iter().map(|t| loss == LossOn::All || t.bytes.start >= start).collect();
    Ok((tokens.iter().map(|t| t.id).collect(), counted))
}

fn text(row: &Value, loss: LossOn, tokenizer: &Tokenizer) -> Result<Encoded> {
    let text = row["text"].as_str().ok_or_else(|| Error::invalid("'text' must be a string"))?;
    if loss == LossOn::Assistant {
        return Err(Error::invalid("a 'text' row has no assistant turn for the loss to count: use loss 'all'"));
    }
    let ids = tokenizer.encode(text, true)?;
    let counted = vec![true; ids.len()];
    Ok(with_eos((ids, counted), tokenizer))
}

/// Ends the row with end-of-text, counted, unless it does already (as TRL does for plain texts).
fn with_eos((mut ids, mut counted): Encoded, tokenizer: &Tokenizer) -> Encoded {
    if let Some(eos) = tokenizer.eos()
        && ids.last() != Some(&eos)
    {
        ids.push(eos);
        counted.push(true);
    }
    (ids, counted)
}
