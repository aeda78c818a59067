//! Ops in units of work, so that a run can stop inside one: a large product takes longer than a slice of a frame.
//!
//! An op makes the same sums in the same order whether or not it is cut: how they are divided decides that order, and a cut run must
//! give the same bits. Products that nobody waits for have larger units ([`Grain`]), with the same sums.

use super::gemm::{Mat, gemm};
use crate::error::Result;
use std::any::Any;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Multiply-adds of a unit, for each thread: a fifth of a millisecond on a core with AVX2.
const PRODUCTS: usize = 6 << 20;

/// Multiply-adds of a unit of a product with few rows, for each thread: it reads as many elements of the weight.
const PRODUCTS_OF_FEW: usize = 1 << 20;

/// Elements of a unit that reads and writes each of them a few times, for each thread.
const ELEMENTS: usize = 1 << 16;

/// Rows that are multiplied together, at most: a decoded or packed element is then used often enough.
const BLOCK_ROWS: usize = 160;

/// Terms of a sum that are added up together, at most: about what the product keeps in its caches.
const DEPTH: usize = 768;

/// Outputs of a tile are a multiple of this, where nothing else is asked for: what the product's kernel makes at a time.
pub const ALIGN: usize = 32;

/// Decoding an element takes as long as so many multiply-adds.
const DECODE: usize = 32;

/// Elements of a coarse tile of a weight: it stays in the caches between decoding and the product.
const COARSE_TILE: usize = 768 << 10;

/// An op whose deadline is this far away is divided coarsely.
const UNHURRIED: Duration = Duration::from_secs(1);

/// Where a product has no more results than this, or no more than [`SMALL_SIDE`] rows and outputs, the `gemm` crate makes its sums in
/// another order: units have more, however finely a product is divided, so that their bits do not depend on that.
const SMALL: usize = 256;
const SMALL_SIDE: usize = 64;

/// How large units of a product are. Sums are divided alike, so the bits are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Grain {
    /// As long as the module says: an op can stop soon.
    #[default]
    Fine,
    /// A tile with all rows: a fifth less time in all.
    Coarse,
}

/// By what all sizes are divided.
static FINER: AtomicUsize = AtomicUsize::new(1);

/// Makes units so many times smaller, in the whole process: for tests, whose ops are small. Not to be called while a program runs.
pub fn finer_units(by: usize) {
    FINER.store(by.max(1), Ordering::Relaxed);
}

fn finer(size: usize, least: usize) -> usize {
    (size / FINER.load(Ordering::Relaxed)).max(least)
}

/// Elements at a time for the whole pool.
pub fn elements() -> usize {
    finer(ELEMENTS, 1) * rayon::current_num_threads()
}

/// Multiply-adds at a time for one thread.
pub fn products_of_a_thread() -> usize {
    finer(PRODUCTS, 1)
}

/// Weight elements at a time for the whole pool, each multiplied with few rows.
pub fn products_of_few() -> usize {
    finer(PRODUCTS_OF_FEW, 1) * rayon::current_num_threads()
}

/// Where an op goes on, and where it stops.
#[derive(Default)]
pub struct Cut {
    next: usize,
    kept: Option<Box<dyn Any + Send>>,
    deadline: Option<Instant>,
    stopped: bool,
    grain: Grain,
}

impl Cut {
    /// From the unit before which the op stopped until it is done or late.
    pub(super) fn go_on(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
        self.stopped = false;
        if self.next == 0 {
            let hurried = deadline.is_some_and(|at| at.saturating_duration_since(Instant::now()) < UNHURRIED);
            self.grain = if hurried { Grain::Fine } else { Grain::Coarse };
        }
    }

    /// How its products are divided, from the first unit to the last.
    pub fn grain(&self) -> Grain {
        self.grain
    }

    /// The unit before which the op has stopped; `None` when it is done, and the next one begins anew.
    pub(super) fn end(&mut self) -> Option<usize> {
        if self.stopped {
            return Some(self.next);
        }
        *self = Self::default();
        None
    }

    /// The unit with which the op goes on.
    pub(super) fn next(&self) -> usize {
        self.next
    }

    /// Does the units that are left of `count`, one at least, until it is late. True when all are done.
    pub fn units(&mut self, count: usize, mut unit: impl FnMut(usize) -> Result<()>) -> Result<bool> {
        while self.next < count {
            unit(self.next)?;
            self.next += 1;
            self.stopped = self.next < count && self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if self.stopped {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// As [`Cut::units`], over the rows below `len`, `step` at a time.
    pub fn rows(&mut self, len: usize, step: usize, mut rows: impl FnMut(Range<usize>) -> Result<()>) -> Result<bool> {
        let step = step.max(1);
        self.units(len.div_ceil(step), |i| rows(i * step..((i + 1) * step).min(len)))
    }

    /// What the units before have kept.
    pub fn take<T: Any + Default>(&mut self) -> T {
        let kept = self.kept.take().and_then(|kept| kept.downcast().ok());
        kept.map_or_else(T::default, |kept| *kept)
    }

    /// Keeps something for the units that are left.
    pub fn keep<T: Any + Send>(&mut self, value: T) {
        if self.stopped {
            self.kept = Some(Box::new(value));
        }
    }
}

/// How a product is divided: tiles of its outputs, for each of them pieces of the sum, for each of them blocks of rows.
#[derive(Clone, Copy)]
pub struct Tiling {
    sizes: [usize; 3],
    steps: [usize; 3],
    /// Fewer outputs than this belong to the tile before.
    least: usize,
}

impl Tiling {
    /// `rows` by `outs` sums of `depth` terms. Tiles begin at multiples of `align`, pieces at those of 256, where the blocks of all
    /// types begin.
    pub fn new(grain: Grain, rows: usize, outs: usize, depth: usize, align: usize) -> Self {
        let pieces = depth.div_ceil(finer(DEPTH, 256)).max(1);
        let piece = if pieces == 1 { depth.max(1) } else { depth.div_ceil(pieces).next_multiple_of(256) };
        let (block, tile) = match grain {
            Grain::Coarse => (rows.max(1), finer(COARSE_TILE, 1) / piece),
            Grain::Fine => {
                let block = rows.div_ceil(rows.div_ceil(BLOCK_ROWS).max(1)).max(1);
                let products = products_of_a_thread() * rayon::current_num_threads();
                (block, products / (piece * (block + DECODE)))
            }
        };
        let least = (SMALL / block + 1).max(SMALL_SIDE + 1).next_multiple_of(align);
        let tile = (tile / align * align).max(least).min(outs.max(1));
        Self { sizes: [outs, depth, rows], steps: [tile, piece, block], least }
    }

    fn counts(&self) -> [usize; 3] {
        let least = [self.least, 1, 1];
        [0, 1, 2].map(|i| {
            let (whole, rest) = (self.sizes[i] / self.steps[i], self.sizes[i] % self.steps[i]);
            whole + usize::from(rest >= least[i] || (whole == 0 && rest > 0))
        })
    }

    /// Units of the whole.
    pub fn units(&self) -> usize {
        self.counts().iter().product()
    }

    /// Outputs, terms and rows of a unit.
    pub fn unit(&self, unit: usize) -> [Range<usize>; 3] {
        let counts = self.counts();
        let [_, pieces, blocks] = counts;
        let at = [unit / blocks / pieces, unit / blocks % pieces, unit % blocks];
        [0, 1, 2].map(|i| {
            let start = at[i] * self.steps[i];
            start..if at[i] + 1 < counts[i] { start + self.steps[i] } else { self.sizes[i] }
        })
    }
}

/// [`gemm`] over the pool, in units.
///
/// # Errors
/// Those of [`gemm`].
#[allow(clippy::too_many_arguments)] // the BLAS signature
pub fn gemm_in_units(
    cut: &mut Cut,
    (m, n, k): (usize, usize, usize),
    dst: &mut [f32],
    dst_row: usize,
    accumulate: bool,
    alpha: f32,
    lhs: Mat,
    rhs: Mat,
) -> Result<()> {
    let grain = cut.grain();
    cut.units(gemm_units(grain, (m, n, k)), |unit| {
        gemm_unit(grain, unit, (m, n, k), dst, dst_row, accumulate, alpha, lhs, rhs).map(|_| ())
    })?;
    Ok(())
}

/// Units of [`gemm_unit`].
pub fn gemm_units(grain: Grain, (m, n, k): (usize, usize, usize)) -> usize {
    if m * n == 0 { 0 } else { Tiling::new(grain, m, n, k, ALIGN).units() }
}

/// One of the units of [`gemm_in_units`], which are done in order. Gives the rows and columns of `dst` that are complete now.
///
/// # Errors
/// Those of [`gemm`].
#[allow(clippy::too_many_arguments)] // the BLAS signature
pub fn gemm_unit(
    grain: Grain,
    unit: usize,
    (m, n, k): (usize, usize, usize),
    dst: &mut [f32],
    dst_row: usize,
    accumulate: bool,
    alpha: f32,
    lhs: Mat,
    rhs: Mat,
) -> Result<(Range<usize>, Range<usize>)> {
    let [outs, terms, rows] = Tiling::new(grain, m, n, k, ALIGN).unit(unit);
    let dst = &mut dst[rows.start * dst_row + outs.start..];
    let lhs = Mat { data: &lhs.data[rows.start * lhs.row + terms.start * lhs.col..], ..lhs };
    let rhs = Mat { data: &rhs.data[terms.start * rhs.row + outs.start * rhs.col..], ..rhs };
    let accumulate = accumulate || terms.start > 0;
    gemm((rows.len(), outs.len(), terms.len()), dst, dst_row, accumulate, alpha, lhs, rhs, true)?;
    Ok(if terms.end == k { (rows, outs) } else { (0..0, outs) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_cover_a_product_once() {
        for (rows, outs, depth) in [(1, 1, 1), (5, 49152, 576), (130, 300, 1537), (512, 576, 4096), (7, 14336, 4096)] {
            for grain in [Grain::Fine, Grain::Coarse] {
                let tiling = Tiling::new(grain, rows, outs, depth, ALIGN);
                let mut covered = 0;
                for unit in 0..tiling.units() {
                    let [o, t, r] = tiling.unit(unit);
                    covered += o.len() * t.len() * r.len();
                    assert!(o.start % ALIGN == 0 && o.end <= outs && r.end <= rows, "{o:?} {r:?}");
                    assert!(t.start % 256 == 0 && t.end <= depth, "{t:?}");
                }
                assert_eq!(covered, rows * outs * depth);
            }
        }
    }

    #[test]
    fn a_late_op_stops_after_each_unit_and_keeps_what_it_has() {
        let mut cut = Cut::default();
        let mut calls = 0;
        loop {
            cut.go_on(Some(Instant::now()));
            let mut sum: Vec<usize> = cut.take();
            let done = cut.units(4, |unit| {
                sum.push(unit);
                Ok(())
            });
            assert!(done.is_ok());
            calls += 1;
            if cut.stopped {
                cut.keep(sum);
                assert_eq!(cut.end(), Some(calls));
                continue;
            }
            assert_eq!(sum, [0, 1, 2, 3]);
            break;
        }
        assert_eq!((calls, cut.end(), cut.next()), (4, None, 0));
    }
}
