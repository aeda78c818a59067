//! One fine-tuning run, step by step. The file is long because making a run checks and places all that a recipe names.

mod agree;
mod evaluation;
mod pairs;
mod state;

use pairs::Pairs;

use super::adapter::{Start, existing, fresh};
use super::batch::{MicroBatch, Order};
use super::checkpoint::{self, Best, Saved};
use super::data::{self, DataReport, Row};
use super::evaluate::{Evaluating, Evaluation};
use super::outcome::Outcome;
use super::preference::{self, PairReport};
use super::recipe::{DEFAULT_EPOCHS, Recipe};
use super::report::{MemoryReport, StepReport};
use super::rows::Rows;
use super::trainer::{Reference, Trainer, TrainerOptions, Update, live_peak};
use super::whole;
use crate::collective::{Alone, Collective};
use crate::error::{Error, Result};
use crate::format::peft::{Adapter, AdapterConfig};
use crate::model::LoadedModel;
use crate::model::decoder::Objective;
use crate::tensor::DType;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Short micro-batches of one step run together up to this many tokens: from there on products no longer gain from
/// more rows (SmolLM2 on 2 cores, 95-token micro-batches: 97 tok/s apart, 2 × 512 tokens: 220).
const MERGED_TOKENS: usize = 512;

/// … as long as their activations stay below this, so that a small batch still means little memory.
const MERGED_BYTES: usize = 1 << 30;

/// A run between two optimizer steps.
pub struct Job {
    recipe: Recipe,
    model: Arc<LoadedModel>,
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
    /// The processes of the run.
    group: Arc<dyn Collective>,
    /// An evaluation that is being computed in turns.
    evaluating: Option<Evaluating>,
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

/// What one step's micro-batches added up to, over all processes.
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
        Self::among(model, recipe, Arc::new(Alone))
    }

    /// As [`Job::new`], as one of several processes: a step has `grad_accum` micro-batches for each of them, and every one takes
    /// every so-manieth; all make the same update.
    ///
    /// # Errors
    /// As [`Job::new`]; [`Error::Network`]; [`Error::Invalid`] where this process differs from rank 0 in what decides the
    /// numbers, with what and both values.
    pub fn among(model: &Arc<LoadedModel>, recipe: &Recipe, group: Arc<dyn Collective>) -> Result<Self> {
        check(model, recipe)?;
        let (rows, report) = match recipe.preference {
            Some(_) => preference::data::read(recipe, model.tokenizer()?, model.chat.as_ref())?,
            None => data::read(recipe, model.tokenizer()?, model.chat.as_ref())?,
        };
        Self::build(model, recipe, rows, report, None, group)
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
            return Self::build(model, recipe, rows, report, init, Arc::new(Alone));
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
        Self::build(model, recipe, taken, report, init, Arc::new(Alone))
    }

    fn build(
        model: &Arc<LoadedModel>,
        recipe: &Recipe,
        rows: Rows,
        mut report: DataReport,
        init: Option<&Adapter>,
        group: Arc<dyn Collective>,
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
        let saved = saved
            .map(|folder| Saved::read(&folder, recipe, &model.checkpoint, &rows, group.world_size()))
            .transpose()?;
        let start = start(model, recipe, saved.as_ref(), init)?;
        let Start { config: mut adapter, layout, scale, params } = start;
        adapter.base_model.get_or_insert_with(|| model.name.clone());
        let per_step = recipe.batch_size * recipe.grad_accum * group.world_size();
        // A run may hold all sequences of a step, whatever its tokens: their bounds take no room worth counting.
        let (step_tokens, seqs) = order.largest(&rows, recipe.batch_size * recipe.grad_accum);
        let mut options = TrainerOptions {
            tokens: order.largest(&rows, recipe.batch_size).0.max(evaluation.as_ref().map_or(0, Evaluation::longest)),
            seqs,
            max_len: recipe.max_length,
            dropout: recipe.dropout,
            recompute: recipe.recompute,
            offload: recipe.activation_offloading,
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
        if saved.is_none() && init.is_none() && recipe.init_adapter.is_none() {
            trainer.start_magnitudes()?;
        }
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
            Ok::<_, Error>(Pairs { preference, reference, known: vec![None; rows.len()], pending: None })
        });
        let pairs = pairs.transpose()?;
        let (mut done, mut best) = (0, Best::default());
        if let Some(saved) = saved {
            trainer.set_moments(&saved.moments)?;
            (done, best) = (saved.step, saved.best);
        }
        let me = Self {
            recipe: recipe.clone(),
            model: model.clone(),
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
            group,
            evaluating: None,
        };
        me.agree(model)?;
        Ok(me)
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

    /// Whole passes over the data that the steps done make up.
    pub fn epochs_done(&self) -> usize {
        self.position(self.done) / self.order.len().max(1)
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

    /// Works on a step until `deadline`, but for the device's smallest unit of work ([`crate::backend::Executable::run_part`])
    /// and for the optimizer's part, which is done as a whole; a step of several processes is one unit, too. Gives the step's
    /// report when it is complete.
    ///
    /// # Errors
    /// As [`Job::step`].
    pub fn turn(&mut self, deadline: Instant) -> Result<Option<StepReport>> {
        if self.group.world_size() > 1 {
            return self.step().map(Some);
        }
        if self.pairs.is_some() {
            return self.turn_pairs(deadline);
        }
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
                    let seed = self.dropout_seed(pending.at);
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
        Ok(Some(self.report(Accumulated { loss, tokens, counted, pairs: None }, grad_norm, lr, seconds)))
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
        let mut counted = [batches.iter().map(MicroBatch::counted).sum::<usize>() as f64];
        self.group.sum(&mut counted)?;
        let counted = counted[0];
        let (mut sum, mut tokens, mut stopped) = (0.0, 0, false);
        for (i, batch) in batches.iter().enumerate() {
            stopped = stop();
            if stopped {
                break;
            }
            sum += self.trainer.micro_batch(batch, 1.0 / counted as f32, self.dropout_seed(i))?;
            tokens += batch.ids.len();
        }
        let mut sums = [sum, tokens as f64];
        if !self.together(&mut sums, stopped)? {
            return Ok(None);
        }
        let loss = sums[0] / counted;
        self.finite("loss", loss)?;
        Ok(Some(Accumulated { loss, tokens: sums[1] as usize, counted: counted as usize, pairs: None }))
    }

    /// Ends the first half of a step: sums over all processes, of some numbers and of the gradients. False, with the gradients
    /// cleared, where one of them was told to stop.
    fn together(&mut self, numbers: &mut [f64], stopped: bool) -> Result<bool> {
        let mut all = numbers.to_vec();
        all.push(f64::from(u8::from(stopped)));
        self.group.sum(&mut all)?;
        if all.pop().is_some_and(|stopped| stopped > 0.0) {
            self.trainer.clear_gradients()?;
            return Ok(false);
        }
        numbers.copy_from_slice(&all);
        self.trainer.sum_gradients(&*self.group)?;
        Ok(true)
    }

    /// Of this step's micro-batch `i`; every process has masks of its own.
    fn dropout_seed(&self, i: usize) -> u32 {
        let seed = self.recipe.seed.wrapping_add((self.group.rank() as u64) << 32);
        dropout_seed(seed, self.done * self.recipe.grad_accum + i)
    }

    /// Second half of a step: the optimizer on what was added up. Gives the gradient's norm and the learning rate.
    ///
    /// # Errors
    /// As [`Job::step`].
    pub fn update(&mut self) -> Result<(f32, f64)> {
        let r = &self.recipe;
        let lr = r.curve(self.total_steps).at(self.done);
        let (weight_decay, max_grad_norm) = (r.weight_decay, r.max_grad_norm);
        let norm = self.trainer.update(&Update { lr, weight_decay, max_grad_norm, step: self.done + 1 })?;
        self.finite("norm of the gradient", f64::from(norm))?;
        self.done += 1;
        Ok((norm, lr))
    }

    /// What the evaluations have shown.
    pub fn best(&self) -> &Best {
        &self.best
    }

    /// Rows of this process's micro-batches of a step. Neighbours that fit the training program together run as one: the sums
    /// are the same, and the weights are read once for all of them.
    fn groups(&mut self, items: Range<usize>) -> Vec<Vec<u32>> {
        let mut groups: Vec<Vec<u32>> = Vec::new();
        let mut taken = usize::MAX;
        let (rank, world_size) = (self.group.rank(), self.group.world_size());
        for at in items.clone().step_by(self.recipe.batch_size).skip(rank).step_by(world_size) {
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
        (steps * self.recipe.batch_size * self.recipe.grad_accum * self.group.world_size()).min(self.items)
    }

    fn finite(&self, what: &str, value: f64) -> Result<()> {
        if value.is_finite() {
            return Ok(());
        }
        let step = self.done + 1;
        Err(Error::invalid(format!("step {step}: the {what} is {value}; a lower lr or a longer warm-up may help")))
    }
}

/// What a run starts from: a checkpoint, an adapter, or the model alone.
fn start(model: &Arc<LoadedModel>, recipe: &Recipe, saved: Option<&Saved>, init: Option<&Adapter>) -> Result<Start> {
    if recipe.full_finetuning {
        if init.is_some() {
            return Err(Error::invalid("full_finetuning trains the model's own weights: it starts from no adapter"));
        }
        return whole::full(model, saved.map(|saved| saved.outcome.whole()));
    }
    let (checkpoint, config) = (&model.checkpoint, model.config());
    let go_on = |adapter: &Adapter, origin: &str| {
        let given = (!adapter.config.modules_to_save.is_empty()).then_some(&adapter.saved);
        whole::beside(existing(adapter, origin, recipe, config)?, recipe, checkpoint, given)
    };
    match (saved, init, &recipe.init_adapter) {
        (Some(Saved { outcome: Outcome::Adapter(adapter), folder, .. }), ..) => {
            go_on(adapter, &folder.display().to_string())
        }
        (Some(saved), ..) => {
            let folder = saved.folder.display();
            Err(Error::invalid(format!(
                "{folder} is a checkpoint of full_finetuning, which this recipe does not ask for"
            )))
        }
        (None, Some(adapter), _) => go_on(adapter, "the given adapter"),
        (None, None, Some(folder)) => go_on(&Adapter::read(folder, config)?, &folder.display().to_string()),
        (None, None, None) => whole::beside(fresh(recipe, config)?, recipe, checkpoint, None),
    }
}

/// A deadline for whoever has none: later than the end of any step.
fn unhurried() -> Instant {
    Instant::now() + Duration::from_secs(24 * 3600)
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
