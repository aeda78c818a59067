//! Routes, keys and limits, and what all handlers share.

use super::ServeOptions;
use super::openai::{ApiError, Defaults, Fields, chat, completions, models};
use crate::engine::Engine;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use std::hash::{BuildHasher, RandomState};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// What every handler needs.
pub(super) struct App {
    pub engine: Engine,
    /// Names of the base model; at least one.
    pub names: Vec<String>,
    /// Sampling parameters of requests that do not state them.
    pub defaults: Defaults,
    /// When serving began, in seconds since 1970.
    pub created: u64,
    api_keys: Vec<String>,
}

pub(super) fn router(engine: Engine, options: ServeOptions) -> Router {
    let names = match options.served_model_names {
        names if names.is_empty() => vec![engine.model().name.clone()],
        names => names,
    };
    let defaults = Defaults::from_generation_config(&engine.model().checkpoint.generation);
    let app = Arc::new(App { engine, names, defaults, created: unix_time(), api_keys: options.api_keys });
    let v1 = Router::new()
        .route("/models", get(models::list))
        .route("/models/{*id}", get(models::retrieve))
        .route("/chat/completions", post(chat::create))
        .route("/completions", post(completions::create))
        .fallback(not_found)
        .layer(middleware::from_fn_with_state(app.clone(), authorize));
    Router::new()
        .nest("/v1", v1)
        .route("/health", get(|| async { StatusCode::OK }))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(options.max_body_bytes))
        .with_state(app)
}

impl App {
    /// Which adapter `model` names; `None` is the base model.
    pub fn adapter(&self, model: &str) -> Result<Option<String>, ApiError> {
        if self.names.iter().any(|name| name == model) {
            return Ok(None);
        }
        match self.engine.adapters().into_iter().find(|name| name == model) {
            Some(adapter) => Ok(Some(adapter)),
            None => Err(ApiError::model_not_found(model)),
        }
    }

    /// Runs `work` (tokenizing, templates) where it holds nobody up.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&App) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let app = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&app)).await;
        done.unwrap_or_else(|error| Err(ApiError::server(format!("the request's task ended: {error}"))))
    }
}

/// Seconds since 1970.
pub(super) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// An id that nobody else has, such as `chatcmpl-…`.
pub(super) fn unique_id(prefix: &str) -> String {
    // Each `RandomState` has keys of its own, randomly seeded.
    let random = || RandomState::new().hash_one(());
    format!("{prefix}-{:016x}{:016x}", random(), random())
}

async fn not_found(request: Request) -> ApiError {
    ApiError::not_found(format!("Invalid URL ({} {})", request.method(), request.uri().path()))
}

async fn wrong_method(request: Request) -> ApiError {
    let message = format!("Not allowed to {} on {}", request.method(), request.uri().path());
    ApiError::invalid(message).with_status(StatusCode::METHOD_NOT_ALLOWED)
}

async fn authorize(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if app.api_keys.is_empty() || bearer(request.headers()).is_some_and(|key| is_known(&app.api_keys, key)) {
        return next.run(request).await;
    }
    let mut refusal = ApiError::unauthorized().into_response();
    refusal.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
    refusal
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// Takes the same time whichever byte differs, so that a key cannot be found byte by byte.
fn is_known(keys: &[String], given: &str) -> bool {
    let same = |key: &str| {
        let differing = key.bytes().zip(given.bytes()).fold(0, |bits, (a, b)| black_box(bits | (a ^ b)));
        differing == 0 && key.len() == given.len()
    };
    keys.iter().fold(false, |known, key| known | same(key))
}

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
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|rejection| ApiError::invalid(rejection.body_text()).with_status(rejection.status()))?;
        let value: serde_json::Value = serde_json::from_slice(&bytes)
            .map_err(|error| ApiError::invalid(format!("the body is not valid JSON: {error}")))?;
        match value {
            serde_json::Value::Object(fields) => Ok(Self(Fields::new(fields))),
            _ => Err(ApiError::invalid("the body must be a JSON object")),
        }
    }
}
