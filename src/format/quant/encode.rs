//! Encoders from f32 to the block formats that exports write: ggml's reference formulas, without an importance matrix.
//!
//! Source: `quantize_row_*_ref` in <https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c>. NF4 has its own in `nf4`.

use super::{f16_to_f32, quantise_nf4};
use crate::error::{Error, Result};
use crate::tensor::DType;
use half::{bf16, f16};

/// Below this a group of a K-quant counts as all zero.
const GROUP_MAX_EPS: f32 = 1e-15;

/// Encodes one row (or any run of whole blocks) as `dtype`.
///
/// # Errors
/// [`Error::Invalid`] where the row is not whole blocks, holds a finite number that f16 cannot, or `dtype` is not one of
/// f32, f16, bf16, q4_0, q5_0, q8_0, q4_k, q6_k and nf4.
pub fn quantise_row(dtype: DType, row: &[f32]) -> Result<Vec<u8>> {
    let Some(bytes) = dtype.bytes_for(row.len()) else {
        return Err(Error::invalid(format!(
            "a row of {} numbers is not whole blocks of {} ({dtype})",
            row.len(),
            dtype.block_len()
        )));
    };
    let mut out = Vec::with_capacity(bytes);
    match dtype {
        DType::F32 => row.iter().for_each(|x| out.extend(x.to_le_bytes())),
        DType::BF16 => row.iter().for_each(|x| out.extend(bf16::from_f32(*x).to_le_bytes())),
        DType::F16 => {
            for x in row {
                let half = f16::from_f32(*x);
                if half.is_infinite() && x.is_finite() {
                    return Err(Error::invalid(format!("f16 cannot hold {x}: use bf16 or f32")));
                }
                out.extend(half.to_le_bytes());
            }
        }
        DType::Q4_0 => row.as_chunks().0.iter().for_each(|block| out.extend(q4_0(block))),
        DType::Q5_0 => row.as_chunks().0.iter().for_each(|block| out.extend(q5_0(block))),
        DType::Q8_0 => row.as_chunks().0.iter().for_each(|block| out.extend(q8_0(block))),
        DType::Q4_K => row.as_chunks().0.iter().for_each(|block| out.extend(q4_k(block))),
        DType::Q6_K => row.as_chunks().0.iter().for_each(|block| out.extend(q6_k(block))),
        DType::NF4 => return quantise_nf4(row),
        other => {
            return Err(Error::invalid(format!("{other} cannot be written; supported are {}", WRITTEN.join(", "))));
        }
    }
    Ok(out)
}

const WRITTEN: [&str; 9] = ["f32", "f16", "bf16", "q4_0", "q5_0", "q8_0", "q4_k", "q6_k", "nf4"];

fn half(x: f32) -> [u8; 2] {
    f16::from_f32(x).to_le_bytes()
}

/// What a half's reader sees.
fn rounded(x: f32) -> f32 {
    f16_to_f32(f16::from_f32(x).to_bits())
}

fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// The number of largest magnitude, with its sign; the first of equals.
fn extreme(block: &[f32]) -> f32 {
    block.iter().fold(0.0f32, |top, x| if x.abs() > top.abs() { *x } else { top })
}

fn nearest(x: f32) -> i32 {
    x.round_ties_even() as i32
}

fn q4_0(block: &[f32; 32]) -> [u8; 18] {
    let d = extreme(block) / -8.0;
    let id = inverse(d);
    let code = |x: f32| (((x * id + 8.5) as i8) as u8).min(15);
    let mut out = [0; 18];
    out[..2].copy_from_slice(&half(d));
    for i in 0..16 {
        out[2 + i] = code(block[i]) | code(block[i + 16]) << 4;
    }
    out
}

fn q5_0(block: &[f32; 32]) -> [u8; 22] {
    let d = extreme(block) / -16.0;
    let id = inverse(d);
    let code = |x: f32| (((x * id + 16.5) as i8) as u8).min(31);
    let (mut out, mut high) = ([0; 22], 0u32);
    out[..2].copy_from_slice(&half(d));
    for i in 0..16 {
        let (a, b) = (code(block[i]), code(block[i + 16]));
        out[6 + i] = a & 15 | (b & 15) << 4;
        high |= u32::from(a >> 4) << i | u32::from(b >> 4) << (i + 16);
    }
    out[2..6].copy_from_slice(&high.to_le_bytes());
    out
}

fn q8_0(block: &[f32; 32]) -> [u8; 34] {
    let d = extreme(block).abs() / 127.0;
    let id = inverse(d);
    let mut out = [0; 34];
    out[..2].copy_from_slice(&half(d));
    for (code, x) in out[2..].iter_mut().zip(block) {
        *code = ((x * id).round() as i8) as u8;
    }
    out
}

/// Scale and minimum (as a positive number that is subtracted) of 32 numbers in 4 bits: the best of 21 ways to stretch the
/// grid, by weighted squares (`make_qkx2_quants`).
fn scale_and_min(x: &[f32]) -> (f32, f32) {
    let square: f32 = x.iter().map(|x| x * x).sum();
    let typical = (square / x.len() as f32).sqrt();
    let weighted = || x.iter().map(|x| (*x, typical + x.abs()));
    let (mut low, mut high) = (x[0], x[0]);
    let (mut sum_w, mut sum_x) = (0.0f32, 0.0f32);
    for (x, w) in weighted() {
        low = low.min(x);
        high = high.max(x);
        sum_w += w;
        sum_x += w * x;
    }
    let low = low.min(0.0);
    if high == low {
        return (0.0, -low);
    }
    let code = |x: f32, inverse: f32| nearest(inverse * (x - low)).clamp(0, 15) as f32;
    let error = |stretch: f32, scale: f32, min: f32| -> f32 {
        weighted().map(|(x, w)| w * (scale * code(x, stretch) + min - x).powi(2)).sum()
    };
    let first = 15.0 / (high - low);
    let mut best = (error(first, 1.0 / first, low), 1.0 / first, low);
    for step in 0..=20 {
        let stretch = (-1.0 + 0.1 * step as f32 + 15.0) / (high - low);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0f32, 0.0f32, 0.0f32);
        for (x, w) in weighted() {
            let l = code(x, stretch);
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * x;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant <= 0.0 {
            continue;
        }
        let mut scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        let mut min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        if min > 0.0 {
            min = 0.0;
            scale = sum_xl / sum_l2;
        }
        let found = error(stretch, scale, min);
        if found < best.0 {
            best = (found, scale, min);
        }
    }
    (best.1, -best.2)
}

fn q4_k(block: &[f32; 256]) -> [u8; 144] {
    let groups = block.as_chunks::<32>().0;
    let (mut scales, mut mins) = ([0.0f32; 8], [0.0f32; 8]);
    for (j, group) in groups.iter().enumerate() {
        (scales[j], mins[j]) = scale_and_min(group);
    }
    let top = |all: &[f32; 8]| all.iter().copied().fold(0.0f32, f32::max);
    let (max_scale, max_min) = (top(&scales), top(&mins));
    let six_bits = |x: f32, top: f32| (nearest(if top > 0.0 { 63.0 / top } else { 0.0 } * x) as u8).min(63);
    let (d, dmin) = (max_scale / 63.0, max_min / 63.0);
    let mut out = [0; 144];
    out[..2].copy_from_slice(&half(d));
    out[2..4].copy_from_slice(&half(dmin));
    let (d, dmin) = (rounded(d), rounded(dmin));
    let mut codes = [0u8; 256];
    for (j, group) in groups.iter().enumerate() {
        let (scale, min) = (six_bits(scales[j], max_scale), six_bits(mins[j], max_min));
        let packed = &mut out[4..16];
        if j < 4 {
            packed[j] = scale;
            packed[j + 4] = min;
        } else {
            packed[j + 4] = scale & 15 | (min & 15) << 4;
            packed[j - 4] |= (scale >> 4) << 6;
            packed[j] |= (min >> 4) << 6;
        }
        let (step, low) = (d * f32::from(scale), dmin * f32::from(min));
        if step != 0.0 {
            for (code, x) in codes[32 * j..].iter_mut().zip(group) {
                *code = nearest((x + low) / step).clamp(0, 15) as u8;
            }
        }
    }
    for pair in 0..4 {
        for l in 0..32 {
            out[16 + 32 * pair + l] = codes[64 * pair + l] | codes[64 * pair + 32 + l] << 4;
        }
    }
    out
}

/// Scale of 16 numbers in codes −32 to 31: the best of 19, by squares weighted with the numbers' own (`make_qx_quants`).
fn symmetric_scale(x: &[f32]) -> f32 {
    let top = extreme(x);
    if top.abs() < GROUP_MAX_EPS {
        return 0.0;
    }
    let sums = |inverse: f32| {
        x.iter().fold((0.0f32, 0.0f32), |(lx, l2), x| {
            let l = nearest(inverse * x).clamp(-32, 31) as f32;
            (lx + x * x * x * l, l2 + x * x * l * l)
        })
    };
    let (lx, l2) = sums(-32.0 / top);
    let mut scale = if l2 > 0.0 { lx / l2 } else { 0.0 };
    let mut best = scale * lx;
    for step in (-9..=9).filter(|step| *step != 0) {
        let (lx, l2) = sums(-(32.0 + 0.1 * step as f32) / top);
        if l2 > 0.0 && lx * lx > best * l2 {
            scale = lx / l2;
            best = scale * lx;
        }
    }
    scale
}

fn q6_k(block: &[f32; 256]) -> [u8; 210] {
    let groups = block.as_chunks::<16>().0;
    let mut scales = [0.0f32; 16];
    scales.iter_mut().zip(groups).for_each(|(scale, group)| *scale = symmetric_scale(group));
    let top = extreme(&scales);
    let mut out = [0; 210];
    if top.abs() < GROUP_MAX_EPS {
        return out;
    }
    let inverse = -128.0 / top;
    out[208..].copy_from_slice(&half(1.0 / inverse));
    let d = rounded(1.0 / inverse);
    let mut codes = [0u8; 256];
    for (j, group) in groups.iter().enumerate() {
        let scale = nearest(inverse * scales[j]).min(127) as i8;
        out[192 + j] = scale as u8;
        let step = d * f32::from(scale);
        for (code, x) in codes[16 * j..].iter_mut().zip(group) {
            // Where the group's scale is 0 every code reads as 0.
            *code = if step == 0.0 { 32 } else { (nearest(x / step).clamp(-32, 31) + 32) as u8 };
        }
    }
    for half in 0..2 {
        for l in 0..32 {
            let at = |k: usize| codes[128 * half + 32 * k + l];
            out[64 * half + l] = at(0) & 15 | (at(2) & 15) << 4;
            out[64 * half + 32 + l] = at(1) & 15 | (at(3) & 15) << 4;
            out[128 + 32 * half + l] = at(0) >> 4 | (at(1) >> 4) << 2 | (at(2) >> 4) << 4 | (at(3) >> 4) << 6;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::dequantise_row;
    use super::*;

    #[test]
    fn what_a_type_holds_exactly_survives() {
        // Sixteen levels from -8 to 7: every type here holds them exactly, whatever its scale's width.
        let row: Vec<f32> = (0..256).map(|i| (i % 16) as f32 - 8.0).collect();
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::Q4_0] {
            let mut back = vec![0.0; 256];
            dequantise_row(dtype, &quantise_row(dtype, &row).unwrap(), &mut back).unwrap();
            assert_eq!(back, row, "{dtype}");
        }
    }

    #[test]
    fn zeros_stay_zeros_and_errors_are_named() {
        for dtype in [DType::Q4_0, DType::Q5_0, DType::Q8_0, DType::Q4_K, DType::Q6_K] {
            let mut back = vec![1.0; 512];
            dequantise_row(dtype, &quantise_row(dtype, &[0.0; 512]).unwrap(), &mut back).unwrap();
            assert_eq!(back, [0.0; 512], "{dtype}");
        }
        let error = |dtype, row: &[f32]| quantise_row(dtype, row).unwrap_err().to_string();
        assert!(error(DType::Q4_K, &[0.0; 32]).contains("whole blocks of 256"));
        assert!(error(DType::F16, &[1e6]).contains("bf16"));
        assert!(error(DType::Q5_1, &[0.0; 32]).contains("q5_1 cannot be written"));
    }
}
