//! grad_norm, adamw

use crate::backend::cpu::args::Args;
use crate::error::Result;
use rayon::prelude::*;

/// Elements that one task works on.
const CHUNK: usize = 1 << 16;

/// `sqrt(Σ x²)`, summed in f64.
pub fn grad_norm(mut args: Args) -> Result<()> {
    let x = args.read()?;
    let out = args.write()?;
    let sum: f64 = x.par_chunks(CHUNK).map(|x| x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>()).sum();
    out[0] = sum.sqrt() as f32;
    Ok(())
}

/// One AdamW update, in the order of `torch.optim.AdamW`: decay, moments, bias-corrected step.
pub fn adamw(mut args: Args) -> Result<()> {
    let (params, grads, m, v) = (args.write()?, args.read()?, args.write()?, args.write()?);
    let norm = args.read()?[0];
    let hyper = args.read()?;
    let [lr, beta1, beta2, eps, decay, correction1, correction2, max_norm] = *hyper else { return Ok(()) };
    let clip = if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
    let state = m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK));
    let chunks = params.par_chunks_mut(CHUNK).zip(grads.par_chunks(CHUNK)).zip(state);
    chunks.for_each(|((params, grads), (m, v))| {
        for ((p, g), (m, v)) in params.iter_mut().zip(grads).zip(m.iter_mut().zip(v)) {
            let g = g * clip;
            *p *= 1.0 - lr * decay;
            *m = beta1 * *m + (1.0 - beta1) * g;
            *v = beta2 * *v + (1.0 - beta2) * g * g;
            let denominator = v.sqrt() / correction2.sqrt() + eps;
            *p -= lr / correction1 * *m / denominator;
        }
    });
    Ok(())
}
