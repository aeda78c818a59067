//! Routes and keys, and what all handlers share.

use super::ServeOptions;
use super::anthropic;
use super::metrics::Metrics;
use super::openai::{ApiError, Defaults, chat, completions, embeddings, files, fine_tuning, models, responses};
use super::page::page;
use super::style::Style;
use super::tinker::sessions;
use super::vllm::{adapters, status, tokens};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::tune::{TuneOptions, Tuner};
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use std::hash::{BuildHasher, RandomState};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;

/// What every handler needs.
pub(super) struct App {
    pub engine: Engine,
    /// Names of the base model; at least one.
    pub names: Vec<String>,
    /// Sampling parameters of requests that do not state them.
    pub defaults: Defaults,
    /// When serving began, in seconds since 1970.
    pub created: u64,
    pub metrics: Arc<Metrics>,
    /// How the model writes calls and reasoning.
    pub style: Style,
    /// Who may wait for an embedding: the engine computes one at a time, and each waits on a thread.
    pub embedding: Semaphore,
    /// Fine-tuning, where it was asked for.
    pub tuner: Option<Tuner>,
    api_keys: Vec<String>,
}

/// So that one is always ready when the engine has done another.
const EMBEDDING_THREADS: usize = 2;
/// Bytes of a form besides the file in it, or of a file that is too large: those that a client sends before it is told so.
const FORM_BYTES: usize = 16 << 20;

pub(super) fn router(engine: Engine, options: ServeOptions) -> Result<Router> {
    let names = match options.served_model_names {
        names if names.is_empty() => vec![engine.model().name.clone()],
        names => names,
    };
    let defaults = Defaults::from_generation_config(&engine.model().checkpoint.generation);
    let label = names.first().map_or("", String::as_str);
    let metrics = Metrics::new(&engine, label, options.max_adapters, options.kv_type.as_str())
        .map_err(|error| Error::internal(format!("metrics: {error}")))?;
    let style = Style::of(engine.model(), options.tool_style, options.reasoning_style);
    let tuning = options.fine_tuning.map(|tuning| TuneOptions { names: names.clone(), ..tuning });
    // With what stands around a file in a form.
    let upload_bytes = tuning.as_ref().map_or(0, |tuning| tuning.limits.file_bytes as usize + FORM_BYTES);
    let tuner = tuning.map(|tuning| Tuner::start(&engine, tuning)).transpose()?;
    let app = App {
        tuner,
        engine,
        names,
        defaults,
        created: unix_time(),
        metrics: Arc::new(metrics),
        style,
        embedding: Semaphore::new(EMBEDDING_THREADS),
        api_keys: options.api_keys,
    };
    let app = Arc::new(app);
    let guarded = Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::retrieve).delete(models::delete))
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/responses", post(responses::create))
        .route("/v1/embeddings", post(embeddings::create))
        .route("/v1/files", get(files::list).post(files::create).layer(DefaultBodyLimit::max(upload_bytes)))
        .route("/v1/files/{id}", get(files::retrieve).delete(files::delete))
        .route("/v1/files/{id}/content", get(files::content))
        .route("/v1/fine_tuning/jobs", get(fine_tuning::list).post(fine_tuning::create))
        .route("/v1/fine_tuning/jobs/{id}", get(fine_tuning::retrieve))
        .route("/v1/fine_tuning/jobs/{id}/events", get(fine_tuning::events))
        .route("/v1/fine_tuning/jobs/{id}/checkpoints", get(fine_tuning::checkpoints))
        .route("/v1/fine_tuning/jobs/{id}/{verb}", post(fine_tuning::change))
        .route("/v1/training/sessions", get(sessions::list).post(sessions::create))
        .route("/v1/training/sessions/{id}", delete(sessions::delete))
        .route("/v1/training/sessions/{id}/{verb}", post(sessions::call))
        .route("/v1/messages", post(anthropic::messages::create))
        .route("/v1/messages/count_tokens", post(anthropic::messages::count_tokens))
        .route("/v1/load_lora_adapter", post(adapters::load))
        .route("/v1/unload_lora_adapter", post(adapters::unload))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .fallback(not_found)
        .layer(middleware::from_fn_with_state(app.clone(), authorize));
    let router = Router::new()
        .route("/", get(page))
        .route("/health", get(status::health))
        .route("/ping", get(status::health).post(status::health))
        .route("/version", get(status::version))
        .route("/metrics", get(status::metrics))
        .merge(guarded)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn(anthropic::error::in_its_form))
        .layer(DefaultBodyLimit::max(options.limits.body_bytes))
        .with_state(app);
    Ok(router)
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

    /// Fine-tuning.
    pub fn tuner(&self) -> Result<&Tuner, ApiError> {
        self.tuner.as_ref().ok_or_else(|| {
            ApiError::not_found("this server was started without fine-tuning: `runtime serve --fine-tuning` has it")
        })
    }

    /// Runs `work`, which may wait for the disk, on fine-tuning.
    pub async fn tuning<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Tuner) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        self.tuner()?;
        self.blocking(move |app| work(app.tuner()?)).await
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

/// An id that nobody else has, such as `chatcmpl-…` for the prefix `chatcmpl-`.
pub(super) fn unique_id(prefix: &str) -> String {
    // Each `RandomState` has keys of its own, randomly seeded.
    let random = || RandomState::new().hash_one(());
    format!("{prefix}{:016x}{:016x}", random(), random())
}

async fn not_found(request: Request) -> ApiError {
    ApiError::not_found(format!("Invalid URL ({} {})", request.method(), request.uri().path()))
}

async fn wrong_method(request: Request) -> ApiError {
    let message = format!("Not allowed to {} on {}", request.method(), request.uri().path());
    ApiError::invalid(message).with_status(StatusCode::METHOD_NOT_ALLOWED)
}

async fn authorize(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let keys = given_keys(request.headers());
    if app.api_keys.is_empty() || keys.into_iter().flatten().any(|key| is_known(&app.api_keys, key)) {
        return next.run(request).await;
    }
    let mut refusal = ApiError::unauthorized().into_response();
    refusal.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
    refusal
}

/// OpenAI's way to send a key, and Anthropic's.
fn given_keys(headers: &HeaderMap) -> [Option<&str>; 2] {
    let value = |name: &str| headers.get(name)?.to_str().ok();
    let bearer = value("authorization").and_then(|value| value.split_once(' '));
    let bearer = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, key)| key.trim());
    [bearer, value("x-api-key")]
}

/// Takes the same time whichever byte differs, so that a key cannot be found byte by byte.
fn is_known(keys: &[String], given: &str) -> bool {
    let same = |key: &str| {
        let differing = key.bytes().zip(given.bytes()).fold(0, |bits, (a, b)| black_box(bits | (a ^ b)));
        differing == 0 && key.len() == given.len()
    };
    keys.iter().fold(false, |known, key| known | same(key))
}
