//! lora_shrink, lora_expand: rank-r products of one adapter for all rows, or of each row's own adapter.

use crate::backend::cpu::args::Args;
use crate::backend::cpu::cut::{Cut, gemm_in_units, gemm_unit, gemm_units, products_of_few};
use crate::backend::cpu::gemm::Mat;
use crate::backend::cpu::simd::{dispatch, dot};
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::ops::Range;

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
    let slots = &slots[..slots.len().min(out.len() / rank)];
    let grain = cut.grain();
    in_pieces(cut, slots, (rank, k), |rows, together| {
        let (out, x) = (&mut out[rows.start * rank..rows.end * rank], &x[rows.start * k..rows.end * k]);
        if let Some(unit) = together {
            let Some(a) = of_slot(a, slots[rows.start], rank * k)? else { return Ok(()) };
            let (sizes, a) = ((rows.len(), rank, k), Mat::rows(a, k).t());
            return gemm_unit(grain, unit, sizes, out, rank, false, 1.0, Mat::rows(x, k), a).map(|_| ());
        }
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
    })
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
    let slots = &slots[..slots.len().min(y.len() / n)];
    let grain = cut.grain();
    in_pieces(cut, slots, (n, rank), |rows, together| {
        let (y, u) = (&mut y[rows.start * n..rows.end * n], &u[rows.start * rank..rows.end * rank]);
        if let Some(unit) = together {
            let slot = slots[rows.start];
            let Some(b) = of_slot(b, slot, n * rank)? else { return Ok(()) };
            let (sizes, b) = ((rows.len(), n, rank), Mat::rows(b, rank).t());
            return gemm_unit(grain, unit, sizes, y, n, true, scales[slot as usize], Mat::rows(u, rank), b).map(|_| ());
        }
        y.par_chunks_mut(n).zip(u.par_chunks(rank)).zip(&slots[rows]).try_for_each(|((y, u), slot)| {
            let Some(b) = of_slot(b, *slot, n * rank)? else { return Ok(()) };
            let scale = scales[*slot as usize];
            dispatch(
                #[inline(always)]
                || b.chunks_exact(rank).zip(y).for_each(|(b, y)| *y += scale * dot(b, u)),
            );
            Ok(())
        })
    })
}

/// Rows whose products are made together, as training makes them, where so many in a row have the same adapter.
const TOGETHER: usize = 5;

/// Divides rows into units of work: `work(rows, None)` makes the products of each of the rows, `work(rows, Some(i))` unit `i` of
/// [`gemm_unit`] for rows that have one adapter. The products are `n` sums of `k` terms for each row.
fn in_pieces(
    cut: &mut Cut,
    slots: &[u32],
    (n, k): (usize, usize),
    mut work: impl FnMut(Range<usize>, Option<usize>) -> Result<()>,
) -> Result<()> {
    let grain = cut.grain();
    let step = (products_of_few() / (n * k).max(1)).max(1);
    let (mut units, mut start) = (Vec::new(), 0);
    for same in slots.chunk_by(|a, b| a == b) {
        let rows = start..start + same.len();
        start = rows.end;
        if same[0] != u32::MAX && rows.len() >= TOGETHER {
            units.extend((0..gemm_units(grain, (rows.len(), n, k))).map(|unit| (rows.clone(), Some(unit))));
            continue;
        }
        for start in rows.clone().step_by(step) {
            let next = start..(start + step).min(rows.end);
            match units.last_mut() {
                Some((before, None)) if before.len() + next.len() <= step => before.end = next.end,
                _ => units.push((next, None)),
            }
        }
    }
    cut.units(units.len(), |unit| {
        let (rows, together) = units[unit].clone();
        work(rows, together)
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
