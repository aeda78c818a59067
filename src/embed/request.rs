//! One request: the events that it has left to post, and its end.

use super::event::{Event, EventKind};
use super::host::Host;
use super::model::Ready;
use super::pump::Shared;
use super::session::SessionState;
use crate::engine::text::{TextEvent, TextSink};
use crate::engine::{FinishReason, RequestId, Usage};
use crate::error::{Error, Result};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

/// A request for an answer, an embedding or log-probabilities. It ends in exactly one event.
pub struct Request {
    object: AtomicU64,
    userdata: u64,
    shared: Arc<Shared>,
    began: Instant,
    kind: EventKind,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    ended: bool,
    id: Option<RequestId>,
    engine: Weak<Ready>,
    /// The session that the answer belongs to.
    session: Option<Arc<Mutex<SessionState>>>,
    first: Option<f64>,
    /// The engine dropped it before it said under which number it has it.
    orphaned: bool,
}

impl Request {
    /// A request that has asked for nothing yet. `kind` is that of its last event.
    pub fn new(host: &Host, kind: EventKind, userdata: u64) -> Arc<Self> {
        let shared = host.shared().clone();
        let progress = Mutex::default();
        Arc::new(Self { object: AtomicU64::new(0), userdata, shared, began: Instant::now(), kind, progress })
    }

    /// The number that its events carry.
    pub fn named(&self, object: u64) {
        self.object.store(object, Ordering::SeqCst);
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer goes to a session as well.
    pub(super) fn belongs_to(&self, session: &Arc<Mutex<SessionState>>) {
        self.progress().session = Some(session.clone());
    }

    /// The engine has it under this number.
    pub(super) fn submitted(&self, engine: &Arc<Ready>, id: RequestId) {
        let mut progress = self.progress();
        (progress.engine, progress.id) = (Arc::downgrade(engine), Some(id));
        if progress.ended {
            engine.engine.cancel(id);
        }
        if progress.orphaned {
            self.end(&mut progress, Event { error: Some(Error::Cancelled), ..self.event() });
        }
    }

    /// Never came to run: no event will come.
    pub fn withdraw(&self) {
        let mut progress = self.progress();
        progress.ended = true;
        progress.session = None;
    }

    /// Ends the request now; the engine stops working on it within a slice. Nothing happens to one that has ended.
    pub fn cancel(&self) {
        let mut progress = self.progress();
        if let (Some(id), Some(ready)) = (progress.id, progress.engine.upgrade()) {
            ready.engine.cancel(id);
        }
        self.end(
            &mut progress,
            Event { error: Some(Error::Cancelled), reason: Some(FinishReason::Cancelled), ..self.event() },
        );
        drop(progress);
        self.shared.events.announce();
        self.shared.notify();
    }

    fn event(&self) -> Event {
        Event {
            kind: self.kind,
            object: self.object.load(Ordering::SeqCst),
            userdata: self.userdata,
            seconds: self.began.elapsed().as_secs_f64(),
            ..Event::default()
        }
    }

    fn end(&self, progress: &mut Progress, event: Event) {
        if std::mem::replace(&mut progress.ended, true) {
            return;
        }
        if let Some(session) = progress.session.take() {
            session.lock().unwrap_or_else(PoisonError::into_inner).answered();
        }
        self.shared.meter.request(progress.first);
        self.shared.events.post(event);
    }

    /// Ends a request for numbers.
    pub(super) fn end_with(&self, kind: EventKind, result: Result<(Vec<f32>, Vec<u32>)>) {
        let event = match result {
            Ok((values, ids)) => Event { kind, values, ids, ..self.event() },
            Err(error) => Event { kind, error: Some(error), ..self.event() },
        };
        self.end(&mut self.progress(), event);
    }

    /// What the engine tells of it.
    pub(super) fn sink(self: &Arc<Self>) -> TextSink {
        let listener = Listener(self.clone());
        Box::new(move |event| listener.0.hear(event))
    }

    fn hear(&self, event: TextEvent) -> ControlFlow<()> {
        let mut progress = self.progress();
        if progress.ended {
            return ControlFlow::Break(());
        }
        match event {
            TextEvent::Prompt(_) => {}
            TextEvent::Delta { text, tokens } => {
                progress.first.get_or_insert(self.began.elapsed().as_secs_f64());
                let ids: Vec<u32> = tokens.iter().map(|piece| piece.id).collect();
                if let Some(session) = &progress.session {
                    session.lock().unwrap_or_else(PoisonError::into_inner).hear(&ids, &text);
                }
                let logprobs = tokens.iter().filter_map(|piece| piece.logprobs.as_ref().map(|l| l.logprob)).collect();
                let n = ids.len();
                let event = Event { kind: EventKind::Text, text, ids, values: logprobs, ..self.event() };
                self.shared.events.post(event);
                drop(progress);
                self.shared.tokens(n);
            }
            TextEvent::Done { reason, usage, stop } => {
                let error = (reason == FinishReason::Cancelled).then_some(Error::Cancelled);
                let text = stop.unwrap_or_default();
                self.end(&mut progress, Event { error, reason: Some(reason), usage, text, ..self.event() });
            }
            TextEvent::Failed(error) => {
                let usage = Usage::default();
                self.end(&mut progress, Event { error: Some(error), usage, ..self.event() });
            }
        }
        ControlFlow::Continue(())
    }
}

/// The engine drops it with the request: then at the latest it has ended.
struct Listener(Arc<Request>);

impl Drop for Listener {
    fn drop(&mut self) {
        let request = &self.0;
        let mut progress = request.progress();
        if progress.id.is_none() {
            // Perhaps it was refused: then nobody is to hear of it.
            progress.orphaned = true;
            return;
        }
        request.end(&mut progress, Event { error: Some(Error::Cancelled), ..request.event() });
    }
}
