//! Streams: server-sent events, one JSON object each.

use super::openai::ApiError;
use super::running::Running;
use crate::engine::text::TextEvent;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio_stream::Stream;

/// Lines of a stream that wait to be sent, as JSON, and the names of their events.
#[derive(Default)]
pub(super) struct Lines(VecDeque<(Option<&'static str>, String)>);

impl Lines {
    pub fn push(&mut self, object: &impl Serialize) {
        // Plain structs and strings always serialize.
        self.0.extend(serde_json::to_string(object).ok().map(|text| (None, text)));
    }

    /// The same with an `event:` line.
    pub fn push_named(&mut self, event: &'static str, object: &impl Serialize) {
        self.0.extend(serde_json::to_string(object).ok().map(|text| (Some(event), text)));
    }
}

/// An endpoint's way to write events.
pub(super) trait Render: Send + Unpin + 'static {
    /// Whether `[DONE]` closes the stream.
    const DONE: bool = true;

    /// Writes what comes before the first event.
    fn begin(&mut self, _lines: &mut Lines) {}
    /// Writes what happened to a choice. An error ends the stream.
    fn event(&mut self, choice: usize, event: TextEvent, lines: &mut Lines) -> Result<(), ApiError>;
    /// Writes what comes after the last choice has ended.
    fn end(&mut self, lines: &mut Lines);
    /// Writes the error that ends the stream.
    fn error(&mut self, error: ApiError, lines: &mut Lines) {
        lines.push(&error.body());
    }
}

/// Streams an answer. When the client leaves, the response is dropped and with it the requests.
pub(super) fn stream(running: Running, mut render: impl Render) -> Response {
    let mut lines = Lines::default();
    render.begin(&mut lines);
    let events = Events { running: Some(running), render, lines };
    // The comments that keep idle connections open also find out about clients that have left.
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

struct Events<R> {
    /// `None` once the end is written.
    running: Option<Running>,
    render: R,
    lines: Lines,
}

impl<R: Render> Stream for Events<R> {
    type Item = Result<Event, Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some((name, line)) = this.lines.0.pop_front() {
                let event = Event::default().data(line);
                return Poll::Ready(Some(Ok(match name {
                    Some(name) => event.event(name),
                    None => event,
                })));
            }
            let Some(running) = &mut this.running else { return Poll::Ready(None) };
            let more = match running.poll_next(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some((choice, event))) => match this.render.event(choice, event, &mut this.lines) {
                    Ok(()) => true,
                    Err(error) => {
                        this.render.error(error, &mut this.lines);
                        false
                    }
                },
                Poll::Ready(None) => {
                    this.render.end(&mut this.lines);
                    false
                }
            };
            if !more {
                this.lines.0.extend(R::DONE.then(|| (None, "[DONE]".into())));
                this.running = None;
            }
        }
    }
}
