//! lora_shrink, lora_expand: rank-r products of one adapter for all rows, or of each row's own adapter.

use crate::backend::cpu::args::Args;
use crate::backend::cpu::cut::{Cut, gemm_in_units, products_of_few};
use crate::backend::cpu::gemm::Mat;
use crate::backend::cpu::simd::{dispatch, dot};
use crate::error::{Error, Result};
use rayon::prelude::*;

/// `out[t] = x[t] · A[slot(t)]ᵀ`
pub fn shrink(cut: &mut Cut, mut args: Args, k: usize, rank: usize, has_slots: bool) -> Result<()> {
    let x = args.read()?;
    let a = args.read()?;
    let slots = args.read_u32_if(has_slots)?;
    let out = args.write()?;
    let Some(slots) = slots else {
        let rows = x.len() / k;
        let a = Mat::rows(&a[..rank * k], k).t();
        return gemm_in_units(cut, (rows, rank, k), out, rank, false, 1.0, Mat::rows(x, k), a);
    };
    cut.rows(slots.len().min(out.len() / rank), products_of_few() / (rank * k), |rows| {
        let (out, x) = (&mut out[rows.start * rank..rows.end * rank], &x[rows.start * k..rows.end * k]);
        out.par_chunks_mut(rank).zip(x.par_chunks(k)).zip(&slots[rows]).try_for_each(|((out, x), slot)| {
            let Some(a) = of_slot(a, *slot, rank * k)? else {
                out.fill(0.0);
                return Ok(());
            };
            dispatch(
                #[inline(always)]
                || a.chunks_exact(k).zip(out).for_each(|(a, o)| *o = dot(a, x)),
            );
            Ok(())
        })
    })?;
    Ok(())
}

/// `y[t] += scale[slot(t)] · u[t] · B[slot(t)]ᵀ`
pub fn expand(cut: &mut Cut, mut args: Args, n: usize, rank: usize, has_slots: bool) -> Result<()> {
    let u = args.read()?;
    let b = args.read()?;
    let slots = args.read_u32_if(has_slots)?;
    let scales = args.read()?;
    let y = args.write()?;
    let Some(slots) = slots else {
        let rows = u.len() / rank;
        let b = Mat::rows(&b[..n * rank], rank).t();
        return gemm_in_units(cut, (rows, n, rank), y, n, true, scales[0], Mat::rows(u, rank), b);
    };
    cut.rows(slots.len().min(y.len() / n), products_of_few() / (rank * n), |rows| {
        let (y, u) = (&mut y[rows.start * n..rows.end * n], &u[rows.start * rank..rows.end * rank]);
        y.par_chunks_mut(n).zip(u.par_chunks(rank)).zip(&slots[rows]).try_for_each(|((y, u), slot)| {
            let Some(b) = of_slot(b, *slot, n * rank)? else { return Ok(()) };
            let scale = scales[*slot as usize];
            dispatch(
                #[inline(always)]
                || b.chunks_exact(rank).zip(y).for_each(|(b, y)| *y += scale * dot(b, u)),
            );
            Ok(())
        })
    })?;
    Ok(())
}

/// The matrix of one adapter; `None` for rows without one.
fn of_slot(bank: &[f32], slot: u32, len: usize) -> Result<Option<&[f32]>> {
    if slot == u32::MAX {
        return Ok(None);
    }
    let at = slot as usize * len;
    bank.get(at..at + len).map(Some).ok_or_else(|| Error::internal(format!("there is no adapter slot {slot}")))
}
