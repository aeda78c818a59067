//! embed, matmul, matmul_dx, matmul_dw, gather_rows

use super::norm::vector;
use crate::backend::cpu::args::{Args, WeightArg};
use crate::backend::cpu::cut::{Cut, elements, gemm_in_units};
use crate::backend::cpu::gemm::Mat;
use crate::error::{Error, Result};
use rayon::prelude::*;

/// `out[t] = table[ids[t]]`
pub fn embed(cut: &mut Cut, mut args: Args, k: usize) -> Result<()> {
    let table = args.weight()?;
    let ids = args.read_u32()?;
    let out = args.write()?;
    let vocab = table.n(k);
    cut.rows(ids.len().min(out.len() / k), elements() / k, |rows| {
        for (row, id) in out[rows.start * k..rows.end * k].chunks_exact_mut(k).zip(&ids[rows]) {
            let at = *id as usize;
            if at >= vocab {
                return Err(Error::internal(format!("embed: token {id} is outside the vocabulary of {vocab}")));
            }
            match &table {
                WeightArg::File(table) => table.decode(at, row),
                WeightArg::Dense(table) => row.copy_from_slice(&table[at * k..(at + 1) * k]),
            }
        }
        Ok(())
    })?;
    Ok(())
}

/// `out = x · Wᵀ (+ bias) (+ residual)`
pub fn forward(cut: &mut Cut, mut args: Args, k: usize, has_bias: bool, has_residual: bool) -> Result<()> {
    let x = args.read()?;
    let weight = args.weight()?;
    let bias = if has_bias { Some(vector(args.weight()?)) } else { None };
    let residual = args.read_if(has_residual)?;
    let out = args.write()?;
    let n = weight.n(k);
    let (mut tile, grain) = (cut.take(), cut.grain());
    cut.units(weight.product_units(grain, x.len() / k, k), |unit| {
        let (rows, cols) = weight.product((grain, unit), x, k, out, &mut tile)?;
        for t in rows {
            let place = t * n + cols.start..t * n + cols.end;
            let row = &mut out[place.clone()];
            if let Some(bias) = &bias {
                row.iter_mut().zip(&bias[cols.clone()]).for_each(|(o, b)| *o += b);
            }
            if let Some(residual) = residual {
                row.iter_mut().zip(&residual[place]).for_each(|(o, r)| *o += r);
            }
        }
        Ok(())
    })?;
    cut.keep(tile);
    Ok(())
}

/// `dx (+)= scale · dy · W`
pub fn dx(cut: &mut Cut, mut args: Args, k: usize, has_scale: bool, accumulate: bool) -> Result<()> {
    let dy = args.read()?;
    let weight = args.weight()?;
    let scale = args.read_if(has_scale)?.map_or(1.0, |s| s[0]);
    let dx = args.write()?;
    let (mut tile, grain) = (cut.take(), cut.grain());
    cut.units(weight.dx_units(grain, dx.len() / k, k), |unit| {
        weight.product_dx((grain, unit), dy, k, scale, dx, accumulate, &mut tile)
    })?;
    cut.keep(tile);
    Ok(())
}

/// `dw += scale · dyᵀ · x`
pub fn dw(cut: &mut Cut, mut args: Args, n: usize, k: usize, has_scale: bool) -> Result<()> {
    let dy = args.read()?;
    let x = args.read()?;
    let scale = args.read_if(has_scale)?.map_or(1.0, |s| s[0]);
    let dw = args.write()?;
    let rows = dy.len() / n;
    gemm_in_units(cut, (n, k, rows), dw, k, true, scale, Mat::rows(dy, n).t(), Mat::rows(x, k))
}

/// `out[i] = x[rows[i]]`
pub fn gather_rows(cut: &mut Cut, mut args: Args, k: usize) -> Result<()> {
    let x = args.read()?;
    let rows = args.read_u32()?;
    let out = args.write()?;
    cut.rows(rows.len().min(out.len() / k), 4 * elements() / k, |range| {
        let out = out[range.start * k..range.end * k].par_chunks_exact_mut(k);
        out.zip(&rows[range]).try_for_each(|(out, row)| {
            let from = x.get(*row as usize * k..(*row as usize + 1) * k);
            out.copy_from_slice(from.ok_or_else(|| Error::internal(format!("gather_rows: row {row} is not live")))?);
            Ok(())
        })
    })?;
    Ok(())
}
