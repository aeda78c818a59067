//! One device and everything that runs on it.

use super::event::{Event, Wake};
use super::log::{Level, LogSink};
use super::metrics::Metrics;
use super::pacing::Pacing;
use super::pump::{Shared, Slice};
use crate::backend::metered::{Ledger, Purpose, Usage, metered};
use crate::backend::{self, BackendChoice, ComputeType, Device};
use crate::error::{Error, Result};
use crate::model::decoder::buffers;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How a host works.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostOptions {
    /// Which backend.
    pub backend: BackendChoice,
    /// Position among its devices.
    pub device: usize,
    /// Numeric type of the products.
    pub compute: ComputeType,
    /// No thread of its own: [`Host::step`] does the work.
    pub stepped: bool,
    /// Bytes above which memory is given back where that can be done; 0: none.
    pub soft_limit: u64,
    /// Bytes that are never passed; 0: none.
    pub hard_limit: u64,
}

/// One device, its memory, its queue of events, and who works on it. Models, sessions and jobs keep it alive.
pub struct Host {
    shared: Arc<Shared>,
    device: Arc<dyn Device>,
    options: HostOptions,
    /// Held by whoever steps.
    stepping: Mutex<()>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What a buffer of this name is for.
fn purpose(name: &str) -> Purpose {
    match name {
        buffers::LORA => Purpose::Weights,
        _ if name.starts_with("lora.") => Purpose::Optimizer,
        _ if name.starts_with("kv.") => Purpose::Kv,
        _ => Purpose::Activations,
    }
}

impl Host {
    /// Opens the device, and starts a thread unless the program is to step itself.
    ///
    /// # Errors
    /// Those of [`backend::open`].
    pub fn new(options: HostOptions) -> Result<Arc<Self>> {
        Self::on(backend::open(options.backend, options.device, options.compute)?, options)
    }

    /// As [`Host::new`], on a device that is open: which backend and device `options` name does not matter.
    ///
    /// # Errors
    /// [`Error::Internal`] where no thread can be started.
    pub fn on(device: Arc<dyn Device>, options: HostOptions) -> Result<Arc<Self>> {
        let ledger = Arc::new(Ledger::default());
        ledger.limit(options.soft_limit, options.hard_limit);
        let device = metered(device, ledger.clone(), purpose);
        let shared = Arc::new(Shared::new(ledger));
        let host =
            Self { shared: shared.clone(), device, options, stepping: Mutex::new(()), threads: Mutex::new(Vec::new()) };
        if !options.stepped {
            host.spawn("runtime-engine", move || {
                // What panics outside of all tasks' own guards ends a slice, not the thread.
                while catch_unwind(AssertUnwindSafe(|| shared.run())).is_err() {
                    shared.log.line(Level::Error, || "a slice ended in a panic".into());
                }
            })?;
        }
        Ok(Arc::new(host))
    }

    /// A thread that the host waits for when it is dropped.
    pub(super) fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name(name.into()).spawn(work);
        let thread = thread.map_err(|e| Error::internal(format!("cannot start a thread: {e}")))?;
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        Ok(())
    }

    /// What all of its objects share.
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The device, with its memory counted.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// How it was made.
    pub fn options(&self) -> &HostOptions {
        &self.options
    }

    /// Works for up to `budget`; true while there is more to do. Only for a host without a thread.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the host has a thread; [`Error::Busy`] while another thread is stepping.
    pub fn step(&self, budget: Duration) -> Result<bool> {
        if !self.options.stepped {
            return Err(Error::invalid("this engine has a thread of its own: make one that is stepped"));
        }
        let Ok(_stepping) = self.stepping.try_lock() else {
            return Err(Error::Busy("another thread is stepping this engine".into()));
        };
        let deadline = Instant::now() + budget;
        loop {
            match self.shared.slice(deadline, budget) {
                Slice::Idle => return Ok(false),
                Slice::Until(_) => return Ok(true),
                Slice::Worked if Instant::now() >= deadline => return Ok(true),
                Slice::Worked => {}
            }
        }
    }

    /// Hands up to `most` events to `take`, in order. They stay where they are until the next poll.
    pub fn poll(&self, most: usize, take: &mut dyn FnMut(usize, &Event)) -> usize {
        self.shared.events.poll(most, take)
    }

    /// Waits until there is an event; false when `timeout` came first.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        self.shared.events.wait(timeout)
    }

    /// Calls `wake` whenever events come into an empty queue.
    pub fn set_wake(&self, wake: Option<Wake>) {
        self.shared.events.set_wake(wake);
    }

    /// Sends lines up to a level to a sink.
    pub fn set_log(&self, sink: Option<(Level, LogSink)>) {
        self.shared.log.set(sink);
    }

    /// Bytes; 0: no limit.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a soft limit above the hard one.
    pub fn set_memory_limit(&self, soft: u64, hard: u64) -> Result<()> {
        if hard > 0 && soft > hard {
            return Err(Error::invalid(format!("the soft limit of {soft} bytes is above the hard one of {hard}")));
        }
        self.shared.ledger.limit(soft, hard);
        self.shared.notify();
        Ok(())
    }

    /// What is in use.
    pub fn memory(&self) -> Usage {
        self.shared.ledger.usage()
    }

    /// The account, for tests of what follows when memory runs out.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.shared.ledger
    }

    /// Gives back, before the next slice, what can be made again.
    pub fn trim(&self) {
        self.shared.trim();
    }

    /// How to work from now on.
    ///
    /// # Errors
    /// [`Error::Invalid`] for numbers out of range.
    pub fn set_pacing(&self, pacing: Pacing) -> Result<()> {
        if !(pacing.tokens_per_s >= 0.0 && pacing.tokens_per_s.is_finite()) {
            return Err(Error::invalid(format!("tokens_per_s is {}, expected 0 or more", pacing.tokens_per_s)));
        }
        self.shared.set_pacing(pacing);
        Ok(())
    }

    /// Works on nothing from the next slice on, until called with false.
    pub fn pause(&self, paused: bool) {
        self.shared.pause(paused);
    }

    /// What the work took so far.
    pub fn metrics(&self) -> Metrics {
        self.shared.meter.read()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.shared.events.set_wake(None);
        self.shared.stop();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let me = std::thread::current().id();
        for thread in threads.into_iter().filter(|thread| thread.thread().id() != me) {
            let _ = thread.join();
        }
        self.shared.clear();
    }
}
