//! Blocks of 64 weights: bitsandbytes' NF4 (<https://arxiv.org/abs/2305.14314>), its bytes and then its scale.

use crate::error::{Error, Result};
use crate::tensor::DType;

/// What the sixteen codes stand for: quantiles of the normal distribution, between −1 and 1 and with 0 among them.
pub const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// `[codes: 32][absmax: f32]`, value `NF4[code] · absmax`; a byte holds its first element in the high nibble.
#[inline(always)]
pub fn nf4_block(block: &[u8; 36], out: &mut [f32; 64]) {
    let absmax = f32::from_le_bytes([block[32], block[33], block[34], block[35]]);
    for i in 0..32 {
        let q = block[i];
        out[2 * i] = NF4[usize::from(q >> 4)] * absmax;
        out[2 * i + 1] = NF4[usize::from(q & 15)] * absmax;
    }
}

/// Rounds a row to NF4 as bitsandbytes does: the scale of 64 numbers is their largest magnitude, each takes the nearest
/// code (between two: the number of means of neighbours below it).
///
/// # Errors
/// [`Error::Invalid`] where the row is not whole blocks of 64.
pub fn quantise_nf4(row: &[f32]) -> Result<Vec<u8>> {
    let Some(bytes) = DType::NF4.bytes_for(row.len()) else {
        return Err(Error::invalid(format!("a row of {} numbers is not whole blocks of 64", row.len())));
    };
    let mut out = Vec::with_capacity(bytes);
    for block in row.as_chunks::<64>().0 {
        let absmax = block.iter().fold(0f32, |top, x| x.abs().max(top));
        let scale = 1.0 / absmax.max(1e-38);
        let code = |x: f32| NF4.windows(2).filter(|pair| (pair[0] + pair[1]) * 0.5 < x * scale).count() as u8;
        out.extend(block.as_chunks::<2>().0.iter().map(|[high, low]| code(*high) << 4 | code(*low)));
        out.extend(absmax.to_le_bytes());
    }
    Ok(out)
}
