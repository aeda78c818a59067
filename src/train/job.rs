//! One fine-tuning run, step by step.

use super::adapter::{Start, existing, fresh, to_adapter};
use super::batch::{MicroBatch, Order};
use super::checkpoint::{self, Saved};
use super::data::{self, DataReport, Row};
use super::recipe::{DEFAULT_EPOCHS, Recipe};
use super::report::{MemoryReport, StepReport};
use super::trainer::{Trainer, TrainerOptions, Update, live_peak};
use crate::error::{Error, Result};
use crate::format::peft::{Adapter, AdapterConfig};
use crate::model::LoadedModel;
use crate::tensor::DType;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Short micro-batches of one step run together up to this many tokens: from there on products no longer gain from
/// more rows (SmolLM2 on 2 cores, 95-token micro-batches: 97 tok/s apart, 2 × 512 tokens: 220).
const MERGED_TOKENS: usize = 512;

/// … as long as their activations stay below this, so that a small batch still means little memory.
const MERGED_BYTES: usize = 1 << 30;

/// A run between two optimizer steps.
pub struct Job {
    recipe: Recipe,
    config: AdapterConfig,
    scale: f32,
    trainer: Trainer,
    rows: Vec<Row>,
    order: Order,
    report: DataReport,
    /// Items to train on, over all epochs.
    items: usize,
    total_steps: usize,
    /// Optimizer steps done.
    done: usize,
    /// Tokens that the training program takes at once.
    room: usize,
    began: Instant,
    /// A step that is being computed in turns.
    pending: Option<Pending>,
}

/// A step between two turns.
struct Pending {
    batches: Vec<MicroBatch>,
    counted: usize,
    /// The micro-batch that is being computed.
    at: usize,
    /// The op that it goes on with; `None` before its first.
    next_op: Option<usize>,
    sum: f64,
    tokens: usize,
    /// Seconds of computing.
    seconds: f64,
}

/// What one step's micro-batches added up to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Accumulated {
    /// Mean over the counted tokens, in nat.
    pub loss: f64,
    /// Tokens processed.
    pub tokens: usize,
    /// Tokens counted.
    pub counted: usize,
}

impl Job {
    /// Reads the data, makes or loads the adapter and compiles the programs; goes on from `recipe.resume`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a recipe that does not fit model, data or checkpoint, with field and value; those of
    /// [`data::read`], of reading adapters, and of the device.
    pub fn new(model: &Arc<LoadedModel>, recipe: &Recipe) -> Result<Self> {
        check(model, recipe)?;
        let (rows, report) = data::read(recipe, model.tokenizer()?, model.chat.as_ref())?;
        Self::build(model, recipe, rows, report, None)
    }

    /// As [`Job::new`], with rows from memory instead of `recipe.data`, and an adapter from memory instead of
    /// `recipe.init_adapter`.
    ///
    /// # Errors
    /// As [`Job::new`]; [`Error::Invalid`] where no row has a token that the loss counts.
    pub fn from_rows(
        model: &Arc<LoadedModel>,
        recipe: &Recipe,
        rows: Vec<Row>,
        init: Option<&Adapter>,
    ) -> Result<Self> {
        check(model, recipe)?;
        let mut report = DataReport::default();
        let given = rows.len();
        let rows: Vec<Row> = rows.into_iter().filter_map(|row| report.take(row, recipe)).collect();
        if rows.is_empty() {
            let limit = recipe.max_length;
            return Err(Error::invalid(format!(
                "none of the {given} examples has a token that the loss counts within max_length {limit}"
            )));
        }
        Self::build(model, recipe, rows, report, init)
    }

    fn build(
        model: &Arc<LoadedModel>,
        recipe: &Recipe,
        rows: Vec<Row>,
        mut report: DataReport,
        init: Option<&Adapter>,
    ) -> Result<Self> {
        let config = model.config();
        let seed = recipe.shuffle.then_some(recipe.seed);
        let order = if recipe.packing { Order::bins(&rows, recipe.max_length, seed) } else { Order::rows(&rows, seed) };
        if recipe.packing {
            report.bins = order.len();
        }
        let saved = recipe.resume.as_deref().map(|folder| Saved::read(folder, recipe, config, &rows)).transpose()?;
        let start = match (&saved, init, &recipe.init_adapter) {
            (Some(saved), ..) => existing(&saved.adapter, &saved.folder.display().to_string(), recipe, config)?,
            (None, Some(adapter), _) => existing(adapter, "the given adapter", recipe, config)?,
            (None, None, Some(folder)) => {
                existing(&Adapter::read(folder, config)?, &folder.display().to_string(), recipe, config)?
            }
            (None, None, None) => fresh(recipe, config)?,
        };
        let Start { config: mut adapter, layout, scale, params } = start;
        adapter.base_model.get_or_insert_with(|| model.name.clone());
        let per_step = recipe.batch_size * recipe.grad_accum;
        // A run may hold all sequences of a step, whatever its tokens: their bounds take no room worth counting.
        let (step_tokens, seqs) = order.largest(&rows, per_step);
        let mut options = TrainerOptions {
            tokens: order.largest(&rows, recipe.batch_size).0,
            seqs,
            max_len: recipe.max_length,
            dropout: recipe.dropout,
            recompute: recipe.recompute,
            scale,
            optim: recipe.optim,
            scale_loss: model.device.limits().activations == DType::F16,
        };
        let merged = step_tokens.min(MERGED_TOKENS).min(model.device.limits().max_step_rows);
        if merged > options.tokens {
            let together = TrainerOptions { tokens: merged, ..options };
            if live_peak(&*model.device, config, &model.weights, &layout, &together)? <= MERGED_BYTES {
                options = together;
            }
        }
        let mut trainer = Trainer::new(model.device.clone(), config, &model.weights, layout, &options)?;
        trainer.set_params(&params)?;
        let items = match recipe.max_steps {
            Some(steps) => steps * per_step,
            None => ((recipe.epochs.unwrap_or(DEFAULT_EPOCHS) * order.len() as f64).round() as usize).max(1),
        };
        let mut done = 0;
        if let Some(saved) = saved {
            trainer.set_moments(&saved.moments)?;
            done = saved.step;
        }
        Ok(Self {
            recipe: recipe.clone(),
            config: adapter,
            scale,
            trainer,
            rows,
            order,
            report,
            items,
            total_steps: items.div_ceil(per_step),
            done,
            room: options.tokens,
            began: Instant::now(),
            pending: None,
        })
    }

    /// Bytes on the device.
    pub fn memory(&self) -> &MemoryReport {
        self.trainer.memory()
    }

    /// The data that was read.
    pub fn data(&self) -> &DataReport {
        &self.report
    }

    /// Optimizer steps done, those before a resumed checkpoint included.
    pub fn steps_done(&self) -> usize {
        self.done
    }

    /// Optimizer steps of the whole run.
    pub fn total_steps(&self) -> usize {
        self.total_steps
    }

    /// True after the last step.
    pub fn is_done(&self) -> bool {
        self.done >= self.total_steps
    }

    /// One optimizer step.
    ///
    /// # Errors
    /// [`Error::Invalid`] after the last step, or with the step's number where loss or gradient are not finite;
    /// [`Error::Device`].
    pub fn step(&mut self) -> Result<StepReport> {
        self.step_unless(&|| false)?.ok_or_else(|| Error::internal("a step ended early"))
    }

    /// As [`Job::step`]; asks `stop` between micro-batches and gives `None`, with the step undone, once it says so.
    ///
    /// # Errors
    /// As [`Job::step`].
    pub fn step_unless(&mut self, stop: &dyn Fn() -> bool) -> Result<Option<StepReport>> {
        let start = Instant::now();
        let Some(sum) = self.accumulate(stop)? else { return Ok(None) };
        let (grad_norm, lr) = self.update()?;
        Ok(Some(self.report(sum, grad_norm, lr, start.elapsed().as_secs_f64())))
    }

    /// Works on a step until `deadline`, but for the device's smallest unit of work (one op on the CPU, a micro-batch elsewhere)
    /// and for the optimizer's part, which is done as a whole. Gives the step's report when it is complete.
    ///
    /// # Errors
    /// As [`Job::step`].
    pub fn turn(&mut self, deadline: Instant) -> Result<Option<StepReport>> {
        let start = Instant::now();
        let mut pending = match self.pending.take() {
            Some(pending) => pending,
            None => {
                let batches = self.batches()?;
                let counted = batches.iter().map(MicroBatch::counted).sum();
                Pending { batches, counted, at: 0, next_op: None, sum: 0.0, tokens: 0, seconds: 0.0 }
            }
        };
        while let Some(batch) = pending.batches.get(pending.at) {
            let first = match pending.next_op {
                Some(op) => op,
                None => {
                    let seed = dropout_seed(self.recipe.seed, self.done * self.recipe.grad_accum + pending.at);
                    self.trainer.begin(batch, 1.0 / pending.counted as f32, seed)?;
                    0
                }
            };
            pending.next_op = self.trainer.go_on(first, deadline)?;
            if pending.next_op.is_none() {
                pending.sum += self.trainer.loss(batch)?;
                pending.tokens += batch.ids.len();
                pending.at += 1;
            }
            if Instant::now() >= deadline {
                pending.seconds += start.elapsed().as_secs_f64();
                self.pending = Some(pending);
                return Ok(None);
            }
        }
        let Pending { sum, tokens, counted, seconds, .. } = pending;
        let loss = sum / counted as f64;
        self.finite("loss", loss)?;
        let (grad_norm, lr) = self.update()?;
        let seconds = seconds + start.elapsed().as_secs_f64();
        Ok(Some(self.report(Accumulated { loss, tokens, counted }, grad_norm, lr, seconds)))
    }

    fn report(&self, sum: Accumulated, grad_norm: f32, lr: f64, seconds: f64) -> StepReport {
        StepReport {
            step: self.done,
            total_steps: self.total_steps,
            epoch: self.position(self.done) as f64 / self.order.len() as f64,
            loss: sum.loss,
            grad_norm,
            lr,
            tokens: sum.tokens,
            counted: sum.counted,
            tok_s: sum.tokens as f64 / seconds.max(1e-9),
            elapsed_s: self.began.elapsed().as_secs_f64(),
        }
    }

    /// The next step's micro-batches.
    fn batches(&mut self) -> Result<Vec<MicroBatch>> {
        if self.is_done() {
            return Err(Error::invalid(format!("the run has ended after {} steps", self.done)));
        }
        let (first, end) = (self.position(self.done), self.position(self.done + 1));
        let groups = self.groups(first..end);
        Ok(groups.iter().map(|rows| MicroBatch::new(rows.iter().map(|r| &self.rows[*r]))).collect())
    }

    /// First half of a step: adds up the gradients of its micro-batches. `None` where `stop` said so; the
    /// gradients are cleared then.
    ///
    /// # Errors
    /// As [`Job::step`].
    pub fn accumulate(&mut self, stop: &dyn Fn() -> bool) -> Result<Option<Accumulated>> {
        let batches = self.batches()?;
        let counted: usize = batches.iter().map(MicroBatch::counted).sum();
        let (mut sum, mut tokens) = (0.0, 0);
        for (i, batch) in batches.iter().enumerate() {
            if stop() {
                self.trainer.clear_gradients()?;
                return Ok(None);
            }
            let seed = dropout_seed(self.recipe.seed, self.done * self.recipe.grad_accum + i);
            sum += self.trainer.micro_batch(batch, 1.0 / counted as f32, seed)?;
            tokens += batch.ids.len();
        }
        let loss = sum / counted as f64;
        self.finite("loss", loss)?;
        Ok(Some(Accumulated { loss, tokens, counted }))
    }

    /// Second half of a step: AdamW on what was added up. Gives the gradient's norm and the learning rate.
    ///
    /// # Errors
    /// As [`Job::step`].
    pub fn update(&mut self) -> Result<(f32, f64)> {
        let r = &self.recipe;
        let lr = r.lr * r.schedule.factor(self.done, r.warmup_steps, self.total_steps);
        let (weight_decay, max_grad_norm) = (r.weight_decay, r.max_grad_norm);
        let norm = self.trainer.update(&Update { lr, weight_decay, max_grad_norm, step: self.done + 1 })?;
        self.finite("norm of the gradient", f64::from(norm))?;
        self.done += 1;
        Ok((norm, lr))
    }

    /// The adapter as it is now.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn adapter(&self) -> Result<Adapter> {
        to_adapter(&self.config, self.trainer.layout(), self.scale, &self.trainer.params()?)
    }

    /// The gradients added up so far, under the names and in the shapes of the adapter.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn gradients(&self) -> Result<Adapter> {
        to_adapter(&self.config, self.trainer.layout(), self.scale, &self.trainer.gradients()?)
    }

    /// Writes `checkpoint-N` into `folder`: what [`Recipe::resume`] needs. Gives its path.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Device`].
    pub fn save(&self, folder: &Path) -> Result<PathBuf> {
        let moments = self.trainer.moments()?;
        let saved = Saved { folder: folder.to_owned(), adapter: self.adapter()?, moments, step: self.done };
        let position = self.position(self.done);
        checkpoint::write(&saved, &self.recipe, &self.rows, position)
    }

    /// Rows of a step's micro-batches. Neighbours that fit the training program together run as one: the sums are
    /// the same, and the weights are read once for all of them.
    fn groups(&mut self, items: Range<usize>) -> Vec<Vec<usize>> {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut taken = usize::MAX;
        for at in items.clone().step_by(self.recipe.batch_size) {
            let batch = at..(at + self.recipe.batch_size).min(items.end);
            let rows: Vec<usize> = batch.flat_map(|i| self.order.item(i).to_vec()).collect();
            let tokens: usize = rows.iter().map(|r| self.rows[*r].ids.len()).sum();
            match groups.last_mut() {
                Some(group) if taken + tokens <= self.room => {
                    group.extend(rows);
                    taken += tokens;
                }
                _ => {
                    groups.push(rows);
                    taken = tokens;
                }
            }
        }
        groups
    }

    /// Items consumed after `steps` steps.
    fn position(&self, steps: usize) -> usize {
        (steps * self.recipe.batch_size * self.recipe.grad_accum).min(self.items)
    }

    fn finite(&self, what: &str, value: f64) -> Result<()> {
        if value.is_finite() {
            return Ok(());
        }
        let step = self.done + 1;
        Err(Error::invalid(format!("step {step}: the {what} is {value}; a lower lr or a longer warm-up may help")))
    }
}

fn check(model: &LoadedModel, recipe: &Recipe) -> Result<()> {
    recipe.validate()?;
    let (length, most) = (recipe.max_length, model.config().max_positions);
    if length > most {
        return Err(Error::invalid(format!(
            "max_length is {length}, expected at most {most}, the model's context length"
        )));
    }
    Ok(())
}

/// A seed for a micro-batch, counted from the start of the run: SplitMix64's mix, so that neighbours differ in all bits.
fn dropout_seed(seed: u64, micro_batch: usize) -> u32 {
    let mut z = seed ^ (micro_batch as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 32) as u32
}
