//! The choices of one HTTP request while the engine works on them.

use super::http::App;
use super::openai::ApiError;
use crate::engine::text::{TextEvent, TextOptions, TokenPiece, submit_text};
use crate::engine::{Engine, FinishReason, Request, RequestId, TokenLogprobs, Usage};
use crate::error::Error;
use std::future::poll_fn;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// Events that may wait for a slow reader. About 20 s of one fast answer, or half a megabyte.
const QUEUE: usize = 4096;

/// Events of all choices in the order of their arrival. Dropping it cancels what still runs.
pub(super) struct Running {
    engine: Engine,
    events: mpsc::Receiver<(usize, TextEvent)>,
    /// `None` once a choice has ended.
    ids: Vec<Option<RequestId>>,
    overflowed: Arc<AtomicBool>,
}

/// A choice that has ended.
#[derive(Default)]
pub(super) struct Finished {
    pub text: String,
    pub tokens: Vec<TokenPiece>,
    /// Of the prompt's tokens after the first.
    pub prompt: Vec<TokenLogprobs>,
    pub reason: Option<FinishReason>,
    pub usage: Usage,
    pub stop: Option<String>,
}

impl Running {
    /// Submits one request a choice.
    pub fn start(app: &App, requests: Vec<Request>, options: &TextOptions) -> Result<Self, ApiError> {
        let engine = &app.engine;
        let (sender, events) = mpsc::channel(QUEUE);
        let overflowed = Arc::new(AtomicBool::new(false));
        // An early return drops it, which cancels the requests submitted so far.
        let mut running = Self { engine: engine.clone(), events, ids: Vec::new(), overflowed };
        for (choice, request) in requests.into_iter().enumerate() {
            let (sender, overflowed) = (sender.clone(), running.overflowed.clone());
            // The engine's thread never waits for a client: a full queue ends the request.
            let mut watch = app.metrics.watch(request.adapter.clone());
            let sink = move |event| {
                watch.event(&event);
                match sender.try_send((choice, event)) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(error) => {
                        let full = matches!(error, mpsc::error::TrySendError::Full(_));
                        overflowed.fetch_or(full, Ordering::Relaxed);
                        ControlFlow::Break(())
                    }
                }
            };
            let id = submit_text(engine, request, options.clone(), Box::new(sink))?;
            running.ids.push(Some(id));
        }
        Ok(running)
    }

    /// How many choices there are.
    pub fn choices(&self) -> usize {
        self.ids.len()
    }

    /// The next event and the choice it belongs to; `None` when all have ended.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<(usize, TextEvent)>> {
        let Some(unfinished) = self.ids.iter().position(Option::is_some) else { return Poll::Ready(None) };
        self.events.poll_recv(context).map(|event| {
            // Without senders there are no more events: the sinks gave up, or the engine ended.
            let (choice, event) = event.unwrap_or_else(|| (unfinished, TextEvent::Failed(self.lost())));
            if matches!(event, TextEvent::Done { .. } | TextEvent::Failed(_)) {
                self.ids[choice] = None;
            }
            Some((choice, event))
        })
    }

    fn lost(&self) -> Error {
        if self.overflowed.load(Ordering::Relaxed) {
            Error::Network(format!("the answer was cancelled: {QUEUE} pieces of it were waiting to be read"))
        } else {
            Error::internal("the engine dropped a request")
        }
    }

    /// Waits for all choices.
    pub async fn finish(mut self) -> Result<Vec<Finished>, ApiError> {
        let mut all: Vec<Finished> = (0..self.choices()).map(|_| Finished::default()).collect();
        while let Some((choice, event)) = poll_fn(|context| self.poll_next(context)).await {
            let finished = &mut all[choice];
            match event {
                TextEvent::Prompt(logprobs) => finished.prompt = logprobs,
                TextEvent::Delta { text, tokens } => {
                    finished.text.push_str(&text);
                    finished.tokens.extend(tokens);
                }
                TextEvent::Done { reason: FinishReason::Cancelled, .. } => return Err(Error::Cancelled.into()),
                TextEvent::Done { reason, usage, stop } => {
                    (finished.reason, finished.usage, finished.stop) = (Some(reason), usage, stop);
                }
                TextEvent::Failed(error) => return Err(error.into()),
            }
        }
        Ok(all)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for id in self.ids.iter().flatten() {
            self.engine.cancel(*id);
        }
    }
}
