//! Products with a weight in its file's type: decoded row by row for one token, tile by tile for many.

// A closure can be marked `inline(always)`, a function passed by name cannot: see `simd::dispatch`.
#![allow(clippy::redundant_closure)]

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

/// Up to this many rows the weight is decoded and multiplied in one pass without a scratch tile.
/// Measured on 2 cores: the tiled product wins from 5 rows on.
const MATVEC_ROWS: usize = 4;

/// Weight rows decoded at a time: 512 rows of 1536 inputs are 3 MiB, about a core's share of the cache.
const TILE_ELEMENTS: usize = 768 << 10;

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

    fn bytes(&self, rows: std::ops::Range<usize>) -> &[u8] {
        &self.tensor.data[rows.start * self.row_bytes..rows.end * self.row_bytes]
    }

    /// Decodes consecutive rows, starting at `row`, into `out`.
    pub fn decode(&self, row: usize, out: &mut [f32]) {
        let rows = out.len() / self.k().max(1);
        let bytes = self.bytes(row..row + rows);
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

    fn borrow_f32(&self, rows: std::ops::Range<usize>) -> Option<&[f32]> {
        (self.tensor.dtype == DType::F32).then(|| bytemuck::try_cast_slice(self.bytes(rows)).ok()).flatten()
    }

    /// Calls `f` with (first row, rows as f32) for tiles that cover the whole weight.
    fn for_tiles(&self, mut f: impl FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
        let (n, k) = (self.n(), self.k());
        if let Some(all) = self.borrow_f32(0..n) {
            return f(0, all);
        }
        let tile_rows = (TILE_ELEMENTS / k.max(1)).clamp(1, n);
        let mut scratch = vec![0.0; tile_rows * k];
        for row in (0..n).step_by(tile_rows) {
            let rows = tile_rows.min(n - row);
            let tile = &mut scratch[..rows * k];
            // Small pieces, so that two threads finish together.
            let piece = rows.div_ceil(8);
            tile.par_chunks_mut(piece * k).enumerate().for_each(|(i, out)| self.decode(row + i * piece, out));
            f(row, tile)?;
        }
        Ok(())
    }

    /// `out[t, n] = x[t, k] · selfᵀ` for all rows of x.
    ///
    /// # Errors
    /// [`Error::Internal`] for shapes that do not fit.
    pub fn product(&self, x: &[f32], out: &mut [f32]) -> Result<()> {
        let (n, k) = (self.n(), self.k());
        let rows = x.len() / k.max(1);
        if rows * n != out.len() || rows * k != x.len() {
            return Err(Error::internal(format!("product: {} and {} do not fit [{n}, {k}]", x.len(), out.len())));
        }
        if rows <= MATVEC_ROWS {
            for (x, out) in x.chunks_exact(k).zip(out.chunks_exact_mut(n)) {
                self.matvec(x, out);
            }
            return Ok(());
        }
        self.for_tiles(|row, tile| {
            let cols = tile.len() / k;
            gemm((rows, cols, k), &mut out[row..], n, false, 1.0, Mat::rows(x, k), Mat::rows(tile, k).t(), true)
        })
    }

    /// `dx[t, k] (+)= alpha · dy[t, n] · self`.
    ///
    /// # Errors
    /// As [`Weight::product`].
    pub fn product_dx(&self, dy: &[f32], alpha: f32, dx: &mut [f32], accumulate: bool) -> Result<()> {
        let (n, k) = (self.n(), self.k());
        let rows = dy.len() / n.max(1);
        self.for_tiles(|row, tile| {
            let depth = tile.len() / k;
            let dy = Mat::rows(&dy[row.min(dy.len())..], n);
            gemm((rows, k, depth), dx, k, accumulate || row > 0, alpha, dy, Mat::rows(tile, k), true)
        })
    }

    /// One row: every output is a dot product with a row of the weight, decoded on the way.
    fn matvec(&self, x: &[f32], out: &mut [f32]) {
        // Enough work for a task to pay for being handed to another thread.
        let piece = (1usize << 17).div_ceil(self.k().max(1)).max(self.n().div_ceil(16));
        out.par_chunks_mut(piece).enumerate().for_each(|(i, out)| {
            let row = i * piece;
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
