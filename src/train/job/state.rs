//! What has been trained, and what a job goes on from.

use super::{Job, unhurried};
use crate::backend::Buffer;
use crate::error::Result;
use crate::format::peft::Adapter;
use crate::model::lora::LoraLayout;
use crate::train::checkpoint::{self, Snapshot};
use crate::train::outcome::Outcome;
use crate::train::snapshot::Copying;
use std::path::{Path, PathBuf};
use std::time::Instant;

impl Job {
    /// The adapter as it is now.
    ///
    /// # Errors
    /// [`Error::Device`]; [`Error::Unsupported`] in full fine-tuning.
    pub fn adapter(&self) -> Result<Adapter> {
        self.outcome()?.into_adapter()
    }

    /// What has been trained, as it is now.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn outcome(&self) -> Result<Outcome> {
        self.named(&self.trainer.params()?)
    }

    /// The gradients added up so far, under the names and in the shapes of what is trained.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn gradients(&self) -> Result<Outcome> {
        self.named(&self.trainer.gradients()?)
    }

    fn named(&self, flat: &[f32]) -> Result<Outcome> {
        Outcome::named(self.recipe.full_finetuning, &self.config, self.trainer.layout(), self.scale, flat)
    }

    /// Writes `checkpoint-N` into `folder`: what [`Recipe::resume`] needs. Gives its path. Of several processes rank 0 writes.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Device`].
    pub fn save(&self, folder: &Path) -> Result<PathBuf> {
        if self.group.rank() > 0 {
            return Ok(folder.join(format!("checkpoint-{}", self.done)));
        }
        let path = self.snapshot()?.write(folder, &self.model.checkpoint)?;
        if let Some(limit) = self.recipe.save_total_limit {
            checkpoint::prune(folder, limit, &self.best)?;
        }
        Ok(path)
    }

    /// What a checkpoint holds, as it is now, on the host: it may be written while the job goes on.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn snapshot(&self) -> Result<Snapshot> {
        let mut copying = self.copying();
        while !self.copy(&mut copying, unhurried())? {}
        copying.finish()
    }

    /// As [`Job::snapshot`], begun: [`Job::copy`] goes on with it.
    pub fn copying(&self) -> Copying {
        let moments = self.trainer.moment_shapes().into_iter();
        Copying {
            config: self.config.clone(),
            layout: self.trainer.layout().clone(),
            scale: self.scale,
            recipe: self.recipe.clone(),
            step: self.done,
            best: self.best.clone(),
            position: self.position(self.done),
            rows: self.rows.len(),
            data_hash: self.data_hash(),
            world_size: self.group.world_size(),
            params: vec![0.0; self.trainer.layout().len],
            moments: moments.map(|(name, dtype, len, bytes)| (name, dtype, len, vec![0; bytes])).collect(),
            at: (0, 0),
        }
    }

    /// Copies until `deadline`; true once all is there. No step may be begun before.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn copy(&self, copying: &mut Copying, deadline: Instant) -> Result<bool> {
        copying.turn(&self.trainer, deadline)
    }

    /// Where the adapter lies on the device: the buffer, what lies where in it, and what the low-rank product is multiplied by.
    pub fn placed(&self) -> (&Buffer, &LoraLayout, f32) {
        (self.trainer.param_buffer(), &self.trainer.layout().lora, self.scale)
    }
}
