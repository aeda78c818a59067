//! `/health`, `/version` and `/metrics`: for load balancers and dashboards, so without a key.

use crate::serve::http::App;
use crate::serve::openai::ApiError;
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::sync::Arc;

/// `GET /health`: the server answers, and the engine's thread is there.
pub async fn health(State(app): State<Arc<App>>) -> StatusCode {
    if app.engine.is_alive() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// `GET /version`
pub async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// `GET /metrics`
pub async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let text = app.metrics.text(&app.engine.stats()).map_err(|error| ApiError::server(format!("metrics: {error}")))?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response())
}
