//! One fine-tuning run, step by step.

mod pairs;
mod turn;

use pairs::Pairs;
use turn::Pending;

use super::adapter::{Start, existing, fresh, to_adapter};
use super::batch::{MicroBatch, Order};
use super::checkpoint::{self, Best, Saved};
use super::data::{self, DataReport, Row};
use super::evaluate::Evaluation;
use super::preference::{self, PairReport};
use super::recipe::{DEFAULT_EPOCHS, Recipe};
use super::report::{EvalReport, MemoryReport, StepReport};
use super::rows::Rows;
use super::trainer::{Reference, Trainer, TrainerOptions, Update, live_peak};
use crate::error::{Error, Result};
use crate::format::peft::{Adapter, AdapterConfig};
use crate::model::LoadedModel;
use crate::model::decoder::Objective;
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
    rows: Rows,
    order: Order,
    report: DataReport,
    /// Items to train on, over all epochs.
    items: usize,
    total_steps: usize,
    /// Optimizer steps done.
    done: usize,
    /// Tokens and rows that the training program takes at once.
    room: (usize, usize),
    evaluation: Option<Evaluation>,
    best: Best,
    began: Instant,
    /// In preference tuning, rows are pairs.
    pairs: Option<Pairs>,
    /// A step that is being computed in turns.
    pending: Option<Pending>,
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
    /// What the pairs came to, in preference tuning.
    pub pairs: Option<PairReport>,
}

impl Job {
    /// Reads the data, makes or loads the adapter and compiles the programs; goes on from `recipe.resume`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a recipe that does not fit model, data or checkpoint, with field and value; those of
    /// [`data::read`], of reading adapters, and of the device.
    pub fn new(model: &Arc<LoadedModel>, recipe: &Recipe) -> Result<Self> {
        check(model, recipe)?;
        let (rows, report) = match recipe.preference {
            Some(_) => preference::data::read(recipe, model.tokenizer()?, model.chat.as_ref())?,
            None => data::read(recipe, model.tokenizer()?, model.chat.as_ref())?,
        };
        Self::build(model, recipe, rows, report, None)
    }

    /// As [`Job::new`], with rows from memory instead of `recipe.data` (in preference tuning two for a pair, chosen first), and an
    /// adapter from memory instead of `recipe.init_adapter`.
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
        if recipe.preference.is_some() {
            let (rows, report) = preference::data::take(recipe, &rows)?;
            return Self::build(model, recipe, rows, report, init);
        }
        let mut report = DataReport::default();
        let (given, mut taken) = (rows.len(), Rows::new(None));
        taken.next_file();
        for row in rows {
            if let Some(row) = report.take(row, recipe) {
                taken.push(&row)?;
            }
        }
        if taken.is_empty() {
            let limit = recipe.max_length;
            return Err(Error::invalid(format!(
                "none of the {given} examples has a token that the loss counts within max_length {limit}"
            )));
        }
        report.measure(&taken);
        Self::build(model, recipe, taken, report, init)
    }

    fn build(
        model: &Arc<LoadedModel>,
        recipe: &Recipe,
        rows: Rows,
        mut report: DataReport,
        init: Option<&Adapter>,
    ) -> Result<Self> {
        let config = model.config();
        let evaluation = Evaluation::new(recipe, model)?;
        let seed = recipe.shuffle.then_some(recipe.seed);
        let weights: Vec<f64> = recipe.data.iter().map(|file| file.weight).collect();
        let order = match (recipe.preference, recipe.packing) {
            (Some(_), _) => Order::pairs(&rows, &weights, seed),
            (None, true) => Order::bins(&rows, &weights, recipe.max_length, seed),
            (None, false) => Order::rows(&rows, &weights, seed),
        };
        if recipe.packing {
            report.bins = order.distinct();
        }
        let saved = match recipe.resume.as_deref() {
            Some(auto) if auto == Path::new("auto") => checkpoint::latest(&recipe.output),
            given => given.map(Path::to_owned),
        };
        let saved = saved.map(|folder| Saved::read(&folder, recipe, config, &rows)).transpose()?;
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
            tokens: order.largest(&rows, recipe.batch_size).0.max(evaluation.as_ref().map_or(0, Evaluation::longest)),
            seqs,
            max_len: recipe.max_length,
            dropout: recipe.dropout,
            recompute: recipe.recompute,
            scale,
            optim: recipe.optimizer(),
            neftune: recipe.neftune_noise_alpha,
            smoothing: recipe.label_smoothing,
            evaluate: evaluation.is_some(),
            scale_loss: model.device.limits().activations == DType::F16,
            objective: if recipe.preference.is_some() { Objective::Pairs } else { Objective::Tokens },
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
        let pairs = recipe.preference.map(|preference| {
            let sizes = [options.tokens, options.seqs, options.max_len];
            let reference = preference
                .needs_reference()
                .then(|| Reference::new(&*model.device, config, &model.weights, sizes))
                .transpose()?;
            Ok::<_, Error>(Pairs { preference, reference, known: vec![None; rows.len()] })
        });
        let pairs = pairs.transpose()?;
        let (mut done, mut best) = (0, Best::default());
        if let Some(saved) = saved {
            trainer.set_moments(&saved.moments)?;
            (done, best) = (saved.step, saved.best);
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
            room: (options.tokens, seqs),
            evaluation,
            best,
            began: Instant::now(),
            pairs,
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

    /// Hash of the tokens and masks that are trained on, in hexadecimal.
    pub fn data_hash(&self) -> String {
        checkpoint::data_hash(&self.rows)
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
            pairs: sum.pairs,
        }
    }

    /// The next step's micro-batches.
    fn batches(&mut self) -> Result<Vec<MicroBatch>> {
        if self.is_done() {
            return Err(Error::invalid(format!("the run has ended after {} steps", self.done)));
        }
        let (first, end) = (self.position(self.done), self.position(self.done + 1));
        let groups = self.groups(first..end);
        groups.iter().map(|rows| batch(&self.rows, rows)).collect()
    }

    /// First half of a step: adds up the gradients of its micro-batches. `None` where `stop` said so; the
    /// gradients are cleared then.
    ///
    /// # Errors
    /// As [`Job::step`].
    pub fn accumulate(&mut self, stop: &dyn Fn() -> bool) -> Result<Option<Accumulated>> {
        if self.pairs.is_some() {
            return self.accumulate_pairs(stop);
        }
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
        Ok(Some(Accumulated { loss, tokens, counted, pairs: None }))
    }

    /// Second half of a step: the optimizer on what was added up. Gives the gradient's norm and the learning rate.
    ///
    /// # Errors
    /// As [`Job::step`].
    pub fn update(&mut self) -> Result<(f32, f64)> {
        let update = self.next_update();
        let norm = self.trainer.update(&update)?;
        self.updated(norm, update.lr)
    }

    fn next_update(&self) -> Update {
        let r = &self.recipe;
        let lr = r.curve(self.total_steps).at(self.done);
        Update { lr, weight_decay: r.weight_decay, max_grad_norm: r.max_grad_norm, step: self.done + 1 }
    }

    /// The end of an update.
    fn updated(&mut self, norm: f32, lr: f64) -> Result<(f32, f64)> {
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
        let saved = Saved {
            folder: folder.to_owned(),
            adapter: self.adapter()?,
            moments,
            step: self.done,
            best: self.best.clone(),
        };
        let position = self.position(self.done);
        let path = checkpoint::write(&saved, &self.recipe, &self.rows, position)?;
        if let Some(limit) = self.recipe.save_total_limit {
            checkpoint::prune(folder, limit, &self.best)?;
        }
        Ok(path)
    }

    /// The evaluation set, where there is one.
    pub fn eval_data(&self) -> Option<&DataReport> {
        self.evaluation.as_ref().map(Evaluation::data)
    }

    /// Whether the evaluation set is due after the step that was just done.
    pub fn evaluation_due(&self) -> bool {
        let epochs = |steps: usize| self.position(steps) / self.order.len().max(1);
        let due = match self.recipe.eval_steps {
            Some(every) => self.done.is_multiple_of(every),
            None => self.done > 0 && epochs(self.done) > epochs(self.done - 1),
        };
        self.evaluation.is_some() && (due || self.is_done())
    }

    /// Measures the loss of the evaluation set. `None` without one.
    ///
    /// # Errors
    /// Those of [`Evaluation::run`].
    pub fn evaluate(&mut self) -> Result<Option<EvalReport>> {
        let Some(evaluation) = &self.evaluation else { return Ok(None) };
        let mut report = evaluation.run(&mut self.trainer, self.room, self.done)?;
        report.best = self.best.see(self.done, report.loss, self.recipe.early_stopping_threshold);
        Ok(Some(report))
    }

    /// What the evaluations have shown.
    pub fn best(&self) -> &Best {
        &self.best
    }

    /// Rows of a step's micro-batches. Neighbours that fit the training program together run as one: the sums are
    /// the same, and the weights are read once for all of them.
    fn groups(&mut self, items: Range<usize>) -> Vec<Vec<u32>> {
        let mut groups: Vec<Vec<u32>> = Vec::new();
        let mut taken = usize::MAX;
        for at in items.clone().step_by(self.recipe.batch_size) {
            let batch = at..(at + self.recipe.batch_size).min(items.end);
            let rows: Vec<u32> = batch.flat_map(|i| self.order.item(i)).collect();
            let tokens: usize = rows.iter().map(|r| self.rows.tokens(*r as usize)).sum();
            match groups.last_mut() {
                Some(group) if taken + tokens <= self.room.0 => {
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

/// Some rows as one micro-batch.
fn batch(rows: &Rows, which: &[u32]) -> Result<MicroBatch> {
    Ok(MicroBatch::new(&rows_of(rows, which)?))
}

fn rows_of(rows: &Rows, which: &[u32]) -> Result<Vec<Row>> {
    which.iter().map(|r| rows.get(*r as usize)).collect()
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
