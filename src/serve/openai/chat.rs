//! `POST /v1/chat/completions`: the request.

use super::chat_reply::ChatReply;
use super::params::{MAX_LOGPROBS, Params};
use super::{ApiError, Fields};
use crate::serve::body::JsonBody;
use crate::serve::http::App;
use crate::serve::running::Running;
use crate::serve::sse;
use crate::serve::tools::Tools;
use crate::serve::turn::{Conversation, Started, Turn};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
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
    let name: String = fields.require("model")?;
    let adapter = app.adapter(&name)?;
    let mut params = Params::take(&mut fields, &app.defaults, app.engine.model())?;
    // The newer name; both may be sent, by clients that talk to old servers too.
    if let Some(max) = fields.take("max_completion_tokens")? {
        params.max_tokens = Some(max);
    }
    params.request.logprobs = logprobs(&mut fields)?;
    params.request.adapter = adapter;
    let conversation = conversation(app, &mut fields)?;
    let tools = Tools::take(&mut fields)?;
    let include_reasoning = fields.take("include_reasoning")?.unwrap_or(true);
    for (name, neutral) in not_yet() {
        fields.unsupported(name, &neutral)?;
    }
    fields.finish()?;
    let turn = Turn { conversation, tools, params, prompt_field: "messages" };
    let Started { running, form, prompt_tokens, prompt, tools, params } = turn.start(app)?;
    let tokenizer = app.engine.model().tokenizer()?.clone();
    let stream = params.stream;
    let reply = ChatReply::new(name, params, form, tools.choice, tokenizer)
        .with_prompt(prompt_tokens, prompt)
        .with_reasoning(include_reasoning);
    Ok((running, reply, stream))
}

fn conversation(app: &App, fields: &mut Fields) -> Result<Conversation, ApiError> {
    let mut conversation = Conversation::take(fields)?;
    if let Some(effort) = fields.take::<String>("reasoning_effort")? {
        app.style.effort("reasoning_effort", &effort, &mut conversation.options)?;
    }
    Ok(conversation)
}

/// The prompt that chat's fields make.
pub fn prompt_only(app: &App, fields: &mut Fields) -> Result<Vec<u32>, ApiError> {
    let conversation = conversation(app, fields)?;
    let tools = Tools::take(fields)?;
    fields.unsupported("chat_template", &[])?;
    Ok(conversation.prompt(app, &tools)?.1)
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

/// Fields that would change the answer if they were supported, and the values that ask for nothing.
fn not_yet() -> Vec<(&'static str, Vec<Value>)> {
    vec![
        ("audio", vec![]),
        ("chat_template", vec![]),
        ("echo", vec![json!(false)]),
        ("function_call", vec![json!("none")]),
        ("functions", vec![json!([])]),
        ("mm_processor_kwargs", vec![json!({})]),
        ("modalities", vec![json!(["text"])]),
        ("verbosity", vec![json!("medium")]),
        ("web_search_options", vec![]),
    ]
}
