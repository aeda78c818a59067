//! DoRA (<https://arxiv.org/abs/2402.09353>): a weight's rows keep a length of their own, which is learned, and the low-rank
//! product changes their direction. `y = m / ‖W + s·B·A‖ ⊙ (W x + s·B·A x) + bias`, as `peft/tuners/lora/dora.py` computes it.

use super::{Decoder, ModelShape, Projected, buffers};
use crate::error::Result;
use crate::model::lora::{LoraEntry, LoraLayout, Magnitudes, Projection};
use crate::program::{Builder, Op, Program, TensorId};
use crate::tensor::DType;

/// What a projection consists of besides its input and its adapter.
pub(super) struct Around {
    pub weight: TensorId,
    pub bias: Option<TensorId>,
    pub residual: Option<TensorId>,
    pub out: TensorId,
}

impl<'a> Decoder<'a> {
    /// The adapter of a projection, where it has magnitudes.
    pub(super) fn dora_entry(&self, layer: usize, which: Projection) -> Option<(&'a LoraLayout, &'a LoraEntry)> {
        let lora = self.lora.filter(|lora| lora.magnitudes.is_some())?;
        Some((lora, lora.entry(layer, which)?))
    }

    /// The plain product, to which the adapter is added before both are scaled; bias and residual come after that.
    pub(super) fn dora_product(
        &mut self,
        lora: &LoraLayout,
        entry: &LoraEntry,
        x: TensorId,
        around: Around,
    ) -> Result<Projected> {
        let Around { weight, mut bias, mut residual, out } = around;
        let mut seen = x;
        if self.dropout > 0.0 {
            // PEFT: W x + bias + (g − 1) ⊙ W x̃ + g ⊙ s·B·A x̃ with x̃ = dropout(x), which is
            // W (x − x̃) + bias + g ⊙ (W x̃ + s·B·A x̃).
            self.salt += 1;
            seen = self.dropped(x, false)?;
            let rest = self.dropped(x, true)?;
            let base = self.temp("undropped", entry.outputs);
            self.b.push(Op::MatMul { x: rest, weight, bias: bias.take(), residual, out: base })?;
            residual = Some(base);
        }
        let y = self.temp("unscaled", entry.outputs);
        self.b.push(Op::MatMul { x: seen, weight, bias: None, residual: None, out: y })?;
        let mut state = |name: &str, buffer: &str, at: usize| {
            let name = format!("{}.{name}", entry.module);
            self.b.state(&name, buffer, at, DType::F32, lora.slots, entry.outputs)
        };
        let magnitude = match lora.magnitudes {
            Some(Magnitudes::Behind(start)) => state("lora_magnitude_vector", buffers::LORA, start + entry.magnitude),
            _ => state("lora_magnitude_vector", buffers::LORA_MAGNITUDES, entry.magnitude),
        };
        let norms = state("norms", buffers::LORA_NORMS, entry.magnitude);
        let scale = Some(Op::DoraScale { x: y, magnitude, norms, slots: self.adapters, bias, residual, out });
        Ok(Projected { x: seen, y, out, scale })
    }
}

/// The lengths of the rows of all adapted weights, for one f32 adapter in [`buffers::LORA`]: what [`buffers::LORA_NORMS`] holds
/// once the adapter has changed.
///
/// # Errors
/// A shape that does not fit together (a bug), naming op and operand.
pub fn norms_program(model: &ModelShape, lora: &LoraLayout) -> Result<Program> {
    let mut b = Builder::new("dora_norms");
    let scales = b.state(buffers::LORA_SCALES, buffers::LORA_SCALES, 0, DType::F32, 1, 1);
    for entry in &lora.entries {
        let (n, k, rank) = (entry.outputs, entry.inputs, lora.rank);
        let name = format!("{}.weight", entry.module);
        let weight = b.weight(&name, (model.dtype)(&name), n, k);
        let mut state = |name: &str, buffer: &str, at: usize, rows: usize, cols: usize| {
            b.state(&format!("{}.{name}", entry.module), buffer, at, DType::F32, rows, cols)
        };
        let a = state("lora_A", buffers::LORA, entry.a, rank, k);
        let up = state("lora_B", buffers::LORA, entry.b, n, rank);
        let norms = state("norms", buffers::LORA_NORMS, entry.magnitude, 1, n);
        b.push(Op::DoraNorm { weight, a, b: up, scales, norms })?;
    }
    Ok(b.finish())
}
