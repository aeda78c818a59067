//! The device side of a run: adapter buffers, the training program and the optimizer program.
//!
//! Knows nothing of text, files or epochs: takes micro-batches, gives losses.

use super::batch::MicroBatch;
use super::recipe::Optim;
use super::report::MemoryReport;
use crate::backend::{Bindings, Buffer, BufferDesc, Device, Executable};
use crate::error::{Error, Result};
use crate::format::safetensors::Tensors;
use crate::model::ModelConfig;
use crate::model::decoder::{
    ModelShape, OptimizerProgram, TrainProgram, TrainShape, adamw_program, buffers, moment_buffers, train_program,
};
use crate::model::lora::LoraLayout;
use crate::model::rope::rope_table;
use crate::program::{dynamic_map, plan};
use crate::tensor::{DType, HostBytes, HostTensor};
use std::sync::Arc;
use std::time::Instant;

/// AdamW's decay rates of the two moments, and ε: the defaults of `torch.optim.AdamW`.
const BETAS: (f64, f64) = (0.9, 0.999);
const EPS: f64 = 1e-8;

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
    /// What the low-rank product is multiplied by: alpha / rank.
    pub scale: f32,
    /// How AdamW keeps its moments.
    pub optim: Optim,
    /// Scale the loss by a power of two in the backward pass, and gradients back: with activations in f16 the gradients of
    /// unlikely tokens would be 0, since the smallest f16 is 6e-8.
    pub scale_loss: bool,
}

/// One AdamW step's numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Learning rate.
    pub lr: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Norm to clip to; 0: off.
    pub max_grad_norm: f64,
    /// Which step this is, from 1: corrects the moments' bias.
    pub step: usize,
}

fn program(
    device: &dyn Device,
    config: &ModelConfig,
    weights: &Bindings,
    layout: &LoraLayout,
    options: &TrainerOptions,
) -> Result<TrainProgram> {
    let dtype = |name: &str| weights.get(name).map_or(DType::F32, |b| b.desc().dtype);
    let model = ModelShape { config, dtype: &dtype, max_len: options.max_len, limits: device.limits() };
    let shape = TrainShape {
        rows: options.tokens.next_multiple_of(ROW_BUCKET),
        seqs: options.seqs,
        dropout: options.dropout,
        recompute: options.recompute,
        scaled_loss: options.scale_loss,
    };
    train_program(&model, &shape, layout)
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
    layout: &LoraLayout,
    options: &TrainerOptions,
) -> Result<usize> {
    peak(&program(device, config, weights, layout, options)?)
}

/// Adapters in training on one device.
pub struct Trainer {
    device: Arc<dyn Device>,
    layout: LoraLayout,
    params: Buffer,
    grads: Buffer,
    /// AdamW's State buffers.
    moments: Vec<Buffer>,
    train: Box<dyn Executable>,
    inputs: TrainProgram,
    optimizer: Box<dyn Executable>,
    update: OptimizerProgram,
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
        layout: LoraLayout,
        options: &TrainerOptions,
    ) -> Result<Self> {
        let inputs = program(&*device, config, weights, &layout, options)?;
        let eight_bit = options.optim == Optim::AdamW8bit;
        let update = adamw_program(layout.len, eight_bit)?;
        let allocate = |name: &str, rows: usize, cols: usize| {
            device.allocate(BufferDesc { name: name.into(), dtype: DType::F32, rows, cols })
        };
        let rope = allocate(buffers::ROPE, options.max_len, config.rope_dim)?;
        device.write(&rope, 0, bytemuck::cast_slice(&rope_table(config, options.max_len).cos_sin))?;
        let scales = allocate(buffers::LORA_SCALES, 1, 1)?;
        device.write(&scales, 0, bytemuck::bytes_of(&options.scale))?;
        let flat = |name: &str| allocate(name, 1, layout.len);
        let (params, grads) = (flat(buffers::LORA)?, flat(buffers::LORA_GRADS)?);
        let moments = moment_buffers(layout.len, eight_bit)
            .map(|(name, dtype, cols)| device.allocate(BufferDesc { name: name.into(), dtype, rows: 1, cols }))
            .collect::<Result<Vec<Buffer>>>()?;
        let mut bindings = weights.clone();
        let states = [
            (buffers::ROPE, &rope),
            (buffers::LORA_SCALES, &scales),
            (buffers::LORA, &params),
            (buffers::LORA_GRADS, &grads),
        ];
        bindings.extend(states.map(|(name, buffer)| (name.to_owned(), buffer.clone())));
        bindings.extend(moments.iter().map(|buffer| (buffer.desc().name.clone(), buffer.clone())));
        let train = device.compile(Arc::new(inputs.program.clone()), &bindings)?;
        let mut optimizer = device.compile(Arc::new(update.program.clone()), &bindings)?;
        if eight_bit {
            let numbers: Vec<f32> =
                [[0.0; 8].to_vec(), dynamic_map(true).to_vec(), dynamic_map(false).to_vec()].concat();
            optimizer.write(update.hyper, bytemuck::cast_slice(&numbers))?;
        }
        let flat_bytes = params.desc().bytes() as u64;
        let memory = MemoryReport {
            weights: weights.values().map(|b| b.desc().bytes() as u64).sum(),
            adapters: flat_bytes,
            gradients: flat_bytes,
            moments: moments.iter().map(|b| b.desc().bytes() as u64).sum(),
            tables: rope.desc().bytes() as u64,
            arena: (train.arena_bytes() + optimizer.arena_bytes()) as u64,
            live_peak: peak(&inputs)? as u64,
            parameters: layout.parameters() as u64,
            step_tokens: inputs.program.decl(inputs.ids).cols,
        };
        Ok(Self {
            device,
            layout,
            params,
            grads,
            moments,
            train,
            inputs,
            optimizer,
            update,
            scale: options.scale,
            memory,
        })
    }

    /// What the buffers take.
    pub fn memory(&self) -> &MemoryReport {
        &self.memory
    }

    /// Where each adapter matrix lies in the flat buffers.
    pub fn layout(&self) -> &LoraLayout {
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
        let (tokens, seqs) = (batch.ids.len(), batch.bounds.len().saturating_sub(1));
        let i = &self.inputs;
        let numbers: [(_, &[u32]); 6] = [
            (i.program.counts, &[tokens as u32, 0, seqs as u32, seed]),
            (i.ids, &batch.ids),
            (i.positions, &batch.positions),
            (i.seqs, &batch.seqs),
            (i.bounds, &batch.bounds),
            (i.labels, &batch.labels),
        ];
        for (id, data) in numbers {
            self.train.write(id, bytemuck::cast_slice(data))?;
        }
        let mut factor = 1.0;
        if let Some(unscale) = i.unscale {
            factor = loss_factor(loss_scale);
            self.train.write(unscale.plain, bytemuck::bytes_of(&(1.0 / factor)))?;
            self.train.write(unscale.scaled, bytemuck::bytes_of(&(self.scale / factor)))?;
        }
        self.train.write(i.loss_scale, bytemuck::bytes_of(&(loss_scale * factor)))
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
        let mut losses = vec![0f32; batch.ids.len()];
        self.train.read(self.inputs.loss, bytemuck::cast_slice_mut(&mut losses))?;
        let counted = losses.iter().zip(&batch.labels).filter(|(_, label)| **label != super::batch::NOT_COUNTED);
        Ok(counted.map(|(loss, _)| f64::from(*loss)).sum())
    }

    /// Clips, steps and clears the gradients; gives their norm before clipping.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn update(&mut self, update: &Update) -> Result<f32> {
        let correction = |beta: f64| 1.0 - beta.powf(update.step as f64);
        let hyper = [
            update.lr,
            BETAS.0,
            BETAS.1,
            EPS,
            update.weight_decay,
            correction(BETAS.0),
            correction(BETAS.1),
            update.max_grad_norm,
        ];
        let hyper = hyper.map(|x| x as f32);
        self.optimizer.write(self.update.hyper, bytemuck::cast_slice(&hyper))?;
        self.optimizer.run()?;
        let mut norm = 0f32;
        self.optimizer.read(self.update.norm, bytemuck::bytes_of_mut(&mut norm))?;
        Ok(norm)
    }

    /// Forgets what micro-batches have added since the last update.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn clear_gradients(&mut self) -> Result<()> {
        self.write(&self.grads, &vec![0.0; self.layout.len])
    }

    /// The flat adapter buffer.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn params(&self) -> Result<Vec<f32>> {
        self.read(&self.params)
    }

    /// Replaces the adapters.
    ///
    /// # Errors
    /// [`Error::Internal`] for another length than the layout's.
    pub fn set_params(&mut self, params: &[f32]) -> Result<()> {
        self.write(&self.params, params)
    }

    /// Gradients added since the last update, laid out as the parameters.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn gradients(&self) -> Result<Vec<f32>> {
        self.read(&self.grads)
    }

    /// AdamW's moments as the device keeps them: `m` and `v`; with 8-bit moments four codes a word, and `m_max` and
    /// `v_max`.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn moments(&self) -> Result<Tensors> {
        let read = |buffer: &Buffer| -> Result<(String, HostTensor)> {
            let desc = buffer.desc();
            let mut bytes = vec![0; desc.bytes()];
            self.device.read(buffer, 0, &mut bytes)?;
            let tensor = HostTensor::new(desc.dtype, vec![desc.cols], HostBytes::from_vec(bytes))?;
            Ok((short_name(buffer).to_owned(), tensor))
        };
        self.moments.iter().map(read).collect()
    }

    /// Replaces the moments.
    ///
    /// # Errors
    /// [`Error::Invalid`] where one is missing, or has another type or length than this trainer's.
    pub fn set_moments(&mut self, moments: &Tensors) -> Result<()> {
        for buffer in &self.moments {
            let (name, desc) = (short_name(buffer), buffer.desc());
            let found = moments.get(name).filter(|t| t.dtype == desc.dtype && t.len() == desc.cols);
            let Some(tensor) = found else {
                let (cols, dtype) = (desc.cols, desc.dtype);
                return Err(Error::invalid(format!(
                    "the optimizer's '{name}': expected {cols} numbers of type {dtype}"
                )));
            };
            self.device.write(buffer, 0, &tensor.data)?;
        }
        Ok(())
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

/// The power of two that brings a loss's scale (1 / counted tokens) into (1/2, 1].
fn loss_factor(scale: f32) -> f32 {
    if scale > 0.0 { scale.recip().log2().floor().exp2() } else { 1.0 }
}

/// The buffer's name in checkpoints: `m` for `lora.m`.
fn short_name(buffer: &Buffer) -> &str {
    let name = &buffer.desc().name;
    name.strip_prefix("lora.").unwrap_or(name)
}
