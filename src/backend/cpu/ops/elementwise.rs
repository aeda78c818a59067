//! dropout, glu, glu_backward, copy, accumulate, fill, place_adapter

use crate::backend::cpu::args::Args;
use crate::backend::cpu::cut::{Cut, elements};
use crate::backend::cpu::simd::dispatch;
use crate::error::{Error, Result};
use crate::model::config::Activation;
use crate::program::dropout_keeps;
use rayon::prelude::*;

/// Elements that one task works on: about 64 KiB a stream.
const CHUNK: usize = 1 << 14;

/// `out (+)= x / (1 − p)` where the mask keeps it, else 0; with `complement` x minus that.
pub fn dropout(
    cut: &mut Cut,
    mut args: Args,
    p: f32,
    (salt, seed): (u32, u32),
    complement: bool,
    accumulate: bool,
) -> Result<()> {
    let x = args.read()?;
    let out = args.write()?;
    let scale = 1.0 / (1.0 - p);
    let (kept, dropped) = if complement { (1.0 - scale, 1.0) } else { (scale, 0.0) };
    cut.rows(x.len(), elements(), |range| {
        let first = range.start;
        let chunks = out[range.clone()].par_chunks_mut(CHUNK).zip(x[range].par_chunks(CHUNK)).enumerate();
        chunks.for_each(|(chunk, (out, x))| {
            for (i, (o, x)) in out.iter_mut().zip(x).enumerate() {
                let index = (first + chunk * CHUNK + i) as u32;
                let value = x * if dropout_keeps(seed, salt, index, p) { kept } else { dropped };
                *o = if accumulate { *o + value } else { value };
            }
        });
        Ok(())
    })?;
    Ok(())
}

/// The activation and its derivative at `x`.
#[inline(always)]
fn activate(activation: Activation, x: f32) -> (f32, f32) {
    match activation {
        Activation::Silu => {
            let s = 1.0 / (1.0 + exp(-x));
            (x * s, s * (1.0 + x * (1.0 - s)))
        }
        Activation::GeluTanh => {
            // √(2/π), and the cubic coefficient of the approximation.
            const C: f32 = 0.797_884_6;
            const A: f32 = 0.044_715;
            let t = (C * (x + A * x * x * x)).tanh();
            let slope = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * C * (1.0 + 3.0 * A * x * x);
            (0.5 * x * (1.0 + t), slope)
        }
    }
}

/// eˣ to 2 ulp without a library call, so that loops over it vectorise: range reduction by ln 2 in two parts
/// and a polynomial of degree 6 (Cephes `expf`).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.3, 88.3);
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4f32;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5.000_000_3e-1] {
        p = p.mul_add(r, c);
    }
    let e = (p * r).mul_add(r, r) + 1.0;
    e * f32::from_bits(((n as i32 + 127) << 23) as u32)
}

/// `out = activation(gate) · up`
pub fn glu(cut: &mut Cut, mut args: Args, activation: Activation) -> Result<()> {
    let gate = args.read()?;
    let up = args.read()?;
    let out = args.write()?;
    cut.rows(gate.len(), elements(), |range| {
        let (out, gate, up) = (&mut out[range.clone()], &gate[range.clone()], &up[range]);
        let chunks = out.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK));
        chunks.for_each(|((out, gate), up)| {
            dispatch(
                #[inline(always)]
                || {
                    for ((o, g), u) in out.iter_mut().zip(gate).zip(up) {
                        *o = activate(activation, *g).0 * u;
                    }
                },
            );
        });
        Ok(())
    })?;
    Ok(())
}

/// `dgate = dout · up · activation'(gate)`, `dup = dout · activation(gate)`
pub fn glu_backward(cut: &mut Cut, mut args: Args, activation: Activation) -> Result<()> {
    let gate = args.read()?;
    let up = args.read()?;
    let dout = args.read()?;
    let dgate = args.write()?;
    let dup = args.write()?;
    cut.rows(gate.len(), elements(), |range| {
        let (gate, up, dout) = (&gate[range.clone()], &up[range.clone()], &dout[range.clone()]);
        let (dgate, dup) = (&mut dgate[range.clone()], &mut dup[range]);
        let inputs = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)).zip(dout.par_chunks(CHUNK));
        let outputs = dgate.par_chunks_mut(CHUNK).zip(dup.par_chunks_mut(CHUNK));
        inputs.zip(outputs).for_each(|(((gate, up), dout), (dgate, dup))| {
            dispatch(
                #[inline(always)]
                || {
                    let values = gate.iter().zip(up).zip(dout);
                    for (((g, u), d), (dg, du)) in values.zip(dgate.iter_mut().zip(dup)) {
                        let (value, slope) = activate(activation, *g);
                        *dg = d * u * slope;
                        *du = d * value;
                    }
                },
            );
        });
        Ok(())
    })?;
    Ok(())
}

/// `out = x`
pub fn copy(cut: &mut Cut, mut args: Args) -> Result<()> {
    let x = args.read()?;
    let out = args.write()?;
    cut.rows(x.len(), 4 * elements(), |range| {
        out[range.clone()].copy_from_slice(&x[range]);
        Ok(())
    })?;
    Ok(())
}

/// `y += x`
pub fn accumulate(cut: &mut Cut, mut args: Args) -> Result<()> {
    let x = args.read()?;
    let y = args.write()?;
    // Of rows that live in one of them only there is nothing to add.
    cut.rows(x.len().min(y.len()), 4 * elements(), |range| {
        let chunks = y[range.clone()].par_chunks_mut(CHUNK).zip(x[range].par_chunks(CHUNK));
        chunks.for_each(|(y, x)| y.iter_mut().zip(x).for_each(|(y, x)| *y += x));
        Ok(())
    })?;
    Ok(())
}

/// `x = value`
pub fn fill(mut args: Args, value: f32) -> Result<()> {
    args.write()?.fill(value);
    Ok(())
}

/// Copies matrices between flat buffers: see [`crate::program::Op::PlaceAdapter`].
pub fn place_adapter(mut args: Args) -> Result<()> {
    let (from, table, to) = (args.read()?, args.read_u32()?, args.write()?);
    for matrix in table.chunks_exact(8) {
        let [source, own_rows, own_cols, start, rows, cols] = [0, 1, 2, 3, 4, 5].map(|i| matrix[i] as usize);
        let scale = f32::from_bits(matrix[6]);
        let outside = || Error::internal("place_adapter: a matrix lies outside its buffer");
        let own = from.get(source..source + own_rows * own_cols).ok_or_else(outside)?;
        let place = to.get_mut(start..start + rows * cols).ok_or_else(outside)?;
        for (r, row) in place.chunks_exact_mut(cols.max(1)).enumerate() {
            row.fill(0.0);
            if r < own_rows {
                let own = &own[r * own_cols..(r + 1) * own_cols];
                row.iter_mut().zip(own).for_each(|(to, from)| *to = from * scale);
            }
        }
    }
    Ok(())
}
