//! What the engine has to say: lines for a sink that the embedding program sets. Without one they are not even made.

use std::sync::{Arc, Mutex, PoisonError};

/// How urgent a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something failed.
    Error,
    /// Something may not be what the program wants.
    Warn,
    /// What began and ended.
    Info,
}

/// Takes lines, on any thread, under no lock.
pub type LogSink = Arc<dyn Fn(Level, &str) + Send + Sync>;

/// Where lines go.
#[derive(Default)]
pub struct Log(Mutex<Option<(Level, LogSink)>>);

impl Log {
    /// Lines up to `level` go to `sink`; `None`: nowhere.
    pub fn set(&self, sink: Option<(Level, LogSink)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = sink;
    }

    /// A line.
    pub fn line(&self, level: Level, text: impl FnOnce() -> String) {
        let sink = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((most, sink)) = sink
            && level <= most
        {
            sink(level, &text());
        }
    }
}
