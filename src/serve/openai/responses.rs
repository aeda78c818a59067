//! `POST /v1/responses`: the request. Nothing is stored, so a conversation goes on by sending its items again.

use super::params::{MAX_LOGPROBS, Params};
use super::responses_input::history;
use super::responses_reply::ResponsesReply;
use super::{ApiError, Fields};
use crate::serve::body::JsonBody;
use crate::serve::constraint;
use crate::serve::http::App;
use crate::serve::running::Running;
use crate::serve::sse;
use crate::serve::tools::Tools;
use crate::serve::turn::{Conversation, Started, Turn};
use crate::token::RenderOptions;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// The handler.
pub async fn create(State(app): State<Arc<App>>, JsonBody(fields): JsonBody) -> Result<Response, ApiError> {
    let (running, reply, stream) = app.blocking(|app| submit(app, fields)).await?;
    if stream {
        return Ok(sse::stream(running, reply));
    }
    Ok(Json(reply.whole(running).await?).into_response())
}

fn submit(app: &App, mut fields: Fields) -> Result<(Running, ResponsesReply, bool), ApiError> {
    let name: String = fields.require("model")?;
    let adapter = app.adapter(&name)?;
    refuse(&mut fields)?;
    let mut echo = echo(&fields);
    let mut params = Params::common(&mut fields, &app.defaults, app.engine.model())?;
    params.request.adapter = adapter;
    params.request.logprobs = logprobs(&mut fields)?;
    params.max_tokens = fields.take("max_output_tokens")?;
    if params.max_tokens == Some(0) {
        return Err(ApiError::field("max_output_tokens", "`max_output_tokens` must be at least 1"));
    }
    params.constraint = text_format(&mut fields)?;
    if let Some(options) = fields.take::<Map<String, Value>>("stream_options")? {
        let mut options = Fields::new(options);
        options.take::<bool>("include_obfuscation")?;
        options.finish()?;
    }
    let mut options = RenderOptions {
        add_generation_prompt: true,
        kwargs: fields.take("chat_template_kwargs")?.unwrap_or_default(),
        ..RenderOptions::default()
    };
    reasoning(app, &mut fields, &mut options)?;
    let instructions = fields.take("instructions")?;
    let messages = history(instructions, fields.require("input")?)?.into_value();
    let tools = tools(&mut fields)?;
    // Of tools that OpenAI runs itself; there are none. And how OpenAI caches prompts.
    fields.take::<usize>("max_tool_calls")?;
    fields.take::<Value>("prompt_cache_options")?;
    fields.finish()?;

    let conversation = Conversation { messages, options, add_special: false };
    let started = Turn { conversation, tools, params, prompt_field: "input" }.start(app)?;
    let Started { running, form, params, .. } = started;
    let sampling = &params.request.sampling;
    for (name, value) in [("temperature", sampling.temperature), ("top_p", sampling.top_p)] {
        if echo[name].is_null() {
            // By way of its text: 0.7 has more digits as an f64.
            echo.insert(name.into(), value.to_string().parse::<f64>().unwrap_or(value.into()).into());
        }
    }
    let tokenizer = app.engine.model().tokenizer()?.clone();
    Ok((running, ResponsesReply::new(name, echo, &form, tokenizer), params.stream))
}

/// What needs a store of earlier responses, or tools and policies of OpenAI's own.
fn refuse(fields: &mut Fields) -> Result<(), ApiError> {
    for name in ["previous_response_id", "conversation"] {
        if fields.has(name) {
            let message = format!("`{name}` is not supported: responses are not stored; send earlier items in `input`");
            return Err(ApiError::field(name, message));
        }
    }
    let neutral: [(&str, &[Value]); 7] = [
        ("background", &[json!(false)]),
        ("context_management", &[json!([])]),
        ("image", &[]),
        ("moderation", &[]),
        ("prompt", &[]),
        ("truncation", &[json!("disabled")]),
        ("use_beam_search", &[json!(false)]),
    ];
    neutral.into_iter().try_for_each(|(name, values)| fields.unsupported(name, values))
}

/// The fields that a response repeats, as they were sent or as what they are by default.
fn echo(fields: &Fields) -> Map<String, Value> {
    let repeated = [
        ("background", json!(false)),
        ("instructions", Value::Null),
        ("max_output_tokens", Value::Null),
        ("max_tool_calls", Value::Null),
        ("metadata", json!({})),
        ("parallel_tool_calls", json!(true)),
        ("previous_response_id", Value::Null),
        ("prompt_cache_key", Value::Null),
        ("reasoning", json!({"effort": null, "summary": null})),
        ("safety_identifier", Value::Null),
        ("temperature", Value::Null),
        ("text", json!({"format": {"type": "text"}})),
        ("tool_choice", json!("auto")),
        ("tools", json!([])),
        ("top_logprobs", json!(0)),
        ("top_p", Value::Null),
        ("truncation", json!("disabled")),
        ("user", Value::Null),
    ];
    let sent = |(name, default): (&str, Value)| {
        let value = fields.get(name);
        (name.to_owned(), if value.is_null() { default } else { value })
    };
    let mut echo: Map<String, Value> = repeated.into_iter().map(sent).collect();
    // Whatever was asked for: there is no store.
    echo.insert("store".into(), false.into());
    echo.insert("service_tier".into(), "default".into());
    echo
}

/// Alternatives to report with each token of a text; `None`: no log-probabilities.
fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    const LOGPROBS: &str = "message.output_text.logprobs";
    let include: Vec<String> = fields.take("include")?.unwrap_or_default();
    for what in &include {
        // Reasoning is not hidden here, so nothing has to be encrypted: its items have their text.
        if what != LOGPROBS && what != "reasoning.encrypted_content" {
            return Err(ApiError::field("include", format!("`include`: '{what}' is not supported")));
        }
    }
    let wanted = include.iter().any(|what| what == LOGPROBS);
    let top: Option<usize> = fields.take("top_logprobs")?;
    let error = |message: String| Err(ApiError::field("top_logprobs", message));
    match top {
        Some(top) if top > MAX_LOGPROBS => error(format!("`top_logprobs` must be in [0, {MAX_LOGPROBS}], not {top}")),
        Some(1..) if !wanted => error(format!("`top_logprobs` needs \"{LOGPROBS}\" in `include`")),
        top => Ok(wanted.then(|| top.unwrap_or(0))),
    }
}

/// `text`: the form of the answer.
fn text_format(fields: &mut Fields) -> Result<Option<crate::engine::Grammar>, ApiError> {
    let mut format = None;
    if let Some(text) = fields.take::<Map<String, Value>>("text")? {
        let mut text = Fields::new(text);
        let stated = text.take::<Map<String, Value>>("format")?;
        format = stated.map(|stated| constraint::flat_format("text.format", stated)).transpose()?.flatten();
        text.unsupported("verbosity", &[json!("medium")])?;
        text.finish()?;
    }
    constraint::with_additions(fields, "text", format)
}

/// `reasoning`: how much of it. The reasoning itself is in the answer, so there is no summary.
fn reasoning(app: &App, fields: &mut Fields, options: &mut RenderOptions) -> Result<(), ApiError> {
    let Some(reasoning) = fields.take::<Map<String, Value>>("reasoning")? else { return Ok(()) };
    let mut reasoning = Fields::new(reasoning);
    if let Some(effort) = reasoning.take::<String>("effort")? {
        app.style.effort("reasoning", &effort, options)?;
    }
    for name in ["summary", "generate_summary"] {
        reasoning.unsupported(name, &[json!("auto")])?;
    }
    reasoning.finish()
}

/// Functions, which have their fields beside their type here.
fn tools(fields: &mut Fields) -> Result<Tools, ApiError> {
    let list = fields.take::<Vec<Value>>("tools")?.unwrap_or_default();
    let nested = |(i, tool): (usize, Value)| {
        let place = format!("tools[{i}]");
        if tool["type"] != "function" {
            return Err(ApiError::field(
                &place,
                format!("`{place}`: tools of type {} are not supported", tool["type"]),
            ));
        }
        if tool["name"].as_str().is_none_or(str::is_empty) {
            return Err(ApiError::field(&place, format!("`{place}.name` must be a string")));
        }
        let mut function = json!({"name": tool["name"]});
        for name in ["description", "parameters"] {
            if !tool[name].is_null() {
                function[name] = tool[name].clone();
            }
        }
        Ok(json!({"type": "function", "function": function}))
    };
    let list = list.into_iter().enumerate().map(nested).collect::<Result<Vec<Value>, ApiError>>()?;
    let choice = fields.take("tool_choice")?;
    Tools::new(list, choice, fields.take("parallel_tool_calls")?.unwrap_or(true))
}
