//! embed, matmul, matmul_dx, matmul_dw, gather_rows

use super::elementwise::add;
use super::norm::vector;
use crate::backend::cpu::args::{Args, WeightArg};
use crate::backend::cpu::gemm::{Mat, gemm};
use crate::error::{Error, Result};
use rayon::prelude::*;

/// `out[t] = table[ids[t]]`
pub fn embed(mut args: Args, k: usize) -> Result<()> {
    let table = args.weight()?;
    let ids = args.read_u32()?;
    let out = args.write()?;
    let vocab = match &table {
        WeightArg::File(table) => table.n(),
        WeightArg::Dense(table) => table.len() / k,
    };
    for (row, id) in out.chunks_exact_mut(k).zip(ids) {
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
}

/// `out = x · Wᵀ (+ bias) (+ residual)`
pub fn forward(mut args: Args, k: usize, has_bias: bool, has_residual: bool) -> Result<()> {
    let x = args.read()?;
    let weight = args.weight()?;
    let bias = if has_bias { Some(vector(args.weight()?)) } else { None };
    let residual = args.read_if(has_residual)?;
    let out = args.write()?;
    weight.product(x, k, out)?;
    if let Some(bias) = bias {
        for row in out.chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(&*bias).for_each(|(o, b)| *o += b);
        }
    }
    if let Some(residual) = residual {
        add(out, residual);
    }
    Ok(())
}

/// `dx (+)= scale · dy · W`
pub fn dx(mut args: Args, k: usize, has_scale: bool, accumulate: bool) -> Result<()> {
    let dy = args.read()?;
    let weight = args.weight()?;
    let scale = args.read_if(has_scale)?.map_or(1.0, |s| s[0]);
    let dx = args.write()?;
    weight.product_dx(dy, k, scale, dx, accumulate)
}

/// `dw += scale · dyᵀ · x`
pub fn dw(mut args: Args, n: usize, k: usize, has_scale: bool) -> Result<()> {
    let dy = args.read()?;
    let x = args.read()?;
    let scale = args.read_if(has_scale)?.map_or(1.0, |s| s[0]);
    let dw = args.write()?;
    let rows = dy.len() / n;
    gemm((n, k, rows), dw, k, true, scale, Mat::rows(dy, n).t(), Mat::rows(x, k), true)
}

/// `out[i] = x[rows[i]]`
pub fn gather_rows(mut args: Args, k: usize) -> Result<()> {
    let x = args.read()?;
    let rows = args.read_u32()?;
    let out = args.write()?;
    out.par_chunks_exact_mut(k).zip(rows).try_for_each(|(out, row)| {
        let from = x.get(*row as usize * k..(*row as usize + 1) * k);
        out.copy_from_slice(from.ok_or_else(|| Error::internal(format!("gather_rows: row {row} is not live")))?);
        Ok(())
    })
}
