//! Works on all tasks of a host in slices, whoever calls it.

use super::event::{Event, EventKind, Events};
use super::faults;
use super::log::{Level, Log};
use super::metrics::Meter;
use super::pacing::{Pacing, Turns};
use crate::backend::metered::Ledger;
use crate::engine::Turn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Something to work on.
pub trait Task: Send + Sync {
    /// Works until `deadline` at most, but for the device's smallest unit.
    fn turn(&self, deadline: Instant) -> Turn;

    /// Whether it trains; else it serves.
    fn trains(&self) -> bool;

    /// Gives back what can be made again.
    fn trim(&self) {}
}

/// What all objects of a host share, and what its thread keeps alive.
pub struct Shared {
    /// What happened.
    pub events: Arc<Events>,
    /// Who uses how much memory.
    pub ledger: Arc<Ledger>,
    /// What was taken.
    pub meter: Meter,
    /// What there is to say.
    pub log: Log,
    tasks: Mutex<Vec<Arc<dyn Task>>>,
    turns: Mutex<Turns>,
    pacing: Mutex<Pacing>,
    paused: AtomicBool,
    pressed: AtomicBool,
    trim: AtomicBool,
    stopping: AtomicBool,
    /// Something is new for the thread.
    new: Mutex<bool>,
    signal: Condvar,
}

/// What a slice came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slice {
    /// Nothing to do.
    Idle,
    /// Nothing to do before this.
    Until(Instant),
    /// Something was done.
    Worked,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Nothing to do yet.
    pub fn new(ledger: Arc<Ledger>) -> Self {
        Self {
            events: Arc::default(),
            ledger,
            meter: Meter::default(),
            log: Log::default(),
            tasks: Mutex::default(),
            turns: Mutex::default(),
            pacing: Mutex::default(),
            paused: AtomicBool::new(false),
            pressed: AtomicBool::new(false),
            trim: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            new: Mutex::new(false),
            signal: Condvar::new(),
        }
    }

    /// One more task, until its turn says that it has ended.
    pub fn add(&self, task: Arc<dyn Task>) {
        lock(&self.tasks).push(task);
        self.notify();
    }

    /// One task less.
    pub fn remove(&self, task: &dyn Task) {
        let mut tasks = lock(&self.tasks);
        let at = tasks.iter().position(|other| std::ptr::addr_eq(Arc::as_ptr(other), task));
        let removed = at.map(|at| tasks.remove(at));
        drop(tasks);
        drop(removed);
    }

    /// There may be something to do.
    pub fn notify(&self) {
        *lock(&self.new) = true;
        self.signal.notify_all();
    }

    /// How to work.
    pub fn pacing(&self) -> Pacing {
        *lock(&self.pacing)
    }

    /// From now on.
    pub fn set_pacing(&self, pacing: Pacing) {
        *lock(&self.pacing) = pacing;
        self.notify();
    }

    /// Nothing is worked on until this is called with false.
    pub fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::SeqCst);
        self.notify();
    }

    /// Gives back what can be made again, before the next slice.
    pub fn trim(&self) {
        self.trim.store(true, Ordering::SeqCst);
        self.notify();
    }

    /// Ends the thread.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.notify();
    }

    /// Drops all tasks: their requests end as cancelled.
    pub fn clear(&self) {
        let tasks = std::mem::take(&mut *lock(&self.tasks));
        drop(tasks);
    }

    /// The thread of a host.
    pub fn run(&self) {
        while !self.stopping.load(Ordering::SeqCst) {
            let budget = self.pacing().max_slice;
            match self.slice(Instant::now() + budget, budget) {
                Slice::Worked => {}
                Slice::Idle => self.sleep(None),
                Slice::Until(at) => self.sleep(Some(at)),
            }
        }
        self.clear();
    }

    fn sleep(&self, until: Option<Instant>) {
        let mut new = lock(&self.new);
        while !*new {
            match until.map(|at| at.saturating_duration_since(Instant::now())) {
                None => new = self.signal.wait(new).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => break,
                Some(left) => new = self.signal.wait_timeout(new, left).unwrap_or_else(PoisonError::into_inner).0,
            }
        }
        *new = false;
    }

    /// One slice. `budget` is what its caller gave it, for the metrics.
    pub fn slice(&self, deadline: Instant, budget: Duration) -> Slice {
        let slice = self.work(deadline, budget);
        self.events.announce();
        slice
    }

    fn work(&self, deadline: Instant, budget: Duration) -> Slice {
        *lock(&self.new) = false;
        self.watch_memory();
        if self.paused.load(Ordering::SeqCst) {
            return Slice::Idle;
        }
        faults::point("slice");
        let pacing = self.pacing();
        let tasks: Vec<Arc<dyn Task>> = lock(&self.tasks).clone();
        let began = Instant::now();
        let training_next = lock(&self.turns).training_next();
        let wait = lock(&self.turns).wait_until(&pacing);
        let mut first = None;
        let mut wanted = [false; 2];
        // Whoever is next gets the time; who has nothing to do lets the others in.
        for trains in [training_next, !training_next] {
            if !trains && wait.is_some() {
                continue;
            }
            for task in tasks.iter().filter(|task| task.trains() == trains) {
                if first.is_some() && (first != Some(trains) || Instant::now() >= deadline) {
                    wanted[usize::from(trains)] = true;
                    continue;
                }
                match task.turn(deadline) {
                    Turn::Idle => {}
                    Turn::Worked => {
                        wanted[usize::from(trains)] = true;
                        first.get_or_insert(trains);
                    }
                    Turn::Ended => lock(&self.tasks).retain(|other| !Arc::ptr_eq(other, task)),
                }
            }
        }
        // The one that was served first is served last the next time.
        if let (Some(trains), true) = (first, tasks.len() > 1) {
            let mut tasks = lock(&self.tasks);
            if let Some(at) = tasks.iter().position(|task| task.trains() == trains) {
                let task = tasks.remove(at);
                tasks.push(task);
            }
        }
        let Some(trains) = first else { return wait.map_or(Slice::Idle, Slice::Until) };
        self.meter.slice(began, budget, !trains);
        if wanted[0] && tasks.iter().any(|task| task.trains()) {
            lock(&self.turns).note(pacing.mode, trains, began.elapsed().as_secs_f64());
        }
        Slice::Worked
    }

    /// Counts tokens against the pace.
    pub fn tokens(&self, n: usize) {
        self.meter.tokens(n);
        let pacing = self.pacing();
        lock(&self.turns).tokens(&pacing, n as u64);
    }

    /// Trims where it was asked for or the soft limit was passed, and tells of the latter once.
    fn watch_memory(&self) {
        let usage = self.ledger.usage();
        let above = usage.soft > 0 && usage.total() > usage.soft;
        let newly = above && !self.pressed.swap(above, Ordering::SeqCst);
        if !above {
            self.pressed.store(false, Ordering::SeqCst);
        }
        if self.trim.swap(false, Ordering::SeqCst) || newly {
            let tasks: Vec<Arc<dyn Task>> = lock(&self.tasks).clone();
            tasks.iter().for_each(|task| task.trim());
        }
        if newly {
            self.log.line(Level::Warn, || format!("{} bytes are in use, above the soft limit", usage.total()));
            let (done, total) = (usage.total(), usage.soft);
            self.events.post(Event { kind: EventKind::MemoryPressure, done, total, ..Event::default() });
        }
    }
}
