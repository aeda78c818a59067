//! Blocks of 32 weights: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
//!
//! Four-bit values are split in halves: byte `i` holds element `i` in its low and `i + 16` in its high nibble.

use super::scale;

/// `[d: f16][nibbles: 16]`, value `d · (q − 8)`.
#[inline(always)]
pub fn q4_0_block(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = scale([block[0], block[1]]);
    for i in 0..16 {
        let q = block[2 + i];
        out[i] = d * f32::from((q & 15) as i8 - 8);
        out[i + 16] = d * f32::from((q >> 4) as i8 - 8);
    }
}

/// `[d: f16][m: f16][nibbles: 16]`, value `d · q + m`.
#[inline(always)]
pub fn q4_1_block(block: &[u8; 20], out: &mut [f32; 32]) {
    let d = scale([block[0], block[1]]);
    let m = scale([block[2], block[3]]);
    for i in 0..16 {
        let q = block[4 + i];
        out[i] = d * f32::from(q & 15) + m;
        out[i + 16] = d * f32::from(q >> 4) + m;
    }
}

/// `[d: f16][fifth bits: u32][nibbles: 16]`, value `d · (q − 16)`.
#[inline(always)]
pub fn q5_0_block(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = scale([block[0], block[1]]);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for i in 0..16 {
        let (low, high) = five_bits(block[6 + i], high, i);
        out[i] = d * f32::from(low as i8 - 16);
        out[i + 16] = d * f32::from(high as i8 - 16);
    }
}

/// `[d: f16][m: f16][fifth bits: u32][nibbles: 16]`, value `d · q + m`.
#[inline(always)]
pub fn q5_1_block(block: &[u8; 24], out: &mut [f32; 32]) {
    let d = scale([block[0], block[1]]);
    let m = scale([block[2], block[3]]);
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    for i in 0..16 {
        let (low, high) = five_bits(block[8 + i], high, i);
        out[i] = d * f32::from(low) + m;
        out[i + 16] = d * f32::from(high) + m;
    }
}

/// `[d: f16][q: 32 × i8]`, value `d · q`.
#[inline(always)]
pub fn q8_0_block(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = scale([block[0], block[1]]);
    for i in 0..32 {
        out[i] = f32::from(block[2 + i] as i8) * d;
    }
}

/// Elements `i` and `i + 16` of a five-bit block: nibble plus the bit of the same number in `high`.
#[inline(always)]
fn five_bits(nibbles: u8, high: u32, i: usize) -> (u8, u8) {
    let low = (nibbles & 15) | (((high >> i) & 1) as u8) << 4;
    let up = (nibbles >> 4) | (((high >> (i + 16)) & 1) as u8) << 4;
    (low, up)
}
