//! Where the time of a decode step goes: each kernel on the device's clock, beside the step on the host's.

use super::adapters::AdapterBank;
use super::kv::PAGE;
use super::memory::KvType;
use super::steps::{Runner, StepInput, StepSizes, Steps};
use crate::backend::{Bindings, Timing};
use crate::error::Result;
use crate::model::LoadedModel;
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;

/// All launches of one kernel in a step.
#[derive(Clone, Debug, Serialize)]
pub struct KernelTime {
    /// The kernel, and of a product the size of its weight.
    pub label: String,
    /// Launches in a step.
    pub launches: usize,
    /// Seconds of all of them, median of the runs.
    pub seconds: f64,
}

/// One decode step.
#[derive(Clone, Debug, Serialize)]
pub struct ProfileReport {
    /// Sequences in the step.
    pub batch: usize,
    /// Adapters that they are spread over.
    pub adapters: usize,
    /// Seconds from writing the inputs to reading the tokens, median of the runs.
    pub step_s: f64,
    /// By kernel, the longest first. Clocks between launches cost time of their own: the sum may exceed `step_s`.
    pub kernels: Vec<KernelTime>,
}

/// Steps before the clocks count.
const WARM_UP: usize = 3;
/// Steps of which the median is taken.
const RUNS: usize = 20;

/// The step to time.
#[derive(Clone, Copy, Debug)]
pub struct ProfileOptions {
    /// Tokens that each sequence has in the cache.
    pub context: usize,
    /// Sequences; each decodes one token.
    pub batch: usize,
    /// Type of the cache.
    pub kv: KvType,
    /// Adapters that the sequences are spread over; 0: none.
    pub adapters: usize,
    /// Their rank.
    pub rank: usize,
}

/// Times a decode step.
///
/// # Errors
/// [`crate::Error::Unsupported`] where the device cannot time launches; those of a step.
pub fn profile(model: Arc<LoadedModel>, options: &ProfileOptions) -> Result<ProfileReport> {
    let ProfileOptions { context, batch, kv, adapters, rank } = *options;
    let pages = (context + 1).div_ceil(PAGE);
    let sizes = StepSizes {
        max_rows: batch,
        max_seqs: batch,
        max_gathered: batch,
        max_len: pages * PAGE,
        kv_rows: batch * pages * PAGE,
        kv_dtype: kv.dtype(&model)?,
    };
    let none = Bindings::new();
    let bank = (adapters > 0).then(|| AdapterBank::new(model.clone(), adapters, rank, false)).transpose()?;
    let layout = bank.as_ref().map(|bank| bank.layout().clone());
    let mut steps = Steps::new(model, sizes, layout, bank.as_ref().map_or(&none, AdapterBank::bindings))?;
    let rows = 0..batch as u32;
    let row_of = |seq: u32| seq * (pages * PAGE) as u32 + context as u32;
    let input = StepInput {
        ids: rows.clone().map(|i| i + 1).collect(),
        positions: vec![context as u32; batch],
        seqs: rows.clone().collect(),
        slots: rows.clone().map(row_of).collect(),
        // Sorted, as the engine does it.
        adapters: (0..batch).map(|i| if adapters > 0 { (i * adapters / batch) as u32 } else { u32::MAX }).collect(),
        table: (0..(batch * pages) as u32).collect(),
        gather: rows.collect(),
        sampling: vec![[0.0, 0.0, 1.0, 0.0]; batch],
        uniforms: vec![0.0; batch],
    };
    let mut seconds = Vec::with_capacity(RUNS);
    for run in 0..WARM_UP + RUNS {
        let start = Instant::now();
        steps.launch(&input)?;
        steps.finish()?;
        if run >= WARM_UP {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    let runs = (0..RUNS).map(|_| steps.profile(&input)).collect::<Result<Vec<Vec<Timing>>>>()?;
    Ok(ProfileReport { batch, adapters, step_s: median(&mut seconds), kernels: by_kernel(&runs) })
}

fn by_kernel(runs: &[Vec<Timing>]) -> Vec<KernelTime> {
    let mut kernels: Vec<KernelTime> = Vec::new();
    for i in 0..runs[0].len() {
        let label = &runs[0][i].label;
        let seconds = median(&mut runs.iter().map(|run| run[i].seconds).collect::<Vec<_>>());
        match kernels.iter_mut().find(|kernel| kernel.label == *label) {
            Some(kernel) => {
                kernel.launches += 1;
                kernel.seconds += seconds;
            }
            None => kernels.push(KernelTime { label: label.clone(), launches: 1, seconds }),
        }
    }
    kernels.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    kernels
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
