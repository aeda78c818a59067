//! Launches the gradients of whole weights: embed_dw, rms_norm_dw, column_sum, qk_norm_dw, and the products of a dense one.
//! Sums over rows are made in parts that a second pass adds up in order, so that results are the same in every run.

use super::launch_split::{Split, Total};
use super::record::{Bind, Recorder, defines};
use crate::error::{Error, Result};
use crate::program::{Op, TensorId};

/// Rows of a part.
const CHUNK: usize = 64;

impl Recorder<'_> {
    pub(super) fn weight_gradients(&mut self, op: &Op) -> Result<()> {
        let counts = self.program.counts;
        match op {
            Op::EmbedDw { ids, dy, skip, scale, dw } => {
                let (rows, k) = self.shape(*dy);
                for part in self.weight(*dw)? {
                    let mut params = self.head(*dy, k);
                    params.extend([part.rows as u32, part.first as u32, skip.unwrap_or(u32::MAX)]);
                    let mut bindings = self.binds(&[counts, *ids, *dy])?;
                    bindings.push(Bind::View(part.view));
                    let group = self.flat_group();
                    let mut set = defines(&[("WG", group)]);
                    if let Some(scale) = scale {
                        set.insert("SCALE", 1);
                        bindings.push(self.bind(*scale)?);
                    }
                    let groups = rows * k.div_ceil(group as usize);
                    self.dispatch("embed_dw", set, bindings, &params, groups as u64, (rows * (rows + k)) as u64)?;
                }
                Ok(())
            }
            Op::ColumnSum { x, scale, out } => {
                let (rows, k) = self.shape(*x);
                let split = chunks(rows, CHUNK);
                let mut params = self.head(*x, k);
                params.extend([split.chunk as u32, split.parts as u32]);
                let mut bindings = self.binds(&[counts, *x])?;
                bindings.push(self.parts(split, k));
                self.elementwise("column_sum", defines(&[]), bindings, &params, split.parts * k)?;
                self.column_total(split, *scale, *out)
            }
            Op::RmsNormDw { x, eps, dy, scale, dw } => {
                let (rows, k) = self.shape(*x);
                let split = chunks(rows, CHUNK / 2);
                let mut params = self.head(*x, k);
                params.extend([split.chunk as u32, eps.to_bits()]);
                let mut bindings = self.binds(&[counts, *x, *dy])?;
                bindings.push(self.parts(split, k));
                let (groups, work) = (split.parts as u64, (rows * k * 4) as u64);
                self.dispatch("rms_norm_dw", self.reducing(256), bindings, &params, groups, work)?;
                self.column_total(split, *scale, *dw)
            }
            Op::QkNormDw { x, eps, head_dim, positions, rope, dout, scale, dw } => {
                let (rows, width) = self.shape(*x);
                let (rope_rows, rope_dim) = self.shape(*rope);
                let split = chunks(rows, (CHUNK * head_dim / width).max(1));
                let mut params = self.head(*x, width / head_dim);
                params.extend([*head_dim as u32, split.chunk as u32, eps.to_bits(), rope_dim as u32, rope_rows as u32]);
                let mut bindings = self.binds(&[counts, *x, *positions, *rope, *dout])?;
                bindings.push(self.parts(split, *head_dim));
                let (groups, work) = (split.parts as u64, (rows * width * 4) as u64);
                self.dispatch("qk_norm_dw", self.reducing(64), bindings, &params, groups, work)?;
                self.column_total(split, *scale, *dw)
            }
            other => Err(Error::internal(format!("weight_gradients: {}", other.name()))),
        }
    }

    /// `out += scale · Σ parts`, out `[1, K]`.
    fn column_total(&mut self, split: Split, scale: Option<TensorId>, out: TensorId) -> Result<()> {
        let head = [1, 2, 0, self.shape(out).1 as u32];
        self.sum_parts(split, &Total { out, head, col0: 0, row0: 0, scale, accumulate: true })
    }

    /// `dw += scale · dyᵀ · x` over the rows that `head` says; those of x start at `x_row0`. A gradient larger than a binding
    /// is made part by part.
    pub(super) fn product_dw(
        &mut self,
        [dy, x, dw]: [TensorId; 3],
        scale: Option<TensorId>,
        [rows, live, row0]: [u32; 3],
        x_row0: usize,
    ) -> Result<()> {
        let ((n, k), ldy) = (self.shape(dw), self.shape(dy).1);
        // LoRA's tensors are thin on one side: a tile of 16 there.
        let (bm, bn) = if n <= 16 {
            (16, 64)
        } else if k <= 16 {
            (64, 16)
        } else {
            (64, 64)
        };
        let parts = self.weight(dw)?;
        for part in &parts {
            let mut set = super::launch_matmul::tile(bm, bn, 16);
            let groups = part.rows.div_ceil(bm) * k.div_ceil(bn);
            let work = rows as u64 * (part.rows * k) as u64;
            let mut params = vec![rows, live, row0, k as u32, part.rows as u32, 0, ldy as u32, part.first as u32];
            params.push(x_row0 as u32);
            let whole = parts.len() == 1;
            let mut bindings = self.binds(&[self.program.counts, dy, x])?;
            let split = if whole { self.split(groups, rows as usize, n * k) } else { None };
            if let Some(split) = split {
                params[5] = split.chunk as u32;
                set.insert("SPLIT", 1);
                bindings.push(self.parts(split, n * k));
                self.dispatch("matmul_dw", set, bindings, &params, (groups * split.parts) as u64, work)?;
                self.label_last(format!("{n}x{k}"));
                let head = [n as u32, 2, 0, k as u32];
                return self.sum_parts(split, &Total { out: dw, head, col0: 0, row0: 0, scale, accumulate: true });
            }
            bindings.push(Bind::View(part.view.clone()));
            if let Some(scale) = scale {
                set.insert("SCALE", 1);
                bindings.push(self.bind(scale)?);
            }
            self.dispatch("matmul_dw", set, bindings, &params, groups as u64, work)?;
            self.label_last(format!("{}x{k}", part.rows));
        }
        Ok(())
    }
}

/// Rows in parts of `chunk`.
fn chunks(rows: usize, chunk: usize) -> Split {
    Split { parts: rows.div_ceil(chunk), chunk }
}
