//! LoRA fine-tuning over the model's own program.
//!
//! [`run`] does a whole run from a [`Recipe`]; [`Job`] is the same step by step. The base model is the copy that
//! also serves: it is borrowed, never changed.
//!
//! - `recipe`, `recipe_file`, `schedule`: what decides a run
//! - `files`, `data`, `encode`, `convert`: from files to rows of tokens; `rows` keeps them, `batch` puts them together
//! - `preference`: pairs of answers
//! - `trainer`: programs and buffers on the device
//! - `evaluate`, `optimizer`, `noise`: losses of other rows, updates, NEFTune
//! - `adapter`, `snapshot`, `checkpoint`, `export`: from and to files
//! - `run`, `report`, `log`, `tensorboard`, `plot`: a whole run, and what it says about itself

pub(crate) mod adapter;
pub mod batch;
pub mod bench;
pub mod checkpoint;
mod convert;
pub mod data;
mod encode;
mod evaluate;
pub mod export;
pub(crate) mod files;
mod job;
mod log;
mod noise;
mod optimizer;
pub mod plot;
pub mod preference;
mod recipe;
pub mod recipe_file;
mod report;
pub mod rows;
mod run;
mod schedule;
mod snapshot;
mod tensorboard;
pub mod trainer;

pub use checkpoint::{Best, Snapshot};
pub use data::DataReport;
pub use files::DataFile;
pub use job::{Accumulated, Job};
pub use optimizer::OptimizerOptions;
pub use preference::{PairReport, Preference, PreferenceLoss};
pub use recipe::{BadRows, DEFAULT_ALPHA, DEFAULT_EPOCHS, DEFAULT_RANK, LossOn, Optim, Recipe};
pub use report::{EvalReport, MemoryReport, Observer, StepReport, Summary};
pub use run::run;
pub use schedule::{LrCurve, Schedule};
pub use snapshot::Copying;

pub(crate) use log::open_log;
