//! `POST /tokenize` and `/detokenize`.

use crate::serve::body::JsonBody;
use crate::serve::http::App;
use crate::serve::openai::{ApiError, Fields, chat};
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;

#[derive(Serialize)]
pub struct Tokens {
    count: usize,
    max_model_len: usize,
    tokens: Vec<u32>,
    token_strs: Option<Vec<String>>,
}

/// Token ids of a text, or of a conversation in the model's template.
pub async fn tokenize(State(app): State<Arc<App>>, JsonBody(fields): JsonBody) -> Result<Json<Tokens>, ApiError> {
    app.blocking(|app| ids(app, fields).map(Json)).await
}

fn ids(app: &App, mut fields: Fields) -> Result<Tokens, ApiError> {
    let tokenizer = app.engine.model().tokenizer()?;
    check_model(app, &mut fields)?;
    let strings = fields.take("return_token_strs")?.unwrap_or(false);
    let tokens = if fields.has("messages") {
        let prompt = chat::prompt_only(app, &mut fields)?;
        fields.finish()?;
        prompt
    } else {
        let text: String = fields.require("prompt")?;
        let add_special = fields.take("add_special_tokens")?.unwrap_or(true);
        fields.finish()?;
        tokenizer.encode(&text, add_special)?
    };
    let spelled = |id: &u32| tokenizer.token_str(*id).unwrap_or_default();
    let token_strs = strings.then(|| tokens.iter().map(spelled).collect());
    Ok(Tokens { count: tokens.len(), max_model_len: app.engine.max_len(), tokens, token_strs })
}

/// The text of token ids, special tokens included.
pub async fn detokenize(State(app): State<Arc<App>>, JsonBody(mut fields): JsonBody) -> Result<Json<Value>, ApiError> {
    check_model(&app, &mut fields)?;
    let ids: Vec<u32> = fields.require("tokens")?;
    fields.finish()?;
    let tokenizer = app.engine.model().tokenizer()?;
    if let Some(id) = ids.iter().find(|id| **id as usize >= tokenizer.vocab_size()) {
        let message = format!("`tokens`: {id} is not a token id below {}", tokenizer.vocab_size());
        return Err(ApiError::field("tokens", message));
    }
    Ok(Json(json!({"prompt": tokenizer.decode(&ids, false)})))
}

/// Both take the model's name, and need none.
fn check_model(app: &App, fields: &mut Fields) -> Result<(), ApiError> {
    match fields.take::<String>("model")? {
        Some(name) => app.adapter(&name).map(drop),
        None => Ok(()),
    }
}
