//! rms_norm, rms_norm_backward

use super::PARALLEL_ROWS;
use crate::backend::cpu::args::{Args, WeightArg};
use crate::backend::cpu::cut::{Cut, elements};
use crate::backend::cpu::simd::{dispatch, dot};
use crate::error::Result;
use rayon::prelude::*;
use std::borrow::Cow;

/// A norm's weight as f32.
pub fn vector(arg: WeightArg<'_>) -> Cow<'_, [f32]> {
    match arg {
        WeightArg::File(weight) => weight.to_f32(),
        WeightArg::Dense(numbers) => Cow::Borrowed(numbers),
    }
}

/// 1 / sqrt(mean(x²) + eps)
#[inline(always)]
pub fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
}

/// `out = x · r · w` with r the inverse root mean square.
pub fn forward(cut: &mut Cut, mut args: Args, eps: f32) -> Result<()> {
    let x = args.read()?;
    let weight = vector(args.weight()?);
    let out = args.write()?;
    let k = weight.len();
    let row = |(x, out): (&[f32], &mut [f32])| {
        dispatch(
            #[inline(always)]
            || {
                let r = inverse_rms(x, eps);
                for ((o, x), w) in out.iter_mut().zip(x).zip(&*weight) {
                    *o = x * r * w;
                }
            },
        );
    };
    cut.rows(out.len() / k, elements() / k, |rows| {
        let all = rows.start * k..rows.end * k;
        let rows = out[all.clone()].par_chunks_mut(k).zip(x[all].par_chunks(k)).with_min_len(PARALLEL_ROWS);
        rows.for_each(|(out, x)| row((x, out)));
        Ok(())
    })?;
    Ok(())
}

/// `dx (+)= r · (w·dy − x · r² · mean(w·dy·x))`
pub fn backward(cut: &mut Cut, mut args: Args, eps: f32, accumulate: bool) -> Result<()> {
    let x = args.read()?;
    let weight = vector(args.weight()?);
    let dy = args.read()?;
    let dx = args.write()?;
    let k = weight.len();
    cut.rows(dx.len() / k, elements() / k, |rows| {
        let all = rows.start * k..rows.end * k;
        let rows = dx[all.clone()].par_chunks_mut(k).zip(x[all.clone()].par_chunks(k)).zip(dy[all].par_chunks(k));
        rows.with_min_len(PARALLEL_ROWS).for_each(|((dx, x), dy)| {
            dispatch(
                #[inline(always)]
                || row_backward(x, &weight, dy, dx, eps, accumulate),
            )
        });
        Ok(())
    })?;
    Ok(())
}

/// The gradient of one normalised row.
#[inline(always)]
pub fn row_backward(x: &[f32], weight: &[f32], dy: &[f32], dx: &mut [f32], eps: f32, accumulate: bool) {
    let r = inverse_rms(x, eps);
    let mut mean = 0.0;
    for ((x, w), dy) in x.iter().zip(weight).zip(dy) {
        mean += w * dy * x;
    }
    mean /= x.len() as f32;
    for (((dx, x), w), dy) in dx.iter_mut().zip(x).zip(weight).zip(dy) {
        let g = r * (w * dy - x * r * r * mean);
        *dx = if accumulate { *dx + g } else { g };
    }
}
