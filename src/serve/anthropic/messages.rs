//! `POST /v1/messages` and `/v1/messages/count_tokens`.

use super::reply::MessagesReply;
use super::request::Asked;
use crate::serve::body::JsonBody;
use crate::serve::constraint;
use crate::serve::http::App;
use crate::serve::openai::{ApiError, Fields, Params};
use crate::serve::running::Running;
use crate::serve::sse;
use crate::serve::turn::{Started, Turn};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::sync::Arc;

/// The handler of `/v1/messages`.
pub async fn create(State(app): State<Arc<App>>, JsonBody(fields): JsonBody) -> Result<Response, ApiError> {
    let (running, reply, stream) = app.blocking(|app| submit(app, fields)).await?;
    if stream {
        return Ok(sse::stream(running, reply));
    }
    Ok(Json(reply.whole(running).await?).into_response())
}

/// The handler of `/v1/messages/count_tokens`.
pub async fn count_tokens(State(app): State<Arc<App>>, JsonBody(fields): JsonBody) -> Result<Json<Value>, ApiError> {
    app.blocking(|app| count(app, fields)).await
}

fn submit(app: &App, mut fields: Fields) -> Result<(Running, MessagesReply, bool), ApiError> {
    let name: String = fields.require("model")?;
    let adapter = app.adapter(&name)?;
    let mut params = Params::common(&mut fields, &app.defaults, app.engine.model())?;
    params.request.adapter = adapter;
    params.max_tokens = Some(fields.require("max_tokens")?);
    params.text.stop = fields.take("stop_sequences")?.unwrap_or_default();
    if params.text.stop.iter().any(String::is_empty) {
        return Err(ApiError::field("stop_sequences", "`stop_sequences` must not have an empty string"));
    }
    let Asked { conversation, tools, format, prefilled } = Asked::take(app, &mut fields)?;
    params.text.continues_prompt = prefilled;
    params.constraint = constraint::with_additions(&mut fields, "output_config", format)?;
    fields.finish()?;
    let turn = Turn { conversation, tools, params, prompt_field: "messages" };
    let Started { running, form, prompt_tokens, params, .. } = turn.start(app)?;
    Ok((running, MessagesReply::new(name, &form, prompt_tokens), params.stream))
}

fn count(app: &App, mut fields: Fields) -> Result<Json<Value>, ApiError> {
    app.adapter(&fields.require::<String>("model")?)?;
    let Asked { conversation, tools, .. } = Asked::take(app, &mut fields)?;
    fields.finish()?;
    let (_, prompt) = conversation.prompt(app, &tools)?;
    Ok(Json(json!({"input_tokens": prompt.len()})))
}
