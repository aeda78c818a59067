//! head_loss: head product and cross-entropy in row chunks, and the gradient while the logits are at hand.

use super::elementwise::exp;
use crate::backend::cpu::args::Args;
use crate::backend::cpu::gemm::{Mat, gemm};
use crate::backend::cpu::simd::dispatch;
use crate::error::{Error, Result};
use rayon::prelude::*;

/// Sizes, and which optional operands there are.
pub struct Parts {
    pub vocab: usize,
    pub inputs: usize,
    pub weights: bool,
    pub dx: bool,
    /// The head's gradient, and whether it has a scale.
    pub dw: Option<bool>,
}

pub fn head_loss(mut args: Args, parts: &Parts, smoothing: f32) -> Result<()> {
    let x = args.read()?;
    let weight = args.weight()?;
    let labels = args.read_u32()?;
    let scale = args.read()?[0];
    let weights = args.read_if(parts.weights)?;
    let scratch = args.write()?;
    let loss = args.write()?;
    let mut dx = args.write_if(parts.dx)?;
    let dw_scale = args.read_if(parts.dw == Some(true))?.map_or(1.0, |s| s[0]);
    let mut dw = args.write_if(parts.dw.is_some())?;
    let (vocab, k) = (parts.vocab, parts.inputs);
    let chunk = scratch.len() / vocab;
    loss.fill(0.0);
    if let Some(dx) = dx.as_deref_mut() {
        dx.fill(0.0);
    }
    // Only counted rows are multiplied with the head: prompts cost nothing here.
    let counted: Vec<usize> = (0..loss.len()).filter(|t| labels[*t] != u32::MAX).collect();
    let (mut picked, mut gradient) = (Vec::new(), Vec::new());
    for rows in counted.chunks(chunk) {
        picked.clear();
        rows.iter().for_each(|t| picked.extend_from_slice(&x[t * k..(t + 1) * k]));
        let logits = &mut scratch[..rows.len() * vocab];
        weight.product(&picked, k, logits)?;
        let losses: Vec<f32> = logits
            .par_chunks_mut(vocab)
            .zip(rows)
            .map(|(logits, t)| cross_entropy(logits, labels[*t], scale * weights.map_or(1.0, |all| all[*t]), smoothing))
            .collect::<Result<_>>()?;
        rows.iter().zip(losses).for_each(|(t, value)| loss[*t] = value);
        if let Some(dx) = dx.as_deref_mut() {
            gradient.resize(picked.len(), 0.0);
            weight.product_dx(logits, k, 1.0, &mut gradient, false)?;
            rows.iter().zip(gradient.chunks_exact(k)).for_each(|(t, g)| dx[t * k..(t + 1) * k].copy_from_slice(g));
        }
        if let Some(dw) = dw.as_deref_mut() {
            let (dy, x) = (Mat::rows(logits, vocab).t(), Mat::rows(&picked, k));
            gemm((vocab, k, rows.len()), dw, k, true, dw_scale, dy, x, true)?;
        }
    }
    Ok(())
}

/// The loss of one row of logits, which become `scale · (softmax − onehot)`, the label smoothed.
fn cross_entropy(logits: &mut [f32], label: u32, scale: f32, smoothing: f32) -> Result<f32> {
    let Some(at_label) = logits.get(label as usize).copied() else {
        return Err(Error::internal(format!("head_loss: label {label} is outside the vocabulary")));
    };
    let vocab = logits.len() as f32;
    let mean = match smoothing > 0.0 {
        true => logits.iter().map(|l| f64::from(*l)).sum::<f64>() as f32 / vocab,
        false => 0.0,
    };
    let (max, sum) = dispatch(
        #[inline(always)]
        || {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            // Partial sums a lane: a vocabulary of 150,000 terms would lose digits in one running f32 sum.
            let mut sums = [0f32; 32];
            let (chunks, rest) = logits.as_chunks_mut::<32>();
            for chunk in chunks {
                for (sum, x) in sums.iter_mut().zip(chunk) {
                    *x = exp(*x - max);
                    *sum += *x;
                }
            }
            for (sum, x) in sums.iter_mut().zip(rest) {
                *x = exp(*x - max);
                *sum += *x;
            }
            (max, super::super::simd::sum(&sums))
        },
    );
    let factor = scale / sum;
    dispatch(
        #[inline(always)]
        || logits.iter_mut().for_each(|x| *x *= factor),
    );
    logits[label as usize] -= scale * (1.0 - smoothing);
    if smoothing > 0.0 {
        let each = scale * smoothing / vocab;
        logits.iter_mut().for_each(|x| *x -= each);
    }
    Ok(sum.ln() + max - (1.0 - smoothing) * at_label - smoothing * mean)
}
