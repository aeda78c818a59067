//! The engine as an embedding program wants it: many models, sessions and training jobs on one device, worked on in slices by
//! a thread of its own or by the program itself, heard of through one queue of events. Safe Rust; `ffi` puts it into C's words.
//!
//! ```text
//! Session, Model, Training ──▶ tasks ──▶ Pump (own thread or Host::step) ──▶ Events ──▶ Host::poll
//! ```

mod adapter;
mod event;
pub mod faults;
mod host;
mod load;
mod log;
mod metrics;
mod model;
mod pacing;
mod pump;
mod request;
mod session;
mod state;
mod training;

pub use adapter::{Adapter, Blend};
pub use event::{Event, EventKind, Wake};
pub use host::{Host, HostOptions};
pub use load::{ModelSource, ReadAt};
pub use log::{Level, LogSink};
pub use metrics::Metrics;
pub use model::{Model, ModelOptions};
pub use pacing::{Pacing, PacingMode};
pub use request::Request;
pub use session::{Generate, Session};
pub use training::{Training, TrainingState};
