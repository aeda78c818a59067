//! Descriptions of matrices for the copy engine (TMA), and the arguments of the Hopper products (`kernels/sm90_gemm.cuh`).

use super::context::device_error;
use crate::error::Result;
use crate::tensor::DType;
use cudarc::driver::sys;
use std::ffi::c_void;

/// A `CUtensorMap`: opaque, aligned as the driver asks.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct TensorMap([u64; 16]);

impl TensorMap {
    /// Takes the place of an operand that is not used.
    pub const NONE: Self = Self([0; 16]);

    /// A row-major 16-bit matrix `[rows, cols]` at `address`, read in boxes of `box_rows` × 64 with 128-byte swizzling;
    /// outside it reads as zeros. `cols` is a multiple of 8, `address` of 16.
    pub fn new(dtype: DType, address: u64, rows: usize, cols: usize, box_rows: usize) -> Result<Self> {
        Self::strided(dtype, address, rows, cols, 2 * cols, box_rows)
    }

    /// The same with rows that start `row_bytes` apart, a multiple of 16.
    pub fn strided(
        dtype: DType,
        address: u64,
        rows: usize,
        cols: usize,
        row_bytes: usize,
        box_rows: usize,
    ) -> Result<Self> {
        let swizzle = sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B;
        Self::encode(dtype, address, [rows, cols], row_bytes, [box_rows, 64], swizzle)
    }

    /// A matrix as for [`Self::new`], read in boxes of `box_rows` × 16 with 32-byte swizzling.
    pub fn narrow(dtype: DType, address: u64, rows: usize, cols: usize, box_rows: usize) -> Result<Self> {
        let swizzle = sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B;
        Self::encode(dtype, address, [rows, cols], 2 * cols, [box_rows, 16], swizzle)
    }

    fn encode(
        dtype: DType,
        address: u64,
        [rows, cols]: [usize; 2],
        row_bytes: usize,
        [box_rows, box_cols]: [usize; 2],
        swizzle: sys::CUtensorMapSwizzle,
    ) -> Result<Self> {
        use sys::{
            CUtensorMapDataType as Type, CUtensorMapFloatOOBfill as Fill, CUtensorMapInterleave as Interleave,
            CUtensorMapL2promotion as Promotion,
        };
        let element = match dtype {
            DType::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            _ => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        let dims = [cols as u64, rows as u64];
        let strides = [row_bytes as u64];
        let (boxes, steps) = ([box_cols as u32, box_rows as u32], [1u32, 1]);
        let mut map = Self::NONE;
        // SAFETY: the arrays have the rank's lengths, and the map is large and aligned enough.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                (&raw mut map).cast(),
                element,
                2,
                address as *mut c_void,
                dims.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                steps.as_ptr(),
                Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(|e| device_error(&format!("describing a {dtype} matrix [{rows}, {cols}] to TMA"), e))?;
        Ok(map)
    }
}

/// One result of a Hopper product: `out = scale · Σ a[p] · b[p] + bias + residual`.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct MatmulOutput<const P: usize> {
    pub a: [TensorMap; P],
    pub b: [TensorMap; P],
    pub out: u64,
    pub scale: u64,
    pub bias: u64,
    pub residual: u64,
    pub n: u32,
    pub products: u32,
    pub k: [u32; P],
}

impl<const P: usize> MatmulOutput<P> {
    /// No product yet.
    pub const EMPTY: Self = Self {
        a: [TensorMap::NONE; P],
        b: [TensorMap::NONE; P],
        out: 0,
        scale: 0,
        bias: 0,
        residual: 0,
        n: 0,
        products: 0,
        k: [0; P],
    };

    /// Adds `a · b` over an inner dimension of `k`.
    pub fn push(&mut self, a: TensorMap, b: TensorMap, k: usize) {
        let at = self.products as usize;
        (self.a[at], self.b[at], self.k[at]) = (a, b, k as u32);
        self.products += 1;
    }
}

/// The one argument of a Hopper product.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct MatmulArgs<const O: usize, const P: usize> {
    pub outputs: [MatmulOutput<P>; O],
    pub counts: u64,
    pub which: u32,
    pub rows: u32,
    pub count: u32,
    pub out_f32: u32,
    /// Of a gated pair: 0 SiLU, 1 GELU.
    pub act: u32,
    /// u32 `[rows]`, where the second products are of each row's own adapter; else 0.
    pub slots: u64,
    /// The flag that says when the first products' operands are there, or 0: when all kernels ahead have ended.
    pub ready: u64,
}

impl<const O: usize, const P: usize> MatmulArgs<O, P> {
    /// Its bytes, as the kernel takes them.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: a plain struct; padding is never read by the kernel, and every field was written. Padding bytes come
        // from constants copied whole, so they are initialised as far as the copy needs.
        unsafe { std::slice::from_raw_parts((&raw const *self).cast(), size_of::<Self>()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_the_kernels() {
        assert_eq!(size_of::<TensorMap>(), 128);
        assert_eq!(size_of::<MatmulOutput<2>>(), 576);
        assert_eq!(size_of::<MatmulOutput<6>>(), 1600);
        assert_eq!(size_of::<MatmulArgs<3, 2>>(), 1792);
        assert_eq!(size_of::<MatmulArgs<1, 6>>(), 1664);
    }
}
