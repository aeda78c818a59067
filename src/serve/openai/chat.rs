//! `POST /v1/chat/completions`: the request.

use super::chat_reply::ChatReply;
use super::params::{MAX_LOGPROBS, Params};
use super::{ApiError, Fields, messages};
use crate::serve::http::{App, JsonBody};
use crate::serve::running::Running;
use crate::serve::sse;
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
    Ok(Json(reply.whole(running.finish().await?)).into_response())
}

fn submit(app: &App, mut fields: Fields) -> Result<(Running, ChatReply, bool), ApiError> {
    let model = app.engine.model();
    let tokenizer = model.tokenizer()?;
    let name: String = fields.require("model")?;
    let adapter = app.adapter(&name)?;
    let mut params = Params::take(&mut fields, &app.defaults, model.config().vocab)?;
    // The newer name; both may be sent, by clients that talk to old servers too.
    if let Some(max) = fields.take("max_completion_tokens")? {
        params.max_tokens = Some(max);
    }
    params.request.logprobs = logprobs(&mut fields)?;
    params.request.adapter = adapter;
    let conversation = messages::for_template(fields.require("messages")?)?;
    let options = render_options(&mut fields)?;
    let add_special = fields.take("add_special_tokens")?.unwrap_or(false);
    for (name, neutral) in not_yet() {
        fields.unsupported(name, &neutral)?;
    }
    fields.finish()?;

    let template = model.chat.as_ref().ok_or_else(|| {
        ApiError::field("messages", format!("the model '{name}' has no chat template; use /v1/completions"))
    })?;
    let text = template.render(&conversation, &options)?;
    // The template writes BOS where the model wants it.
    let prompt = tokenizer.encode(&text, add_special)?;
    let requests = params.requests(prompt, app.engine.max_len(), None, "messages")?;
    let running = Running::start(&app.engine, requests, &params.text)?;
    let reply = ChatReply::new(name, &params, tokenizer.clone());
    Ok((running, reply, params.stream))
}

/// Alternatives to report with each token; `None`: no log-probabilities.
fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let wanted = fields.take("logprobs")?.unwrap_or(false);
    let top = fields.take::<usize>("top_logprobs")?;
    let error = |message: String| Err(ApiError::field("top_logprobs", message));
    match top {
        Some(top) if top > MAX_LOGPROBS => error(format!("`top_logprobs` must be in [0, {MAX_LOGPROBS}], not {top}")),
        Some(1..) if !wanted => error("`top_logprobs` needs `logprobs` to be true".into()),
        top => Ok(wanted.then(|| top.unwrap_or(0))),
    }
}

fn render_options(fields: &mut Fields) -> Result<RenderOptions, ApiError> {
    let continue_final_message = fields.take("continue_final_message")?.unwrap_or(false);
    let add_generation_prompt = fields.take("add_generation_prompt")?.unwrap_or(!continue_final_message);
    if continue_final_message && add_generation_prompt {
        let message = "`continue_final_message` and `add_generation_prompt` exclude each other";
        return Err(ApiError::field("continue_final_message", message));
    }
    Ok(RenderOptions {
        add_generation_prompt,
        continue_final_message,
        tools: tools(fields)?,
        documents: fields.take("documents")?,
        kwargs: fields.take::<Map<String, Value>>("chat_template_kwargs")?.unwrap_or_default(),
    })
}

/// Calls are not recognised in answers yet, so tools may only be shown to the model, not called.
fn tools(fields: &mut Fields) -> Result<Option<Value>, ApiError> {
    let tools = fields.take::<Vec<Value>>("tools")?.filter(|tools| !tools.is_empty());
    let choice = fields.take::<Value>("tool_choice")?;
    let may_call = match &choice {
        None => tools.is_some(),
        Some(choice) => choice != "none" && (choice != "auto" || tools.is_some()),
    };
    if may_call {
        let message = "tool calls are not supported yet; with `tool_choice` \"none\" the model only sees the `tools`";
        return Err(ApiError::field(if tools.is_some() { "tools" } else { "tool_choice" }, message));
    }
    Ok(tools.map(Value::Array))
}

/// Fields that would change the answer if they were supported, and the values that ask for nothing.
fn not_yet() -> Vec<(&'static str, Vec<Value>)> {
    vec![
        ("audio", vec![]),
        ("chat_template", vec![]),
        ("echo", vec![json!(false)]),
        ("function_call", vec![json!("none")]),
        ("functions", vec![json!([])]),
        ("include_reasoning", vec![json!(true)]),
        ("mm_processor_kwargs", vec![json!({})]),
        ("modalities", vec![json!(["text"])]),
        ("parallel_tool_calls", vec![json!(true), json!(false)]),
        ("reasoning_effort", vec![]),
        ("verbosity", vec![json!("medium")]),
        ("web_search_options", vec![]),
    ]
}
