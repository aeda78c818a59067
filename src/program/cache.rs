//! How keys and values lie in a cache.
//!
//! Caches of plain numbers have rows of G·D elements (G key/value heads of width D). Caches of 8-bit codes
//! ([`DType::I8`], [`DType::E4M3`]) have rows of G·D codes, one byte each, then G scales, f32, then zeros up to a multiple of
//! 16 bytes; an element is `code · scale` of its head. A head is scaled by itself as it is written, so that its
//! largest element gets the largest code:
//!
//! ```text
//! top = max |x|            scale = top / L         factor = L / top, 0 where top < 1e-30
//! int8: L = 127,  code = round(x · factor), ties to even
//! e4m3: L = 448,  code = the nearest 8-bit float to x · factor, ties to even
//! ```
//!
//! The same for both types: an 8-bit float without a scale, as vLLM's caches have it unless a checkpoint brings scales,
//! cuts off keys beyond 448 (Qwen2's biases come near) and has three bits at most for values below 1/64.

use crate::tensor::DType;

/// Bytes at which rows of 8-bit caches are aligned: what a GPU loads at once.
const ALIGN: usize = 16;

/// Heads whose largest element is below this are zeros.
const TINY: f32 = 1e-30;

/// Elements of a cache's row, scales included.
pub const fn row_len(dtype: DType, kv_heads: usize, head_dim: usize) -> usize {
    let codes = kv_heads * head_dim;
    if dtype.is_code() { (codes + 4 * kv_heads).next_multiple_of(ALIGN) } else { codes }
}

/// Scale and factor of a head whose largest absolute element is `top`.
pub fn scale_of(dtype: DType, top: f32) -> (f32, f32) {
    let largest = if dtype == DType::I8 { 127.0 } else { 448.0 };
    (top / largest, if top < TINY { 0.0 } else { largest / top })
}

/// The code of `x`, scaled already; numbers out of range get the largest code.
pub fn encode(dtype: DType, x: f32) -> u8 {
    if dtype == DType::I8 {
        return (x.round_ties_even().clamp(-127.0, 127.0) as i8) as u8;
    }
    let sign = ((x.to_bits() >> 24) & 0x80) as u8;
    let size = x.abs().min(448.0);
    if size < 1.0 / 64.0 {
        // Below the normal numbers codes count 512ths; 8 of them are the first normal number.
        return sign | (size * 512.0).round_ties_even() as u8;
    }
    let bits = size.to_bits();
    let rounded = bits + 0x7ffff + ((bits >> 20) & 1);
    sign | ((rounded >> 20) - (120 << 3)) as u8
}

/// What a code stands for, before its scale.
pub fn decode(dtype: DType, code: u8) -> f32 {
    if dtype == DType::I8 {
        return f32::from(code as i8);
    }
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    match code & 0x7f {
        0x7f => f32::NAN,
        small if small < 8 => sign * f32::from(small) / 512.0,
        normal => sign * f32::from_bits((u32::from(normal) << 20) + (120 << 23)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_nearest() {
        for dtype in [DType::I8, DType::E4M3] {
            let skipped: &[u8] = if dtype == DType::I8 { &[0x80] } else { &[0x7f, 0xff] };
            let mut all: Vec<(f32, u8)> =
                (0..=255).filter(|c| !skipped.contains(c)).map(|code| (decode(dtype, code), code)).collect();
            for (value, code) in &all {
                assert_eq!(encode(dtype, *value), *code);
            }
            all.sort_by(|a, b| a.0.total_cmp(&b.0));
            for pair in all.windows(2) {
                let ((low, low_code), (high, high_code)) = (pair[0], pair[1]);
                let middle = (low + high) / 2.0;
                let even = if low_code % 2 == 0 { low } else { high };
                assert_eq!(decode(dtype, encode(dtype, middle)), even, "between {low} and {high}");
                let near = (high - low) / 100.0;
                if low != high {
                    assert_eq!(encode(dtype, middle - near), low_code);
                    assert_eq!(encode(dtype, middle + near), high_code);
                }
            }
            let most = all[all.len() - 1];
            assert_eq!((encode(dtype, f32::INFINITY), encode(dtype, 1000.0)), (most.1, most.1));
            assert_eq!(scale_of(dtype, most.0), (1.0, 1.0));
        }
    }

    #[test]
    fn rows_are_half_as_long_as_those_of_16_bits() {
        assert_eq!(row_len(DType::BF16, 8, 128), 1024);
        assert_eq!(row_len(DType::E4M3, 8, 128), 1024 + 32);
        assert_eq!(row_len(DType::I8, 3, 64), 192 + 16);
    }

    #[test]
    fn zeros_have_no_scale() {
        assert_eq!(scale_of(DType::I8, 0.0), (0.0, 0.0));
    }
}
