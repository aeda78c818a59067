//! Anthropic's error object, for whatever goes wrong on its paths, the key included.

use crate::serve::openai::ApiError;
use axum::Json;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Middleware: gives refusals the form that clients of the path expect.
pub async fn in_its_form(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let its_path = path.strip_prefix("/v1/messages").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let response = next.run(request).await;
    match response.extensions().get::<ApiError>() {
        Some(error) if its_path => (error.status(), Json(body(error))).into_response(),
        _ => response,
    }
}

/// <https://docs.anthropic.com/en/api/errors>
pub fn body(error: &ApiError) -> Value {
    let kind = match error.status() {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        status if status.is_server_error() => "api_error",
        _ => "invalid_request_error",
    };
    json!({"type": "error", "error": {"type": kind, "message": error.message()}})
}
