//! Request bodies: JSON objects within limits of size and time.

use super::openai::{ApiError, Fields};
use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use std::time::Duration;

/// A whole body has to arrive within this: even 16 MiB take 4 s at 4 MiB/s.
const BODY_TIME: Duration = Duration::from_secs(60);

/// A request body that is a JSON object, as [`Fields`].
pub(super) struct JsonBody(pub Fields);

impl<S: Send + Sync> FromRequest<S> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        // Also keeps other sites' pages out: a browser sends this type across origins only after asking.
        if !content_type.is_some_and(|value| value.trim_start().to_ascii_lowercase().starts_with("application/json")) {
            return Err(ApiError::invalid("Content-Type must be application/json")
                .with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        }
        let bytes = tokio::time::timeout(BODY_TIME, Bytes::from_request(request, state))
            .await
            .map_err(|_| {
                let message = format!("the body did not arrive within {} s", BODY_TIME.as_secs());
                ApiError::invalid(message).with_status(StatusCode::REQUEST_TIMEOUT)
            })?
            .map_err(|rejection| ApiError::invalid(rejection.body_text()).with_status(rejection.status()))?;
        let value: serde_json::Value = serde_json::from_slice(&bytes)
            .map_err(|error| ApiError::invalid(format!("the body is not valid JSON: {error}")))?;
        match value {
            serde_json::Value::Object(fields) => Ok(Self(Fields::new(fields))),
            _ => Err(ApiError::invalid("the body must be a JSON object")),
        }
    }
}
