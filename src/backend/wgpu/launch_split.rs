//! Products with few results and long sums (LoRA's): the sums are cut into parts that workgroups share, and a second pass adds
//! the parts up in their order, so that results are the same in every run.

use super::record::{Bind, Recorder, defines};
use crate::error::Result;
use crate::program::TensorId;

/// A cut of a sum: `parts` of `chunk` elements each, the last one perhaps shorter.
#[derive(Clone, Copy)]
pub struct Split {
    pub parts: usize,
    pub chunk: usize,
}

/// Where the sum of the parts goes.
pub struct Total {
    pub out: TensorId,
    /// The first three parameters of [`Recorder::head`] and the columns of the parts.
    pub head: [u32; 4],
    /// First column and row of `out`.
    pub col0: usize,
    pub row0: usize,
    pub scale: Option<TensorId>,
    pub accumulate: bool,
}

/// Tiles below which a product is cut: fewer leave a large GPU idle.
const FEW: usize = 128;
/// Tiles that a cut aims at.
const ENOUGH: usize = 1024;
/// Elements of a part, at least: what follows is a multiple, so that parts start where vectors of operands do.
const CHUNK: usize = 64;
/// Bytes of all parts, at most.
const MOST: usize = 32 << 20;

impl Recorder<'_> {
    /// The cut of a product of `tiles` tiles and `results` results that are sums of `length` elements, where it pays.
    pub(super) fn split(&self, tiles: usize, length: usize, results: usize) -> Option<Split> {
        if self.caps.software || tiles >= FEW {
            return None;
        }
        let most = MOST.min(usize::try_from(self.caps.max_binding).unwrap_or(MOST)) / 4 / results.max(1);
        let parts = ENOUGH.div_ceil(tiles.max(1)).min(length / CHUNK).min(most);
        let chunk = length.div_ceil(parts.max(1)).next_multiple_of(CHUNK);
        (parts > 1).then(|| Split { parts: length.div_ceil(chunk), chunk })
    }

    /// The scratch that holds `results` sums of each part.
    pub(super) fn parts(&self, split: Split, results: usize) -> Bind {
        Bind::Scratch(0..(split.parts * results * 4) as u64)
    }

    /// Adds the parts up.
    pub(super) fn sum_parts(&mut self, split: Split, total: &Total) -> Result<()> {
        let [rows, live, row0, cols] = total.head;
        let elements = (rows * cols) as usize;
        let ldo = self.shape(total.out).1;
        let params = [rows, live, row0, cols, ldo as u32, total.col0 as u32, total.row0 as u32, split.parts as u32];
        let mut set = defines(&[("ACCUMULATE", total.accumulate.into())]);
        let mut bindings = vec![self.bind(self.program.counts)?, self.parts(split, elements), self.bind(total.out)?];
        if let Some(scale) = total.scale {
            set.insert("SCALE", 1);
            bindings.push(self.bind(scale)?);
        }
        self.elementwise("matmul_sum_parts", set, bindings, &params, elements)
    }
}
