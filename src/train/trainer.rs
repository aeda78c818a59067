//! The device side of a run: the buffers of what is trained, the training program and the optimizer program.
//!
//! Knows nothing of text, files or epochs: takes micro-batches, gives losses.

mod pairs;

pub use pairs::Reference;

use super::batch::MicroBatch;
use super::noise;
use super::optim::Optim;
use super::optimizer::{Optimizer, OptimizerOptions};
use super::report::MemoryReport;
use crate::backend::{Bindings, Buffer, BufferDesc, Device, Executable};
use crate::collective::Collective;
use crate::error::{Error, Result};
use crate::format::safetensors::Tensors;
use crate::model::ModelConfig;
use crate::model::decoder::{ModelShape, Objective, TrainProgram, TrainShape, buffers, norms_program, train_program};
use crate::model::lora::Magnitudes;
use crate::model::rope::rope_table;
use crate::model::whole::TrainLayout;
use crate::program::{OFFLOADED, Place, plan};
use crate::tensor::DType;
use std::sync::Arc;
use std::time::Instant;

/// Rows of the program are a multiple of this, so that similar data gives the same program.
const ROW_BUCKET: usize = 64;

/// Sizes of a trainer.
#[derive(Clone, Copy, Debug)]
pub struct TrainerOptions {
    /// Most tokens of a micro-batch.
    pub tokens: usize,
    /// Most sequences of a micro-batch.
    pub seqs: usize,
    /// Longest sequence.
    pub max_len: usize,
    /// Dropout on the adapters' input.
    pub dropout: f32,
    /// Compute activations again in the backward pass.
    pub recompute: bool,
    /// Keep the layers' inputs in host memory until the backward pass; of use with `recompute`.
    pub offload: bool,
    /// What the low-rank product is multiplied by: alpha / rank.
    pub scale: f32,
    /// The optimizer.
    pub optim: OptimizerOptions,
    /// NEFTune's α: noise on the embeddings while training.
    pub neftune: Option<f64>,
    /// What share of a label's weight is spread over the vocabulary.
    pub smoothing: f32,
    /// Compile what [`Trainer::losses`] needs.
    pub evaluate: bool,
    /// Scale the loss by a power of two in the backward pass, and gradients back: with activations in f16 the gradients of
    /// unlikely tokens would be 0, since the smallest f16 is 6e-8.
    pub scale_loss: bool,
    /// What is minimised.
    pub objective: Objective,
}

impl Default for TrainerOptions {
    fn default() -> Self {
        Self {
            tokens: ROW_BUCKET,
            seqs: 1,
            max_len: ROW_BUCKET,
            dropout: 0.0,
            recompute: false,
            offload: false,
            scale: 1.0,
            optim: Optim::AdamW.into(),
            neftune: None,
            smoothing: 0.0,
            evaluate: false,
            scale_loss: false,
            objective: Objective::Tokens,
        }
    }
}

/// One optimizer step's numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Learning rate.
    pub lr: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Norm to clip to; 0: off.
    pub max_grad_norm: f64,
    /// Which step this is, from 1: corrects the bias of AdamW's moments.
    pub step: usize,
}

fn program(
    device: &dyn Device,
    config: &ModelConfig,
    weights: &Bindings,
    layout: &TrainLayout,
    options: &TrainerOptions,
    gradients: bool,
) -> Result<TrainProgram> {
    let dtype = |name: &str| weights.get(name).map_or(DType::F32, |b| b.desc().dtype);
    let model = ModelShape { config, dtype: &dtype, max_len: options.max_len, limits: device.limits() };
    let shape = TrainShape {
        rows: options.tokens.next_multiple_of(ROW_BUCKET),
        seqs: options.seqs,
        dropout: if gradients { options.dropout } else { 0.0 },
        recompute: options.recompute,
        offload: options.offload && gradients,
        scaled_loss: options.scale_loss,
        noise: gradients && options.neftune.is_some(),
        smoothing: options.smoothing,
        gradients,
        objective: if gradients { options.objective } else { Objective::Tokens },
    };
    train_program(&model, &shape, layout)
}

/// In the user's words.
fn no_offloading(error: Error) -> Error {
    match error {
        Error::Unsupported(why) => Error::unsupported(format!(
            "activation_offloading ({why}); recompute alone, which is use_gradient_checkpointing = true, works everywhere"
        )),
        other => other,
    }
}

fn bytes_of_weights(weights: &Bindings, on_host: bool) -> u64 {
    weights.values().filter(|b| b.is_on_host() == on_host).map(|b| b.desc().bytes() as u64).sum()
}

fn peak(program: &TrainProgram) -> Result<usize> {
    // Alignment and limits do not change what is alive at one time.
    Ok(plan(&program.program, 4, usize::MAX)?.live_peak)
}

/// Most bytes of intermediates that a trainer with these options has alive at one time.
///
/// # Errors
/// Those of building the program.
pub fn live_peak(
    device: &dyn Device,
    config: &ModelConfig,
    weights: &Bindings,
    layout: &TrainLayout,
    options: &TrainerOptions,
) -> Result<usize> {
    peak(&program(device, config, weights, layout, options, true)?)
}

/// DoRA: the lengths of the adapted weights' rows, which change with the parameters.
struct Norms {
    buffer: Buffer,
    executable: Box<dyn Executable>,
}

/// Adapters, or whole weights, in training on one device.
pub struct Trainer {
    device: Arc<dyn Device>,
    layout: TrainLayout,
    params: Buffer,
    grads: Buffer,
    train: Box<dyn Executable>,
    inputs: TrainProgram,
    /// The forward pass alone.
    evaluate: Option<(Box<dyn Executable>, TrainProgram)>,
    optimizer: Optimizer,
    norms: Option<Norms>,
    /// NEFTune's α, and the type of what it is added to.
    neftune: Option<(f64, DType)>,
    hidden: usize,
    /// What the low-rank product is multiplied by.
    scale: f32,
    memory: MemoryReport,
}

impl Trainer {
    /// Allocates everything that training needs. All parameters are 0 until [`Trainer::set_params`].
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] for buffers or arena; [`Error::Device`].
    pub fn new(
        device: Arc<dyn Device>,
        config: &ModelConfig,
        weights: &Bindings,
        layout: impl Into<TrainLayout>,
        options: &TrainerOptions,
    ) -> Result<Self> {
        let layout: TrainLayout = layout.into();
        let inputs = program(&*device, config, weights, &layout, options, true)?;
        let allocate = |name: &str, rows: usize, cols: usize| {
            device.allocate(BufferDesc { name: name.into(), dtype: DType::F32, rows, cols })
        };
        let rope = allocate(buffers::ROPE, options.max_len, config.rope_dim)?;
        device.write(&rope, 0, bytemuck::cast_slice(&rope_table(config, options.max_len).cos_sin))?;
        let scales = allocate(buffers::LORA_SCALES, 1, 1)?;
        device.write(&scales, 0, bytemuck::bytes_of(&options.scale))?;
        let flat = |name: &str| allocate(name, 1, layout.len);
        let (params, grads) = (flat(buffers::LORA)?, flat(buffers::LORA_GRADS)?);
        let mut bindings = weights.clone();
        let states = [
            (buffers::ROPE, &rope),
            (buffers::LORA_SCALES, &scales),
            (buffers::LORA, &params),
            (buffers::LORA_GRADS, &grads),
        ];
        bindings.extend(states.map(|(name, buffer)| (name.to_owned(), buffer.clone())));
        let mut norms = None;
        if layout.lora.magnitudes.is_some() {
            let buffer = allocate(buffers::LORA_NORMS, 1, layout.lora.magnitudes_len)?;
            bindings.insert(buffers::LORA_NORMS.to_owned(), buffer.clone());
            let dtype = |name: &str| weights.get(name).map_or(DType::F32, |b| b.desc().dtype);
            let model = ModelShape { config, dtype: &dtype, max_len: options.max_len, limits: device.limits() };
            let executable = device.compile(Arc::new(norms_program(&model, &layout.lora)?), &bindings)?;
            norms = Some(Norms { buffer, executable });
        }
        let mut offloaded = 0;
        for decl in &inputs.program.tensors {
            if let Place::State { buffer, .. } = &decl.place
                && buffer.starts_with(OFFLOADED)
            {
                let desc = BufferDesc { name: buffer.clone(), dtype: decl.dtype, rows: decl.rows, cols: decl.cols };
                let memory = device.allocate_on_host(desc).map_err(no_offloading)?;
                offloaded += memory.desc().bytes() as u64;
                bindings.insert(buffer.clone(), memory);
            }
        }
        let train = device.compile(Arc::new(inputs.program.clone()), &bindings)?;
        let mut evaluate = None;
        if options.evaluate {
            let forward = program(&*device, config, weights, &layout, options, false)?;
            evaluate = Some((device.compile(Arc::new(forward.program.clone()), &bindings)?, forward));
        }
        let optimizer = Optimizer::new(
            device.clone(),
            &bindings,
            layout.len,
            layout.spans(options.optim.b_lr_ratio),
            options.optim,
        )?;
        let evaluating = evaluate.as_ref().map_or(0, |(executable, _)| executable.arena_bytes());
        let (moments, host) = optimizer.bytes();
        let flat_bytes = params.desc().bytes() as u64;
        let memory = MemoryReport {
            weights: bytes_of_weights(weights, false),
            weights_on_host: bytes_of_weights(weights, true),
            adapters: flat_bytes + norms.as_ref().map_or(0, |norms| norms.buffer.desc().bytes() as u64),
            gradients: flat_bytes,
            moments,
            host,
            offloaded,
            tables: rope.desc().bytes() as u64,
            arena: (train.arena_bytes() + optimizer.arena_bytes() + evaluating) as u64,
            live_peak: peak(&inputs)? as u64,
            parameters: layout.parameters() as u64,
            step_tokens: inputs.program.decl(inputs.ids).cols,
        };
        let device_type = device.limits().activations;
        Ok(Self {
            device,
            layout,
            params,
            grads,
            neftune: options.neftune.map(|alpha| (alpha, device_type)),
            hidden: config.hidden,
            train,
            inputs,
            evaluate,
            optimizer,
            norms,
            scale: options.scale,
            memory,
        })
    }

    /// What the buffers take.
    pub fn memory(&self) -> &MemoryReport {
        &self.memory
    }

    /// Where each adapter and each whole weight lies in the flat buffers.
    pub fn layout(&self) -> &TrainLayout {
        &self.layout
    }

    /// Forward and backward pass: adds the gradients of `loss_scale · Σ loss` to those already there, and gives Σ loss
    /// over the counted tokens, in nat. `seed` decides the dropout masks.
    ///
    /// # Errors
    /// [`Error::Internal`] where the batch is larger than [`TrainerOptions`] said; [`Error::Device`].
    pub fn micro_batch(&mut self, batch: &MicroBatch, loss_scale: f32, seed: u32) -> Result<f64> {
        self.begin(batch, loss_scale, seed)?;
        self.train.run()?;
        self.loss(batch)
    }

    /// First part of [`Trainer::micro_batch`]: takes its inputs. Then [`Trainer::go_on`] runs it, and [`Trainer::loss`] ends it.
    ///
    /// # Errors
    /// As [`Trainer::micro_batch`].
    pub fn begin(&mut self, batch: &MicroBatch, loss_scale: f32, seed: u32) -> Result<()> {
        let i = &self.inputs;
        feed(&mut *self.train, i, batch, seed)?;
        if let (Some(noise), Some((alpha, dtype))) = (i.noise, self.neftune) {
            self.train.write(noise, &noise::neftune(batch, self.hidden, alpha, seed, dtype))?;
        }
        let mut factor = 1.0;
        if let Some(unscale) = i.unscale {
            factor = loss_factor(loss_scale);
            self.train.write(unscale.plain, bytemuck::bytes_of(&(1.0 / factor)))?;
            self.train.write(unscale.scaled, bytemuck::bytes_of(&(self.scale / factor)))?;
        }
        self.train.write(i.loss_scale, bytemuck::bytes_of(&(loss_scale * factor)))
    }

    /// Takes the inputs of a forward pass without dropout and noise, in which nothing is learned. Then [`Trainer::go_on_losses`]
    /// runs it, and [`Trainer::losses`] ends it.
    ///
    /// # Errors
    /// [`Error::Internal`] without [`TrainerOptions::evaluate`] or for a batch that is too large; [`Error::Device`].
    pub fn begin_losses(&mut self, batch: &MicroBatch) -> Result<()> {
        let (executable, program) = self.evaluate.as_mut().ok_or_else(no_evaluation)?;
        feed(&mut **executable, program, batch, 0)?;
        executable.write(program.loss_scale, bytemuck::bytes_of(&1f32))
    }

    /// Runs parts of the forward pass: see [`Executable::run_part`].
    ///
    /// # Errors
    /// As [`Trainer::begin_losses`].
    pub fn go_on_losses(&mut self, first: usize, deadline: Instant) -> Result<Option<usize>> {
        self.evaluate.as_mut().ok_or_else(no_evaluation)?.0.run_part(first, deadline)
    }

    /// Σ loss over the counted tokens of a forward pass that has run, in nat.
    ///
    /// # Errors
    /// As [`Trainer::begin_losses`].
    pub fn losses(&mut self, batch: &MicroBatch) -> Result<f64> {
        let (executable, program) = self.evaluate.as_mut().ok_or_else(no_evaluation)?;
        sum_of_losses(&mut **executable, program, batch)
    }

    /// Runs a forward pass as [`Trainer::begin_losses`]: the loss of each token, 0 where it is not counted.
    ///
    /// # Errors
    /// As [`Trainer::begin_losses`].
    pub fn forward_losses(&mut self, batch: &MicroBatch) -> Result<Vec<f32>> {
        self.begin_losses(batch)?;
        let (executable, program) = self.evaluate.as_mut().ok_or_else(no_evaluation)?;
        executable.run()?;
        let mut losses = vec![0f32; batch.ids.len()];
        executable.read(program.loss, bytemuck::cast_slice_mut(&mut losses))?;
        Ok(losses)
    }

    /// Copies the bytes of the flat adapter buffer from `start` on.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn read_params(&self, start: usize, out: &mut [u8]) -> Result<()> {
        self.device.read(&self.params, start, out)
    }

    /// Name in checkpoints, type, length and bytes of each of the optimizer's moments.
    pub fn moment_shapes(&self) -> Vec<(String, DType, usize, usize)> {
        self.optimizer.moment_shapes()
    }

    /// Copies the bytes of a moment from `start` on.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn read_moment(&self, moment: usize, start: usize, out: &mut [u8]) -> Result<()> {
        self.optimizer.read_moment(moment, start, out)
    }

    /// Where the adapters are on the device: f32 `[1, layout.len]`.
    pub fn param_buffer(&self) -> &Buffer {
        &self.params
    }

    /// Runs the ops of a micro-batch from number `first` on until `deadline`: see [`Executable::run_part`].
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn go_on(&mut self, first: usize, deadline: Instant) -> Result<Option<usize>> {
        self.train.run_part(first, deadline)
    }

    /// Σ loss over the counted tokens of a micro-batch that has run, in nat.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn loss(&mut self, batch: &MicroBatch) -> Result<f64> {
        sum_of_losses(&mut *self.train, &self.inputs, batch)
    }

    /// Clips, steps and clears the gradients; gives their norm before clipping.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn update(&mut self, update: &Update) -> Result<f32> {
        let norm = self.optimizer.update(update)?;
        self.refresh_norms()?;
        Ok(norm)
    }

    /// DoRA: follows a change of the parameters.
    fn refresh_norms(&mut self) -> Result<()> {
        self.norms.as_mut().map_or(Ok(()), |norms| norms.executable.run())
    }

    /// DoRA: gives every row the magnitude that it has without one, so that nothing changes at first, as PEFT does. Nothing
    /// happens without magnitudes.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn start_magnitudes(&mut self) -> Result<()> {
        let (Some(norms), Some(Magnitudes::Behind(start))) = (&self.norms, self.layout.lora.magnitudes) else {
            return Ok(());
        };
        let mut lengths = vec![0f32; self.layout.lora.magnitudes_len];
        self.device.read(&norms.buffer, 0, bytemuck::cast_slice_mut(&mut lengths))?;
        self.device.write(&self.params, start * size_of::<f32>(), bytemuck::cast_slice(&lengths))
    }

    /// Replaces the gradients by their sum over all processes.
    ///
    /// # Errors
    /// Those of [`Collective::all_reduce_sum`].
    pub fn sum_gradients(&mut self, group: &dyn Collective) -> Result<()> {
        group.all_reduce_sum(&*self.device, &self.grads)
    }

    /// Forgets what micro-batches have added since the last update.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn clear_gradients(&mut self) -> Result<()> {
        self.write(&self.grads, &vec![0.0; self.layout.len])
    }

    /// The flat buffer of what is trained.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn params(&self) -> Result<Vec<f32>> {
        self.read(&self.params)
    }

    /// Replaces what is trained.
    ///
    /// # Errors
    /// [`Error::Internal`] for another length than the layout's.
    pub fn set_params(&mut self, params: &[f32]) -> Result<()> {
        self.write(&self.params, params)?;
        self.refresh_norms()
    }

    /// Gradients added since the last update, laid out as the parameters.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn gradients(&self) -> Result<Vec<f32>> {
        self.read(&self.grads)
    }

    /// The optimizer's moments, see [`Optimizer::moments`].
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn moments(&self) -> Result<Tensors> {
        self.optimizer.moments()
    }

    /// Replaces the moments.
    ///
    /// # Errors
    /// As [`Optimizer::set_moments`].
    pub fn set_moments(&mut self, moments: &Tensors) -> Result<()> {
        self.optimizer.set_moments(moments)
    }

    fn read(&self, buffer: &Buffer) -> Result<Vec<f32>> {
        let mut out = vec![0f32; self.layout.len];
        self.device.read(buffer, 0, bytemuck::cast_slice_mut(&mut out))?;
        Ok(out)
    }

    fn write(&self, buffer: &Buffer, data: &[f32]) -> Result<()> {
        if data.len() != self.layout.len {
            let name = &buffer.desc().name;
            return Err(Error::internal(format!("{} numbers for '{name}' of {}", data.len(), self.layout.len)));
        }
        self.device.write(buffer, 0, bytemuck::cast_slice(data))
    }
}

fn no_evaluation() -> Error {
    Error::internal("this trainer was not made to evaluate")
}

/// The power of two that brings a loss's scale (1 / counted tokens) into (1/2, 1].
fn loss_factor(scale: f32) -> f32 {
    if scale > 0.0 { scale.recip().log2().floor().exp2() } else { 1.0 }
}

/// Writes a micro-batch to a program's inputs.
fn feed(executable: &mut dyn Executable, program: &TrainProgram, batch: &MicroBatch, seed: u32) -> Result<()> {
    let (tokens, seqs) = (batch.ids.len(), batch.bounds.len().saturating_sub(1));
    let numbers: [(_, &[u32]); 6] = [
        (program.program.counts, &[tokens as u32, 0, seqs as u32, seed]),
        (program.ids, &batch.ids),
        (program.positions, &batch.positions),
        (program.seqs, &batch.seqs),
        (program.bounds, &batch.bounds),
        (program.labels, &batch.labels),
    ];
    numbers.into_iter().try_for_each(|(id, data)| executable.write(id, bytemuck::cast_slice(data)))
}

fn sum_of_losses(executable: &mut dyn Executable, program: &TrainProgram, batch: &MicroBatch) -> Result<f64> {
    let mut losses = vec![0f32; batch.ids.len()];
    executable.read(program.loss, bytemuck::cast_slice_mut(&mut losses))?;
    let counted = losses.iter().zip(&batch.labels).filter(|(_, label)| **label != super::batch::NOT_COUNTED);
    Ok(counted.map(|(loss, _)| f64::from(*loss)).sum())
}
