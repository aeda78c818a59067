//! Streams: server-sent events, one JSON object each, `[DONE]` at the end.

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

/// Lines of a stream that wait to be sent, as JSON.
#[derive(Default)]
pub(super) struct Lines(VecDeque<String>);

impl Lines {
    pub fn push(&mut self, object: &impl Serialize) {
        // Plain structs and strings always serialize.
        self.0.extend(serde_json::to_string(object));
    }
}

/// An endpoint's way to write events.
pub(super) trait Render: Send + Unpin + 'static {
    /// Writes what happened to a choice. An error ends the stream.
    fn event(&mut self, choice: usize, event: TextEvent, lines: &mut Lines) -> Result<(), ApiError>;
    /// Writes what comes after the last choice has ended.
    fn end(&mut self, lines: &mut Lines);
}

/// Streams an answer. When the client leaves, the response is dropped and with it the requests.
pub(super) fn stream(running: Running, render: impl Render) -> Response {
    let events = Events { running: Some(running), render, lines: Lines::default() };
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
            if let Some(line) = this.lines.0.pop_front() {
                return Poll::Ready(Some(Ok(Event::default().data(line))));
            }
            let Some(running) = &mut this.running else { return Poll::Ready(None) };
            let more = match running.poll_next(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some((choice, event))) => match this.render.event(choice, event, &mut this.lines) {
                    Ok(()) => true,
                    Err(error) => {
                        this.lines.push(&error.body());
                        false
                    }
                },
                Poll::Ready(None) => {
                    this.render.end(&mut this.lines);
                    false
                }
            };
            if !more {
                this.lines.0.push_back("[DONE]".into());
                this.running = None;
            }
        }
    }
}
