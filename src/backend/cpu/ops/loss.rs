//! head_loss: head product and cross-entropy in row chunks, and the gradient while the logits are at hand.

use super::elementwise::exp;
use crate::backend::cpu::args::{Args, WeightArg};
use crate::backend::cpu::simd::dispatch;
use crate::error::{Error, Result};
use rayon::prelude::*;

pub fn head_loss(mut args: Args, has_dx: bool) -> Result<()> {
    let x = args.read()?;
    let WeightArg::File(weight) = args.weight()? else {
        return Err(Error::internal("head_loss: the head must come from the checkpoint"));
    };
    let labels = args.read_u32()?;
    let scale = args.read()?[0];
    let scratch = args.write()?;
    let loss = args.write()?;
    let mut dx = args.write_if(has_dx)?;
    let (vocab, k) = (weight.n(), weight.k());
    let chunk = scratch.len() / vocab;
    for (i, x) in x.chunks(chunk * k).enumerate() {
        let rows = x.len() / k;
        let at = i * chunk;
        let labels = &labels[at..at + rows];
        // A chunk without counted tokens (a prompt, padding) costs nothing.
        if labels.iter().all(|l| *l == u32::MAX) {
            loss[at..at + rows].fill(0.0);
            if let Some(dx) = dx.as_deref_mut() {
                dx[at * k..(at + rows) * k].fill(0.0);
            }
            continue;
        }
        let logits = &mut scratch[..rows * vocab];
        weight.product(x, logits)?;
        logits.par_chunks_mut(vocab).zip(labels).zip(&mut loss[at..at + rows]).try_for_each(|((row, label), loss)| {
            *loss = cross_entropy(row, *label, scale)?;
            Ok::<_, Error>(())
        })?;
        if let Some(dx) = dx.as_deref_mut() {
            weight.product_dx(logits, 1.0, &mut dx[at * k..(at + rows) * k], false)?;
        }
    }
    Ok(())
}

/// The loss of one row of logits, which become `scale · (softmax − onehot)`.
fn cross_entropy(logits: &mut [f32], label: u32, scale: f32) -> Result<f32> {
    if label == u32::MAX {
        logits.fill(0.0);
        return Ok(0.0);
    }
    let Some(at_label) = logits.get(label as usize).copied() else {
        return Err(Error::internal(format!("head_loss: label {label} is outside the vocabulary")));
    };
    let (max, sum) = dispatch(#[inline(always)] || {
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
    });
    let factor = scale / sum;
    dispatch(#[inline(always)] || logits.iter_mut().for_each(|x| *x *= factor));
    logits[label as usize] -= scale;
    Ok(sum.ln() + max - at_label)
}
