//! embed, matmul, matmul_dx, matmul_dw, gather_rows

use super::elementwise::add;
use super::norm::vector;
use crate::backend::cpu::args::{Args, WeightArg};
use crate::backend::cpu::gemm::{Mat, gemm};
use crate::error::{Error, Result};
use rayon::prelude::*;

/// `out[t] = table[ids[t]]`
pub fn embed(mut args: Args) -> Result<()> {
    let WeightArg::File(table) = args.weight()? else {
        return Err(Error::internal("embed: the table must be a weight"));
    };
    let ids = args.read_u32()?;
    let out = args.write()?;
    for (row, id) in out.chunks_exact_mut(table.k()).zip(ids) {
        if *id as usize >= table.n() {
            return Err(Error::internal(format!("embed: token {id} is outside the vocabulary of {}", table.n())));
        }
        table.decode(*id as usize, row);
    }
    Ok(())
}

/// `out = x · Wᵀ (+ bias) (+ residual)`
pub fn forward(mut args: Args, has_bias: bool, has_residual: bool) -> Result<()> {
    let x = args.read()?;
    let weight = args.weight()?;
    let bias = if has_bias { Some(vector(args.weight()?)) } else { None };
    let residual = args.read_if(has_residual)?;
    let out = args.write()?;
    let WeightArg::File(weight) = weight else {
        return Err(Error::internal("matmul: the weight must come from the checkpoint"));
    };
    weight.product(x, out)?;
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
    match weight {
        WeightArg::File(weight) => weight.product_dx(dy, scale, dx, accumulate),
        WeightArg::Dense(w) => {
            let (rows, n) = (dx.len() / k, w.len() / k);
            gemm((rows, k, n), dx, k, accumulate, scale, Mat::rows(dy, n), Mat::rows(w, k), true)
        }
    }
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
