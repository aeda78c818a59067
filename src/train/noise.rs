//! NEFTune (<https://arxiv.org/abs/2310.05914>): uniform noise on the embeddings of a training step, within
//! `±α / √(tokens of the row · hidden)`.

use super::batch::MicroBatch;
use crate::tensor::DType;
use half::{bf16, f16};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// The noise of a micro-batch, `[tokens, hidden]` in `dtype` (f32, f16 or bf16): the same for the same seed.
pub fn neftune(batch: &MicroBatch, hidden: usize, alpha: f64, seed: u32, dtype: DType) -> Vec<u8> {
    let bounds: Vec<f32> = batch
        .bounds
        .windows(2)
        .flat_map(|row| {
            let tokens = (row[1] - row[0]) as usize;
            std::iter::repeat_n((alpha / ((tokens * hidden) as f64).sqrt()) as f32, tokens)
        })
        .collect();
    let width = hidden * if dtype == DType::F32 { 4 } else { 2 };
    let mut out = vec![0; bounds.len() * width];
    out.par_chunks_exact_mut(width).zip(&bounds).enumerate().for_each(|(token, (out, bound))| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed.into());
        rng.set_stream(token as u64);
        let mut next = || rng.random_range(-1f32..1f32) * bound;
        match dtype {
            DType::F16 => out.as_chunks_mut().0.iter_mut().for_each(|x| *x = f16::from_f32(next()).to_le_bytes()),
            DType::BF16 => out.as_chunks_mut().0.iter_mut().for_each(|x| *x = bf16::from_f32(next()).to_le_bytes()),
            _ => out.as_chunks_mut().0.iter_mut().for_each(|x| *x = next().to_le_bytes()),
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_even_within_its_bound() {
        let batch = MicroBatch { bounds: vec![0, 64, 80], ..MicroBatch::default() };
        let bytes = neftune(&batch, 32, 5.0, 3, DType::F32);
        let noise: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
        assert_eq!(noise.len(), 80 * 32);
        for (part, tokens) in [(&noise[..64 * 32], 64f32), (&noise[64 * 32..], 16.0)] {
            let bound = 5.0 / (tokens * 32.0).sqrt();
            let top = part.iter().fold(0f32, |top, x| top.max(x.abs()));
            assert!(top <= bound && top > 0.97 * bound, "{top} of {bound}");
            let mean = part.iter().sum::<f32>() / part.len() as f32;
            assert!(mean.abs() < 0.1 * bound, "{mean}");
        }
        assert_eq!(neftune(&batch, 32, 5.0, 3, DType::F32), bytes);
        assert_ne!(neftune(&batch, 32, 5.0, 4, DType::F32), bytes);
        let half: Vec<f16> = bytemuck::pod_collect_to_vec(&neftune(&batch, 32, 5.0, 3, DType::F16));
        assert!(half.iter().zip(&noise).all(|(h, x)| (h.to_f32() - x).abs() < 1e-3));
    }
}
