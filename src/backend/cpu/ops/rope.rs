//! qk_norm_rope_kv, qk_norm_rope_backward: half-split rotary embedding, as Hugging Face's `rotate_half`.

use super::norm::{inverse_rms, row_backward, vector};
use crate::backend::cpu::args::Args;
use crate::backend::cpu::cut::{Cut, elements};
use crate::error::{Error, Result};
use crate::program::cache::{encode, row_len, scale_of};
use crate::tensor::DType;
use rayon::prelude::*;
use std::ops::Range;

/// Widths: a row of q, a row of k, a head, its rotated part.
pub struct Heads {
    pub q: usize,
    pub k: usize,
    pub dim: usize,
    pub rope: usize,
    pub eps: f32,
}

/// Where k and v go.
pub struct Cache {
    pub dtype: DType,
    /// To rows that the op's slots name, else row by row.
    pub slots: bool,
    /// v goes somewhere, too.
    pub values: bool,
}

/// Norm and rotation of one head. `sign` −1 rotates back.
pub fn rotate(x: &mut [f32], cos_sin: &[f32], sign: f32) {
    let half = cos_sin.len() / 2;
    for i in 0..half {
        let (c, s) = (cos_sin[2 * i], cos_sin[2 * i + 1] * sign);
        let (a, b) = (x[i], x[i + half]);
        x[i] = a * c - b * s;
        x[i + half] = b * c + a * s;
    }
}

/// The (cos, sin) pairs of a position.
pub fn angles(rope: &[f32], width: usize, position: u32) -> Result<&[f32]> {
    let at = position as usize * width;
    rope.get(at..at + width).ok_or_else(|| {
        Error::internal(format!("position {position} is beyond the {} prepared ones", rope.len() / width))
    })
}

fn head_forward(x: &[f32], norm: Option<&[f32]>, cos_sin: &[f32], eps: f32, out: &mut [f32]) {
    out.copy_from_slice(x);
    if let Some(norm) = norm {
        let r = inverse_rms(x, eps);
        out.iter_mut().zip(norm).for_each(|(o, w)| *o *= r * w);
    }
    rotate(out, cos_sin, 1.0);
}

/// A row of heads as codes and scales, see [`crate::program::cache`].
fn write_codes(dtype: DType, row: &[f32], dim: usize, out: &mut [f32]) {
    let (codes, scales) = out.split_at_mut(row.len() / 4);
    let codes: &mut [u8] = bytemuck::cast_slice_mut(codes);
    for ((head, codes), scale) in row.chunks_exact(dim).zip(codes.chunks_exact_mut(dim)).zip(scales) {
        let (own, factor) = scale_of(dtype, head.iter().fold(0.0, |top, x| x.abs().max(top)));
        *scale = own;
        codes.iter_mut().zip(head).for_each(|(code, x)| *code = encode(dtype, x * factor));
    }
}

pub fn forward(cut: &mut Cut, mut args: Args, h: &Heads, norms: (bool, bool), cache: &Cache) -> Result<()> {
    let (q, k, v) = (args.read()?, args.read()?, args.read()?);
    let q_norm = if norms.0 { Some(vector(args.weight()?)) } else { None };
    let k_norm = if norms.1 { Some(vector(args.weight()?)) } else { None };
    let positions = args.read_u32()?;
    let rope = args.read()?;
    let slots = args.read_u32_if(cache.slots)?;
    let (q_out, k_out, v_out) = (args.write()?, args.write()?, args.write_if(cache.values)?);
    let (q_norm, k_norm) = (q_norm.as_deref(), k_norm.as_deref());
    // Of a row, in f32s.
    let width = if cache.dtype.is_code() { row_len(cache.dtype, h.k / h.dim, h.dim) / 4 } else { h.k };
    let write = |out: &mut [f32], t: usize, row: &[f32]| -> Result<()> {
        let target = slots.map_or(t, |slots| slots[t] as usize);
        let out = out
            .get_mut(target * width..(target + 1) * width)
            .ok_or_else(|| Error::internal(format!("cache row {target} is outside the cache")))?;
        if cache.dtype.is_code() {
            write_codes(cache.dtype, row, h.dim, out)
        } else {
            out.copy_from_slice(row)
        }
        Ok(())
    };
    let mut turned = vec![0.0; h.k];
    let mut v_out = v_out;
    cut.rows(q_out.len() / h.q, elements() / (h.q + 2 * h.k), |rows| {
        let all = rows.start * h.q..rows.end * h.q;
        let queries = q_out[all.clone()].par_chunks_mut(h.q).zip(q[all].par_chunks(h.q)).zip(&positions[rows.clone()]);
        queries.try_for_each(|((out, q), position)| {
            let cos_sin = angles(rope, h.rope, *position)?;
            for (out, q) in out.chunks_exact_mut(h.dim).zip(q.chunks_exact(h.dim)) {
                head_forward(q, q_norm, cos_sin, h.eps, out);
            }
            Ok::<_, Error>(())
        })?;
        for t in rows {
            let row = t * h.k..(t + 1) * h.k;
            let cos_sin = angles(rope, h.rope, positions[t])?;
            for (out, k) in turned.chunks_exact_mut(h.dim).zip(k[row.clone()].chunks_exact(h.dim)) {
                head_forward(k, k_norm, cos_sin, h.eps, out);
            }
            write(k_out, t, &turned)?;
            if let Some(v_out) = v_out.as_deref_mut() {
                write(v_out, t, &v[row])?;
            }
        }
        Ok(())
    })?;
    Ok(())
}

/// Rotates the gradient back, then through the norm.
pub fn backward(cut: &mut Cut, mut args: Args, h: &Heads, norms: (bool, bool)) -> Result<()> {
    let (q, k) = (args.read()?, args.read()?);
    let q_norm = if norms.0 { Some(vector(args.weight()?)) } else { None };
    let k_norm = if norms.1 { Some(vector(args.weight()?)) } else { None };
    let positions = args.read_u32()?;
    let rope = args.read()?;
    let (dq_out, dk_out) = (args.read()?, args.read()?);
    let (dq, dk) = (args.write()?, args.write()?);
    let side = |x: &[f32], norm: Option<&[f32]>, dout: &[f32], dx: &mut [f32], width: usize, rows: &Range<usize>| {
        let (positions, all) = (&positions[rows.clone()], rows.start * width..rows.end * width);
        let (x, dout, dx) = (&x[all.clone()], &dout[all.clone()], &mut dx[all]);
        let rows = dx.par_chunks_mut(width).zip(x.par_chunks(width)).zip(dout.par_chunks(width)).zip(positions);
        rows.try_for_each(|(((dx, x), dout), position)| {
            let cos_sin = angles(rope, h.rope, *position)?;
            let heads = dx.chunks_exact_mut(h.dim).zip(x.chunks_exact(h.dim)).zip(dout.chunks_exact(h.dim));
            for ((dx, x), dout) in heads {
                let mut turned = dout.to_vec();
                rotate(&mut turned, cos_sin, -1.0);
                match norm {
                    Some(norm) => row_backward(x, norm, &turned, dx, h.eps, false),
                    None => dx.copy_from_slice(&turned),
                }
            }
            Ok::<_, Error>(())
        })
    };
    cut.rows(q.len() / h.q, elements() / (h.q + h.k), |rows| {
        side(q, q_norm.as_deref(), dq_out, dq, h.q, &rows)?;
        side(k, k_norm.as_deref(), dk_out, dk, h.k, &rows)
    })?;
    Ok(())
}
