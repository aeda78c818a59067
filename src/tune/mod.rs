//! Fine-tuning beside serving, as OpenAI's API has it: files, jobs, events, checkpoints, and the models that come of them.
//!
//! ```text
//! requests ──▶ Tuner (any thread) ──▶ Store (redb, files)
//!                 │  ▲                      ▲
//!                 ▼  │ notes                │
//!             director's thread ── reads files, makes jobs ready, writes what happened
//!                 │  ▲ notes
//!                 ▼  │
//!             Seat (guest on the engine's thread): trains in the slices that requests leave, publishes in place
//! ```
//!
//! One job trains at a time; others wait in the queue. What the director has written is true after a power cut: an event, a
//! checkpoint or a status that a client saw is still there, and a job goes on from its last checkpoint.

pub mod bench;
mod check;
mod director;
mod recipe;
pub mod records;
mod refusal;
mod running;
pub mod session;
mod store;
mod tuner;
mod tuner_sessions;

pub use check::LEAST_ROWS;
pub use refusal::{Kind, Refusal};
pub use store::Store;
pub use tuner::{JobRequest, SessionRecord, TuneLimits, TuneOptions, Tuner, Upload};
