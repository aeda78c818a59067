//! A job's state on its way to the host, piece by piece: for a large adapter it is half a gigabyte, and whoever shares the device
//! need not wait for all of it.

use super::adapter::to_adapter;
use super::checkpoint::Snapshot;
use super::outcome::Outcome;
use super::recipe::Recipe;
use super::trainer::Trainer;
use super::whole;
use crate::error::Result;
use crate::format::peft::AdapterConfig;
use crate::format::safetensors::Tensors;
use crate::model::whole::TrainLayout;
use crate::tensor::{DType, HostBytes, HostTensor};
use std::time::Instant;

/// Bytes that are read at a time: about a millisecond from a GPU.
const PIECE: usize = 8 << 20;

/// What was copied so far. The job must not go on before it is complete.
pub struct Copying {
    pub(super) config: AdapterConfig,
    pub(super) layout: TrainLayout,
    pub(super) scale: f32,
    pub(super) recipe: Recipe,
    pub(super) step: usize,
    pub(super) best: super::Best,
    pub(super) position: usize,
    pub(super) rows: usize,
    pub(super) data_hash: String,
    pub(super) world_size: usize,
    /// What is trained.
    pub(super) params: Vec<f32>,
    /// The moments, as [`Trainer::moment_shapes`] has them.
    pub(super) moments: Vec<(String, DType, usize, Vec<u8>)>,
    /// What is next: 0 the parameters, then the moments; and from which byte on.
    pub(super) at: (usize, usize),
}

impl Copying {
    /// Copies until `deadline`; true once all is there.
    pub(super) fn turn(&mut self, trainer: &Trainer, deadline: Instant) -> Result<bool> {
        while self.at.0 <= self.moments.len() {
            let (which, start) = self.at;
            let bytes: &mut [u8] = match which.checked_sub(1) {
                None => bytemuck::cast_slice_mut(&mut self.params),
                Some(moment) => &mut self.moments[moment].3,
            };
            let end = (start + PIECE).min(bytes.len());
            let whole = end == bytes.len();
            match which.checked_sub(1) {
                None => trainer.read_params(start, &mut bytes[start..end])?,
                Some(moment) => trainer.read_moment(moment, start, &mut bytes[start..end])?,
            }
            self.at = if whole { (which + 1, 0) } else { (which, end) };
            if Instant::now() >= deadline {
                break;
            }
        }
        Ok(self.at.0 > self.moments.len())
    }

    /// Steps that were done.
    pub fn step(&self) -> usize {
        self.step
    }

    /// The snapshot, once all is there.
    ///
    /// # Errors
    /// [`crate::Error::Internal`] for what does not fit together.
    pub fn finish(self) -> Result<Snapshot> {
        let outcome = match self.recipe.full_finetuning {
            true => Outcome::Model(whole::tensors(&self.layout, &self.params)?),
            false => Outcome::Adapter(to_adapter(&self.config, &self.layout, self.scale, &self.params)?),
        };
        let moments = self.moments.into_iter().map(|(name, dtype, len, bytes)| {
            Ok((name, HostTensor::new(dtype, vec![len], HostBytes::from_vec(bytes))?))
        });
        Ok(Snapshot {
            outcome,
            moments: moments.collect::<Result<Tensors>>()?,
            step: self.step,
            best: self.best,
            recipe: self.recipe,
            position: self.position,
            rows: self.rows,
            data_hash: self.data_hash,
            world_size: self.world_size,
            more: serde_json::Value::Null,
        })
    }
}
