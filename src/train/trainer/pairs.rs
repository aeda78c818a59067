//! Steps whose tokens weigh differently: pairs of sequences, weights that the caller gives; and the model without adapters.

use super::{ROW_BUCKET, Trainer};
use crate::backend::{Bindings, BufferDesc, Device, Executable};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::model::decoder::{BaseProgram, ModelShape, ObjectiveInputs, base_program, buffers};
use crate::model::rope::rope_table;
use crate::tensor::DType;
use crate::train::batch::MicroBatch;
use crate::train::preference::PairBatch;
use std::sync::Arc;
use std::time::Instant;

impl Trainer {
    /// First part of a forward and backward pass over pairs, which adds the gradients of `loss_scale · Σ loss`: takes its inputs.
    /// Then [`Trainer::go_on`] runs it, and [`Trainer::pair_results`] ends it. `reference`: a number for each row; `hyper`: which
    /// loss, β, ν.
    ///
    /// # Errors
    /// As [`Trainer::micro_batch`]; [`Error::Internal`] for a trainer of another objective.
    pub fn begin_pairs(
        &mut self,
        pairs: &PairBatch,
        reference: &[f32],
        hyper: [f32; 4],
        loss_scale: f32,
        seed: u32,
    ) -> Result<()> {
        let ObjectiveInputs::Pairs { kinds, reference: known, hyper: numbers, .. } = self.inputs.objective else {
            return Err(Error::internal("pairs for a trainer of single rows"));
        };
        self.begin(&pairs.batch, loss_scale, seed)?;
        self.train.write(kinds, bytemuck::cast_slice(&pairs.kinds))?;
        self.train.write(known, bytemuck::cast_slice(reference))?;
        self.train.write(numbers, bytemuck::cast_slice(&hyper))
    }

    /// Of each of `count` pairs that have run its loss, both log-probabilities and the cross-entropies that are kept up
    /// ([`crate::program::Op::PreferenceLoss`]).
    ///
    /// # Errors
    /// As [`Trainer::begin_pairs`].
    pub fn pair_results(&mut self, count: usize) -> Result<Vec<[f32; 4]>> {
        let ObjectiveInputs::Pairs { pairs: out, .. } = self.inputs.objective else {
            return Err(Error::internal("pairs for a trainer of single rows"));
        };
        let mut results = vec![[0f32; 4]; count];
        self.train.read(out, bytemuck::cast_slice_mut(&mut results))?;
        Ok(results)
    }

    /// As [`Trainer::micro_batch`], with a weight for each token's loss; gives each token's loss before that.
    ///
    /// # Errors
    /// As [`Trainer::pair_results`].
    pub fn weighted_batch(
        &mut self,
        batch: &MicroBatch,
        weights: &[f32],
        loss_scale: f32,
        seed: u32,
    ) -> Result<Vec<f32>> {
        self.begin_weighted(batch, weights, loss_scale, seed)?;
        self.train.run()?;
        self.token_losses(batch.ids.len())
    }

    /// First part of [`Trainer::weighted_batch`]: takes its inputs. Then [`Trainer::go_on`] runs it, and
    /// [`Trainer::token_losses`] ends it.
    ///
    /// # Errors
    /// As [`Trainer::pair_results`].
    pub fn begin_weighted(&mut self, batch: &MicroBatch, weights: &[f32], loss_scale: f32, seed: u32) -> Result<()> {
        let ObjectiveInputs::Weighted { weights: input } = self.inputs.objective else {
            return Err(Error::internal("weights for a trainer whose tokens weigh the same"));
        };
        self.begin(batch, loss_scale, seed)?;
        self.train.write(input, bytemuck::cast_slice(weights))
    }

    /// The loss of each of `tokens` tokens of a pass that has run, in nat.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn token_losses(&mut self, tokens: usize) -> Result<Vec<f32>> {
        let mut losses = vec![0f32; tokens];
        self.train.read(self.inputs.loss, bytemuck::cast_slice_mut(&mut losses))?;
        Ok(losses)
    }
}

/// The model without adapters, on the weights that are trained upon.
pub struct Reference {
    run: Box<dyn Executable>,
    inputs: BaseProgram,
}

impl Reference {
    /// Compiles the forward pass over up to `tokens` tokens of `seqs` sequences, none longer than `max_len`.
    ///
    /// # Errors
    /// Those of building and compiling the program.
    pub fn new(
        device: &dyn Device,
        config: &ModelConfig,
        weights: &Bindings,
        [tokens, seqs, max_len]: [usize; 3],
    ) -> Result<Self> {
        let dtype = |name: &str| weights.get(name).map_or(DType::F32, |b| b.desc().dtype);
        let model = ModelShape { config, dtype: &dtype, max_len, limits: device.limits() };
        let inputs = base_program(&model, tokens.next_multiple_of(ROW_BUCKET), seqs)?;
        let desc = BufferDesc { name: buffers::ROPE.into(), dtype: DType::F32, rows: max_len, cols: config.rope_dim };
        let rope = device.allocate(desc)?;
        device.write(&rope, 0, bytemuck::cast_slice(&rope_table(config, max_len).cos_sin))?;
        let mut bindings = weights.clone();
        bindings.insert(buffers::ROPE.to_owned(), rope);
        let run = device.compile(Arc::new(inputs.program.clone()), &bindings)?;
        Ok(Self { run, inputs })
    }

    /// A whole pass: what [`Reference::losses`] gives.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn run(&mut self, batch: &MicroBatch) -> Result<Vec<f32>> {
        self.begin(batch)?;
        self.run.run()?;
        self.losses(batch.ids.len())
    }

    /// Takes the inputs of a pass; then [`Reference::go_on`] runs it, and [`Reference::losses`] ends it.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn begin(&mut self, batch: &MicroBatch) -> Result<()> {
        let (tokens, seqs) = (batch.ids.len(), batch.bounds.len().saturating_sub(1));
        let i = &self.inputs;
        let numbers: [(_, &[u32]); 6] = [
            (i.program.counts, &[tokens as u32, 0, seqs as u32, 0]),
            (i.ids, &batch.ids),
            (i.positions, &batch.positions),
            (i.seqs, &batch.seqs),
            (i.bounds, &batch.bounds),
            (i.labels, &batch.labels),
        ];
        for (id, data) in numbers {
            self.run.write(id, bytemuck::cast_slice(data))?;
        }
        Ok(())
    }

    /// Runs parts of the pass: see [`Executable::run_part`].
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn go_on(&mut self, first: usize, deadline: Instant) -> Result<Option<usize>> {
        self.run.run_part(first, deadline)
    }

    /// The cross-entropy of each of `tokens` tokens' label, in nat; 0 where there is none.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn losses(&mut self, tokens: usize) -> Result<Vec<f32>> {
        let mut losses = vec![0f32; tokens];
        self.run.read(self.inputs.loss, bytemuck::cast_slice_mut(&mut losses))?;
        Ok(losses)
    }
}
