//! A safe door to the `gemm` crate: strided f32 products over slices, with the bounds checked here.

use crate::error::{Error, Result};

/// A read-only matrix: element (i, j) is `data[i · row + j · col]`.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    /// Storage.
    pub data: &'a [f32],
    /// Distance between rows, in elements.
    pub row: usize,
    /// Distance between columns.
    pub col: usize,
}

impl<'a> Mat<'a> {
    /// Row-major with `cols` elements in a row.
    pub fn rows(data: &'a [f32], cols: usize) -> Self {
        Self { data, row: cols, col: 1 }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Self { data: self.data, row: self.col, col: self.row }
    }
}

/// `dst[m, n] = alpha · lhs[m, k] · rhs[k, n]`, plus what `dst` held where `accumulate`. `dst` is row-major with
/// `dst_row` elements between rows. `parallel` spreads it over rayon's pool.
///
/// # Errors
/// [`Error::Internal`] where a slice is too short for its shape.
#[allow(clippy::too_many_arguments)] // the BLAS signature
pub fn gemm(
    (m, n, k): (usize, usize, usize),
    dst: &mut [f32],
    dst_row: usize,
    accumulate: bool,
    alpha: f32,
    lhs: Mat,
    rhs: Mat,
    parallel: bool,
) -> Result<()> {
    if m == 0 || n == 0 {
        return Ok(());
    }
    let last = |rows: usize, cols: usize, row: usize, col: usize| (rows.max(1) - 1) * row + (cols.max(1) - 1) * col;
    let fits = |len: usize, rows: usize, cols: usize, row: usize, col: usize| {
        rows == 0 || cols == 0 || last(rows, cols, row, col) < len
    };
    let ok = fits(dst.len(), m, n, dst_row, 1)
        && dst_row >= n
        && fits(lhs.data.len(), m, k, lhs.row, lhs.col)
        && fits(rhs.data.len(), k, n, rhs.row, rhs.col);
    if !ok {
        return Err(Error::internal(format!("gemm {m}x{n}x{k}: a slice is shorter than its shape")));
    }
    let parallelism = if parallel { gemm::Parallelism::Rayon(0) } else { gemm::Parallelism::None };
    // SAFETY: the last element of each operand was checked to lie inside its slice, strides are non-negative,
    // rows of dst do not overlap (dst_row ≥ n), and dst is borrowed mutably so it aliases neither input.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            dst_row as isize,
            accumulate,
            lhs.data.as_ptr(),
            lhs.col as isize,
            lhs.row as isize,
            rhs.data.as_ptr(),
            rhs.col as isize,
            rhs.row as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
    Ok(())
}
