//! Rotary tables: cos and sin of every position and frequency, for every scaling kind.
//!
//! Formulas: `transformers/modeling_rope_utils.py` (Apache-2.0), function names in the comments below.

use super::config::{ModelConfig, RopeScaling};
use std::f64::consts::PI;

/// cos and sin for positions `0..max_len`.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// `[max_len, rope_dim / 2, 2]`: cos, then sin, already multiplied by the attention factor.
    pub cos_sin: Vec<f32>,
    /// Frequencies of a position: `rope_dim / 2`.
    pub half: usize,
}

/// Angles in radians per position, and the multiplier on cos and sin.
#[derive(Clone, Debug, PartialEq)]
pub struct Frequencies {
    /// `[rope_dim / 2]`
    pub inv_freq: Vec<f64>,
    /// 1 except for YaRN and LongRoPE.
    pub attention_factor: f64,
}

/// The table for contexts of up to `max_len` tokens, computed in f64 and rounded once.
///
/// `dynamic` and `longrope` depend on the longest context: the whole table uses the rule for `max_len`,
/// where transformers switches in the middle of a sequence that grows past the limit.
pub fn rope_table(config: &ModelConfig, max_len: usize) -> RopeTable {
    let f = frequencies(config, max_len);
    let mut cos_sin = Vec::with_capacity(max_len * f.inv_freq.len() * 2);
    for position in 0..max_len {
        for w in &f.inv_freq {
            let (sin, cos) = (position as f64 * w).sin_cos();
            cos_sin.push((cos * f.attention_factor) as f32);
            cos_sin.push((sin * f.attention_factor) as f32);
        }
    }
    RopeTable { cos_sin, half: f.inv_freq.len() }
}

/// Frequencies for contexts of up to `seq_len` tokens.
pub fn frequencies(config: &ModelConfig, seq_len: usize) -> Frequencies {
    let dim = config.rope_dim as f64;
    let max = config.max_positions as f64;
    let base =
        |theta: f64| -> Vec<f64> { (0..config.rope_dim / 2).map(|i| 1.0 / theta.powf(2.0 * i as f64 / dim)).collect() };
    let plain = base(config.rope_theta);
    let mut attention_factor = 1.0;
    let inv_freq = match &config.rope_scaling {
        RopeScaling::None => plain,
        // _compute_linear_scaling_rope_parameters
        RopeScaling::Linear { factor } => plain.iter().map(|w| w / factor).collect(),
        // _compute_dynamic_ntk_parameters; two dimensions have one frequency, 1, whatever the base
        RopeScaling::Dynamic { .. } if config.rope_dim == 2 => plain,
        RopeScaling::Dynamic { factor } => {
            let len = (seq_len as f64).max(max);
            base(config.rope_theta * (factor * len / max - (factor - 1.0)).powf(dim / (dim - 2.0)))
        }
        yarn @ RopeScaling::Yarn { .. } => {
            let (w, factor) = yarn_frequencies(yarn, &plain, config.rope_theta, dim);
            attention_factor = factor;
            w
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            let context = *original_max_positions as f64;
            plain.iter().map(|w| llama3_frequency(*w, *factor, *low_freq_factor, *high_freq_factor, context)).collect()
        }
        // _compute_longrope_parameters
        RopeScaling::LongRope {
            short_factor,
            long_factor,
            original_max_positions,
            attention_factor: given,
            factor,
        } => {
            let original = *original_max_positions as f64;
            let factor = factor.unwrap_or(max / original);
            attention_factor =
                given.unwrap_or_else(|| if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() });
            let divisors = if seq_len > *original_max_positions { long_factor } else { short_factor };
            plain.iter().zip(divisors).map(|(w, d)| w / d).collect()
        }
        RopeScaling::Divisors { divisors } => plain.iter().zip(divisors).map(|(w, d)| w / d).collect(),
    };
    Frequencies { inv_freq, attention_factor }
}

/// `_compute_yarn_parameters`
fn yarn_frequencies(scaling: &RopeScaling, plain: &[f64], theta: f64, dim: f64) -> (Vec<f64>, f64) {
    let RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_positions, attention_factor, mscale, truncate } =
        scaling
    else {
        return (plain.to_vec(), 1.0);
    };
    let get_mscale = |mscale: f64| if *factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let attention = attention_factor.unwrap_or_else(|| match mscale {
        Some((m, all)) => get_mscale(*m) / get_mscale(*all),
        None => get_mscale(1.0),
    });
    // The dimension that turns `rotations` times within the original context.
    let correction =
        |rotations: f64| dim * (*original_max_positions as f64 / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let (mut low, mut high) = (correction(*beta_fast), correction(*beta_slow));
    if *truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
    if low == high {
        high += 0.001; // as transformers: prevents a division by zero
    }
    let mixed = plain.iter().enumerate().map(|(i, w)| {
        let interpolated = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        w / factor * interpolated + w * (1.0 - interpolated)
    });
    (mixed.collect(), attention)
}

/// `_compute_llama3_parameters`: long waves are stretched, short ones kept, those between are mixed.
fn llama3_frequency(w: f64, factor: f64, low: f64, high: f64, context: f64) -> f64 {
    let wavelength = 2.0 * PI / w;
    if wavelength < context / high {
        w
    } else if wavelength > context / low {
        w / factor
    } else {
        let smooth = (context / wavelength - low) / (high - low);
        (1.0 - smooth) * w / factor + smooth * w
    }
}
