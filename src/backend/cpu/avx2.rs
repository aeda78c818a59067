//! Matrix-vector products of the commonest block formats in AVX2, where the compiler's own vectorisation of the
//! decoders is several times slower (it scatters across blocks). All intrinsics go through pulp's feature tokens.
//!
//! A block is decoded in registers: 16 bytes of nibbles, four conversions to f32, four fused multiply-adds; scale
//! and minimum are applied once a block (`d · Σ q·x + m · Σ x`, with Σ x shared by all rows).

use crate::tensor::DType;
use pulp::NullaryFnOnce;
use pulp::x86::V3;
use std::arch::x86_64::{__m128i, __m256};

/// f16 to f32 for finite numbers, subnormals included: shift the fields into place, re-bias by a product.
#[inline(always)]
fn scale(low: u8, high: u8) -> f32 {
    let bits = u32::from(u16::from_le_bytes([low, high]));
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000); // 2¹¹²
    f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
}

/// `out[i] = row i · x`. False where this processor or type has no such path.
pub fn matvec(dtype: DType, bytes: &[u8], x: &[f32], out: &mut [f32]) -> bool {
    let Some(simd) = V3::try_new() else { return false };
    let blocks = x.as_chunks::<32>().0;
    let sums: Vec<f32> = blocks.iter().map(|x| x.iter().sum()).collect();
    let rows = Rows { simd, bytes, x: blocks, sums: &sums, out };
    match dtype {
        DType::Q4_0 => simd.vectorize(Q4_0(rows)),
        DType::Q4_1 => simd.vectorize(Q4_1(rows)),
        DType::Q8_0 => simd.vectorize(Q8_0(rows)),
        _ => return false,
    }
    true
}

struct Rows<'a> {
    simd: V3,
    bytes: &'a [u8],
    x: &'a [[f32; 32]],
    sums: &'a [f32],
    out: &'a mut [f32],
}

struct Q4_0<'a>(Rows<'a>);
struct Q4_1<'a>(Rows<'a>);
struct Q8_0<'a>(Rows<'a>);

impl NullaryFnOnce for Q4_0<'_> {
    type Output = ();
    #[inline(always)]
    fn call(self) {
        let simd = self.0.simd;
        self.0.each(
            #[inline(always)]
            |block: &[u8; 18], x, sum| {
                let [d0, d1, nibbles @ ..] = *block;
                let d = scale(d0, d1);
                (d, nibble_products(simd, nibbles, x), -8.0 * d * sum)
            },
        );
    }
}

impl NullaryFnOnce for Q4_1<'_> {
    type Output = ();
    #[inline(always)]
    fn call(self) {
        let simd = self.0.simd;
        self.0.each(
            #[inline(always)]
            |block: &[u8; 20], x, sum| {
                let [d0, d1, m0, m1, nibbles @ ..] = *block;
                (scale(d0, d1), nibble_products(simd, nibbles, x), scale(m0, m1) * sum)
            },
        );
    }
}

impl NullaryFnOnce for Q8_0<'_> {
    type Output = ();
    #[inline(always)]
    fn call(self) {
        let simd = self.0.simd;
        self.0.each(
            #[inline(always)]
            |block: &[u8; 34], x, _| {
                let [d0, d1, q @ ..] = *block;
                (scale(d0, d1), byte_products(simd, q, x), 0.0)
            },
        );
    }
}

impl Rows<'_> {
    /// One dot product a row. `block` gives (scale, eight partial sums of q·x, what the minimum adds).
    #[inline(always)]
    fn each<const B: usize>(self, block: impl Fn(&[u8; B], &[f32; 32], f32) -> (f32, __m256, f32)) {
        let Self { simd, bytes, x, sums, out } = self;
        for (row, out) in bytes.chunks_exact(x.len() * B).zip(out) {
            let mut acc = simd.avx._mm256_setzero_ps();
            let mut minimums = 0.0;
            for ((b, x), sum) in row.as_chunks::<B>().0.iter().zip(x).zip(sums) {
                let (d, products, minimum) = block(b, x, *sum);
                acc = simd.fma._mm256_fmadd_ps(simd.avx._mm256_set1_ps(d), products, acc);
                minimums += minimum;
            }
            let lanes: [f32; 8] = bytemuck::cast(acc);
            let pairs = [lanes[0] + lanes[4], lanes[1] + lanes[5], lanes[2] + lanes[6], lanes[3] + lanes[7]];
            *out = (pairs[0] + pairs[2]) + (pairs[1] + pairs[3]) + minimums;
        }
    }
}

/// Low nibbles times the first half of x, plus high nibbles times the second.
#[inline(always)]
fn nibble_products(simd: V3, nibbles: [u8; 16], x: &[f32; 32]) -> __m256 {
    let q: __m128i = bytemuck::cast(nibbles);
    let mask = simd.sse2._mm_set1_epi8(15);
    let low = simd.sse2._mm_and_si128(q, mask);
    let high = simd.sse2._mm_and_si128(simd.sse2._mm_srli_epi16::<4>(q), mask);
    // Nibbles are non-negative as signed bytes too.
    four_products(simd, low, high, x)
}

/// Signed bytes times x.
#[inline(always)]
fn byte_products(simd: V3, q: [u8; 32], x: &[f32; 32]) -> __m256 {
    let halves: [__m128i; 2] = bytemuck::cast(q);
    four_products(simd, halves[0], halves[1], x)
}

/// Sixteen signed bytes of `first` and of `second`, times x.
#[inline(always)]
fn four_products(simd: V3, first: __m128i, second: __m128i, x: &[f32; 32]) -> __m256 {
    let x: [__m256; 4] = bytemuck::cast(*x);
    let p = simd.avx._mm256_mul_ps(lower_floats(simd, first), x[0]);
    let p = simd.fma._mm256_fmadd_ps(lower_floats(simd, simd.sse2._mm_srli_si128::<8>(first)), x[1], p);
    let p = simd.fma._mm256_fmadd_ps(lower_floats(simd, second), x[2], p);
    simd.fma._mm256_fmadd_ps(lower_floats(simd, simd.sse2._mm_srli_si128::<8>(second)), x[3], p)
}

/// The lower eight signed bytes as f32.
#[inline(always)]
fn lower_floats(simd: V3, bytes: __m128i) -> __m256 {
    simd.avx._mm256_cvtepi32_ps(simd.avx2._mm256_cvtepi8_epi32(bytes))
}
