//! Launches the ops that go row by row or element by element.

use super::library::weight_flags;
use super::record::{Bind, Recorder, defines};
use crate::error::{Error, Result};
use crate::model::config::Activation;
use crate::program::{Op, TensorId};

impl Recorder<'_> {
    pub(super) fn row_ops(&mut self, op: &Op) -> Result<()> {
        let counts = self.program.counts;
        match op {
            Op::Embed { table, ids, out } => {
                let (rows, k) = self.shape(*out);
                let vocab = self.shape(*table).0 as u32;
                for part in self.weight(*table)? {
                    let mut set = defines(&weight_flags(part.dtype));
                    if !k.is_multiple_of(32) {
                        set.insert("K_ANY", 1);
                    }
                    let mut params = self.head(*out, k);
                    params.extend([part.rows as u32, vocab, part.first as u32]);
                    params.extend(part.layout);
                    let bindings = vec![self.bind(counts)?, Bind::View(part.view), self.bind(*ids)?, self.bind(*out)?];
                    self.elementwise("embed", set, bindings, &params, rows * k.div_ceil(8))?;
                }
                Ok(())
            }
            Op::RmsNorm { x, weight, eps, out } => {
                let (rows, k) = self.shape(*x);
                let mut params = self.head(*out, k);
                params.push(eps.to_bits());
                let bindings = self.binds(&[counts, *x, *weight, *out])?;
                self.dispatch("rms_norm", self.reducing(256), bindings, &params, rows as u64, (rows * k * 2) as u64)
            }
            Op::RmsNormBackward { x, weight, eps, dy, dx, accumulate } => {
                let (rows, k) = self.shape(*x);
                let mut params = self.head(*dx, k);
                params.push(eps.to_bits());
                let mut set = self.reducing(256);
                set.insert("ACCUMULATE", (*accumulate).into());
                let bindings = self.binds(&[counts, *x, *weight, *dy, *dx])?;
                self.dispatch("rms_norm_backward", set, bindings, &params, rows as u64, (rows * k * 4) as u64)
            }
            Op::Dropout { x, p, salt, complement, out, accumulate } => {
                let (rows, k) = self.shape(*x);
                let mut params = self.head(*out, k);
                let factor = 1.0 / (1.0 - p);
                let [kept, dropped] = if *complement { [1.0 - factor, 1.0] } else { [factor, 0.0] };
                params.extend([*salt, p.to_bits(), kept.to_bits(), dropped.to_bits()]);
                let set = defines(&[("ACCUMULATE", (*accumulate).into())]);
                self.elementwise("dropout", set, self.binds(&[counts, *x, *out])?, &params, rows * k)
            }
            Op::Glu { gate, up, activation, out } => self.glu(*gate, *up, *activation, *out),
            Op::GluBackward { gate, up, activation, dout, dgate, dup } => {
                let (rows, k) = self.shape(*gate);
                let set = defines(&[("ACT", activation_code(*activation))]);
                let bindings = self.binds(&[counts, *gate, *up, *dout, *dgate, *dup])?;
                self.elementwise("glu_backward", set, bindings, &self.head(*dgate, k), rows * k)
            }
            Op::GatherRows { x, rows, out } => {
                let (count, k) = self.shape(*out);
                let mut params = self.head(*out, k);
                params.push(self.shape(*x).0 as u32);
                self.elementwise(
                    "gather_rows",
                    defines(&[]),
                    self.binds(&[counts, *x, *rows, *out])?,
                    &params,
                    count * k,
                )
            }
            Op::PreferenceLoss { loss, kinds, bounds, reference, hyper, weights, pairs } => {
                let count = self.shape(*pairs).0;
                let bindings = self.binds(&[counts, *loss, *kinds, *bounds, *reference, *hyper, *weights, *pairs])?;
                let params = [count as u32, 0, 0, 0];
                let work = self.shape(*loss).0 * 16;
                self.dispatch("preference_loss", self.reducing(256), bindings, &params, count as u64, work as u64)
            }
            Op::Sample { logits, sampling, uniforms, tokens } => {
                let (rows, vocab) = self.shape(*logits);
                let chunks = vocab.div_ceil(SAMPLE_CHUNK);
                let mut params = self.head(*logits, vocab);
                params.push(chunks as u32);
                let set = self.reducing(256);
                let records = (rows * chunks * 16) as u64;
                let mut bindings = self.binds(&[counts, *logits, *sampling])?;
                bindings.push(Bind::Scratch(0..records));
                let (groups, work) = ((rows * chunks) as u64, (rows * vocab) as u64);
                self.dispatch("sample_chunks", set.clone(), bindings, &params, groups, work * 4)?;
                let mut bindings = self.binds(&[counts, *logits, *sampling, *uniforms])?;
                bindings.extend([Bind::Scratch(0..records), self.bind(*tokens)?]);
                self.dispatch("sample", set, bindings, &params, rows as u64, work * 64)
            }
            Op::AdjustLogits { logits, entries, starts, repetition, masks, mask_of, out } => {
                let (rows, vocab) = self.shape(*logits);
                let mut params = self.head(*logits, vocab);
                params.push(self.shape(*masks).1 as u32);
                let bindings = self.binds(&[counts, *logits, *masks, *mask_of, *out])?;
                self.elementwise("adjust_logits", defines(&[]), bindings, &params, rows * vocab)?;
                let bindings =
                    self.binds(&[counts, *logits, *entries, *starts, *repetition, *masks, *mask_of, *out])?;
                let set = defines(&[("WG", self.flat_group())]);
                self.dispatch("adjust_logits_entries", set, bindings, &params, rows as u64, rows as u64)
            }
            Op::TopLogprobs { logits, tokens, labels, logprobs, top } => {
                let ((rows, vocab), n) = (self.shape(*logits), self.shape(*top).1);
                let chunks = vocab.div_ceil(SAMPLE_CHUNK);
                let mut params = self.head(*logits, vocab);
                params.extend([chunks as u32, n as u32]);
                let set = self.reducing(256);
                let records = (rows * chunks * (2 + 2 * n) * 4) as u64;
                let mut bindings = self.binds(&[counts, *logits])?;
                bindings.push(Bind::Scratch(0..records));
                let (groups, work) = ((rows * chunks) as u64, (rows * vocab * (1 + n)) as u64);
                self.dispatch("top_logprobs_chunks", set.clone(), bindings, &params, groups, work)?;
                let mut bindings = self.binds(&[counts, *logits, *tokens, *labels])?;
                bindings.push(Bind::Scratch(0..records));
                bindings.extend(self.binds(&[*logprobs, *top])?);
                self.dispatch("top_logprobs", set, bindings, &params, rows as u64, (rows * chunks * n * n) as u64)
            }
            Op::Copy { x, out } => {
                let (rows, k) = self.shape(*out);
                let bindings = self.binds(&[counts, *x, *out])?;
                self.elementwise("copy", defines(&[]), bindings, &self.head(*out, k), rows * k)
            }
            Op::Accumulate { x, y } => {
                let (rows, k) = self.shape(*y);
                self.elementwise(
                    "accumulate",
                    defines(&[]),
                    self.binds(&[counts, *x, *y])?,
                    &self.head(*y, k),
                    rows * k,
                )
            }
            other => Err(Error::unsupported(format!("the wgpu backend has no '{}'", other.name()))),
        }
    }

    /// `out = activation(gate) · up`.
    pub(super) fn glu(&mut self, gate: TensorId, up: TensorId, activation: Activation, out: TensorId) -> Result<()> {
        let (rows, k) = self.shape(out);
        let set = defines(&[("ACT", activation_code(activation))]);
        let bindings = self.binds(&[self.program.counts, gate, up, out])?;
        self.elementwise("glu", set, bindings, &self.head(out, k), rows * k)
    }
}

/// Logits that one workgroup of `sample_chunks.wgsl` and `top_logprobs_chunks.wgsl` looks at.
const SAMPLE_CHUNK: usize = 4096;

/// `ACT` of the shaders.
pub fn activation_code(activation: Activation) -> i64 {
    match activation {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
    }
}
