//! The optimizer on its device, and its state: on the device, or in host memory ("paged"), from where each update
//! brings it over in pieces.

use super::optim::Optim;
use super::trainer::Update;
use crate::backend::{Bindings, Buffer, BufferDesc, Device, Executable};
use crate::error::{Error, Result};
use crate::format::safetensors::Tensors;
use crate::model::optimizer::{
    OptimizerProgram, Rule, SPAN_ALIGN, Span, norm_program, optimizer_program, span_program,
};
use crate::program::{TensorId, dynamic_map};
use crate::tensor::{DType, HostBytes, HostTensor};
use std::ops::Range;
use std::sync::Arc;

/// Parameters of a piece of paged state: 32 MiB of AdamW's f32 moments on the device.
const PAGE: usize = 4 << 20;

/// What an optimizer is made from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerOptions {
    /// Which one.
    pub optim: Optim,
    /// Decay rates of the moments; SGD's momentum is the first.
    pub betas: (f64, f64),
    /// AdamW's ε.
    pub epsilon: f64,
    /// LoRA+: B's learning rate is this many times A's.
    pub b_lr_ratio: Option<f64>,
}

impl From<Optim> for OptimizerOptions {
    fn from(optim: Optim) -> Self {
        Self { optim, betas: optim.betas(), epsilon: 1e-8, b_lr_ratio: None }
    }
}

/// A span's program, compiled.
struct Step {
    executable: Box<dyn Executable>,
    program: OptimizerProgram,
    /// Of the parameters.
    spans: Vec<Span>,
}

/// One kind of moment where it is kept.
enum Kept {
    /// On the device.
    Device(Buffer),
    /// On the host; the buffer is a piece's place on the device.
    Host { piece: Buffer, bytes: Vec<u8>, dtype: DType, len: usize },
}

/// An optimizer over the flat buffer of what is trained.
pub struct Optimizer {
    device: Arc<dyn Device>,
    options: OptimizerOptions,
    rule: Rule,
    /// Only where the moments are paged: otherwise the one step's program has the norm.
    norm: Option<Step>,
    steps: Vec<Step>,
    moments: Vec<Kept>,
}

impl Optimizer {
    /// Allocates the moments and compiles. `bindings` has the parameters and gradients, `len` numbers each, in `spans`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`].
    pub fn new(
        device: Arc<dyn Device>,
        bindings: &Bindings,
        len: usize,
        spans: Vec<Span>,
        options: OptimizerOptions,
    ) -> Result<Self> {
        let (rule, paged) = (options.optim.rule(), options.optim.paged());
        let page = PAGE.next_multiple_of(SPAN_ALIGN).min(len);
        let mut bindings = bindings.clone();
        let mut moments = Vec::new();
        let whole = rule.moments(len);
        for ((name, dtype, cols), (_, _, piece)) in whole.into_iter().zip(rule.moments(page)) {
            let cols_there = if paged { piece } else { cols };
            let desc = BufferDesc { name: name.into(), dtype, rows: 1, cols: cols_there };
            let buffer = device.allocate(desc)?;
            bindings.insert(name.to_owned(), buffer.clone());
            moments.push(match paged {
                true => Kept::Host { piece: buffer, bytes: vec![0; cols * 4], dtype, len: cols },
                false => Kept::Device(buffer),
            });
        }
        let compile = |program: OptimizerProgram, spans: Vec<Span>| -> Result<Step> {
            let executable = device.compile(Arc::new(program.program.clone()), &bindings)?;
            Ok(Step { executable, program, spans })
        };
        let (norm, steps) = if paged {
            let cut = |span: &Span| -> Vec<Span> {
                let starts = span.range.clone().step_by(page);
                starts.map(|at| Span { range: at..(at + page).min(span.range.end), ..span.clone() }).collect()
            };
            let pieces: Vec<Span> = spans.iter().flat_map(cut).collect();
            let last = pieces.len().saturating_sub(1);
            let steps = pieces
                .into_iter()
                .enumerate()
                .map(|(i, piece)| compile(span_program(rule, len, &piece.range, i == last)?, vec![piece]));
            let steps = steps.collect::<Result<_>>()?;
            (Some(compile(norm_program(len)?, vec![])?), steps)
        } else {
            let ranges: Vec<_> = spans.iter().map(|span| span.range.clone()).collect();
            (None, vec![compile(optimizer_program(rule, len, &ranges)?, spans)?])
        };
        let mut me = Self { device, options, rule, norm, steps, moments };
        me.write_maps()?;
        Ok(me)
    }

    /// What 8-bit codes stand for: behind the eight numbers that change.
    fn write_maps(&mut self) -> Result<()> {
        let len = self.rule.hyper_len();
        if len == 8 {
            return Ok(());
        }
        let numbers: Vec<f32> = [[0.0; 8].to_vec(), dynamic_map(true).to_vec(), dynamic_map(false).to_vec()].concat();
        let numbers = &numbers[..len];
        for step in &mut self.steps {
            for hyper in &step.program.hyper {
                step.executable.write(*hyper, bytemuck::cast_slice(numbers))?;
            }
        }
        Ok(())
    }

    /// Clips, steps and clears the gradients; gives their norm before clipping.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn update(&mut self, update: &Update) -> Result<f32> {
        let mut norm = 0f32;
        if let Some(step) = &mut self.norm {
            step.executable.run()?;
            read_norm(step, &mut norm)?;
        }
        let paged = self.norm.is_some();
        for step in &mut self.steps {
            for (hyper, span) in step.program.hyper.iter().zip(&step.spans) {
                step.executable.write(*hyper, bytemuck::cast_slice(&numbers(&self.options, update, span)))?;
            }
            if !paged {
                step.executable.run()?;
                read_norm(step, &mut norm)?;
                continue;
            }
            step.executable.write(step.program.norm, bytemuck::bytes_of(&norm))?;
            for kept in &self.moments {
                if let Kept::Host { piece, bytes, .. } = kept {
                    self.device.write(piece, 0, &bytes[place(self.rule, piece, &step.spans[0].range)])?;
                }
            }
            step.executable.run()?;
            for kept in &mut self.moments {
                if let Kept::Host { piece, bytes, .. } = kept {
                    let place = place(self.rule, piece, &step.spans[0].range);
                    self.device.read(piece, 0, &mut bytes[place])?;
                }
            }
        }
        Ok(norm)
    }

    /// The moments: `m` and `v`; with 8-bit moments four codes a word, and `m_max` and `v_max`.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn moments(&self) -> Result<Tensors> {
        let read = |kept: &Kept| -> Result<(String, HostTensor)> {
            let (buffer, dtype, len, bytes) = match kept {
                Kept::Device(buffer) => {
                    let desc = buffer.desc();
                    let mut bytes = vec![0; desc.bytes()];
                    self.device.read(buffer, 0, &mut bytes)?;
                    (buffer, desc.dtype, desc.cols, bytes)
                }
                Kept::Host { piece, bytes, dtype, len } => (piece, *dtype, *len, bytes.clone()),
            };
            Ok((short_name(buffer).to_owned(), HostTensor::new(dtype, vec![len], HostBytes::from_vec(bytes))?))
        };
        self.moments.iter().map(read).collect()
    }

    /// Name in checkpoints, type, length and bytes of each moment.
    #[must_use]
    pub fn moment_shapes(&self) -> Vec<(String, DType, usize, usize)> {
        let shape = |kept: &Kept| match kept {
            Kept::Device(buffer) => {
                let desc = buffer.desc();
                (short_name(buffer).to_owned(), desc.dtype, desc.cols, desc.bytes())
            }
            Kept::Host { piece, bytes, dtype, len } => (short_name(piece).to_owned(), *dtype, *len, bytes.len()),
        };
        self.moments.iter().map(shape).collect()
    }

    /// Copies the bytes of a moment from `start` on.
    ///
    /// # Errors
    /// [`Error::Internal`] beyond its end; [`Error::Device`].
    pub fn read_moment(&self, moment: usize, start: usize, out: &mut [u8]) -> Result<()> {
        match self.moments.get(moment) {
            Some(Kept::Device(buffer)) => self.device.read(buffer, start, out),
            Some(Kept::Host { bytes, .. }) => {
                let found = bytes.get(start..start + out.len());
                out.copy_from_slice(found.ok_or_else(|| Error::internal("a moment is shorter than that"))?);
                Ok(())
            }
            None => Err(Error::internal(format!("there is no moment {moment}"))),
        }
    }

    /// Replaces the moments.
    ///
    /// # Errors
    /// [`Error::Invalid`] where one is missing, or has another type or length than this optimizer's.
    pub fn set_moments(&mut self, moments: &Tensors) -> Result<()> {
        for kept in &mut self.moments {
            let (buffer, dtype, len) = match kept {
                Kept::Device(buffer) => (&*buffer, buffer.desc().dtype, buffer.desc().cols),
                Kept::Host { piece, dtype, len, .. } => (&*piece, *dtype, *len),
            };
            let name = short_name(buffer);
            let found = moments.get(name).filter(|t| t.dtype == dtype && t.len() == len);
            let Some(tensor) = found else {
                return Err(Error::invalid(format!(
                    "the optimizer's '{name}': expected {len} numbers of type {dtype}"
                )));
            };
            match kept {
                Kept::Device(buffer) => self.device.write(buffer, 0, &tensor.data)?,
                Kept::Host { bytes, .. } => bytes.copy_from_slice(&tensor.data),
            }
        }
        Ok(())
    }

    /// Bytes of the moments on the device, and on the host.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        let sizes = self.moments.iter().map(|kept| match kept {
            Kept::Device(buffer) => (buffer.desc().bytes() as u64, 0),
            Kept::Host { piece, bytes, .. } => (piece.desc().bytes() as u64, bytes.len() as u64),
        });
        sizes.fold((0, 0), |(device, host), (d, h)| (device + d, host + h))
    }

    /// Bytes of the programs' intermediates.
    #[must_use]
    pub fn arena_bytes(&self) -> usize {
        self.steps.iter().chain(&self.norm).map(|step| step.executable.arena_bytes()).sum()
    }
}

fn read_norm(step: &mut Step, norm: &mut f32) -> Result<()> {
    let id: TensorId = step.program.norm;
    step.executable.read(id, bytemuck::bytes_of_mut(norm))
}

/// Which bytes of a moment belong to a span; every number has 4.
fn place(rule: Rule, buffer: &Buffer, span: &Range<usize>) -> Range<usize> {
    let part = rule.part(&buffer.desc().name, span);
    part.start * 4..part.end * 4
}

/// The eight numbers of the optimizer's ops, see [`crate::program::Op::AdamW`].
fn numbers(options: &OptimizerOptions, update: &Update, span: &Span) -> [f32; 8] {
    let (beta1, beta2) = options.betas;
    let correction = |beta: f64| 1.0 - beta.powf(update.step as f64);
    [
        update.lr * span.lr_ratio,
        beta1,
        beta2,
        options.epsilon,
        if span.decays { update.weight_decay } else { 0.0 },
        correction(beta1),
        correction(beta2),
        update.max_grad_norm,
    ]
    .map(|x| x as f32)
}

/// The buffer's name in checkpoints: `m` for `lora.m`.
fn short_name(buffer: &Buffer) -> &str {
    let name = &buffer.desc().name;
    name.strip_prefix("lora.").unwrap_or(name)
}
