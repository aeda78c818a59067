//! `/v1/models`: the base model under each of its names, and the adapters.

use super::ApiError;
use crate::serve::http::App;
use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;

#[derive(Serialize)]
pub struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// As in vLLM: what it is, what it was adapted from, and how long prompt and answer may be together.
    root: String,
    parent: Option<String>,
    max_model_len: usize,
}

#[derive(Serialize)]
pub struct List {
    object: &'static str,
    data: Vec<Model>,
}

fn all(app: &App) -> Vec<Model> {
    let model = |id: String, root: String, parent: Option<String>| Model {
        id,
        object: "model",
        created: app.created,
        owned_by: "runtime",
        root,
        parent,
        max_model_len: app.engine.max_len(),
    };
    let path = app.engine.model().checkpoint.path.display().to_string();
    let base = app.names.iter().map(|name| model(name.clone(), path.clone(), None));
    let adapters = app.engine.adapters().into_iter();
    base.chain(adapters.map(|name| model(name.clone(), name, app.names.first().cloned()))).collect()
}

/// `GET /v1/models`
pub async fn list(State(app): State<Arc<App>>) -> Json<List> {
    Json(List { object: "list", data: all(&app) })
}

/// `DELETE /v1/models/{id}`: forgets a model that was tuned here.
pub async fn delete(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    app.tuning(move |tuner| {
        tuner.delete_model(&id)?;
        Ok(Json(json!({"id": id, "object": "model", "deleted": true})))
    })
    .await
}

/// `GET /v1/models/{id}`; ids may contain slashes.
pub async fn retrieve(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Model>, ApiError> {
    match all(&app).into_iter().find(|model| model.id == id) {
        Some(model) => Ok(Json(model)),
        None => Err(ApiError::model_not_found(&id)),
    }
}
