//! adjust_logits, top_logprobs

use crate::backend::cpu::args::Args;
use crate::backend::cpu::cut::{Cut, elements};
use crate::error::{Error, Result};
use crate::program::{IMPOSSIBLE, SEEN};
use rayon::prelude::*;

/// Masks, penalties and biases of a row.
pub fn adjust(cut: &mut Cut, mut args: Args, vocab: usize) -> Result<()> {
    let (logits, entries, starts) = (args.read()?, args.read_u32()?, args.read_u32()?);
    let (repetition, masks, mask_of) = (args.read()?, args.read_u32()?, args.read_u32()?);
    let out = args.write()?;
    let words = vocab.div_ceil(32);
    let one = |(out, row): (&mut [f32], usize)| {
        let (logits, starts) = (&logits[row * vocab..(row + 1) * vocab], &starts[row..row + 2]);
        let (repetition, mask) = (&repetition[row], &mask_of[row]);
        let outside = |what: &str| Error::internal(format!("adjust_logits: {what} out of range"));
        let mask = match *mask {
            u32::MAX => None,
            mask => Some(masks.chunks_exact(words).nth(mask as usize).ok_or_else(|| outside("a mask"))?),
        };
        let passes = |token: usize| mask.is_none_or(|mask| mask[token / 32] >> (token % 32) & 1 == 1);
        for (token, (out, logit)) in out.iter_mut().zip(logits).enumerate() {
            *out = if passes(token) { *logit } else { IMPOSSIBLE };
        }
        let own = entries.get(2 * starts[0] as usize..2 * starts[1] as usize).ok_or_else(|| outside("an entry"))?;
        for entry in own.chunks_exact(2) {
            let token = (entry[0] & !SEEN) as usize;
            let logit = out.get_mut(token).ok_or_else(|| outside("a token"))?;
            if passes(token) {
                let r = if entry[0] & SEEN != 0 { *repetition } else { 1.0 };
                let penalised = if *logit > 0.0 { *logit / r } else { *logit * r };
                *logit = penalised + f32::from_bits(entry[1]);
            }
        }
        Ok(())
    };
    cut.rows(mask_of.len().min(out.len() / vocab), elements() / vocab, |rows| {
        let out = out[rows.start * vocab..rows.end * vocab].par_chunks_mut(vocab);
        out.zip(rows).try_for_each(one)
    })?;
    Ok(())
}

/// Log-probabilities of one token and of the likeliest ones of each row. Sums are f64.
pub fn top_logprobs(cut: &mut Cut, mut args: Args, vocab: usize, n: usize) -> Result<()> {
    let (logits, tokens, labels) = (args.read()?, args.read_u32()?, args.read_u32()?);
    let (logprobs, top) = (args.write()?, args.write()?);
    let one = |((row, logprobs), ids): ((usize, &mut [f32]), &mut [f32])| {
        let (logits, token, label) = (&logits[row * vocab..(row + 1) * vocab], &tokens[row], &labels[row]);
        let sum = log_sum_exp(logits);
        let logprob = |logit: f32| (f64::from(logit) - sum) as f32;
        let token = if *label == u32::MAX { *token } else { *label };
        logprobs[0] = logits.get(token as usize).map_or(f32::NEG_INFINITY, |logit| logprob(*logit));
        for ((id, logit), (to, place)) in likeliest(logits, n).into_iter().zip(logprobs[1..].iter_mut().zip(ids)) {
            (*to, *place) = (logprob(logit), f32::from_bits(id));
        }
    };
    cut.rows(logits.len() / vocab, elements() / vocab, |rows| {
        let logprobs = logprobs[rows.start * (1 + n)..rows.end * (1 + n)].par_chunks_mut(1 + n);
        let ids = top[rows.start * n..rows.end * n].par_chunks_mut(n);
        rows.into_par_iter().zip(logprobs).zip(ids).for_each(one);
        Ok(())
    })?;
    Ok(())
}

/// The `n` largest logits, best first; of equals the smaller id first.
fn likeliest(logits: &[f32], n: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = logits.iter().enumerate().map(|(id, l)| (id as u32, *l)).collect();
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if n < all.len() && n > 0 {
        all.select_nth_unstable_by(n - 1, order);
    }
    all.truncate(n);
    all.sort_by(order);
    all
}

/// `log Σ exp` of a row.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + logits.iter().map(|l| (f64::from(*l) - max).exp()).sum::<f64>().ln()
}
