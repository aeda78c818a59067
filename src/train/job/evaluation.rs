//! The loss on rows that are not trained on, on the way.

use super::{Job, unhurried};
use crate::error::{Error, Result};
use crate::train::data::DataReport;
use crate::train::evaluate::{Evaluating, Evaluation};
use crate::train::report::EvalReport;
use std::time::Instant;

impl Job {
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
    /// Those of [`Evaluation::go_on`].
    pub fn evaluate(&mut self) -> Result<Option<EvalReport>> {
        if self.evaluation.is_none() {
            return Ok(None);
        }
        loop {
            if let Some(report) = self.evaluate_turn(unhurried())? {
                return Ok(Some(report));
            }
        }
    }

    /// As [`Job::evaluate`], until `deadline`: then `None`, and the next call goes on; of several processes none may have one. An
    /// error without an evaluation set.
    ///
    /// # Errors
    /// Those of [`Evaluation::go_on`].
    pub fn evaluate_turn(&mut self, deadline: Instant) -> Result<Option<EvalReport>> {
        let Some(evaluation) = &self.evaluation else { return Err(Error::internal("no evaluation set")) };
        let group = &*self.group;
        let mut state = self.evaluating.take().unwrap_or_else(|| Evaluating::new(group));
        let turn = evaluation.go_on(&mut state, &mut self.trainer, self.room, self.done, group, deadline)?;
        let Some(mut report) = turn else {
            self.evaluating = Some(state);
            return Ok(None);
        };
        report.best = self.best.see(self.done, report.loss, self.recipe.early_stopping_threshold);
        Ok(Some(report))
    }
}
