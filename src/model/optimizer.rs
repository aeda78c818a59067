//! The optimizer step as a program over the flat adapter buffer: norm, clip, update, gradients back to zero.
//!
//! The buffer may be cut into spans that have a learning rate each (LoRA+). Where the moments stay in host memory
//! ("paged") each span is a program of its own, whose moments are brought and taken away by the host.

use super::decoder::buffers;
use crate::error::Result;
use crate::program::{Builder, Live, MOMENT_BLOCK, Op, Program, STATE_ALIGN, TensorId};
use crate::tensor::DType;
use std::ops::Range;

/// Where a span may start, in elements: there the maxima of 8-bit moments are aligned, too.
pub const SPAN_ALIGN: usize = STATE_ALIGN * MOMENT_BLOCK;

/// How parameters follow from gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rule {
    /// [`Op::AdamW`]
    #[default]
    AdamW,
    /// [`Op::AdamW8bit`]
    AdamW8bit,
    /// [`Op::Lion`]
    Lion,
    /// [`Op::Lion8bit`]
    Lion8bit,
    /// [`Op::Sgd`]
    Sgd,
}

impl Rule {
    /// Numbers in the hyper input: AdamW's eight, and the maps of 8-bit moments.
    pub fn hyper_len(self) -> usize {
        match self {
            Self::AdamW8bit => 520,
            Self::Lion8bit => 264,
            Self::AdamW | Self::Lion | Self::Sgd => 8,
        }
    }

    /// Name, type and length of the State buffers for `len` parameters.
    pub fn moments(self, len: usize) -> Vec<(&'static str, DType, usize)> {
        use buffers::{LORA_M, LORA_M_MAX, LORA_V, LORA_V_MAX};
        match self {
            Self::AdamW => vec![(LORA_M, DType::F32, len), (LORA_V, DType::F32, len)],
            Self::AdamW8bit => {
                let maxima = len.div_ceil(MOMENT_BLOCK);
                vec![
                    (LORA_M, DType::U32, len / 4),
                    (LORA_V, DType::U32, len / 4),
                    (LORA_M_MAX, DType::F32, maxima),
                    (LORA_V_MAX, DType::F32, maxima),
                ]
            }
            Self::Lion8bit => {
                vec![(LORA_M, DType::U32, len / 4), (LORA_M_MAX, DType::F32, len.div_ceil(MOMENT_BLOCK))]
            }
            Self::Lion | Self::Sgd => vec![(LORA_M, DType::F32, len)],
        }
    }

    /// Elements that one number of a moment's buffer stands for.
    fn share(self, buffer: &str) -> usize {
        match self {
            Self::AdamW8bit | Self::Lion8bit if buffer == buffers::LORA_M || buffer == buffers::LORA_V => 4,
            Self::AdamW8bit | Self::Lion8bit => MOMENT_BLOCK,
            _ => 1,
        }
    }

    /// The part of a moment's buffer that belongs to a span of parameters.
    pub fn part(self, buffer: &str, span: &Range<usize>) -> Range<usize> {
        let share = self.share(buffer);
        let length = if share == MOMENT_BLOCK { span.len().div_ceil(share) } else { span.len() / share };
        span.start / share..span.start / share + length
    }

    /// Updates a span whose moments start `moments_at` parameters into their buffers.
    fn push(
        self,
        b: &mut Builder,
        span: &Range<usize>,
        moments_at: usize,
        norm: TensorId,
        hyper: TensorId,
    ) -> Result<()> {
        let flat = |b: &mut Builder, buffer: &str| b.state(buffer, buffer, span.start, DType::F32, 1, span.len());
        let (params, grads) = (flat(b, buffers::LORA), flat(b, buffers::LORA_GRADS));
        let ids: Vec<TensorId> = self
            .moments(span.len())
            .into_iter()
            .map(|(name, dtype, cols)| b.state(name, name, moments_at / self.share(name), dtype, 1, cols))
            .collect();
        b.push(match (self, ids.as_slice()) {
            (Self::AdamW, &[m, v]) => Op::AdamW { params, grads, m, v, norm, hyper },
            (Self::AdamW8bit, &[m, v, m_max, v_max]) => {
                Op::AdamW8bit { params, grads, m, v, m_max, v_max, norm, hyper }
            }
            (Self::Lion8bit, &[m, m_max]) => Op::Lion8bit { params, grads, m, m_max, norm, hyper },
            (Self::Lion, &[m]) => Op::Lion { params, grads, m, norm, hyper },
            (Self::Sgd, &[m]) => Op::Sgd { params, grads, m, norm, hyper },
            _ => return Err(crate::Error::internal("an optimizer without its moments")),
        })
    }
}

/// An optimizer program with its inputs and outputs.
pub struct OptimizerProgram {
    /// The ops.
    pub program: Program,
    /// f32 `[1, Rule::hyper_len]` of each span, see [`Op::AdamW`] and [`Op::AdamW8bit`].
    pub hyper: Vec<TensorId>,
    /// f32 `[1, 1]`: norm of the gradient before clipping. An output, but for [`span_program`] an input.
    pub norm: TensorId,
}

/// The whole step over `len` f32 parameters in [`buffers::LORA`], in spans that start at multiples of [`SPAN_ALIGN`].
///
/// # Errors
/// A shape that does not fit together (a bug), naming op and operand.
pub fn optimizer_program(rule: Rule, len: usize, spans: &[Range<usize>]) -> Result<OptimizerProgram> {
    let mut b = Builder::new("optimizer");
    let norm = norm(&mut b, len)?;
    let mut hyper = Vec::with_capacity(spans.len());
    for (i, span) in spans.iter().enumerate() {
        let input = b.input(&format!("hyper.{i}"), DType::F32, 1, rule.hyper_len());
        rule.push(&mut b, span, span.start, norm, input)?;
        hyper.push(input);
    }
    clear(&mut b, len)?;
    Ok(OptimizerProgram { program: b.finish(), hyper, norm })
}

/// The norm of the gradient alone.
///
/// # Errors
/// As [`optimizer_program`].
pub fn norm_program(len: usize) -> Result<OptimizerProgram> {
    let mut b = Builder::new("grad_norm");
    let norm = norm(&mut b, len)?;
    Ok(OptimizerProgram { program: b.finish(), hyper: Vec::new(), norm })
}

/// The update of one span; its moments lie at the start of their buffers. `last`: gradients back to zero.
///
/// # Errors
/// As [`optimizer_program`].
pub fn span_program(rule: Rule, len: usize, span: &Range<usize>, last: bool) -> Result<OptimizerProgram> {
    let mut b = Builder::new("optimizer_span");
    let norm = b.input("norm", DType::F32, 1, 1);
    let hyper = b.input("hyper", DType::F32, 1, rule.hyper_len());
    rule.push(&mut b, span, 0, norm, hyper)?;
    if last {
        clear(&mut b, len)?;
    }
    Ok(OptimizerProgram { program: b.finish(), hyper: vec![hyper], norm })
}

fn norm(b: &mut Builder, len: usize) -> Result<TensorId> {
    let norm = b.output("grad_norm", 1, 1, Live::All);
    let grads = b.state("gradients", buffers::LORA_GRADS, 0, DType::F32, 1, len);
    b.push(Op::GradNorm { x: grads, out: norm })?;
    Ok(norm)
}

fn clear(b: &mut Builder, len: usize) -> Result<()> {
    let grads = b.state("cleared", buffers::LORA_GRADS, 0, DType::F32, 1, len);
    b.push(Op::Fill { x: grads, value: 0.0 })
}
