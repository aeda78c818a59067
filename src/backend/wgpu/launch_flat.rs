//! Launches the ops over whole flat buffers (millions of elements): fill, grad_norm, adamw, adamw_8bit, lion, lion_8bit, sgd. Buffers
//! larger than a binding take several dispatches.

use super::places::View;
use super::record::{Bind, Recorder, defines};
use crate::error::{Error, Result};
use crate::program::{MOMENT_BLOCK, Op, TensorId};

/// Invocations that copy one matrix of an adapter.
const PLACE_INVOCATIONS: usize = 1024;

impl Recorder<'_> {
    pub(super) fn flat_ops(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::Fill { x, value } => {
                let decl = self.program.decl(*x);
                let bits = match decl.dtype.block_bytes() {
                    4 => value.to_bits(),
                    2 if *value == 0.0 => 0,
                    _ => return Err(Error::unsupported(format!("fill of a {} tensor with {value}", decl.dtype))),
                };
                for (start, words) in self.pieces(*x)? {
                    let bindings = vec![self.piece(*x, start, words)?];
                    self.elementwise("fill", defines(&[]), bindings, &[words as u32, bits], words as usize)?;
                }
                Ok(())
            }
            Op::PlaceAdapter { from, table, to } => {
                let matrices = self.program.decl(*table).rows;
                let bindings = self.binds(&[*from, *table, *to])?;
                let invocations = matrices * PLACE_INVOCATIONS;
                let params = [matrices as u32, PLACE_INVOCATIONS as u32];
                self.elementwise("place_adapter", defines(&[]), bindings, &params, invocations)
            }
            Op::GradNorm { x, out } => {
                let pieces = self.pieces(*x)?;
                // Enough workgroups to fill a large GPU; the second stage sums their results.
                let groups: u64 = if self.caps.software { 64 } else { 1024 };
                let partials = groups * pieces.len() as u64;
                let set = self.reducing(256);
                for (i, (start, words)) in pieces.into_iter().enumerate() {
                    let bindings = vec![self.piece(*x, start, words)?, Bind::Scratch(0..partials * 4)];
                    let params = [words as u32, (i as u64 * groups) as u32, groups as u32];
                    self.dispatch("grad_norm", set.clone(), bindings, &params, groups, words)?;
                }
                let mut last = set;
                last.insert("LAST", 1);
                let bindings = vec![Bind::Scratch(0..partials * 4), self.bind(*out)?];
                self.dispatch("grad_norm", last, bindings, &[partials as u32], 1, partials)
            }
            Op::AdamW { params, grads, m, v, norm, hyper } => {
                for (start, words) in self.pieces(*params)? {
                    let mut bindings = Vec::with_capacity(6);
                    for id in [params, grads, m, v] {
                        bindings.push(self.piece(*id, start, words)?);
                    }
                    bindings.extend(self.binds(&[*norm, *hyper])?);
                    self.elementwise("adamw", defines(&[]), bindings, &[words as u32], words as usize)?;
                }
                Ok(())
            }
            Op::Lion { params, grads, m, norm, hyper } | Op::Sgd { params, grads, m, norm, hyper } => {
                for (start, words) in self.pieces(*params)? {
                    let mut bindings = Vec::with_capacity(5);
                    for id in [params, grads, m] {
                        bindings.push(self.piece(*id, start, words)?);
                    }
                    bindings.extend(self.binds(&[*norm, *hyper])?);
                    self.elementwise(op.name(), defines(&[]), bindings, &[words as u32], words as usize)?;
                }
                Ok(())
            }
            Op::AdamW8bit { params, grads, m, v, m_max, v_max, norm, hyper } => {
                self.in_blocks(op.name(), [*params, *grads], &[*m, *v], &[*m_max, *v_max], [*norm, *hyper])
            }
            Op::Lion8bit { params, grads, m, m_max, norm, hyper } => {
                self.in_blocks(op.name(), [*params, *grads], &[*m], &[*m_max], [*norm, *hyper])
            }
            other => Err(Error::internal(format!("flat_ops: {}", other.name()))),
        }
    }

    /// An optimizer whose moments are codes, with a maximum for each block of them.
    fn in_blocks(
        &mut self,
        shader: &'static str,
        [params, grads]: [TensorId; 2],
        codes: &[TensorId],
        maxima: &[TensorId],
        numbers: [TensorId; 2],
    ) -> Result<()> {
        let n = self.program.decl(params).len() as u64;
        let block = MOMENT_BLOCK as u64;
        // Pieces start where the maxima of their blocks are aligned, too.
        let most = (self.caps.max_binding / 4 / (64 * block) * (64 * block)).max(64 * block);
        let set = self.reducing(64);
        for start in (0..n).step_by(usize::try_from(most).unwrap_or(usize::MAX)) {
            let count = most.min(n - start);
            let mut bindings = vec![self.piece(params, start, count)?, self.piece(grads, start, count)?];
            for id in codes {
                bindings.push(self.piece(*id, start / 4, count / 4)?);
            }
            let blocks = count.div_ceil(block);
            for id in maxima {
                bindings.push(self.piece(*id, start / block, blocks)?);
            }
            bindings.extend(self.binds(&numbers)?);
            self.dispatch(shader, set.clone(), bindings, &[count as u32], blocks, count * 16)?;
        }
        Ok(())
    }

    /// (first word, words) of pieces that each fit in a binding.
    fn pieces(&self, id: TensorId) -> Result<Vec<(u64, u64)>> {
        let words = (self.program.decl(id).bytes() as u64).div_ceil(4);
        let most = self.caps.max_binding / 4;
        Ok((0..words)
            .step_by(usize::try_from(most).unwrap_or(usize::MAX))
            .map(|start| (start, most.min(words - start)))
            .collect())
    }

    fn piece(&self, id: TensorId, start: u64, words: u64) -> Result<Bind> {
        let view = self.places.view(self.program, id)?;
        Ok(Bind::View(View { offset: view.offset + start * 4, size: words * 4, ..view }))
    }
}
