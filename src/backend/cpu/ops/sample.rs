//! sample

use super::elementwise::exp;
use crate::backend::cpu::args::Args;
use crate::backend::cpu::cut::{Cut, elements};
use crate::backend::cpu::simd::dispatch;
use crate::error::Result;
use rayon::prelude::*;

/// One token a row.
pub fn forward(cut: &mut Cut, mut args: Args, vocab: usize) -> Result<()> {
    let (logits, sampling, uniforms) = (args.read()?, args.read()?, args.read()?);
    let tokens = args.write()?;
    cut.rows(logits.len() / vocab, elements() / vocab, |rows| {
        tokens[rows.clone()].par_iter_mut().zip(rows).for_each(|(token, row)| {
            let how = [0, 1, 2, 3].map(|i| sampling[4 * row + i]);
            *token = f32::from_bits(sample(&logits[row * vocab..(row + 1) * vocab], how, uniforms[row]));
        });
        Ok(())
    })?;
    Ok(())
}

/// The first of the largest logits.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best as u32
}

/// Weights below this times the largest are sorted only when the others do not fill top-p.
const NEAR: f32 = 4.5e-5; // e⁻¹⁰

/// A token from a row of logits, as `Op::Sample` defines it: `[temperature, top_k, top_p, min_p]` and a uniform
/// number of [0, 1). Sums are f64.
fn sample(logits: &[f32], [temperature, top_k, top_p, min_p]: [f32; 4], uniform: f32) -> u32 {
    let best = argmax(logits);
    let max = logits.get(best as usize).copied().unwrap_or(0.0);
    if temperature == 0.0 || !max.is_finite() {
        return best;
    }
    let mut weights = vec![0f32; logits.len()];
    weigh(logits, max, 1.0 / temperature, &mut weights);
    let rows = || logits.iter().copied().zip(weights.iter().copied());
    let mut floor = f32::NEG_INFINITY;
    let k = top_k as usize;
    if k > 0 && k < logits.len() {
        let mut sorted = logits.to_vec();
        floor = *sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1;
    }
    if top_p < 1.0 {
        let total: f64 = rows().filter(|(logit, _)| *logit >= floor).map(|(_, w)| f64::from(w)).sum();
        let mass = f64::from(top_p) * total;
        let kept = |least: f32| rows().filter(move |(logit, w)| *logit >= floor && *w >= least).collect();
        let nucleus = nucleus(kept(NEAR), mass).or_else(|| nucleus(kept(0.0), mass));
        floor = nucleus.unwrap_or(floor);
    }
    let kept = |logit: f32, w: f32| logit >= floor && w >= min_p;
    let total: f64 = rows().filter(|(logit, w)| kept(*logit, *w)).map(|(_, w)| f64::from(w)).sum();
    let target = f64::from(uniform) * total;
    let (mut sum, mut last) = (0.0, best);
    for (id, (logit, w)) in rows().enumerate() {
        if w > 0.0 && kept(logit, w) {
            last = id as u32;
            sum += f64::from(w);
            if sum > target {
                break;
            }
        }
    }
    last
}

/// `exp((logit − max) · scale)`, and 0 below e⁻⁸⁰.
fn weigh(logits: &[f32], max: f32, scale: f32, weights: &mut [f32]) {
    dispatch(
        #[inline(always)]
        || {
            for (w, logit) in weights.iter_mut().zip(logits) {
                let x = (logit - max) * scale;
                *w = if x > -80.0 { exp(x) } else { 0.0 };
            }
        },
    );
}

/// The logit at which the weights, best first, reach `mass`.
fn nucleus(mut candidates: Vec<(f32, f32)>, mass: f64) -> Option<f32> {
    candidates.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    let mut sum = 0.0;
    let reached = candidates.iter().find(|(_, w)| {
        sum += f64::from(*w);
        sum >= mass
    });
    reached.map(|(logit, _)| *logit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 6] = [1.0, 3.0, 2.0, 3.0, 0.0, -1.0];

    /// The tokens that some uniform number yields.
    fn reachable(logits: &[f32], how: [f32; 4]) -> Vec<u32> {
        let mut found: Vec<u32> = (0..4096).map(|i| sample(logits, how, i as f32 / 4096.0)).collect();
        assert!(found.is_sorted(), "tokens come in order of id: {how:?}");
        found.dedup();
        found
    }

    #[test]
    fn filters_keep_what_they_define() {
        assert_eq!(reachable(&LOGITS, [0.0, 0.0, 1.0, 0.0]), [1], "greedy takes the first of equals");
        assert_eq!(reachable(&LOGITS, [1.0, 0.0, 1.0, 0.0]), [0, 1, 2, 3, 4, 5]);
        assert_eq!(reachable(&LOGITS, [1.0, 1.0, 1.0, 0.0]), [1, 3], "equals stay together");
        assert_eq!(reachable(&LOGITS, [1.0, 3.0, 1.0, 0.0]), [1, 2, 3]);
        assert_eq!(reachable(&LOGITS, [1.0, 9.0, 1.0, 0.0]), [0, 1, 2, 3, 4, 5]);
        // The two best weigh 1 of 1 + 1 + e⁻¹ + e⁻² + … = 2.57.
        assert_eq!(reachable(&LOGITS, [1.0, 0.0, 0.7, 0.0]), [1, 3]);
        assert_eq!(reachable(&LOGITS, [1.0, 0.0, 0.8, 0.0]), [1, 2, 3]);
        // Of the three that top-k keeps, two weigh 0.84.
        assert_eq!(reachable(&LOGITS, [1.0, 3.0, 0.8, 0.0]), [1, 3]);
        assert_eq!(reachable(&LOGITS, [1.0, 0.0, 1.0, 0.2]), [1, 2, 3]);
        assert_eq!(reachable(&[f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY], [5.0, 0.0, 1.0, 0.0]), [1]);
        // All is needed, and most of it lies far below the best.
        let mut tail = vec![-11.0; 200_000];
        tail[7] = 0.0;
        assert_eq!(reachable(&tail, [1.0, 0.0, 0.999, 0.0])[0], 0);
    }

    #[test]
    fn draws_follow_the_distribution() {
        let how = [0.7, 0.0, 1.0, 0.0];
        let weights: Vec<f64> = LOGITS.iter().map(|l| (f64::from(*l) / 0.7).exp()).collect();
        let total: f64 = weights.iter().sum();
        let n = 1 << 16;
        let mut counts = [0.0; 6];
        (0..n).for_each(|i| counts[sample(&LOGITS, how, i as f32 / n as f32) as usize] += 1.0 / f64::from(n));
        for (count, weight) in counts.iter().zip(&weights) {
            assert!((count - weight / total).abs() < 2.0 / f64::from(n), "{counts:?}");
        }
    }
}
