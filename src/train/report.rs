//! What a run tells about itself.

use super::data::DataReport;
use super::preference::PairReport;
use crate::error::Result;
use crate::format::peft::Adapter;
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

/// Bytes that a run takes on the device, known before its first step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryReport {
    /// The model as it was loaded, in its file's types.
    pub weights: u64,
    /// Adapters and weights that are trained whole, f32.
    pub adapters: u64,
    /// Their gradients.
    pub gradients: u64,
    /// The optimizer's moments (of paged ones, the piece that is on the device).
    pub moments: u64,
    /// In host memory: paged moments. No part of the total.
    pub host: u64,
    /// In host memory: the embedding table, where it was put there. No part of the total.
    pub weights_on_host: u64,
    /// In host memory: layers' inputs. No part of the total.
    pub offloaded: u64,
    /// Rotary table.
    pub tables: u64,
    /// The memory plan's arena for intermediates.
    pub arena: u64,
    /// Most bytes of intermediates alive at one time: the floor for any arena.
    pub live_peak: u64,
    /// Trainable numbers.
    pub parameters: u64,
    /// Tokens that the training program has room for.
    pub step_tokens: usize,
}

impl MemoryReport {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.adapters + self.gradients + self.moments + self.tables + self.arena
    }
}

impl fmt::Display for MemoryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
        write!(
            f,
            "memory {} MiB: weights {}, adapters {} ({} parameters), gradients and moments {}, arena {} (live peak {}) for steps of {} tokens",
            mib(self.total()),
            mib(self.weights),
            mib(self.adapters),
            self.parameters,
            mib(self.gradients + self.moments),
            mib(self.arena + self.tables),
            mib(self.live_peak),
            self.step_tokens,
        )?;
        if self.host > 0 {
            write!(f, "; moments on the host {}", mib(self.host))?;
        }
        for (what, bytes) in [("weights", self.weights_on_host), ("activations", self.offloaded)] {
            if bytes > 0 {
                write!(f, "; {what} on the host {}", mib(bytes))?;
            }
        }
        Ok(())
    }
}

/// One optimizer step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StepReport {
    /// From 1.
    pub step: usize,
    /// Steps of the whole run.
    pub total_steps: usize,
    /// Passes over the data so far.
    pub epoch: f64,
    /// Mean over the tokens counted in this step, in nat.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f32,
    /// Learning rate that this step used.
    pub lr: f64,
    /// Tokens processed in this step, counted or not.
    pub tokens: usize,
    /// Tokens that the loss counted.
    pub counted: usize,
    /// Tokens a second in this step.
    pub tok_s: f64,
    /// Seconds since the run began.
    pub elapsed_s: f64,
    /// What the step's pairs came to, in preference tuning.
    pub pairs: Option<PairReport>,
}

impl StepReport {
    /// The line of the training log: one JSON object without a line end.
    pub fn log_line(&self) -> String {
        let Self { step, loss, grad_norm, lr, tokens, tok_s, pairs, .. } = self;
        let mut line = serde_json::json!({
            "step": step, "loss": loss, "grad_norm": grad_norm, "lr": lr, "tokens": tokens,
            "tok_s": (tok_s * 10.0).round() / 10.0,
        });
        if let Some(PairReport { rewards_chosen, rewards_rejected, accuracy }) = pairs {
            line["rewards/chosen"] = (*rewards_chosen).into();
            line["rewards/rejected"] = (*rewards_rejected).into();
            line["rewards/margins"] = (rewards_chosen - rewards_rejected).into();
            line["rewards/accuracies"] = (*accuracy).into();
        }
        line.to_string()
    }
}

/// One evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct EvalReport {
    /// After this step.
    pub step: usize,
    /// Mean over the counted tokens of the evaluation set, in nat.
    pub loss: f64,
    /// Tokens that the loss counted.
    pub counted: usize,
    /// Tokens a second.
    pub tok_s: f64,
    /// Whether it is the lowest loss so far.
    pub best: bool,
}

impl EvalReport {
    /// The line of the training log.
    pub fn log_line(&self) -> String {
        let Self { step, loss, counted, .. } = self;
        serde_json::json!({ "step": step, "eval_loss": loss, "counted": counted }).to_string()
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Optimizer steps done, those before a resumed checkpoint included.
    pub steps: usize,
    /// Ended early because the observer asked for it.
    pub stopped: bool,
    /// Ended early because the evaluation loss no longer fell.
    pub stopped_early: bool,
    /// Lowest loss of the evaluation set, and its step.
    pub best: Option<(usize, f64)>,
    /// Loss of the last step, `None` where no step ran.
    pub loss: Option<f64>,
    /// The folder of the adapter, or of the model; `None` for a run that was stopped.
    pub adapter: Option<PathBuf>,
    /// What `resume` takes; `None` where nothing was done.
    pub checkpoint: Option<PathBuf>,
    /// Seconds of this run.
    pub elapsed_s: f64,
}

/// Watches a run. All methods are called on the thread that trains.
pub trait Observer {
    /// Before the first step: the data that was read.
    fn data(&mut self, _report: &DataReport) {}
    /// Before the first step: what the run takes.
    fn plan(&mut self, _report: &MemoryReport) {}
    /// Before the first step: the evaluation set.
    fn eval_data(&mut self, _report: &DataReport) {}
    /// After each step.
    fn step(&mut self, _report: &StepReport) {}
    /// After each evaluation.
    fn evaluated(&mut self, _report: &EvalReport) {}
    /// After every `sample_steps` steps: the adapter as it is now, to answer `sample_prompts` with.
    ///
    /// # Errors
    /// Whatever ends the run.
    fn sample(&mut self, _step: usize, _adapter: Adapter) -> Result<()> {
        Ok(())
    }
    /// Asked between micro-batches; true saves a checkpoint and ends the run.
    fn should_stop(&self) -> bool {
        false
    }
}

/// Watches nothing.
impl Observer for () {}
