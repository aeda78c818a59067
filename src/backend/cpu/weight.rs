//! Products with a weight in its file's type: decoded row by row for one token, tile by tile for many. Each is a number of
//! units, see `cut`.

// A closure can be marked `inline(always)`, a function passed by name cannot: see `simd::dispatch`.
#![allow(clippy::redundant_closure)]

use super::cut::{ALIGN, Grain, Tiling, products_of_few};
use super::gemm::{Mat, gemm};
use super::simd::{dispatch, dot};
use crate::error::{Error, Result};
use crate::format::quant::{
    bf16_to_f32, f16_to_f32, nf4_block, q4_0_block, q4_1_block, q4_k_block, q5_0_block, q5_1_block, q5_k_block,
    q6_k_block, q8_0_block,
};
use crate::tensor::{DType, HostTensor};
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// Up to this many rows the weight is decoded and multiplied in one pass without a scratch tile.
/// Measured on 2 cores: the tiled product wins from 5 rows on.
const MATVEC_ROWS: usize = 4;

/// A weight `[n, k]` of any type, with rows that can be borrowed as bytes.
#[derive(Clone)]
pub struct Weight {
    tensor: HostTensor,
    row_bytes: usize,
}

impl Weight {
    /// Wraps a host tensor.
    ///
    /// # Errors
    /// [`Error::Internal`] for types that hold no weights.
    pub fn new(tensor: HostTensor) -> Result<Self> {
        if !DType::WEIGHTS.contains(&tensor.dtype) {
            return Err(Error::internal(format!("{} is not a weight type", tensor.dtype)));
        }
        let row_bytes = tensor.dtype.bytes_for(tensor.cols()).unwrap_or(0);
        Ok(Self { tensor, row_bytes })
    }

    /// Rows (outputs).
    pub fn n(&self) -> usize {
        self.tensor.rows()
    }

    /// Elements in a row (inputs).
    pub fn k(&self) -> usize {
        self.tensor.cols()
    }

    fn bytes(&self, rows: Range<usize>) -> &[u8] {
        &self.tensor.data[rows.start * self.row_bytes..rows.end * self.row_bytes]
    }

    /// Decodes consecutive rows, starting at `row`, into `out`.
    pub fn decode(&self, row: usize, out: &mut [f32]) {
        let rows = out.len() / self.k().max(1);
        self.decode_bytes(self.bytes(row..row + rows), out);
    }

    fn decode_bytes(&self, bytes: &[u8], out: &mut [f32]) {
        dispatch(
            #[inline(always)]
            || match self.tensor.dtype {
                DType::F32 => elements(
                    bytes,
                    out,
                    #[inline(always)]
                    |b| f32::from_le_bytes(b),
                ),
                DType::F16 => elements(
                    bytes,
                    out,
                    #[inline(always)]
                    |b| f16_to_f32(u16::from_le_bytes(b)),
                ),
                DType::BF16 => elements(
                    bytes,
                    out,
                    #[inline(always)]
                    |b| bf16_to_f32(u16::from_le_bytes(b)),
                ),
                DType::Q4_0 => blocks(
                    bytes,
                    out,
                    #[inline(always)]
                    |b, w| q4_0_block(b, w),
                ),
                DType::Q4_1 => blocks(
                    bytes,
                    out,
                    #[inline(always)]
                    |b, w| q4_1_block(b, w),
                ),
                DType::Q5_0 => blocks(
                    bytes,
                    out,
                    #[inline(always)]
                    |b, w| q5_0_block(b, w),
                ),
                DType::Q5_1 => blocks(
                    bytes,
                    out,
                    #[inline(always)]
                    |b, w| q5_1_block(b, w),
                ),
                DType::Q8_0 => blocks(
                    bytes,
                    out,
                    #[inline(always)]
                    |b, w| q8_0_block(b, w),
                ),
                DType::Q4_K => blocks(
                    bytes,
                    out,
                    #[inline(always)]
                    |b, w| q4_k_block(b, w),
                ),
                DType::Q5_K => blocks(
                    bytes,
                    out,
                    #[inline(always)]
                    |b, w| q5_k_block(b, w),
                ),
                DType::Q6_K => blocks(
                    bytes,
                    out,
                    #[inline(always)]
                    |b, w| q6_k_block(b, w),
                ),
                DType::NF4 => blocks(
                    bytes,
                    out,
                    #[inline(always)]
                    |b, w| nf4_block(b, w),
                ),
                DType::U32 | DType::I8 | DType::E4M3 => {}
            },
        );
    }

    /// All rows as f32: borrowed where they are stored so, else decoded.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        if let Some(borrowed) = self.borrow_f32(0..self.n()) {
            return Cow::Borrowed(borrowed);
        }
        let mut out = vec![0.0; self.tensor.len()];
        self.decode(0, &mut out);
        Cow::Owned(out)
    }

    fn borrow_f32(&self, rows: Range<usize>) -> Option<&[f32]> {
        (self.tensor.dtype == DType::F32).then(|| bytemuck::try_cast_slice(self.bytes(rows)).ok()).flatten()
    }

    /// Some columns of some rows as f32: borrowed, or decoded into `tile` where `anew`, else left there by an earlier unit.
    /// Columns begin and end where blocks do.
    fn tile<'a>(&'a self, rows: &Range<usize>, cols: &Range<usize>, tile: &'a mut Vec<f32>, anew: bool) -> Mat<'a> {
        let k = self.k();
        if let Some(all) = self.borrow_f32(0..self.n()) {
            return Mat::rows(&all[rows.start * k + cols.start..], k);
        }
        let width = cols.len();
        if anew || tile.len() != rows.len() * width {
            tile.resize(rows.len() * width, 0.0);
            // Small pieces, so that two threads finish together.
            let piece = rows.len().div_ceil(8);
            let bytes = |elements: usize| elements * self.row_bytes / k.max(1);
            let part = bytes(cols.start)..bytes(cols.end);
            tile.par_chunks_mut(piece * width).enumerate().for_each(|(i, out)| {
                let first = rows.start + i * piece;
                if width == k {
                    return self.decode(first, out);
                }
                for (row, out) in (first..).zip(out.chunks_exact_mut(width)) {
                    self.decode_bytes(&self.bytes(row..row + 1)[part.clone()], out);
                }
            });
        }
        Mat::rows(tile, width)
    }

    /// Outputs of a unit of [`Weight::product`] with few rows.
    fn outputs_of_few(&self, rows: usize) -> usize {
        (products_of_few() / (self.k() * rows).max(1)).max(1)
    }

    /// Units of [`Weight::product`].
    pub fn product_units(&self, grain: Grain, rows: usize) -> usize {
        match rows {
            0 => 0,
            1..=MATVEC_ROWS => self.n().div_ceil(self.outputs_of_few(rows)),
            _ => Tiling::new(grain, rows, self.n(), self.k(), ALIGN).units(),
        }
    }

    /// A unit of `out[t, n] = x[t, k] · selfᵀ` for all rows of x. Units are done in order, with the same `tile` for all of them. Gives
    /// the rows and columns of `out` that are complete now.
    ///
    /// # Errors
    /// [`Error::Internal`] for shapes that do not fit.
    pub fn product(
        &self,
        (grain, unit): (Grain, usize),
        x: &[f32],
        out: &mut [f32],
        tile: &mut Vec<f32>,
    ) -> Result<(Range<usize>, Range<usize>)> {
        let (n, k) = (self.n(), self.k());
        let rows = x.len() / k.max(1);
        if rows * n != out.len() || rows * k != x.len() {
            return Err(Error::internal(format!("product: {} and {} do not fit [{n}, {k}]", x.len(), out.len())));
        }
        if rows <= MATVEC_ROWS {
            let step = self.outputs_of_few(rows);
            let outs = unit * step..((unit + 1) * step).min(n);
            for (x, out) in x.chunks_exact(k).zip(out.chunks_exact_mut(n)) {
                self.matvec(x, outs.start, &mut out[outs.clone()]);
            }
            return Ok((0..rows, outs));
        }
        let [outs, terms, block] = Tiling::new(grain, rows, n, k, ALIGN).unit(unit);
        let weight = self.tile(&outs, &terms, tile, block.start == 0);
        let x = Mat::rows(&x[block.start * k + terms.start..], k);
        let sizes = (block.len(), outs.len(), terms.len());
        gemm(sizes, &mut out[block.start * n + outs.start..], n, terms.start > 0, 1.0, x, weight.t(), true)?;
        Ok(if terms.end == k { (block, outs) } else { (0..0, outs) })
    }

    /// Units of [`Weight::product_dx`].
    pub fn dx_units(&self, grain: Grain, rows: usize) -> usize {
        if rows == 0 { 0 } else { self.dx_tiling(grain, rows).units() }
    }

    fn dx_tiling(&self, grain: Grain, rows: usize) -> Tiling {
        Tiling::new(grain, rows, self.k(), self.n(), self.tensor.dtype.block_len().max(ALIGN))
    }

    /// A unit of `dx[t, k] (+)= alpha · dy[t, n] · self`, see [`Weight::product`].
    ///
    /// # Errors
    /// As [`Weight::product`].
    pub fn product_dx(
        &self,
        (grain, unit): (Grain, usize),
        dy: &[f32],
        alpha: f32,
        dx: &mut [f32],
        accumulate: bool,
        tile: &mut Vec<f32>,
    ) -> Result<()> {
        let (n, k) = (self.n(), self.k());
        let rows = dy.len() / n.max(1);
        if rows * n != dy.len() || rows * k != dx.len() {
            return Err(Error::internal(format!("product: {} and {} do not fit [{n}, {k}]", dx.len(), dy.len())));
        }
        let [outs, terms, block] = self.dx_tiling(grain, rows).unit(unit);
        let weight = self.tile(&terms, &outs, tile, block.start == 0);
        let dy = Mat::rows(&dy[block.start * n + terms.start..], n);
        let sizes = (block.len(), outs.len(), terms.len());
        let accumulate = accumulate || terms.start > 0;
        gemm(sizes, &mut dx[block.start * k + outs.start..], k, accumulate, alpha, dy, weight, true)
    }

    /// One row: every output is a dot product with a row of the weight from number `first` on, decoded on the way.
    fn matvec(&self, x: &[f32], first: usize, out: &mut [f32]) {
        // Enough work for a task to pay for being handed to another thread.
        let piece = (1usize << 17).div_ceil(self.k().max(1)).max(out.len().div_ceil(16));
        out.par_chunks_mut(piece).enumerate().for_each(|(i, out)| {
            let row = first + i * piece;
            let bytes = self.bytes(row..row + out.len());
            #[cfg(target_arch = "x86_64")]
            if super::avx2::matvec(self.tensor.dtype, bytes, x, out) {
                return;
            }
            dispatch(
                #[inline(always)]
                || match self.tensor.dtype {
                    DType::F32 => match bytemuck::try_cast_slice(bytes) {
                        Ok(weights) => each_row(weights, x, out),
                        Err(_) => dot_elements(
                            bytes,
                            x,
                            out,
                            #[inline(always)]
                            |b| f32::from_le_bytes(b),
                        ),
                    },
                    DType::F16 => dot_elements(
                        bytes,
                        x,
                        out,
                        #[inline(always)]
                        |b| f16_to_f32(u16::from_le_bytes(b)),
                    ),
                    DType::BF16 => dot_elements(
                        bytes,
                        x,
                        out,
                        #[inline(always)]
                        |b| bf16_to_f32(u16::from_le_bytes(b)),
                    ),
                    DType::Q4_0 => dot_blocks(
                        bytes,
                        x,
                        out,
                        #[inline(always)]
                        |b, w| q4_0_block(b, w),
                    ),
                    DType::Q4_1 => dot_blocks(
                        bytes,
                        x,
                        out,
                        #[inline(always)]
                        |b, w| q4_1_block(b, w),
                    ),
                    DType::Q5_0 => dot_blocks(
                        bytes,
                        x,
                        out,
                        #[inline(always)]
                        |b, w| q5_0_block(b, w),
                    ),
                    DType::Q5_1 => dot_blocks(
                        bytes,
                        x,
                        out,
                        #[inline(always)]
                        |b, w| q5_1_block(b, w),
                    ),
                    DType::Q8_0 => dot_blocks(
                        bytes,
                        x,
                        out,
                        #[inline(always)]
                        |b, w| q8_0_block(b, w),
                    ),
                    DType::Q4_K => dot_blocks(
                        bytes,
                        x,
                        out,
                        #[inline(always)]
                        |b, w| q4_k_block(b, w),
                    ),
                    DType::Q5_K => dot_blocks(
                        bytes,
                        x,
                        out,
                        #[inline(always)]
                        |b, w| q5_k_block(b, w),
                    ),
                    DType::Q6_K => dot_blocks(
                        bytes,
                        x,
                        out,
                        #[inline(always)]
                        |b, w| q6_k_block(b, w),
                    ),
                    DType::NF4 => dot_blocks(
                        bytes,
                        x,
                        out,
                        #[inline(always)]
                        |b, w| nf4_block(b, w),
                    ),
                    DType::U32 | DType::I8 | DType::E4M3 => {}
                },
            );
        });
    }
}

#[inline(always)]
fn elements<const B: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn([u8; B]) -> f32) {
    for (b, o) in bytes.as_chunks::<B>().0.iter().zip(out) {
        *o = decode(*b);
    }
}

#[inline(always)]
fn blocks<const B: usize, const N: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn(&[u8; B], &mut [f32; N])) {
    for (b, o) in bytes.as_chunks::<B>().0.iter().zip(out.as_chunks_mut::<N>().0) {
        decode(b, o);
    }
}

#[inline(always)]
fn each_row(weights: &[f32], x: &[f32], out: &mut [f32]) {
    for (w, o) in weights.chunks_exact(x.len()).zip(out) {
        *o = dot(w, x);
    }
}

#[inline(always)]
fn dot_elements<const B: usize>(bytes: &[u8], x: &[f32], out: &mut [f32], decode: impl Fn([u8; B]) -> f32) {
    const LANES: usize = 32;
    for (row, o) in bytes.chunks_exact(x.len() * B).zip(out) {
        let mut acc = [0f32; LANES];
        let (elements, _) = row.as_chunks::<B>();
        let ((w, w_rest), (x, x_rest)) = (elements.as_chunks::<LANES>(), x.as_chunks::<LANES>());
        for (w, x) in w.iter().zip(x) {
            for i in 0..LANES {
                acc[i] = decode(w[i]).mul_add(x[i], acc[i]);
            }
        }
        let rest: f32 = w_rest.iter().zip(x_rest).map(|(w, x)| decode(*w) * x).sum();
        *o = super::simd::sum(&acc) + rest;
    }
}

#[inline(always)]
fn dot_blocks<const B: usize, const N: usize>(
    bytes: &[u8],
    x: &[f32],
    out: &mut [f32],
    decode: impl Fn(&[u8; B], &mut [f32; N]),
) {
    let (x_blocks, _) = x.as_chunks::<N>();
    for (row, o) in bytes.chunks_exact(x_blocks.len() * B).zip(out) {
        let mut acc = [0f32; 32];
        let mut w = [0f32; N];
        for (block, x) in row.as_chunks::<B>().0.iter().zip(x_blocks) {
            decode(block, &mut w);
            for (w, x) in w.as_chunks::<32>().0.iter().zip(x.as_chunks::<32>().0) {
                for i in 0..32 {
                    acc[i] = w[i].mul_add(x[i], acc[i]);
                }
            }
        }
        *o = super::simd::sum(&acc);
    }
}
