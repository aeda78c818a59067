//! Decoders from every weight type to f32, bit for bit those of the `gguf` Python package and of bitsandbytes; and
//! encoders (`encode`) to those types that exports write.
//!
//! One small function per block format, arrays by reference, so that kernels inline them and the compiler
//! drops every bounds check. Layouts:
//! <https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h>.

mod encode;
mod k_quants;
mod legacy;
mod nf4;

pub use encode::quantise_row;
pub use k_quants::{q4_k_block, q5_k_block, q6_k_block};
pub use legacy::{q4_0_block, q4_1_block, q5_0_block, q5_1_block, q8_0_block};
pub use nf4::{NF4, nf4_block, quantise_nf4};

use crate::error::{Error, Result};
use crate::tensor::DType;

/// f16 bits to f32, exact for every input, without a branch: vectorises on any CPU, where the `half`
/// crate asks for F16C at run time in every call.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff);
    // Normal numbers: move the fields up and re-bias the exponent (127 - 15 = 112).
    let normal = (magnitude << 13) + (112 << 23);
    // Infinity and NaN keep an exponent of all ones.
    let special = (magnitude << 13) | 0x7f80_0000;
    // Subnormals are integers times 2^-24; the product is exact.
    let subnormal = (magnitude as f32 * f32::from_bits(0x3380_0000)).to_bits();
    let value = if magnitude < 0x0400 { subnormal } else { normal };
    let value = if magnitude >= 0x7c00 { special } else { value };
    f32::from_bits(sign | value)
}

/// bf16 bits to f32: the upper half of the result.
#[inline(always)]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The little-endian f16 at `bytes`.
#[inline(always)]
fn scale(bytes: [u8; 2]) -> f32 {
    f16_to_f32(u16::from_le_bytes(bytes))
}

/// Decodes one row (or any run of whole blocks) of `dtype` into `out`.
///
/// # Errors
/// [`Error::Invalid`] where `bytes` is not exactly `out.len()` elements of `dtype`, or `dtype` is no weight type.
pub fn dequantise_row(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    if dtype.bytes_for(out.len()) != Some(bytes.len()) {
        return Err(Error::invalid(format!("{} bytes are not {} elements of type {dtype}", bytes.len(), out.len())));
    }
    match dtype {
        DType::F32 => elements(bytes, out, f32::from_le_bytes),
        DType::F16 => elements(bytes, out, scale),
        DType::BF16 => elements(bytes, out, |b| bf16_to_f32(u16::from_le_bytes(b))),
        DType::Q4_0 => blocks(bytes, out, q4_0_block),
        DType::Q4_1 => blocks(bytes, out, q4_1_block),
        DType::Q5_0 => blocks(bytes, out, q5_0_block),
        DType::Q5_1 => blocks(bytes, out, q5_1_block),
        DType::Q8_0 => blocks(bytes, out, q8_0_block),
        DType::Q4_K => blocks(bytes, out, q4_k_block),
        DType::Q5_K => blocks(bytes, out, q5_k_block),
        DType::Q6_K => blocks(bytes, out, q6_k_block),
        DType::NF4 => blocks(bytes, out, nf4_block),
        DType::U32 | DType::I8 | DType::E4M3 => return Err(Error::invalid(format!("{dtype} is not a weight type"))),
    }
    Ok(())
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
