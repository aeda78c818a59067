//! dora_norm, dora_scale, dora_scale_backward: the magnitudes of DoRA.

use super::norm::vector;
use crate::backend::cpu::args::{Args, WeightArg};
use crate::backend::cpu::simd::{axpy, dispatch, dot};
use crate::error::{Error, Result};
use rayon::prelude::*;

/// The length of a row of zeros.
const SHORTEST: f32 = 1e-15;

/// `norms[n] = ‖W[n] + scale · B[n] · A‖`
pub fn norm(mut args: Args, rank: usize) -> Result<()> {
    let WeightArg::File(weight) = args.weight()? else {
        return Err(Error::internal("dora_norm: the weight must come from the checkpoint"));
    };
    let a = args.read()?;
    let b = args.read()?;
    let scale = args.read()?[0];
    let norms = args.write()?;
    let k = weight.k();
    norms.par_iter_mut().zip(b.par_chunks_exact(rank)).enumerate().for_each_init(
        || vec![0.0; k],
        |row, (n, (norm, b))| {
            weight.decode(n, row);
            dispatch(
                #[inline(always)]
                || {
                    b.iter().zip(a.chunks_exact(k)).for_each(|(b, a)| axpy(scale * b, a, row));
                    *norm = dot(row, row).sqrt().max(SHORTEST);
                },
            );
        },
    );
    Ok(())
}

/// `out[t] = x[t] · magnitude[slot(t)] / norms[slot(t)] (+ bias) (+ residual[t])`
pub fn scale(mut args: Args, n: usize, has_slots: bool, has_bias: bool, has_residual: bool) -> Result<()> {
    let x = args.read()?;
    let magnitude = args.read()?;
    let norms = args.read()?;
    let slots = args.read_u32_if(has_slots)?;
    let bias = if has_bias { Some(vector(args.weight()?)) } else { None };
    let residual = args.read_if(has_residual)?;
    let out = args.write()?;
    out.par_chunks_exact_mut(n).zip(x.par_chunks_exact(n)).enumerate().try_for_each(|(t, (out, x))| {
        let slot = slots.map_or(0, |slots| slots[t]);
        if slot == u32::MAX {
            out.copy_from_slice(x);
        } else {
            let at = slot as usize * n..(slot as usize + 1) * n;
            let (Some(m), Some(norms)) = (magnitude.get(at.clone()), norms.get(at)) else {
                return Err(Error::internal(format!("there is no adapter slot {slot}")));
            };
            out.iter_mut().zip(x).zip(m.iter().zip(norms)).for_each(|((o, x), (m, norm))| *o = x * (m / norm));
        }
        if let Some(bias) = &bias {
            out.iter_mut().zip(&**bias).for_each(|(o, b)| *o += b);
        }
        if let Some(residual) = residual {
            out.iter_mut().zip(&residual[t * n..]).for_each(|(o, r)| *o += r);
        }
        Ok(())
    })
}

/// Columns that one task sums over all rows.
const COLUMNS: usize = 64;

/// `dm[n] += scale · Σ_t dy[t, n] · x[t, n] / norms[n]`
pub fn scale_backward(mut args: Args, has_scale: bool) -> Result<()> {
    let dy = args.read()?;
    let x = args.read()?;
    let norms = args.read()?;
    let scale = args.read_if(has_scale)?.map_or(1.0, |s| s[0]);
    let dm = args.write()?;
    let n = dm.len();
    dm.par_chunks_mut(COLUMNS).enumerate().for_each(|(chunk, dm)| {
        let first = chunk * COLUMNS;
        let mut sums = [0.0f32; COLUMNS];
        for (dy, x) in dy.chunks_exact(n).zip(x.chunks_exact(n)) {
            let rows = dy[first..].iter().zip(&x[first..]);
            sums[..dm.len()].iter_mut().zip(rows).for_each(|(sum, (dy, x))| *sum += dy * x);
        }
        let norms = &norms[first..];
        dm.iter_mut().zip(sums).zip(norms).for_each(|((dm, sum), norm)| *dm += scale * sum / norm);
    });
    Ok(())
}
