//! preference_loss: what a pair of sequences costs, and the weight of each of its tokens.

use crate::backend::cpu::args::Args;
use crate::error::Result;

/// Mean log-probabilities above this count as it: the odds of a certain text are infinite.
const MOST: f32 = -1e-6;

pub fn forward(mut args: Args, sequences: usize) -> Result<()> {
    let loss = args.read()?;
    let kinds = args.read_u32()?;
    let bounds = args.read_u32()?;
    let reference = args.read()?;
    let hyper = args.read()?;
    let weights = args.write()?;
    let pairs = args.write()?;
    weights.fill(0.0);
    pairs.fill(0.0);
    for (pair, out) in pairs.as_chunks_mut::<4>().0.iter_mut().enumerate().take(sequences / 2) {
        let rows = |s: usize| bounds[s] as usize..bounds[s + 1] as usize;
        let sequence =
            |s: usize| rows(s).filter(|t| kinds[*t] & 1 != 0).fold((0f32, 0f32), |(p, n), t| (p - loss[t], n + 1.0));
        let (c, r) = (2 * pair, 2 * pair + 1);
        let ((p_c, n_c), (p_r, n_r)) = (sequence(c), sequence(r));
        let (value, d_c, d_r) = derivatives(hyper, (p_c, reference[c], n_c), (p_r, reference[r], n_r));
        let mut kept = 0.0;
        for (s, d) in [(c, d_c), (r, d_r)] {
            for t in rows(s) {
                // p falls as the token's cross-entropy rises.
                weights[t] = if kinds[t] & 1 != 0 { -d } else { 0.0 };
                if kinds[t] & 2 != 0 {
                    weights[t] += hyper[2];
                    kept += loss[t];
                }
            }
        }
        *out = [value, p_c, p_r, kept];
    }
    Ok(())
}

fn log_sigmoid(x: f32) -> f32 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// The loss, and its derivatives with respect to both log-probabilities: each with its reference's and its length.
fn derivatives(
    hyper: &[f32],
    (p_c, ref_c, n_c): (f32, f32, f32),
    (p_r, ref_r, n_r): (f32, f32, f32),
) -> (f32, f32, f32) {
    let (kind, beta) = (hyper[0] as u32, hyper[1]);
    let m = (p_c - ref_c) - (p_r - ref_r);
    match kind {
        0 => {
            let wrong = hyper[3];
            let d = beta * (wrong * sigmoid(beta * m) - (1.0 - wrong) * sigmoid(-beta * m));
            (-(1.0 - wrong) * log_sigmoid(beta * m) - wrong * log_sigmoid(-beta * m), d, -d)
        }
        1 => {
            let d = if beta * m < 1.0 { -beta } else { 0.0 };
            ((1.0 - beta * m).max(0.0), d, -d)
        }
        2 => {
            let off = (p_c - ref_c) / n_c - (p_r - ref_r) / n_r - 0.5 / beta;
            (off * off, 2.0 * off / n_c, -2.0 * off / n_r)
        }
        _ => {
            let (l_c, l_r) = ((p_c / n_c).min(MOST), (p_r / n_r).min(MOST));
            let odds = (l_c - l_r) - ((-l_c.exp()).ln_1p() - (-l_r.exp()).ln_1p());
            let d = -beta * sigmoid(-odds);
            (-beta * log_sigmoid(odds), d / (-l_c.exp_m1()) / n_c, -d / (-l_r.exp_m1()) / n_r)
        }
    }
}
