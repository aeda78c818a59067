//! DoRA's magnitudes: dora_norm, dora_scale and its backward.

use super::launch::Args;
use super::places::suffix;
use super::record::Recorder;
use crate::error::{Error, Result};
use crate::program::Op;

/// Output rows of a block of `kernels/dora_norm.cu`.
const NORM_ROWS: usize = 8;

/// Rows that one thread of `kernels/dora_scale_backward.cu` adds up.
const PART_ROWS: usize = 64;

impl Recorder<'_> {
    /// Appends the launches of one op.
    pub fn dora_ops(&mut self, op: &Op) -> Result<()> {
        match *op {
            Op::DoraNorm { weight, a, b, scales, norms } => {
                let (view, rank) = (self.weight(weight)?, self.rows(a).rows);
                let name = suffix(self.decl(weight).dtype);
                let args = Args::new().bytes(bytemuck::bytes_of(&view));
                let args = args.ptrs(&[self.at(a)?, self.at(b)?, self.at(scales)?]).u32(rank).ptr(self.at(norms)?);
                let (file, kernel) = (format!("dora_norm/{name}"), format!("dora_norm_{name}_f32"));
                let blocks = self.rows(norms).cols.div_ceil(NORM_ROWS);
                self.launch(&file, &kernel, [blocks, 1, 1], 256, NORM_ROWS * rank * 4, args)?;
            }
            Op::DoraScale { x, magnitude, norms, slots, bias, residual, out } => {
                let (r, t) = (self.rows(out), self.activation(&[x, residual.unwrap_or(x), out])?);
                let (slots, bias, residual) = (self.maybe(slots)?, self.maybe(bias)?, self.maybe(residual)?);
                let operands = [self.at(x)?, self.at(magnitude)?, self.at(norms)?, slots, bias, residual];
                let args = Args::new().ptrs(&operands).ptr(self.at(out)?).u32(r.rows).u32(r.cols);
                let args = self.live(args, r)?;
                self.elementwise("dora_scale", &format!("dora_scale_{}", suffix(t)), r, args)?;
            }
            Op::DoraScaleBackward { dy, x, norms, scale, dm } => {
                let (r, t) = (self.rows(x), self.activation(&[dy, x])?);
                let (count, across) = (r.rows.div_ceil(PART_ROWS), r.cols.div_ceil(256));
                let parts = self.scratch(count * r.cols * 4);
                let args = Args::new().ptrs(&[self.at(dy)?, self.at(x)?]).u32(r.rows).u32(r.cols).ptr(parts);
                let (file, name) = ("dora_scale_backward", format!("dora_scale_backward_parts_{}", suffix(t)));
                let args = self.live(args, r)?;
                self.launch(file, &name, [across, count, 1], 256, 0, args)?;
                let args = Args::new().ptr(parts).u32(count).u32(r.cols);
                let args = args.ptrs(&[self.at(norms)?, self.maybe(scale)?, self.at(dm)?]);
                self.launch(file, file, [across, 1, 1], 256, 0, args)?;
            }
            ref other => return Err(Error::internal(format!("cuda: '{}' is no op of DoRA", other.name()))),
        }
        Ok(())
    }
}
