//! How fast a model is fine-tuned on a device, and what that takes: the trainer's own steps on random tokens.

use super::adapter::{Start, fresh};
use super::batch::MicroBatch;
use super::data::Row;
use super::optim::Optim;
use super::recipe::Recipe;
use super::report::MemoryReport;
use super::trainer::{Trainer, TrainerOptions, Update};
use crate::error::{Error, Result};
use crate::model::LoadedModel;
use crate::tensor::DType;
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct TrainBenchOptions {
    /// Sequences of a step.
    pub batch: usize,
    /// Tokens of each.
    pub length: usize,
    /// LoRA rank, of adapters on all seven projections.
    pub rank: usize,
    /// Compute activations again in the backward pass.
    pub recompute: bool,
    /// Optimizer.
    pub optim: Optim,
    /// Runs after one warm-up; the median is reported.
    pub runs: usize,
}

/// What was measured; `serde` gives the `train` object of `runtime bench`.
#[derive(Clone, Debug, Serialize)]
pub struct TrainBenchReport {
    /// Tokens a second.
    pub tok_s: f64,
    /// Seconds of a step: forward, backward, AdamW.
    pub step_s: f64,
    /// Seconds until the first step could start: planning, allocating, compiling.
    pub compile_s: f64,
    /// Sequences of a step.
    pub batch: usize,
    /// Tokens of each.
    pub length: usize,
    /// LoRA rank.
    pub rank: usize,
    /// Whether activations were computed again.
    pub recompute: bool,
    /// Optimizer.
    pub optim: Optim,
    /// Loss of the last step, in nat: about ln(vocabulary) for random weights.
    pub loss: f64,
    /// Bytes on the device.
    pub memory: MemoryReport,
    /// All of them.
    pub memory_total: u64,
}

/// Measures.
///
/// # Errors
/// [`Error::Invalid`] for sizes that cannot be run; those of [`Trainer::new`] and of the steps.
pub fn run(model: &Arc<LoadedModel>, options: &TrainBenchOptions) -> Result<TrainBenchReport> {
    let TrainBenchOptions { batch, length, rank, recompute, optim, runs } = *options;
    let config = model.config();
    if batch == 0 || length < 2 || length > config.max_positions || runs == 0 {
        return Err(Error::invalid(format!(
            "the training bench needs 1 sequence and 1 run at least, and 2 to {} tokens in a sequence",
            config.max_positions
        )));
    }
    let recipe = Recipe { rank: Some(rank), batch_size: batch, max_length: length, ..Recipe::default() };
    recipe.validate()?;
    let began = Instant::now();
    let Start { layout, scale, params, .. } = fresh(&recipe, config)?;
    let scale_loss = model.device.limits().activations == DType::F16;
    let sizes = TrainerOptions {
        tokens: batch * length,
        seqs: batch,
        max_len: length,
        recompute,
        scale,
        optim: optim.into(),
        scale_loss,
        ..TrainerOptions::default()
    };
    let mut trainer = Trainer::new(model.device.clone(), config, &model.weights, layout, &sizes)?;
    trainer.set_params(&params)?;
    let compile_s = began.elapsed().as_secs_f64();
    let token = |row: usize, i: usize| (1 + (row * 7919 + i * 31 + i * i % 17) % (config.vocab - 1).max(1)) as u32;
    let rows: Vec<Row> = (0..batch)
        .map(|row| Row {
            ids: (0..length).map(|i| token(row, i)).collect(),
            counted: vec![true; length],
            line: row + 1,
        })
        .collect();
    let data = MicroBatch::new(&rows);
    let counted = data.counted() as f64;
    let (mut seconds, mut loss) = (Vec::with_capacity(runs), 0.0);
    for step in 1..=runs + 1 {
        let start = Instant::now();
        loss = trainer.micro_batch(&data, 1.0 / counted as f32, step as u32)? / counted;
        // Reading the norm waits for the device.
        trainer.update(&Update { lr: recipe.lr, weight_decay: recipe.weight_decay, max_grad_norm: 1.0, step })?;
        if step > 1 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    let step_s = seconds[seconds.len() / 2];
    let memory = *trainer.memory();
    Ok(TrainBenchReport {
        tok_s: (batch * length) as f64 / step_s,
        step_s,
        compile_s,
        batch,
        length,
        rank,
        recompute,
        optim,
        loss,
        memory,
        memory_total: memory.total(),
    })
}
