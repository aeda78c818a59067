//! embed_dw, rms_norm_dw, column_sum, qk_norm_dw: gradients of whole weights that are no products.
//!
//! Sums run over the rows in order: results do not depend on the number of threads.

use super::norm::inverse_rms;
use super::rope::{angles, rotate};
use crate::backend::cpu::args::Args;
use crate::error::{Error, Result};

fn scale(args: &mut Args, there: bool) -> Result<f32> {
    Ok(args.read_if(there)?.map_or(1.0, |s| s[0]))
}

/// `dw[ids[t]] += scale · dy[t]`, but for ids that are `skip`.
pub fn embed_dw(mut args: Args, k: usize, skip: Option<u32>, has_scale: bool) -> Result<()> {
    let (ids, dy) = (args.read_u32()?, args.read()?);
    let scale = scale(&mut args, has_scale)?;
    let dw = args.write()?;
    for (id, dy) in ids.iter().zip(dy.chunks_exact(k)).filter(|(id, _)| Some(**id) != skip) {
        let at = *id as usize * k;
        let row = dw.get_mut(at..at + k);
        let row = row.ok_or_else(|| Error::internal(format!("embed_dw: token {id} is outside the vocabulary")))?;
        row.iter_mut().zip(dy).for_each(|(dw, dy)| *dw += scale * dy);
    }
    Ok(())
}

/// `out += scale · Σ_t x[t]`
pub fn column_sum(mut args: Args, has_scale: bool) -> Result<()> {
    let x = args.read()?;
    let scale = scale(&mut args, has_scale)?;
    let out = args.write()?;
    let mut sum = vec![0.0; out.len()];
    for row in x.chunks_exact(out.len()) {
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    out.iter_mut().zip(sum).for_each(|(out, sum)| *out += scale * sum);
    Ok(())
}

/// `dw += scale · Σ_t dy[t] · x[t] / rms(x[t])`
pub fn rms_norm_dw(mut args: Args, eps: f32, has_scale: bool) -> Result<()> {
    let (x, dy) = (args.read()?, args.read()?);
    let scale = scale(&mut args, has_scale)?;
    let dw = args.write()?;
    let mut sum = vec![0.0; dw.len()];
    for (x, dy) in x.chunks_exact(dw.len()).zip(dy.chunks_exact(dw.len())) {
        let r = inverse_rms(x, eps);
        sum.iter_mut().zip(x).zip(dy).for_each(|((sum, x), dy)| *sum += dy * x * r);
    }
    dw.iter_mut().zip(sum).for_each(|(dw, sum)| *dw += scale * sum);
    Ok(())
}

/// The same over heads, the gradient rotated back before.
pub fn qk_norm_dw(mut args: Args, [width, rope_dim]: [usize; 2], eps: f32, has_scale: bool) -> Result<()> {
    let x = args.read()?;
    let positions = args.read_u32()?;
    let (rope, dout) = (args.read()?, args.read()?);
    let scale = scale(&mut args, has_scale)?;
    let dw = args.write()?;
    let d = dw.len();
    let (mut sum, mut turned) = (vec![0.0; d], vec![0.0; d]);
    for ((x, dout), position) in x.chunks_exact(width).zip(dout.chunks_exact(width)).zip(positions) {
        let cos_sin = angles(rope, rope_dim, *position)?;
        for (x, dout) in x.chunks_exact(d).zip(dout.chunks_exact(d)) {
            turned.copy_from_slice(dout);
            rotate(&mut turned, cos_sin, -1.0);
            let r = inverse_rms(x, eps);
            sum.iter_mut().zip(x).zip(&turned).for_each(|((sum, x), dy)| *sum += dy * x * r);
        }
    }
    dw.iter_mut().zip(sum).for_each(|(dw, sum)| *dw += scale * sum);
    Ok(())
}
