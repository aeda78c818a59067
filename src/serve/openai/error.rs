//! OpenAI's error object.

use crate::error::Error;
use crate::tune::{Kind, Refusal};
use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// A refusal, as <https://platform.openai.com/docs/guides/error-codes> has it.
#[derive(Clone, Debug)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    /// The field that is wrong.
    param: Option<String>,
    code: Option<&'static str>,
}

impl ApiError {
    /// 400: the request cannot be served as it is.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into(), param: None, code: None }
    }

    /// 400 about one field.
    pub fn field(name: &str, message: impl Into<String>) -> Self {
        Self { param: Some(name.into()), ..Self::invalid(message) }
    }

    /// 400: prompt and answer do not fit.
    pub fn context_length(name: &str, message: String) -> Self {
        Self { code: Some("context_length_exceeded"), ..Self::field(name, message) }
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self { code: Some("invalid_api_key"), ..Self::invalid("Incorrect API key provided.") }
            .with_status(StatusCode::UNAUTHORIZED)
    }

    /// 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::invalid(message).with_status(StatusCode::NOT_FOUND)
    }

    /// 404 for a model.
    pub fn model_not_found(model: &str) -> Self {
        let message = format!("The model `{model}` does not exist.");
        Self { code: Some("model_not_found"), ..Self::field("model", message) }.with_status(StatusCode::NOT_FOUND)
    }

    /// 500.
    pub fn server(message: impl Into<String>) -> Self {
        Self::invalid(message).with_status(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The same with another status.
    pub fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What is wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The JSON object that clients get.
    pub fn body(&self) -> Value {
        let kind = if self.status.is_server_error() { "server_error" } else { "invalid_request_error" };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Invalid(_) | Error::Unsupported(_) | Error::Text(_) => Self::invalid(message),
            Error::Cancelled => Self::server("the request was cancelled").with_status(StatusCode::SERVICE_UNAVAILABLE),
            Error::Busy(_) => Self::server(message).with_status(StatusCode::TOO_MANY_REQUESTS),
            Error::OutOfMemory { .. } => Self::server(message).with_status(StatusCode::SERVICE_UNAVAILABLE),
            _ => Self::server(message),
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let Refusal { kind, message, param, code } = refusal;
        let status = match kind {
            Kind::Bad => StatusCode::BAD_REQUEST,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::Server => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self { status, message, param, code }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        // For paths whose clients expect another form.
        response.extensions_mut().insert(self);
        response
    }
}
