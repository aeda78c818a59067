//! DoRA's magnitudes: dora_norm, dora_scale and its backward.

use super::library::weight_flags;
use super::record::{Bind, Recorder, defines};
use crate::error::{Error, Result};
use crate::program::Op;

/// Output rows of a workgroup of `shaders/dora_norm.wgsl`.
const NORM_ROWS: usize = 4;

impl Recorder<'_> {
    pub(super) fn dora_ops(&mut self, op: &Op) -> Result<()> {
        let counts = self.program.counts;
        match op {
            Op::DoraNorm { weight, a, b, scales, norms } => {
                let (rank, k) = self.shape(*a);
                for part in self.weight(*weight)? {
                    let mut set = self.reducing(256);
                    set.extend(weight_flags(part.dtype));
                    set.insert("ROWS", NORM_ROWS as i64);
                    if !k.is_multiple_of(32) {
                        set.insert("K_ANY", 1);
                    }
                    let mut params = vec![part.rows as u32, part.first as u32, rank as u32, k as u32];
                    params.extend(part.layout);
                    let mut bindings = vec![Bind::View(part.view)];
                    bindings.extend(self.binds(&[*a, *b, *scales, *norms])?);
                    let groups = part.rows.div_ceil(NORM_ROWS) as u64;
                    self.dispatch("dora_norm", set, bindings, &params, groups, (part.rows * k * rank) as u64)?;
                }
                Ok(())
            }
            Op::DoraScale { x, magnitude, norms, slots, bias, residual, out } => {
                let (rows, n) = self.shape(*x);
                let mut bindings = self.binds(&[counts, *x, *magnitude, *norms])?;
                let mut set = defines(&[]);
                for (flag, operand) in [("SLOTS", slots), ("BIAS", bias), ("RESIDUAL", residual)] {
                    if let Some(operand) = operand {
                        set.insert(flag, 1);
                        bindings.push(self.bind(*operand)?);
                    }
                }
                bindings.push(self.bind(*out)?);
                self.elementwise("dora_scale", set, bindings, &self.head(*out, n), rows * n)
            }
            Op::DoraScaleBackward { dy, x, norms, scale, dm } => {
                let (rows, n) = self.shape(*x);
                let mut bindings = self.binds(&[counts, *dy, *x, *norms, *dm])?;
                let mut set = defines(&[("WG", 64)]);
                if let Some(scale) = scale {
                    set.insert("SCALE", 1);
                    bindings.push(self.bind(*scale)?);
                }
                let groups = n.div_ceil(64) as u64;
                let params = self.head(*x, n);
                self.dispatch("dora_scale_backward", set, bindings, &params, groups, (rows * n) as u64)
            }
            other => Err(Error::internal(format!("dora_ops: {}", other.name()))),
        }
    }
}
