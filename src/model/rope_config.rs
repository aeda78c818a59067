//! The rotary part of a config.json: `rope_theta` and `rope_scaling` of older files, the `rope_parameters`
//! dictionary of transformers 5, with the precedence of `RotaryEmbeddingConfigMixin` (transformers).

use super::config::RopeScaling;
use super::keys::Keys;
use crate::error::{Error, Result};

/// transformers' `default_theta`.
const DEFAULT_THETA: f64 = 10_000.0;

pub(super) struct Rope {
    pub theta: f64,
    pub dim: usize,
    pub scaling: RopeScaling,
}

/// Reads the rotary configuration for heads of `head_dim`.
pub(super) fn read_rope(keys: Keys, head_dim: usize, max_positions: usize) -> Result<Rope> {
    // `rope_scaling` wins where it is not empty, as in `convert_rope_params_to_dict`.
    let params = match keys.object("rope_scaling")? {
        Some(p) => Some(p),
        None => keys.object("rope_parameters")?,
    };
    if let Some((key, _)) = params.and_then(|p| p.iter().find(|(_, v)| v.is_object())) {
        return Err(Error::unsupported(format!("{}: rotary parameters for each kind of layer ('{key}')", keys.file())));
    }
    let either = |key: &str| -> Result<Option<f64>> {
        match params.map(|p| p.positive(key)).transpose()?.flatten() {
            Some(v) => Ok(Some(v)),
            None => keys.positive(key),
        }
    };
    let theta = either("rope_theta")?.unwrap_or(DEFAULT_THETA);
    let partial = either("partial_rotary_factor")?.unwrap_or(1.0);
    let dim = (head_dim as f64 * partial) as usize;
    if partial > 1.0 || dim < 2 || !dim.is_multiple_of(2) {
        let message = format!("rotates {dim} of {head_dim} dimensions of a head, expected an even number of them");
        return Err(keys.error("partial_rotary_factor", message));
    }
    let scaling = match params {
        Some(p) => read_scaling(keys, p, dim, max_positions)?,
        None => RopeScaling::None,
    };
    Ok(Rope { theta, dim, scaling })
}

fn read_scaling(top: Keys, p: Keys, dim: usize, max_positions: usize) -> Result<RopeScaling> {
    let kind = match p.str("rope_type")? {
        Some(kind) => kind,
        None => p.str("type")?.unwrap_or("default"),
    };
    let required = |key: &str| p.positive(key)?.ok_or_else(|| p.error(key, format!("rope type '{kind}' needs it")));
    // A value outside the dictionary has priority (Phi-3's convention), then one inside, then the context.
    let original = || -> Result<usize> {
        let key = "original_max_position_embeddings";
        Ok(top.size(key)?.or(p.size(key)?).unwrap_or(max_positions))
    };
    Ok(match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: required("factor")? },
        "dynamic" => RopeScaling::Dynamic { factor: required("factor")? },
        "yarn" => {
            let original_max_positions = original()?;
            let factor = match p.positive("factor")? {
                Some(f) => f,
                None if p.contains("factor") => max_positions as f64 / original_max_positions as f64,
                None => return Err(p.error("factor", "rope type 'yarn' needs it")),
            };
            // Python's `x or default`: zero counts as absent.
            let or = |key: &str, default: f64| -> Result<f64> {
                Ok(p.number(key)?.filter(|v| *v != 0.0).unwrap_or(default))
            };
            let mscale = (or("mscale", 0.0)?, or("mscale_all_dim", 0.0)?);
            RopeScaling::Yarn {
                factor,
                beta_fast: or("beta_fast", 32.0)?,
                beta_slow: or("beta_slow", 1.0)?,
                original_max_positions,
                attention_factor: p.number("attention_factor")?,
                mscale: (mscale.0 != 0.0 && mscale.1 != 0.0).then_some(mscale),
                truncate: p.bool("truncate")?.unwrap_or(true),
            }
        }
        "llama3" => RopeScaling::Llama3 {
            factor: required("factor")?,
            low_freq_factor: required("low_freq_factor")?,
            high_freq_factor: required("high_freq_factor")?,
            original_max_positions: original()?,
        },
        "longrope" => {
            let factors = |key: &str| -> Result<Vec<f64>> {
                let v = p.positives(key)?.ok_or_else(|| p.error(key, "rope type 'longrope' needs it"))?;
                if v.len() != dim / 2 {
                    return Err(p.error(key, format!("found {} factors, expected {}", v.len(), dim / 2)));
                }
                Ok(v)
            };
            RopeScaling::LongRope {
                short_factor: factors("short_factor")?,
                long_factor: factors("long_factor")?,
                original_max_positions: original()?,
                attention_factor: p.number("attention_factor")?,
                factor: p.positive("factor")?,
            }
        }
        other => {
            return Err(Error::unsupported(format!(
                "{}: rope type '{other}'; supported are default, linear, dynamic, yarn, llama3, longrope",
                p.file()
            )));
        }
    })
}
