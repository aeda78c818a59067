//! `/v1/fine_tuning/jobs`: jobs, their events and their checkpoints.

mod request;

use super::ApiError;
use super::pages::{Query, page};
use crate::serve::body::JsonBody;
use crate::serve::http::App;
use crate::tune::Refusal;
use crate::tune::records::JobRecord;
use axum::Json;
use axum::extract::{Path, Query as RawQuery, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

type Raw = RawQuery<BTreeMap<String, String>>;
type Answer = Result<Json<Value>, ApiError>;

/// How often a stream looks for new events.
const LOOK: Duration = Duration::from_millis(100);

/// `POST /v1/fine_tuning/jobs`
pub async fn create(State(app): State<Arc<App>>, JsonBody(fields): JsonBody) -> Answer {
    let request = request::parse(fields)?;
    app.tuning(move |tuner| Ok(Json(tuner.create(request)?.object()))).await
}

/// `GET /v1/fine_tuning/jobs`
pub async fn list(State(app): State<Arc<App>>, RawQuery(query): Raw) -> Answer {
    let mut query = Query::new(query);
    let (after, limit, wanted) = (query.take("after"), query.limit(20, 100)?, query.metadata());
    query.finish()?;
    app.tuning(move |tuner| {
        let has = |job: &JobRecord, (key, value): &(String, String)| {
            job.metadata.as_ref().and_then(|metadata| metadata.get(key)).is_some_and(|found| found == value.as_str())
        };
        let jobs = tuner.store().jobs()?;
        let jobs = jobs.iter().filter(|job| wanted.iter().all(|pair| has(job, pair)));
        page(jobs.map(JobRecord::object).collect(), after, limit)
    })
    .await
}

/// `GET /v1/fine_tuning/jobs/{id}`
pub async fn retrieve(State(app): State<Arc<App>>, Path(id): Path<String>) -> Answer {
    app.tuning(move |tuner| Ok(Json(tuner.job(&id)?.object()))).await
}

/// `POST /v1/fine_tuning/jobs/{id}/cancel`, `pause` and `resume`
pub async fn change(State(app): State<Arc<App>>, Path((id, verb)): Path<(String, String)>) -> Answer {
    app.tuning(move |tuner| {
        let job = match verb.as_str() {
            "cancel" => tuner.cancel(&id),
            "pause" => tuner.pause(&id),
            "resume" => tuner.resume(&id),
            other => {
                Err(Refusal { kind: crate::tune::Kind::NotFound, ..Refusal::bad(format!("Invalid URL: {other}")) })
            }
        };
        Ok(Json(job?.object()))
    })
    .await
}

/// `GET /v1/fine_tuning/jobs/{id}/checkpoints`
pub async fn checkpoints(State(app): State<Arc<App>>, Path(id): Path<String>, RawQuery(query): Raw) -> Answer {
    let mut query = Query::new(query);
    let (after, limit) = (query.take("after"), query.limit(10, 100)?);
    query.finish()?;
    app.tuning(move |tuner| {
        let checkpoints = tuner.checkpoints(&id)?;
        page(checkpoints.iter().map(|checkpoint| checkpoint.object()).collect(), after, limit)
    })
    .await
}

/// `GET /v1/fine_tuning/jobs/{id}/events`: a page, or with `stream=true` all of them, as they happen, until the job is over.
pub async fn events(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    RawQuery(query): Raw,
) -> Result<Response, ApiError> {
    let mut query = Query::new(query);
    let (after, limit) = (query.take("after"), query.limit(20, 1000)?);
    let stream = match query.take("stream").as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => return Err(ApiError::field("stream", format!("`stream` is {other}, expected true or false"))),
    };
    query.finish()?;
    if stream {
        let known = id.clone();
        app.tuning(move |tuner| Ok(tuner.job(&known).map(drop)?)).await?;
        return Ok(Sse::new(follow(app, id)).keep_alive(KeepAlive::default()).into_response());
    }
    let page = app.tuning(move |tuner| {
        let events = tuner.events(&id)?;
        page(events.iter().map(|event| event.object()).collect(), after, limit)
    });
    Ok(page.await?.into_response())
}

/// A stream's place in a job's events.
struct Following {
    app: Arc<App>,
    id: String,
    sent: usize,
    lines: VecDeque<String>,
    over: bool,
}

fn follow(app: Arc<App>, id: String) -> impl tokio_stream::Stream<Item = Result<Event, Infallible>> {
    let (sender, receiver) = tokio::sync::mpsc::channel(16);
    let mut following = Following { app, id, sent: 0, lines: VecDeque::new(), over: false };
    tokio::spawn(async move {
        loop {
            while let Some(line) = following.lines.pop_front() {
                // The client has left.
                if sender.send(Ok(Event::default().data(line))).await.is_err() {
                    return;
                }
            }
            if following.over {
                return;
            }
            following.look().await;
            if following.lines.is_empty() {
                tokio::select! {
                    () = sender.closed() => return,
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
        }
    });
    Receiving(receiver)
}

impl Following {
    /// Takes in what has happened since.
    async fn look(&mut self) {
        let (id, sent) = (self.id.clone(), self.sent);
        let new = self.app.tuning(move |tuner| {
            // The status first: what follows it are all events of a job that is over.
            let over = tuner.job(&id)?.status.is_over();
            let events = tuner.store().events(&id)?;
            // A job that goes on from a checkpoint has fewer than before.
            let first = sent.min(events.len());
            Ok((over, events.len(), events[first..].iter().map(|event| event.object().to_string()).collect::<Vec<_>>()))
        });
        match new.await {
            Ok((over, count, lines)) => {
                (self.sent, self.over) = (count, over);
                self.lines.extend(lines);
            }
            Err(error) => {
                self.lines.push_back(error.body().to_string());
                self.over = true;
            }
        }
        if self.over {
            self.lines.push_back("[DONE]".into());
        }
    }
}

/// A queue as a stream.
struct Receiving<T>(tokio::sync::mpsc::Receiver<T>);

impl<T> tokio_stream::Stream for Receiving<T> {
    type Item = T;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(context)
    }
}
