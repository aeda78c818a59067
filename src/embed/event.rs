//! The queue between what works and what listens.

use crate::engine::{FinishReason, Usage};
use crate::error::Error;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EventKind {
    /// A part of a model was loaded.
    #[default]
    ModelProgress,
    /// A model is ready, or could not be loaded.
    ModelReady,
    /// More of an answer.
    Text,
    /// The end of a request.
    RequestDone,
    /// The end of a request for an embedding.
    Embedding,
    /// The end of a request for log-probabilities.
    Scores,
    /// A training job is ready to start.
    TrainingReady,
    /// An optimizer step was done.
    TrainingStep,
    /// A training job is over.
    TrainingDone,
    /// Memory in use has passed the soft limit.
    MemoryPressure,
}

/// One thing that happened. Fields that do not belong to its kind are zero or empty.
#[derive(Debug, Default)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// To whom: the number that the owner of the object gave it.
    pub object: u64,
    /// What the owner of the object wants to find in its events.
    pub userdata: u64,
    /// Why it failed.
    pub error: Option<Error>,
    /// Why an answer ended.
    pub reason: Option<FinishReason>,
    /// Whole characters of an answer, the stop string that ended it, or the error's message.
    pub text: String,
    /// Tokens of that text.
    pub ids: Vec<u32>,
    /// An embedding, log-probabilities.
    pub values: Vec<f32>,
    /// Bytes loaded, steps done, or bytes in use.
    pub done: u64,
    /// Of so many.
    pub total: u64,
    /// Of a training step, in nat.
    pub loss: f64,
    /// Norm of its gradient before clipping.
    pub grad_norm: f64,
    /// Its learning rate.
    pub lr: f64,
    /// Seconds from the start of the work.
    pub seconds: f64,
    /// Counts and times of an answer.
    pub usage: Usage,
}

/// Called when events have come into an empty queue; may only signal.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Event>,
    /// What the latest poll has lent out.
    lent: Vec<Event>,
    wake: Option<Wake>,
    /// Events have come into the empty queue, and the wake function was not called yet.
    unannounced: bool,
}

/// Events of a host, in order.
#[derive(Default)]
pub struct Events {
    queue: Mutex<Queue>,
    arrived: Condvar,
    /// Calls of the wake function that have not returned.
    calling: AtomicUsize,
}

thread_local! {
    static IN_WAKE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

impl Events {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends an event and wakes whoever waits. The wake function is left to [`Events::announce`], so that this may be called
    /// under locks.
    pub fn post(&self, event: Event) {
        let mut event = event;
        if let (Some(error), true) = (&event.error, event.text.is_empty()) {
            event.text = error.to_string();
        }
        let mut queue = self.lock();
        queue.unannounced |= queue.waiting.is_empty();
        queue.waiting.push_back(event);
        drop(queue);
        self.arrived.notify_all();
    }

    /// Calls the wake function, if events have come into an empty queue since the last time. Not to be called under a lock.
    pub fn announce(&self) {
        let mut queue = self.lock();
        if !std::mem::take(&mut queue.unannounced) || queue.waiting.is_empty() {
            return;
        }
        let wake = queue.wake.clone();
        if wake.is_some() {
            self.calling.fetch_add(1, Ordering::SeqCst);
        }
        drop(queue);
        if let Some(wake) = wake {
            let before = IN_WAKE.replace(true);
            wake();
            IN_WAKE.set(before);
            self.calling.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Hands up to `most` events to `take`, in order. They stay where they are until the next poll.
    pub fn poll(&self, most: usize, take: &mut dyn FnMut(usize, &Event)) -> usize {
        let mut queue = self.lock();
        queue.lent.clear();
        let n = most.min(queue.waiting.len());
        let Queue { waiting, lent, .. } = &mut *queue;
        lent.extend(waiting.drain(..n));
        lent.iter().enumerate().for_each(|(i, event)| take(i, event));
        n
    }

    /// Waits until there is an event; false when `timeout` came first.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut queue = self.lock();
        while queue.waiting.is_empty() {
            queue = match deadline {
                None => self.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    self.arrived.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        true
    }

    /// Sets the wake function. When this returns, the one before is not called any more (but by its own caller).
    pub fn set_wake(&self, wake: Option<Wake>) {
        let mut queue = self.lock();
        queue.wake = wake;
        queue.unannounced = !queue.waiting.is_empty();
        drop(queue);
        while !IN_WAKE.get() && self.calling.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
        self.announce();
    }
}

/// Posts the events of one object.
#[derive(Clone)]
pub struct Emitter {
    /// Where to.
    pub events: Arc<Events>,
    /// The object's number.
    pub object: u64,
    /// What its owner wants to find.
    pub userdata: u64,
}

impl Emitter {
    /// Posts an event of this object.
    pub fn post(&self, event: Event) {
        self.events.post(Event { object: self.object, userdata: self.userdata, ..event });
    }
}
