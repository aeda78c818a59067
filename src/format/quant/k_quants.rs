//! Super-blocks of 256 weights: Q4_K, Q5_K, Q6_K.

use super::scale;

/// The 8 six-bit scales and 8 six-bit minimums packed in 12 bytes. Bytes 0–3 hold scales 0–3, bytes 4–7
/// minimums 0–3, bytes 8–11 the low nibbles of scales (low) and minimums (high) 4–7; the upper two bits of
/// the latter sit on top of bytes 0–7.
#[inline(always)]
fn scales_and_mins(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for i in 0..4 {
        scales[i] = packed[i] & 63;
        mins[i] = packed[4 + i] & 63;
        scales[4 + i] = (packed[8 + i] & 15) | ((packed[i] >> 2) & 0x30);
        mins[4 + i] = (packed[8 + i] >> 4) | ((packed[4 + i] >> 2) & 0x30);
    }
    (scales, mins)
}

/// What Q4_K and Q5_K share: scale and minimum of each of the 8 sub-blocks of 32.
#[inline(always)]
fn sub_blocks(head: &[u8; 16]) -> ([f32; 8], [f32; 8]) {
    let d = scale([head[0], head[1]]);
    let dmin = scale([head[2], head[3]]);
    let mut packed = [0; 12];
    packed.copy_from_slice(&head[4..16]);
    let (scales, mins) = scales_and_mins(&packed);
    (scales.map(|s| d * f32::from(s)), mins.map(|m| dmin * f32::from(m)))
}

#[inline(always)]
fn part<const N: usize>(bytes: &[u8], at: usize) -> &[u8; N] {
    // Every caller passes constants inside the block, so the fallback is dead code that lets the
    // compiler drop the check without `unsafe`.
    bytes[at..].first_chunk().unwrap_or(&[0; N])
}

/// `[d: f16][dmin: f16][scales: 12][nibbles: 128]`, value `d·scale·q − dmin·min`. 32 bytes hold two
/// sub-blocks: the first in the low nibbles, the second in the high ones.
#[inline(always)]
pub fn q4_k_block(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, m) = sub_blocks(part(block, 0));
    for pair in 0..4 {
        let q: &[u8; 32] = part(block, 16 + 32 * pair);
        let (d0, m0, d1, m1) = (d[2 * pair], m[2 * pair], d[2 * pair + 1], m[2 * pair + 1]);
        for l in 0..32 {
            out[64 * pair + l] = d0 * f32::from(q[l] & 15) - m0;
            out[64 * pair + 32 + l] = d1 * f32::from(q[l] >> 4) - m1;
        }
    }
}

/// `[d: f16][dmin: f16][scales: 12][fifth bits: 32][nibbles: 128]`; as Q4_K, and bit `s` of byte `l` of the
/// fifth bits belongs to element `l` of sub-block `s`.
#[inline(always)]
pub fn q5_k_block(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, m) = sub_blocks(part(block, 0));
    let high: &[u8; 32] = part(block, 16);
    for pair in 0..4 {
        let q: &[u8; 32] = part(block, 48 + 32 * pair);
        let (d0, m0, d1, m1) = (d[2 * pair], m[2 * pair], d[2 * pair + 1], m[2 * pair + 1]);
        for l in 0..32 {
            let h = high[l] >> (2 * pair);
            out[64 * pair + l] = d0 * f32::from((q[l] & 15) | (h & 1) << 4) - m0;
            out[64 * pair + 32 + l] = d1 * f32::from((q[l] >> 4) | (h & 2) << 3) - m1;
        }
    }
}

/// `[low nibbles: 128][upper two bits: 64][scales: 16 × i8][d: f16]`, value `d·scale·(q − 32)`; a scale
/// serves 16 elements. Each half of 128 elements takes 64 bytes of nibbles and 32 of upper bits.
#[inline(always)]
pub fn q6_k_block(block: &[u8; 210], out: &mut [f32; 256]) {
    let scales: &[u8; 16] = part(block, 192);
    let d = scale([block[208], block[209]]);
    let d = scales.map(|s| d * f32::from(s as i8));
    for half in 0..2 {
        let low: &[u8; 64] = part(block, 64 * half);
        let high: &[u8; 32] = part(block, 128 + 32 * half);
        for group in 0..4 {
            let at = 128 * half + 32 * group;
            for l in 0..32 {
                let q = (low[32 * (group & 1) + l] >> (4 * (group >> 1))) & 15;
                let q = q | ((high[l] >> (2 * group)) & 3) << 4;
                out[at + l] = d[8 * half + 2 * group + l / 16] * f32::from(q as i8 - 32);
            }
        }
    }
}
