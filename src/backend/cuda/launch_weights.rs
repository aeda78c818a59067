//! Gradients of whole weights that are no products: sums over rows, in parts whose sums are added up in order.

use super::launch::Args;
use super::places::suffix;
use super::record::Recorder;
use crate::error::{Error, Result};
use crate::program::{Op, TensorId};

/// Rows of a part.
const CHUNK: usize = 64;
/// The widest head that `kernels/qk_norm_dw.cu` takes.
const MAX_HEAD: usize = 256;

impl Recorder<'_> {
    /// Appends the launches of one op.
    pub fn weight_gradients(&mut self, op: &Op) -> Result<()> {
        match *op {
            Op::EmbedDw { ids, dy, skip, scale, dw } => {
                let (r, t) = (self.rows(dy), self.activation(&[dy])?);
                let args = Args::new().ptrs(&[self.at(ids)?, self.at(dy)?, self.maybe(scale)?, self.at(dw)?]);
                let skip = skip.unwrap_or(u32::MAX) as usize;
                let args = self.live(args.u32(r.rows).u32(r.cols).u32(self.decl(dw).rows).u32(skip), r)?;
                let grid = [r.rows, r.cols.div_ceil(256), 1];
                self.launch("embed_dw", &format!("embed_dw_{}", suffix(t)), grid, 256, 0, args).map(drop)
            }
            Op::ColumnSum { x, scale, out } => {
                let (r, t) = (self.rows(x), self.activation(&[x])?);
                let count = r.rows.div_ceil(CHUNK);
                let parts = self.scratch(4 * count * r.cols);
                let args = Args::new().ptrs(&[self.at(x)?, parts]).u32(r.rows).u32(r.cols).u32(CHUNK);
                let (args, grid) = (self.live(args, r)?, [r.cols.div_ceil(256), count, 1]);
                self.launch("column_sum", &format!("column_sum_parts_{}", suffix(t)), grid, 256, 0, args)?;
                self.column_total(parts, count, scale, out)
            }
            Op::RmsNormDw { x, eps, dy, scale, dw } => {
                let (r, t) = (self.rows(x), self.activation(&[x, dy])?);
                let chunk = CHUNK / 4;
                let count = r.rows.div_ceil(chunk);
                let parts = self.scratch(4 * count * r.cols);
                let args = Args::new().ptrs(&[self.at(x)?, self.at(dy)?, parts]).u32(r.rows).u32(r.cols).f32(eps);
                let args = self.live(args.u32(chunk), r)?;
                let block = r.cols.div_ceil(8).next_multiple_of(32).clamp(32, 1024);
                self.launch("rms_norm_dw", &format!("rms_norm_dw_{}", suffix(t)), [count, 1, 1], block, 0, args)?;
                self.column_total(parts, count, scale, dw)
            }
            Op::QkNormDw { x, eps, head_dim, positions, rope, dout, scale, dw } => {
                if head_dim > MAX_HEAD {
                    return Err(Error::unsupported(format!(
                        "cuda: the gradient of a norm of heads of {head_dim} elements, at most {MAX_HEAD}"
                    )));
                }
                let (r, t) = (self.rows(x), self.activation(&[x, dout])?);
                let heads = r.cols / head_dim;
                // Eight heads a warp, but no more blocks than run at once.
                let blocks = (r.rows * heads).div_ceil(32).min(8 * self.caps.multiprocessors as usize);
                let parts = self.scratch(4 * 4 * blocks * head_dim);
                let args = Args::new().ptrs(&[self.at(x)?, self.at(dout)?, self.at(positions)?, self.at(rope)?]);
                let args = args.u32(self.decl(rope).rows).u32(self.decl(rope).cols).ptr(parts);
                let args = self.live(args.u32(r.rows).u32(heads).u32(head_dim).f32(eps), r)?;
                self.launch("qk_norm_dw", &format!("qk_norm_dw_{}", suffix(t)), [blocks, 1, 1], 128, 0, args)?;
                self.column_total(parts, 4 * blocks, scale, dw)
            }
            ref other => Err(Error::internal(format!("cuda: '{}' is no gradient of a weight", other.name()))),
        }
    }

    /// `out += scale · Σ parts`, parts f32 `[count, K]`.
    fn column_total(&mut self, parts: u64, count: usize, scale: Option<TensorId>, out: TensorId) -> Result<()> {
        let k = self.decl(out).cols;
        let args = Args::new().ptr(parts).u32(count).u32(k).ptrs(&[self.maybe(scale)?, self.at(out)?]);
        self.launch("column_sum", "column_sum_total", [k.div_ceil(256), 1, 1], 256, 0, args).map(drop)
    }
}
