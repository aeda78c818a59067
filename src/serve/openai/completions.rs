//! `POST /v1/completions`: the request.

use super::completions_reply::CompletionsReply;
use super::params::{MAX_CHOICES, MAX_LOGPROBS, Params};
use super::texts::Texts;
use super::{ApiError, Fields};
use crate::serve::body::JsonBody;
use crate::serve::http::App;
use crate::serve::running::Running;
use crate::serve::sse;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use std::sync::Arc;

/// Tokens of an answer whose length is not stated: OpenAI's and vLLM's default for this endpoint.
const DEFAULT_MAX_TOKENS: usize = 16;

/// The handler.
pub async fn create(State(app): State<Arc<App>>, JsonBody(fields): JsonBody) -> Result<Response, ApiError> {
    let (running, reply, stream) = app.blocking(|app| submit(app, fields)).await?;
    if stream {
        return Ok(sse::stream(running, reply));
    }
    Ok(Json(reply.whole(running.finish().await?)).into_response())
}

fn submit(app: &App, mut fields: Fields) -> Result<(Running, CompletionsReply, bool), ApiError> {
    let model = app.engine.model();
    let tokenizer = model.tokenizer()?;
    let name: String = fields.require("model")?;
    let adapter = app.adapter(&name)?;
    let mut params = Params::take(&mut fields, &app.defaults, model.config().vocab)?;
    params.request.logprobs = logprobs(&mut fields)?;
    params.request.adapter = adapter;
    params.text.continues_prompt = true;
    let add_special = fields.take("add_special_tokens")?.unwrap_or(true);
    let prompts = fields.require::<Texts>("prompt")?.ids("prompt", model, add_special)?;
    let (count, each) = (prompts.len(), params.best_of);
    if count * each > MAX_CHOICES {
        let message = format!("{count} prompts with {each} answers each are more than {MAX_CHOICES} answers");
        return Err(ApiError::field("prompt", message));
    }
    let echo = fields.take("echo")?.unwrap_or(false);
    if echo && params.request.logprobs.is_some() {
        return Err(ApiError::field("echo", "`echo` together with `logprobs` is not supported"));
    }
    fields.unsupported("suffix", &[json!("")])?;
    fields.finish()?;

    let echoed = match echo {
        true => prompts.iter().map(|ids| tokenizer.decode(ids, true)).collect(),
        false => Vec::new(),
    };
    let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
    let mut requests = Vec::new();
    for prompt in prompts {
        requests.extend(params.requests(prompt, app.engine.max_len(), Some(DEFAULT_MAX_TOKENS), "prompt")?);
    }
    let running = Running::start(app, requests, &params.text)?;
    let stream = params.stream;
    let reply = CompletionsReply::new(name, params, &lengths, &echoed, tokenizer.clone());
    Ok((running, reply, stream))
}

fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    match fields.take::<usize>("logprobs")? {
        Some(top) if top > MAX_LOGPROBS => {
            Err(ApiError::field("logprobs", format!("`logprobs` must be in [0, {MAX_LOGPROBS}], not {top}")))
        }
        top => Ok(top),
    }
}
