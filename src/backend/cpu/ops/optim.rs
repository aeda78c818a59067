//! grad_norm, adamw, adamw_8bit, lion, lion_8bit, sgd

use crate::backend::cpu::args::Args;
use crate::backend::cpu::cut::{Cut, elements};
use crate::error::{Error, Result};
use crate::program::MOMENT_BLOCK;
use rayon::prelude::*;

/// Elements that one task works on.
const CHUNK: usize = 1 << 14;

/// `sqrt(Σ x²)`, summed in f64.
pub fn grad_norm(cut: &mut Cut, mut args: Args) -> Result<()> {
    let x = args.read()?;
    let out = args.write()?;
    let mut sum: f64 = cut.take();
    let done = cut.rows(x.len(), elements(), |range| {
        let squares = |x: &[f32]| x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
        // Added in order: the pool's own sum depends on who was idle.
        let sums: Vec<f64> = x[range].par_chunks(CHUNK).map(squares).collect();
        sum += sums.iter().sum::<f64>();
        Ok(())
    })?;
    if done {
        out[0] = sum.sqrt() as f32;
    }
    cut.keep(sum);
    Ok(())
}

/// One AdamW update, in the order of `torch.optim.AdamW`: decay, moments, bias-corrected step.
pub fn adamw(cut: &mut Cut, mut args: Args) -> Result<()> {
    let (params, grads, m, v) = (args.write()?, args.read()?, args.write()?, args.write()?);
    let norm = args.read()?[0];
    let hyper = args.read()?;
    let [lr, beta1, beta2, eps, decay, correction1, correction2, max_norm] = *hyper else { return Ok(()) };
    let clip = if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
    cut.rows(params.len(), elements(), |range| {
        let state = m[range.clone()].par_chunks_mut(CHUNK).zip(v[range.clone()].par_chunks_mut(CHUNK));
        let chunks = params[range.clone()].par_chunks_mut(CHUNK).zip(grads[range].par_chunks(CHUNK)).zip(state);
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
    })?;
    Ok(())
}

/// One Lion update: the step from the old moment, then the moment.
pub fn lion(cut: &mut Cut, args: Args) -> Result<()> {
    one_moment(cut, args, |p, g, m, [lr, beta1, beta2, _, decay, ..]| {
        let step = beta1 * *m + (1.0 - beta1) * g;
        *m = beta2 * *m + (1.0 - beta2) * g;
        let sign = if step == 0.0 { 0.0 } else { step.signum() };
        *p = *p * (1.0 - lr * decay) - lr * sign;
    })
}

/// One SGD update with momentum.
pub fn sgd(cut: &mut Cut, args: Args) -> Result<()> {
    one_moment(cut, args, |p, g, m, [lr, momentum, _, _, decay, ..]| {
        *m = momentum * *m + (g + decay * *p);
        *p -= lr * *m;
    })
}

/// Applies `step(parameter, clipped gradient, moment, hyper)` to every element.
fn one_moment(cut: &mut Cut, mut args: Args, step: impl Fn(&mut f32, f32, &mut f32, &[f32; 8]) + Sync) -> Result<()> {
    let (params, grads, m) = (args.write()?, args.read()?, args.write()?);
    let norm = args.read()?[0];
    let hyper = args.read()?;
    let hyper: &[f32; 8] = hyper.try_into().map_err(|_| Error::internal("an optimizer takes 8 numbers"))?;
    let clip = if hyper[7] > 0.0 { (hyper[7] / (norm + 1e-6)).min(1.0) } else { 1.0 };
    cut.rows(params.len(), elements(), |range| {
        let (params, grads, m) = (&mut params[range.clone()], &grads[range.clone()], &mut m[range]);
        let chunks = params.par_chunks_mut(CHUNK).zip(grads.par_chunks(CHUNK)).zip(m.par_chunks_mut(CHUNK));
        chunks.for_each(|((params, grads), m)| {
            for ((p, g), m) in params.iter_mut().zip(grads).zip(m) {
                step(p, g * clip, m, hyper);
            }
        });
        Ok(())
    })?;
    Ok(())
}

/// [`adamw`] with moments of 8 bits, block by block.
pub fn adamw_8bit(cut: &mut Cut, mut args: Args) -> Result<()> {
    let (params, grads, m, v) = (args.write()?, args.read()?, args.write()?, args.write()?);
    let (m_max, v_max) = (args.write()?, args.write()?);
    let norm = args.read()?[0];
    let hyper = args.read()?;
    let [lr, beta1, beta2, eps, decay, correction1, correction2, max_norm, ref maps @ ..] = *hyper else {
        return Err(Error::internal("adamw_8bit: hyper is too short"));
    };
    let (map_m, map_v) = maps.split_at(256);
    let clip = if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
    let (m, v): (&mut [u32], &mut [u32]) = (bytemuck::cast_slice_mut(m), bytemuck::cast_slice_mut(v));
    let one = |((params, grads), ((m, v), (m_max, v_max))): Block| {
        let (mut first, mut second) = ([0f32; MOMENT_BLOCK], [0f32; MOMENT_BLOCK]);
        for (i, (p, g)) in params.iter_mut().zip(grads).enumerate() {
            let code = |words: &[u32]| (words[i / 4] >> (8 * (i % 4)) & 255) as usize;
            let g = g * clip;
            first[i] = beta1 * (map_m[code(m)] * *m_max) + (1.0 - beta1) * g;
            second[i] = beta2 * (map_v[code(v)] * *v_max) + (1.0 - beta2) * g * g;
            *p *= 1.0 - lr * decay;
            *p -= lr / correction1 * first[i] / (second[i].sqrt() / correction2.sqrt() + eps);
        }
        *m_max = first.iter().fold(0.0, |top, x| x.abs().max(top));
        *v_max = second.iter().fold(0.0, |top, x| x.max(top));
        for (i, word) in m.iter_mut().enumerate() {
            *word = (0..4).fold(0, |word, j| word | signed_code(map_m, first[4 * i + j], *m_max) << (8 * j));
        }
        for (i, word) in v.iter_mut().enumerate() {
            *word = (0..4).fold(0, |word, j| word | code(map_v, second[4 * i + j], *v_max) << (8 * j));
        }
    };
    let len = params.len();
    cut.rows(m_max.len(), elements() / 4 / MOMENT_BLOCK, |range| {
        const WORDS: usize = MOMENT_BLOCK / 4;
        let words = range.start * WORDS..(range.end * WORDS).min(m.len());
        let all = range.start * MOMENT_BLOCK..(range.end * MOMENT_BLOCK).min(len);
        let codes = m[words.clone()].par_chunks_mut(WORDS).zip(v[words].par_chunks_mut(WORDS));
        let codes = codes.zip(m_max[range.clone()].par_iter_mut().zip(&mut v_max[range]));
        let (params, grads) = (&mut params[all.clone()], &grads[all]);
        params.par_chunks_mut(MOMENT_BLOCK).zip(grads.par_chunks(MOMENT_BLOCK)).zip(codes).for_each(one);
        Ok(())
    })?;
    Ok(())
}

/// [`lion`] with its moment in 8 bits, block by block.
pub fn lion_8bit(cut: &mut Cut, mut args: Args) -> Result<()> {
    let (params, grads, m, m_max) = (args.write()?, args.read()?, args.write()?, args.write()?);
    let norm = args.read()?[0];
    let hyper = args.read()?;
    let [lr, beta1, beta2, _, decay, _, _, max_norm, ref map @ ..] = *hyper else {
        return Err(Error::internal("lion_8bit: hyper is too short"));
    };
    let clip = if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
    let m: &mut [u32] = bytemuck::cast_slice_mut(m);
    let one = |((params, grads), (m, m_max)): BlockOfOne| {
        let mut moment = [0f32; MOMENT_BLOCK];
        for (i, (p, g)) in params.iter_mut().zip(grads).enumerate() {
            let g = g * clip;
            let old = map[(m[i / 4] >> (8 * (i % 4)) & 255) as usize] * *m_max;
            let step = beta1 * old + (1.0 - beta1) * g;
            let sign = if step == 0.0 { 0.0 } else { step.signum() };
            *p = *p * (1.0 - lr * decay) - lr * sign;
            moment[i] = beta2 * old + (1.0 - beta2) * g;
        }
        *m_max = moment.iter().fold(0.0, |top, x| x.abs().max(top));
        for (i, word) in m.iter_mut().enumerate() {
            *word = (0..4).fold(0, |word, j| word | signed_code(map, moment[4 * i + j], *m_max) << (8 * j));
        }
    };
    let len = params.len();
    cut.rows(m_max.len(), elements() / 4 / MOMENT_BLOCK, |range| {
        const WORDS: usize = MOMENT_BLOCK / 4;
        let words = range.start * WORDS..(range.end * WORDS).min(m.len());
        let all = range.start * MOMENT_BLOCK..(range.end * MOMENT_BLOCK).min(len);
        let codes = m[words].par_chunks_mut(WORDS).zip(m_max[range].par_iter_mut());
        let (params, grads) = (&mut params[all.clone()], &grads[all]);
        params.par_chunks_mut(MOMENT_BLOCK).zip(grads.par_chunks(MOMENT_BLOCK)).zip(codes).for_each(one);
        Ok(())
    })?;
    Ok(())
}

/// As [`Block`], with one moment.
type BlockOfOne<'a> = ((&'a mut [f32], &'a [f32]), (&'a mut [u32], &'a mut f32));

/// A block's parameters and gradients, codes of both moments, and what these are multiplied by.
type Block<'a> = ((&'a mut [f32], &'a [f32]), ((&'a mut [u32], &'a mut [u32]), (&'a mut f32, &'a mut f32)));

/// The code nearest to `x / max`.
fn code(map: &[f32], x: f32, max: f32) -> u32 {
    let x = if max > 0.0 { x / max } else { 0.0 };
    let below = |i: usize| (map[i] + map[i + 1]) * 0.5 < x;
    let mut code = 0;
    for step in [128, 64, 32, 16, 8, 4, 2, 1] {
        if code + step < 256 && below(code + step - 1) {
            code += step;
        }
    }
    code as u32
}

/// As [`code`]; negative numbers stay negative.
fn signed_code(map: &[f32], x: f32, max: f32) -> u32 {
    let code = code(map, x, max);
    code - u32::from(x < 0.0 && map[code as usize] == 0.0)
}
