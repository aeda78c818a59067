//! `/health`, `/version` and `/metrics`: for load balancers and dashboards, so without a key.

use crate::serve::http::App;
use crate::serve::openai::ApiError;
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::sync::Arc;

/// `GET /health`: the server answers. The engine does not say yet whether its thread lives.
pub async fn health() -> StatusCode {
    StatusCode::OK
}

/// `GET /version`
pub async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// `GET /metrics`
pub async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let text = app.metrics.text().map_err(|error| ApiError::server(format!("metrics: {error}")))?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response())
}
