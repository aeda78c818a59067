//! `POST /v1/completions`: the request.

use super::completions_reply::{CompletionsReply, Echo};
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
    let mut params = Params::take(&mut fields, &app.defaults, model)?;
    params.request.logprobs = logprobs(&mut fields)?;
    params.request.adapter = adapter;
    let echo = echo(&mut fields, &mut params)?;
    params.text.continues_prompt = true;
    let add_special = fields.take("add_special_tokens")?.unwrap_or(true);
    let prompts = fields.require::<Texts>("prompt")?.ids("prompt", model, add_special)?;
    let (count, each) = (prompts.len(), params.best_of);
    if count * each > MAX_CHOICES {
        let message = format!("{count} prompts with {each} answers each are more than {MAX_CHOICES} answers");
        return Err(ApiError::field("prompt", message));
    }
    fields.unsupported("suffix", &[json!("")])?;
    fields.finish()?;

    let mut requests = Vec::new();
    for prompt in &prompts {
        requests.extend(params.requests(prompt.clone(), app.engine.max_len(), Some(DEFAULT_MAX_TOKENS), "prompt")?);
    }
    let running = Running::start(app, requests, &params.text)?;
    let stream = params.stream;
    let reply = CompletionsReply::new(name, params, prompts, echo, tokenizer.clone());
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

/// How the prompts are repeated. Without an answer it takes one token all the same, which nobody gets to see.
fn echo(fields: &mut Fields, params: &mut Params) -> Result<Echo, ApiError> {
    if !fields.take("echo")?.unwrap_or(false) {
        return Ok(Echo::No);
    }
    // OpenAI's way to ask for the prompt's log-probabilities, and a stream is no reason against it.
    params.request.prompt_logprobs = params.request.prompt_logprobs.max(params.request.logprobs);
    if params.max_tokens == Some(0) {
        params.max_tokens = Some(1);
        return Ok(Echo::Only);
    }
    Ok(Echo::First)
}
