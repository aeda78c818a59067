//! head_loss: head product and cross-entropy in row chunks, and the gradient while the logits are at hand.

use super::elementwise::exp;
use crate::backend::cpu::args::Args;
use crate::backend::cpu::cut::{Cut, elements, gemm_unit, gemm_units};
use crate::backend::cpu::gemm::Mat;
use crate::backend::cpu::simd::dispatch;
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::ops::Range;

/// Sizes, and which optional operands there are.
pub struct Parts {
    pub vocab: usize,
    pub inputs: usize,
    pub weights: bool,
    pub dx: bool,
    /// The head's gradient, and whether it has a scale.
    pub dw: Option<bool>,
}

pub fn head_loss(cut: &mut Cut, mut args: Args, parts: &Parts, smoothing: f32) -> Result<()> {
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
    // Only counted rows are multiplied with the head: prompts cost nothing here.
    let counted: Vec<usize> = (0..loss.len()).filter(|t| labels[*t] != u32::MAX).collect();
    let grain = cut.grain();
    let at_a_time = (elements() / vocab).max(1);
    let mut works = vec![(&counted[..0], Work::Begin)];
    for rows in counted.chunks(chunk) {
        works.push((rows, Work::Pick));
        works.extend((0..weight.product_units(grain, rows.len(), k)).map(|unit| (rows, Work::Product(unit))));
        let pieces = (0..rows.len()).step_by(at_a_time).map(|at| at..(at + at_a_time).min(rows.len()));
        works.extend(pieces.map(|piece| (rows, Work::Loss(piece))));
        if dx.is_some() {
            works.extend((0..weight.dx_units(grain, rows.len(), k)).map(|unit| (rows, Work::Dx(unit))));
            works.push((rows, Work::Place));
        }
        if dw.is_some() {
            works.extend((0..gemm_units(grain, (vocab, k, rows.len()))).map(|unit| (rows, Work::Dw(unit))));
        }
    }
    let mut kept: Kept = cut.take();
    cut.units(works.len(), |unit| {
        let Kept { picked, gradient, tile } = &mut kept;
        let (rows, work) = &works[unit];
        let logits = &mut scratch[..rows.len() * vocab];
        match work {
            Work::Begin => {
                loss.fill(0.0);
                if let Some(dx) = dx.as_deref_mut() {
                    dx.fill(0.0);
                }
            }
            Work::Pick => {
                picked.clear();
                rows.iter().for_each(|t| picked.extend_from_slice(&x[t * k..(t + 1) * k]));
                gradient.resize(picked.len(), 0.0);
            }
            Work::Product(unit) => {
                weight.product((grain, *unit), picked, k, logits, tile)?;
            }
            Work::Loss(part) => {
                let logits = logits[part.start * vocab..part.end * vocab].par_chunks_mut(vocab);
                let one = |(logits, t): (&mut [f32], &usize)| {
                    cross_entropy(logits, labels[*t], scale * weights.map_or(1.0, |all| all[*t]), smoothing)
                };
                let losses: Vec<f32> = logits.zip(&rows[part.clone()]).map(one).collect::<Result<_>>()?;
                rows[part.clone()].iter().zip(losses).for_each(|(t, value)| loss[*t] = value);
            }
            Work::Dx(unit) => weight.product_dx((grain, *unit), logits, k, 1.0, gradient, false, tile)?,
            Work::Dw(unit) => {
                let Some(dw) = dw.as_deref_mut() else { return Ok(()) };
                let (dy, x) = (Mat::rows(logits, vocab).t(), Mat::rows(picked, k));
                gemm_unit(grain, *unit, (vocab, k, rows.len()), dw, k, true, dw_scale, dy, x)?;
            }
            Work::Place => {
                let Some(dx) = dx.as_deref_mut() else { return Ok(()) };
                rows.iter().zip(gradient.chunks_exact(k)).for_each(|(t, g)| dx[t * k..(t + 1) * k].copy_from_slice(g));
            }
        }
        Ok(())
    })?;
    cut.keep(kept);
    Ok(())
}

/// A unit of the loss, for some of the counted rows.
enum Work {
    Begin,
    /// Copies the rows side by side.
    Pick,
    Product(usize),
    /// Of these among the rows.
    Loss(Range<usize>),
    Dx(usize),
    /// Of the head's gradient.
    Dw(usize),
    /// Copies the gradient to where its rows belong.
    Place,
}

/// What lasts from unit to unit: the rows and their gradient side by side, and a tile of the head.
#[derive(Default)]
struct Kept {
    picked: Vec<f32>,
    gradient: Vec<f32>,
    tile: Vec<f32>,
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
