//! `/v1/training/sessions`: `forward_backward`, `forward`, `optim_step`, `sample`, `save_state` and `load_state` on an adapter that
//! trains on the served weights. Calls of one session are done in their order.

use crate::engine::{Event, Request, SamplingParams};
use crate::serve::body::JsonBody;
use crate::serve::http::App;
use crate::serve::openai::{ApiError, Fields};
use crate::train::{Recipe, Snapshot};
use crate::tune::session::{Datum, LossFn, OptimStep};
use crate::tune::{Refusal, SessionRecord, Tuner};
use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Map, Value, json};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::channel;

type Answer = Result<Json<Value>, ApiError>;

/// Most samples of one call.
const MAX_SAMPLES: usize = 128;

fn object(record: &SessionRecord) -> Value {
    let SessionRecord { id, model, base_model, rank, max_tokens } = record;
    json!({
        "object": "training.session", "id": id, "model": model, "base_model": base_model, "rank": rank,
        "max_tokens": max_tokens,
    })
}

/// `POST /v1/training/sessions`
pub async fn create(State(app): State<Arc<App>>, JsonBody(mut fields): JsonBody) -> Answer {
    let base: String = fields.require("base_model")?;
    let defaults = Recipe::default();
    let recipe = Recipe {
        rank: fields.take("rank")?,
        alpha: fields.take("alpha")?,
        target_modules: fields.take("target_modules")?.unwrap_or_default(),
        seed: fields.take::<u32>("seed")?.map_or(defaults.seed, u64::from),
        adam_beta1: Some(fields.take("beta1")?.unwrap_or(0.9)),
        adam_beta2: Some(fields.take("beta2")?.unwrap_or(0.95)),
        adam_epsilon: fields.take("eps")?.unwrap_or(1e-8),
        ..defaults
    };
    let tokens = fields.take("max_tokens")?;
    fields.finish()?;
    app.tuning(move |tuner| Ok(Json(object(&tuner.open_session(&base, recipe, tokens)?)))).await
}

/// `GET /v1/training/sessions`
pub async fn list(State(app): State<Arc<App>>) -> Answer {
    app.tuning(|tuner| {
        let data: Vec<Value> = tuner.sessions().iter().map(object).collect();
        Ok(Json(json!({"object": "list", "data": data})))
    })
    .await
}

/// `DELETE /v1/training/sessions/{id}`
pub async fn delete(State(app): State<Arc<App>>, Path(id): Path<String>) -> Answer {
    app.tuning(move |tuner| {
        tuner.close_session(&id)?;
        Ok(Json(json!({"object": "training.session", "id": id, "deleted": true})))
    })
    .await
}

/// `POST /v1/training/sessions/{id}/{verb}`
pub async fn call(
    State(app): State<Arc<App>>,
    Path((id, verb)): Path<(String, String)>,
    JsonBody(fields): JsonBody,
) -> Answer {
    app.blocking(move |app| {
        let tuner = app.tuner()?;
        match verb.as_str() {
            "forward_backward" => pass(tuner, &id, fields, true),
            "forward" => pass(tuner, &id, fields, false),
            "optim_step" => optim_step(tuner, &id, fields),
            "sample" => sample(app, tuner, &id, fields),
            "save_state" => save_state(tuner, &id, fields),
            "load_state" => load_state(app, tuner, &id, fields),
            other => Err(ApiError::not_found(format!(
                "Invalid URL: a session has no '{other}', but forward_backward, forward, optim_step, sample, save_state and load_state"
            ))),
        }
        .map(Json)
    })
    .await
}

/// `data`: `[{"tokens": […], "weights": […], "logprobs": […]}]`; without `weights` all tokens count.
fn pass(tuner: &Tuner, id: &str, mut fields: Fields, backward: bool) -> Result<Value, ApiError> {
    let rows: Vec<Map<String, Value>> = fields.require("data")?;
    let loss = match fields.take::<String>("loss_fn")?.as_deref() {
        None | Some("cross_entropy") => LossFn::CrossEntropy,
        Some("importance_sampling") => LossFn::ImportanceSampling,
        Some(other) => {
            let message = format!("`loss_fn` is '{other}', expected cross_entropy or importance_sampling");
            return Err(ApiError::field("loss_fn", message));
        }
    };
    fields.finish()?;
    let mut data = Vec::with_capacity(rows.len());
    for (i, row) in rows.into_iter().enumerate() {
        let mut row = Fields::new(row);
        let inside =
            |error: ApiError| ApiError::field(&format!("data[{i}]"), format!("data[{i}]: {}", error.message()));
        let tokens: Vec<u32> = row.require("tokens").map_err(inside)?;
        let weights = row.take("weights").map_err(inside)?.unwrap_or_else(|| vec![1.0; tokens.len()]);
        let logprobs = row.take("logprobs").map_err(inside)?;
        row.finish().map_err(inside)?;
        data.push(Datum { tokens, weights, logprobs });
    }
    let passed = tuner.session(id)?.forward_backward(data, loss, backward)?;
    Ok(json!({"logprobs": passed.logprobs, "loss": passed.loss}))
}

fn optim_step(tuner: &Tuner, id: &str, mut fields: Fields) -> Result<Value, ApiError> {
    let step = OptimStep {
        learning_rate: fields.require("learning_rate")?,
        weight_decay: fields.take("weight_decay")?.unwrap_or(0.0),
        max_grad_norm: fields.take("max_grad_norm")?.unwrap_or(0.0),
    };
    fields.finish()?;
    let (step, grad_norm) = tuner.session(id)?.optim_step(step)?;
    Ok(json!({"step": step, "grad_norm": grad_norm}))
}

/// Samples from the weights as they are: tokens, each with its log-probability.
fn sample(app: &App, tuner: &Tuner, id: &str, mut fields: Fields) -> Result<Value, ApiError> {
    let session = tuner.session(id)?;
    let prompt: Vec<u32> = fields.require("prompt")?;
    let count: usize = fields.take("num_samples")?.unwrap_or(1);
    if !(1..=MAX_SAMPLES).contains(&count) {
        return Err(ApiError::field("num_samples", format!("`num_samples` is {count}, expected 1 to {MAX_SAMPLES}")));
    }
    let seed: Option<u64> = fields.take("seed")?;
    let request = Request {
        prompt,
        max_tokens: fields.require("max_tokens")?,
        stop_ids: fields.take("stop_token_ids")?.unwrap_or_default(),
        sampling: SamplingParams {
            temperature: fields.take("temperature")?.unwrap_or(1.0),
            top_p: fields.take("top_p")?.unwrap_or(1.0),
            top_k: fields.take("top_k")?.unwrap_or(0),
            ..SamplingParams::default()
        },
        logprobs: Some(0),
        ..Request::default()
    };
    fields.finish()?;
    let adapter = Some(session.publish()?);
    let mut waiting = Vec::with_capacity(count);
    for i in 0..count {
        let (sender, events) = channel();
        let sink = move |event| match sender.send(event) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        };
        let mut request = Request { adapter: adapter.clone(), ..request.clone() };
        request.sampling.seed = seed.map(|seed| seed.wrapping_add(i as u64));
        app.engine.submit(request, Box::new(sink))?;
        waiting.push(events);
    }
    let mut sequences = Vec::with_capacity(count);
    for events in waiting {
        let (mut tokens, mut logprobs, mut reason) = (Vec::new(), Vec::new(), "");
        for event in events {
            match event {
                Event::Token { id, logprobs: found } => {
                    tokens.push(id);
                    logprobs.extend(found.map(|found| found.logprob));
                }
                Event::Failed(error) => return Err(error.into()),
                Event::Done { reason: why, .. } => reason = why.as_str(),
                Event::Started { .. } | Event::Prompt(_) => {}
            }
        }
        sequences.push(json!({"tokens": tokens, "logprobs": logprobs, "stop_reason": reason}));
    }
    Ok(json!({"model": adapter, "sequences": sequences}))
}

fn save_state(tuner: &Tuner, id: &str, mut fields: Fields) -> Result<Value, ApiError> {
    let name: String = fields.require("name")?;
    fields.finish()?;
    let session = tuner.session(id)?;
    let folder = tuner.state_folder(&name)?;
    if folder.exists() {
        return Err(ApiError::field("name", format!("There is a state of the name '{name}' already.")));
    }
    let snapshot = session.save_state()?;
    tuner.keep_state(&name, &snapshot)?;
    Ok(json!({"name": name, "step": snapshot.step}))
}

fn load_state(app: &App, tuner: &Tuner, id: &str, mut fields: Fields) -> Result<Value, ApiError> {
    let name: String = fields.require("name")?;
    fields.finish()?;
    let session = tuner.session(id)?;
    let folder = tuner.state_folder(&name)?;
    if !folder.is_dir() {
        return Err(Refusal::not_found("name", format!("There is no state of the name '{name}'.")).into());
    }
    let snapshot = Snapshot::read(&folder, app.engine.model().config())?;
    let step = snapshot.step;
    session.load_state(Box::new(snapshot))?;
    Ok(json!({"name": name, "step": step}))
}
