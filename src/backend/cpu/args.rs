//! Hands an op its operands as slices: disjoint pieces of the arena, of State buffers, inputs and outputs.
//!
//! Disjointness is checked at every step by construction (slices are split off one by one), so an overlap in
//! a memory plan shows up here as an error instead of as wrong numbers.

use super::cut::{Grain, gemm_unit, gemm_units};
use super::gemm::Mat;
use super::weight::Weight;
use crate::error::{Error, Result};
use std::ops::Range;

/// One operand of an op.
pub enum Operand<'a> {
    /// Numbers; u32 tensors keep their bit patterns in f32.
    Numbers(&'a mut [f32]),
    /// A weight in its file's type.
    Weight(&'a Weight),
}

/// The operands of one op, taken in the order of `Op::visit`.
pub struct Args<'a> {
    op: &'static str,
    operands: std::vec::IntoIter<Operand<'a>>,
}

impl<'a> Args<'a> {
    pub(super) fn new(op: &'static str, operands: Vec<Operand<'a>>) -> Self {
        Self { op, operands: operands.into_iter() }
    }

    fn take(&mut self) -> Result<Operand<'a>> {
        self.operands.next().ok_or_else(|| Error::internal(format!("{}: an operand is missing", self.op)))
    }

    /// The next operand, writable.
    pub fn write(&mut self) -> Result<&'a mut [f32]> {
        match self.take()? {
            Operand::Numbers(numbers) => Ok(numbers),
            Operand::Weight(_) => Err(Error::internal(format!("{}: a weight where numbers are expected", self.op))),
        }
    }

    /// The next operand, read only.
    pub fn read(&mut self) -> Result<&'a [f32]> {
        self.write().map(|numbers| &*numbers)
    }

    /// The next operand as u32.
    pub fn read_u32(&mut self) -> Result<&'a [u32]> {
        self.read().map(bytemuck::cast_slice)
    }

    /// The next operand, if the op has it.
    pub fn read_if(&mut self, there: bool) -> Result<Option<&'a [f32]>> {
        if there { self.read().map(Some) } else { Ok(None) }
    }

    /// The next operand as u32, if the op has it.
    pub fn read_u32_if(&mut self, there: bool) -> Result<Option<&'a [u32]>> {
        if there { self.read_u32().map(Some) } else { Ok(None) }
    }

    /// The next operand, writable, if the op has it.
    pub fn write_if(&mut self, there: bool) -> Result<Option<&'a mut [f32]>> {
        if there { self.write().map(Some) } else { Ok(None) }
    }

    /// The next operand as a weight; State and temporaries are f32 matrices of the given width.
    pub fn weight(&mut self) -> Result<WeightArg<'a>> {
        Ok(match self.take()? {
            Operand::Weight(weight) => WeightArg::File(weight),
            Operand::Numbers(numbers) => WeightArg::Dense(numbers),
        })
    }
}

/// A weight from the checkpoint, or a dense f32 matrix (one that is trained).
pub enum WeightArg<'a> {
    /// In its file's type.
    File(&'a Weight),
    /// f32, row-major.
    Dense(&'a [f32]),
}

impl WeightArg<'_> {
    /// Outputs of a weight with rows of `k`.
    pub fn n(&self, k: usize) -> usize {
        match self {
            Self::File(weight) => weight.n(),
            Self::Dense(w) => w.len() / k.max(1),
        }
    }

    /// Units of [`WeightArg::product`].
    pub fn product_units(&self, grain: Grain, rows: usize, k: usize) -> usize {
        match self {
            Self::File(weight) => weight.product_units(grain, rows),
            Self::Dense(_) => gemm_units(grain, (rows, self.n(k), k)),
        }
    }

    /// A unit of `out[t, n] = x[t, k] · selfᵀ`, see [`Weight::product`].
    ///
    /// # Errors
    /// [`Error::Internal`] for shapes that do not fit.
    pub fn product(
        &self,
        (grain, unit): (Grain, usize),
        x: &[f32],
        k: usize,
        out: &mut [f32],
        tile: &mut Vec<f32>,
    ) -> Result<(Range<usize>, Range<usize>)> {
        match self {
            Self::File(weight) => weight.product((grain, unit), x, out, tile),
            Self::Dense(w) => {
                let (rows, n) = (x.len() / k.max(1), self.n(k));
                gemm_unit(grain, unit, (rows, n, k), out, n, false, 1.0, Mat::rows(x, k), Mat::rows(w, k).t())
            }
        }
    }

    /// Units of [`WeightArg::product_dx`].
    pub fn dx_units(&self, grain: Grain, rows: usize, k: usize) -> usize {
        match self {
            Self::File(weight) => weight.dx_units(grain, rows),
            Self::Dense(_) => gemm_units(grain, (rows, k, self.n(k))),
        }
    }

    /// A unit of `dx[t, k] (+)= alpha · dy[t, n] · self`, see [`Weight::product_dx`].
    ///
    /// # Errors
    /// As [`WeightArg::product`].
    #[allow(clippy::too_many_arguments)] // sizes and operands of a product
    pub fn product_dx(
        &self,
        (grain, unit): (Grain, usize),
        dy: &[f32],
        k: usize,
        alpha: f32,
        dx: &mut [f32],
        accumulate: bool,
        tile: &mut Vec<f32>,
    ) -> Result<()> {
        match self {
            Self::File(weight) => weight.product_dx((grain, unit), dy, alpha, dx, accumulate, tile),
            Self::Dense(w) => {
                let (rows, n) = (dx.len() / k.max(1), self.n(k));
                let (dy, w) = (Mat::rows(dy, n), Mat::rows(w, k));
                gemm_unit(grain, unit, (rows, k, n), dx, k, accumulate, alpha, dy, w).map(|_| ())
            }
        }
    }
}

/// Splits `pool` into the given ranges, each tagged with its operand's position.
///
/// # Errors
/// [`Error::Internal`] where two ranges overlap or one lies outside.
pub(super) fn split(mut pool: &mut [f32], mut wanted: Vec<(usize, Range<usize>)>) -> Result<Vec<(usize, &mut [f32])>> {
    wanted.sort_by_key(|(_, range)| (range.start, range.end));
    let mut at = 0;
    let mut pieces = Vec::with_capacity(wanted.len());
    for (position, range) in wanted {
        let bad =
            || Error::internal(format!("operands overlap or lie outside their buffer at element {}", range.start));
        let skip = range.start.checked_sub(at).ok_or_else(bad)?;
        let rest = pool.split_at_mut_checked(skip).ok_or_else(bad)?.1;
        let (piece, rest) = rest.split_at_mut_checked(range.len()).ok_or_else(bad)?;
        (pool, at) = (rest, range.end);
        pieces.push((position, piece));
    }
    Ok(pieces)
}
