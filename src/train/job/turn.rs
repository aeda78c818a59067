//! A step in turns: each ends with its deadline, but for the device's smallest unit of work.

use super::pairs::PairStep;
use super::{Accumulated, Job, dropout_seed};
use crate::error::Result;
use crate::train::batch::MicroBatch;
use crate::train::optimizer::Updating;
use crate::train::report::StepReport;
use std::time::Instant;

/// A step between two turns.
pub(super) struct Pending {
    stage: Stage,
    /// Seconds of computing.
    seconds: f64,
}

enum Stage {
    Rows(RowStep),
    Pairs(Box<PairStep>),
    /// The gradients are there; how far the optimizer has come.
    Update(Accumulated, Updating),
    /// All is done but for the report: norm of the gradient, learning rate.
    Updated(Accumulated, f32, f64),
}

/// The gradients of a step's micro-batches.
struct RowStep {
    batches: Vec<MicroBatch>,
    counted: usize,
    /// The micro-batch that is being computed.
    at: usize,
    /// Whether its inputs are in place.
    begun: bool,
    /// Where it goes on.
    next: Option<usize>,
    sum: f64,
    tokens: usize,
}

impl Job {
    /// Works on a step until `deadline`, but for the device's smallest unit of work (a part of an op on the CPU, some launches
    /// elsewhere). Gives the step's report when it is complete.
    ///
    /// # Errors
    /// As [`Job::step`].
    pub fn turn(&mut self, deadline: Instant) -> Result<Option<StepReport>> {
        let start = Instant::now();
        let mut pending = match self.pending.take() {
            Some(pending) => pending,
            None => Pending { stage: self.first_stage()?, seconds: 0.0 },
        };
        loop {
            let (stage, stopped) = self.stage(pending.stage, Some(deadline))?;
            if let Stage::Updated(sum, grad_norm, lr) = stage {
                let seconds = pending.seconds + start.elapsed().as_secs_f64();
                return Ok(Some(self.report(sum, grad_norm, lr, seconds)));
            }
            pending.stage = stage;
            if stopped || Instant::now() >= deadline {
                pending.seconds += start.elapsed().as_secs_f64();
                self.pending = Some(pending);
                return Ok(None);
            }
        }
    }

    /// Ends an update of the parameters that a turn has left in the middle: before they are read.
    ///
    /// # Errors
    /// As [`Job::step`].
    pub fn settle(&mut self) -> Result<()> {
        if let Some(Pending { stage: Stage::Update(..), .. }) = &self.pending
            && let Some(Pending { stage, seconds }) = self.pending.take()
        {
            let (stage, _) = self.stage(stage, None)?;
            self.pending = Some(Pending { stage, seconds });
        }
        Ok(())
    }

    fn first_stage(&mut self) -> Result<Stage> {
        if self.pairs.is_some() {
            return Ok(Stage::Pairs(Box::new(self.pair_step()?)));
        }
        let batches = self.batches()?;
        let counted = batches.iter().map(MicroBatch::counted).sum();
        Ok(Stage::Rows(RowStep { batches, counted, at: 0, begun: false, next: None, sum: 0.0, tokens: 0 }))
    }

    /// Works on a stage: it, or the one that follows, and whether the deadline came.
    fn stage(&mut self, stage: Stage, deadline: Option<Instant>) -> Result<(Stage, bool)> {
        match stage {
            Stage::Rows(mut step) => Ok(match self.rows(&mut step, deadline)? {
                Some(sum) => (Stage::Update(sum, Updating::default()), false),
                None => (Stage::Rows(step), true),
            }),
            Stage::Pairs(mut step) => Ok(match self.pairs_part(&mut step, deadline)? {
                true => (Stage::Update(self.pair_sum(&step)?, Updating::default()), false),
                false => (Stage::Pairs(step), true),
            }),
            Stage::Update(sum, mut at) => {
                let update = self.next_update();
                Ok(match self.trainer.update_part(&update, &mut at, deadline)? {
                    Some(norm) => {
                        let (norm, lr) = self.updated(norm, update.lr)?;
                        (Stage::Updated(sum, norm, lr), false)
                    }
                    None => (Stage::Update(sum, at), true),
                })
            }
            Stage::Updated(..) => Ok((stage, false)),
        }
    }

    fn rows(&mut self, step: &mut RowStep, deadline: Option<Instant>) -> Result<Option<Accumulated>> {
        while let Some(batch) = step.batches.get(step.at) {
            if !step.begun {
                let seed = dropout_seed(self.recipe.seed, self.done * self.recipe.grad_accum + step.at);
                self.trainer.begin(batch, 1.0 / step.counted as f32, seed)?;
                step.begun = true;
            }
            if !self.trainer.go_on(&mut step.next, deadline)? {
                return Ok(None);
            }
            step.sum += self.trainer.loss(batch)?;
            step.tokens += batch.ids.len();
            step.at += 1;
            step.begun = false;
            if step.at < step.batches.len() && deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(None);
            }
        }
        let (counted, tokens) = (step.counted, step.tokens);
        let loss = step.sum / counted as f64;
        self.finite("loss", loss)?;
        Ok(Some(Accumulated { loss, tokens, counted, pairs: None }))
    }
}
