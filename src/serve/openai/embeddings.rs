//! `POST /v1/embeddings`: the output of the last layer at a text's last token, with length 1, which is what vLLM
//! makes of a generative model.

use super::texts::Texts;
use super::{ApiError, Fields};
use crate::serve::body::JsonBody;
use crate::serve::http::App;
use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Texts of one request, as at OpenAI.
const MAX_TEXTS: usize = 2048;

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    #[default]
    Float,
    /// Of little-endian f32.
    Base64,
}

#[derive(Serialize)]
pub struct List {
    object: &'static str,
    data: Vec<Embedding>,
    model: String,
    usage: Counts,
}

#[derive(Serialize)]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
struct Counts {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// What a request asks for.
struct Wanted {
    model: String,
    adapter: Option<String>,
    texts: Vec<Vec<u32>>,
    dimensions: Option<usize>,
    encoding: Encoding,
}

/// The handler.
pub async fn create(State(app): State<Arc<App>>, JsonBody(fields): JsonBody) -> Result<Json<List>, ApiError> {
    let wanted = app.blocking(|app| Wanted::take(app, fields)).await?;
    let Wanted { model, adapter, texts, dimensions, encoding } = wanted;
    let tokens = texts.iter().map(Vec::len).sum();
    let mut data = Vec::with_capacity(texts.len());
    // One after the other: a client that leaves costs no more than the text at work.
    for (index, ids) in texts.into_iter().enumerate() {
        let place = app.embedding.acquire().await.map_err(|_| ApiError::server("embeddings are closed"))?;
        let adapter = adapter.clone();
        let hidden = app.blocking(move |app| Ok(app.engine.embed(&ids, adapter.as_deref())?)).await?;
        drop(place);
        let embedding = encoding.of(normalised(hidden, dimensions));
        data.push(Embedding { object: "embedding", index, embedding });
    }
    let usage = Counts { prompt_tokens: tokens, total_tokens: tokens };
    Ok(Json(List { object: "list", data, model, usage }))
}

impl Wanted {
    fn take(app: &App, mut fields: Fields) -> Result<Self, ApiError> {
        let loaded = app.engine.model();
        let model: String = fields.require("model")?;
        let adapter = app.adapter(&model)?;
        let input: Texts = fields.require("input")?;
        let add_special = fields.take("add_special_tokens")?.unwrap_or(true);
        let texts = input.ids("input", loaded, add_special)?;
        if texts.len() > MAX_TEXTS {
            return Err(ApiError::field("input", format!("`input` has {} texts, more than {MAX_TEXTS}", texts.len())));
        }
        let max = app.engine.max_len();
        if let Some(longest) = texts.iter().map(Vec::len).find(|len| *len > max) {
            let message = format!("This model's maximum context length is {max} tokens; a text has {longest}.");
            return Err(ApiError::context_length("input", message));
        }
        let width = loaded.config().hidden;
        let dimensions = fields.take("dimensions")?;
        if dimensions.is_some_and(|wanted: usize| wanted == 0 || wanted > width) {
            return Err(ApiError::field("dimensions", format!("`dimensions` must be in [1, {width}]")));
        }
        let encoding = fields.take("encoding_format")?.unwrap_or_default();
        fields.finish()?;
        Ok(Self { model, adapter, texts, dimensions, encoding })
    }
}

/// The first `dimensions` numbers (models trained for it put what matters most there), with length 1.
fn normalised(mut vector: Vec<f32>, dimensions: Option<usize>) -> Vec<f32> {
    vector.truncate(dimensions.unwrap_or(vector.len()));
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    // A vector of zeros stays what it is.
    let scale = if length > 0.0 { 1.0 / length } else { 1.0 };
    vector.iter_mut().for_each(|x| *x *= scale);
    vector
}

impl Encoding {
    fn of(self, vector: Vec<f32>) -> Vector {
        match self {
            Self::Float => Vector::Float(vector),
            Self::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                Vector::Base64(BASE64_STANDARD.encode(bytes))
            }
        }
    }
}
