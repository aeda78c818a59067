//! Fine-tuning over the model's own program: LoRA, whole modules beside it, or every weight.
//!
//! [`run`] does a whole run from a [`Recipe`]; [`Job`] is the same step by step. The base model is the copy that
//! also serves: it is borrowed, never changed.
//!
//! - `recipe`, `recipe_file`, `recipe_fields`, `schedule`: what decides a run
//! - `files`, `data`, `encode`, `convert`: from files to rows of tokens; `rows` keeps them, `batch` puts them together
//! - `preference`: pairs of answers
//! - `trainer`: programs and buffers on the device
//! - `evaluate`, `optim`, `optimizer`, `noise`: losses of other rows, updates, NEFTune
//! - `adapter`, `whole`, `outcome`, `snapshot`, `checkpoint`, `export`: from and to files
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
mod optim;
mod optimizer;
mod outcome;
pub mod plot;
pub mod preference;
mod recipe;
mod recipe_fields;
pub mod recipe_file;
mod report;
pub mod rows;
mod run;
mod schedule;
mod snapshot;
mod tensorboard;
pub mod trainer;
pub(crate) mod whole;

pub use checkpoint::{Best, Snapshot};
pub use data::DataReport;
pub use files::DataFile;
pub use job::{Accumulated, Job};
pub use optim::Optim;
pub use optimizer::OptimizerOptions;
pub use outcome::Outcome;
pub use preference::{PairReport, Preference, PreferenceLoss};
pub use recipe::{
    BadRows, DEFAULT_ALPHA, DEFAULT_DDP_TIMEOUT, DEFAULT_EPOCHS, DEFAULT_RANK, LossOn, Recipe, WEIGHT_TYPES,
    weight_type,
};
pub use report::{EvalReport, MemoryReport, Observer, StepReport, Summary};
pub use run::{run, run_among};
pub use schedule::{LrCurve, Schedule};
pub use snapshot::Copying;

pub(crate) use log::continue_log;
