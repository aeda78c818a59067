//! Large products on a GPU's matrix units, through cooperative matrices (`shaders/matmul_coop.wgsl`): both operands are first
//! rewritten in f16 fragments, which takes a few µs beside what the product takes. The rows of x keep a power of two apart, so
//! gradients do not vanish in f16. Adapters without the feature use `matmul.wgsl` and `matmul_dx.wgsl`.

use super::library::weight_flags;
use super::places::WeightView;
use super::record::{Bind, Recorder, defines};
use crate::error::{Error, Result};
use crate::program::TensorId;

/// A product with one part of a weight.
pub struct CoopProduct<'a> {
    /// x, or dy.
    pub x: TensorId,
    /// First row of x that is read, and how many.
    pub x_row0: usize,
    pub rows: usize,
    pub part: &'a WeightView,
    /// Elements of a row of the weight.
    pub k: usize,
    /// Sum over the rows of the weight: x is dy.
    pub dx: bool,
    pub out: TensorId,
    pub out_row0: usize,
    /// Which rows are live: the second and third parameter of [`Recorder::head`].
    pub live: [u32; 2],
    pub residual: Option<TensorId>,
    pub scale: Option<TensorId>,
    pub accumulate: bool,
}

/// Rows from which a product is worth two passes over its operands.
const FEWEST: usize = 64;
/// Bytes of a rewritten weight, at most: larger ones go piece by piece.
const MOST: usize = 64 << 20;

impl Recorder<'_> {
    /// Records the product where this adapter can do it, and says whether it did.
    pub(super) fn matmul_coop(&mut self, product: &CoopProduct) -> Result<bool> {
        let CoopProduct { x, rows, part, k, dx, out, .. } = *product;
        let Some(f) = self.caps.coop.map(|f| f as usize) else { return Ok(false) };
        let (ldx, ldo) = (self.shape(x).1, self.shape(out).1);
        let a_bytes = (rows * ldx * 2) as u64;
        let fits = a_bytes <= self.caps.max_binding
            && rows >= FEWEST
            && part.rows >= FEWEST
            && k.is_multiple_of(32)
            && k >= FEWEST;
        let whole = [rows, part.rows, part.first, ldx, ldo].iter().all(|n| n.is_multiple_of(32));
        if !fits || !whole {
            return Ok(false);
        }
        let scales = a_bytes.next_multiple_of(256);
        let b_start = (scales + (rows / f * 4) as u64).next_multiple_of(256);
        let a = || Bind::Scratch(0..a_bytes);
        let scales = || Bind::Scratch(scales..scales + (rows / f * 4) as u64);
        let mut set = self.reducing(256);
        set.insert("F", f as i64);
        let bindings = vec![self.bind(self.program.counts)?, self.bind(x)?, a(), scales()];
        let params = [rows as u32, product.live[0], product.live[1], ldx as u32, product.x_row0 as u32];
        self.dispatch("matmul_pack_rows", set, bindings, &params, (rows / f) as u64, (rows * ldx) as u64)?;
        // Pieces of whole tiles.
        let step = (MOST / 2 / k / 128 * 128).max(128);
        for row0 in (0..part.rows).step_by(step) {
            let n = step.min(part.rows - row0);
            let b = || Bind::Scratch(b_start..b_start + (n * k * 2) as u64);
            let mut set = defines(&weight_flags(part.dtype));
            set.insert("F", f as i64);
            let mut params = vec![n as u32, row0 as u32, 0, k as u32, 0, 0, 0];
            params.extend(part.layout);
            let bindings = vec![Bind::View(part.view.clone()), b()];
            self.elementwise("matmul_pack_weight", set, bindings, &params, n * k / 8)?;
            let accumulate = product.accumulate || (dx && row0 > 0);
            let first = part.first + row0;
            let (cols, depth) = if dx { (k, n) } else { (n, k) };
            let Some([fm, fn_, wm, wn]) = tile(rows / f, cols / f) else {
                return Err(Error::internal("a cooperative product of no whole tiles"));
            };
            let width = self.caps.subgroup.unwrap_or(1) as usize;
            let mut set = defines(&[
                ("SUBGROUPS", 1),
                ("WG", (width * wm * wn) as i64),
                ("F", f as i64),
                ("FM", fm as i64),
                ("FN", fn_ as i64),
                ("WM", wm as i64),
                ("WN", wn as i64),
                ("STEPS", 2),
                ("FRAGMENT", (f * f / 4) as i64),
                ("STRIDE", (f / 4) as i64),
                ("DX", dx.into()),
                ("ACCUMULATE", accumulate.into()),
            ]);
            let c0 = if dx { 0 } else { first };
            let a0 = if dx { first / f } else { 0 };
            let params = [rows, 0, 0, depth / f, cols / f, ldo, c0, product.out_row0, ldx / f, a0].map(|v| v as u32);
            let mut bindings = vec![a(), scales(), b(), self.bind(out)?];
            for (flag, extra) in [("RESIDUAL", product.residual), ("SCALE", product.scale)] {
                if let Some(extra) = extra {
                    set.insert(flag, 1);
                    bindings.push(self.bind(extra)?);
                }
            }
            let groups = rows / f / (fm * wm) * (cols / f / (fn_ * wn));
            self.dispatch("matmul_coop", set, bindings, &params, groups as u64, (rows * n * k / 8) as u64)?;
            self.label_last(format!("{}{} {n}x{k}", if dx { "dx " } else { "" }, part.dtype));
        }
        Ok(true)
    }
}

/// Fragments of a subgroup (rows, columns) and subgroups of a workgroup (the same) for a result of this many fragments: the
/// largest tile that cuts it evenly, unless too few of them came out.
fn tile(rows: usize, cols: usize) -> Option<[usize; 4]> {
    let whole = |&[fm, fn_, wm, wn]: &[usize; 4]| rows.is_multiple_of(fm * wm) && cols.is_multiple_of(fn_ * wn);
    let busy = |&[fm, fn_, wm, wn]: &[usize; 4]| rows * cols / (fm * wm * fn_ * wn) >= ENOUGH;
    let fitting = || TILES.iter().filter(|tile| whole(tile));
    fitting().find(|tile| busy(tile)).or_else(|| fitting().nth(1)).or_else(|| fitting().next()).copied()
}

/// Tiles of 128 × 128, 64 × 64, 32 × 32 and 16 × 16 elements where F is 16.
const TILES: [[usize; 4]; 4] = [[4, 4, 2, 2], [2, 2, 2, 2], [1, 1, 2, 2], [1, 1, 1, 1]];

/// Tiles that keep a large GPU busy.
const ENOUGH: usize = 100;
