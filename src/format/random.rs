//! Checkpoints that exist nowhere: a configuration with random weights, to measure a model's speed without its files.

use super::checkpoint::read_json;
use super::peft::{Adapter, AdapterConfig, LoraWeights, TargetModules};
use super::{Checkpoint, TokenizerSource};
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::families::config_from_json;
use crate::model::weights::{EMBED, HEAD, expected_tensors};
use crate::tensor::{DType, HostBytes, HostTensor};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Names that [`random_checkpoint`] knows besides paths.
pub const CONFIGS: [&str; 3] = ["qwen3-0.6b", "qwen3-1.7b", "qwen3-8b"];

/// Standard deviation of the weights: transformers' `initializer_range`.
const SPREAD: f32 = 0.02;

/// Random blocks; tensors repeat them, each from another start. Prime, so that no row of a matrix is like the next.
const UNIT_BLOCKS: usize = 65_537;

/// A configuration (a path to a config.json, or one of [`CONFIGS`]) with weights of type `dtype`, about N(0, 0.02), from
/// one small pool of random blocks. As files with these types do, the embedding and the head of K-quants are Q6_K,
/// those of NF4 bf16; norms are 1 and biases 0. There is no tokenizer.
///
/// `shared` says that the caller copies each tensor elsewhere: then all of them are parts of one buffer as large as the
/// largest. Else each has its own memory, as a file's tensors have.
///
/// # Errors
/// [`Error::Io`] and [`Error::Format`] for the configuration; [`Error::Unsupported`] for a type whose blocks do not fit
/// the model's rows.
pub fn random_checkpoint(config: &str, dtype: DType, shared: bool) -> Result<Checkpoint> {
    let (path, raw_config) = match builtin(config) {
        // Names of models are paths without their ending.
        Some(raw) => (PathBuf::from(format!("{config}.random")), raw),
        None => {
            let path = Path::new(config);
            if !path.is_file() {
                return Err(Error::invalid(format!(
                    "{config}: neither a config.json nor one of {}",
                    CONFIGS.join(", ")
                )));
            }
            (path.to_owned(), read_json(path)?)
        }
    };
    let config = config_from_json(&path.display().to_string(), &raw_config)?;
    let shapes: Vec<(String, Vec<usize>)> = expected_tensors(&config).collect();
    let mut pools = Pools { shared, ..Pools::default() };
    let mut largest: HashMap<DType, usize> = HashMap::new();
    for (name, shape) in shapes.iter().filter(|(_, shape)| shape.len() > 1) {
        let dtype = type_of(name, dtype);
        let size = largest.entry(dtype).or_default();
        *size = (*size).max(bytes_of(name, shape, dtype)?);
    }
    let mut tensors = BTreeMap::new();
    for (index, (name, shape)) in shapes.into_iter().enumerate() {
        let tensor = if let [len] = shape[..] {
            let value = if name.ends_with(".bias") { 0.0 } else { 1.0 };
            HostTensor::from_f32(shape, &vec![value; len])?
        } else {
            let dtype = type_of(&name, dtype);
            let bytes = bytes_of(&name, &shape, dtype)?;
            let most = largest.get(&dtype).copied().unwrap_or(bytes);
            HostTensor::new(dtype, shape, pools.take(dtype, index, bytes, most)?)?
        };
        tensors.insert(name, tensor);
    }
    let (chat_template, generation) = (None, Value::Null);
    Ok(Checkpoint { path, config, tensors, tokenizer: TokenizerSource::None, chat_template, generation, raw_config })
}

/// An adapter of a rank for all projections of a model, every number about N(0, 0.02).
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn random_adapter(model: &ModelConfig, rank: usize) -> Result<Adapter> {
    let mut pools = Pools::default();
    let mut random = |index: usize, shape: [usize; 2]| {
        let bytes = shape.iter().product::<usize>() * DType::F32.block_bytes();
        HostTensor::new(DType::F32, shape.to_vec(), pools.take(DType::F32, index, bytes, bytes)?)
    };
    let mut modules = BTreeMap::new();
    for (index, (name, shape)) in expected_tensors(model).enumerate() {
        if let (Some(module), [outputs, inputs]) = (name.strip_suffix("_proj.weight"), &shape[..]) {
            let (a, b) = (random(2 * index, [rank, *inputs])?, random(2 * index + 1, [*outputs, rank])?);
            modules.insert(format!("{module}_proj"), LoraWeights { a, b, scale: 1.0, magnitude: None });
        }
    }
    Ok(Adapter {
        config: AdapterConfig::new(rank, rank as f64, TargetModules::AllLinear),
        modules,
        saved: BTreeMap::new(),
    })
}

/// Qwen3's published sizes.
fn builtin(name: &str) -> Option<Value> {
    let (hidden, intermediate, layers, heads, tied) = match name {
        "qwen3-0.6b" => (1024, 3072, 28, 16, true),
        "qwen3-1.7b" => (2048, 6144, 28, 16, true),
        "qwen3-8b" => (4096, 12288, 36, 32, false),
        _ => return None,
    };
    Some(json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936, "max_position_embeddings": 40_960,
        "rms_norm_eps": 1e-6, "rope_theta": 1_000_000, "tie_word_embeddings": tied, "hidden_act": "silu",
        "bos_token_id": 151_643, "eos_token_id": 151_645,
    }))
}

fn type_of(name: &str, dtype: DType) -> DType {
    match dtype {
        DType::Q4_K | DType::Q5_K if name == EMBED || name == HEAD => DType::Q6_K,
        DType::NF4 if name == EMBED || name == HEAD => DType::BF16,
        other => other,
    }
}

fn bytes_of(name: &str, shape: &[usize], dtype: DType) -> Result<usize> {
    let (rows, cols) = (shape[..shape.len() - 1].iter().product::<usize>(), shape[shape.len() - 1]);
    dtype.bytes_for(cols).map(|row| row * rows).ok_or_else(|| {
        let block = dtype.block_len();
        Error::unsupported(format!("'{name}' as {dtype}: rows of {cols} are not whole blocks of {block}"))
    })
}

#[derive(Default)]
struct Pools {
    shared: bool,
    units: HashMap<DType, Vec<u8>>,
    pools: HashMap<DType, Arc<Vec<u8>>>,
}

impl Pools {
    /// `bytes` of random blocks that start at another block for each `index`.
    fn take(&mut self, dtype: DType, index: usize, bytes: usize, most: usize) -> Result<HostBytes> {
        let unit = match self.units.entry(dtype) {
            std::collections::hash_map::Entry::Occupied(unit) => unit.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => place.insert(unit(dtype)?),
        };
        let start = (index * 7919) % UNIT_BLOCKS * dtype.block_bytes();
        if !self.shared {
            return Ok(HostBytes::from_vec(repeated(unit, start, bytes)?));
        }
        let pool = match self.pools.entry(dtype) {
            std::collections::hash_map::Entry::Occupied(pool) => pool.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(Arc::new(repeated(unit, 0, most + unit.len())?))
            }
        };
        HostBytes::new(pool.clone(), start..start + bytes).ok_or_else(|| Error::internal("a pool that is too small"))
    }
}

fn repeated(unit: &[u8], start: usize, bytes: usize) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    out.try_reserve_exact(bytes)
        .map_err(|_| Error::OutOfMemory { backend: "host", message: format!("{bytes} bytes of random weights") })?;
    let mut at = start;
    while out.len() < bytes {
        let piece = &unit[at..unit.len().min(at + bytes - out.len())];
        out.extend_from_slice(piece);
        at = 0;
    }
    Ok(out)
}

/// Blocks of random bits under scales that give the values mean 0 and a standard deviation of about [`SPREAD`].
fn unit(dtype: DType) -> Result<Vec<u8>> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut bytes = vec![0; UNIT_BLOCKS * dtype.block_bytes()];
    rng.fill_bytes(&mut bytes);
    // Uniform integers of 4, 5, 6 and 8 bits have these standard deviations.
    let [four, five, six, eight] = [4.61, 9.23, 18.47, 73.9].map(|deviation| SPREAD / deviation);
    let half = |x: f32| half::f16::from_f32(x).to_le_bytes();
    let pair = |scale: f32, minimum: f32| {
        let ([a, b], [c, d]) = (half(scale), half(minimum));
        [a, b, c, d]
    };
    // Sub-blocks of K-quants all have scale and minimum 32 of 63: 12 bytes as `get_scale_min_k4` reads them.
    let scales = [0xA0, 0xA0, 0xA0, 0xA0, 0xA0, 0xA0, 0xA0, 0xA0, 0, 0, 0, 0];
    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        match dtype {
            DType::F32 => put(0, &normal(&mut rng).to_le_bytes()),
            DType::F16 => put(0, &half(normal(&mut rng))),
            DType::BF16 => put(0, &half::bf16::from_f32(normal(&mut rng)).to_le_bytes()),
            DType::Q4_0 => put(0, &half(four)),
            DType::Q4_1 => put(0, &pair(four, -7.5 * four)),
            DType::Q5_0 => put(0, &half(five)),
            DType::Q5_1 => put(0, &pair(five, -15.5 * five)),
            DType::Q8_0 => put(0, &half(eight)),
            DType::Q4_K => {
                put(0, &pair(four / 32.0, 7.5 * four / 32.0));
                put(4, &scales);
            }
            DType::Q5_K => {
                put(0, &pair(five / 32.0, 15.5 * five / 32.0));
                put(4, &scales);
            }
            DType::Q6_K => {
                put(192, &[16; 16]);
                put(208, &half(six / 16.0));
            }
            // The sixteen values have a standard deviation of 0.517.
            DType::NF4 => put(32, &(SPREAD / 0.517).to_le_bytes()),
            DType::U32 | DType::I8 | DType::E4M3 => {
                return Err(Error::invalid(format!("{dtype} is not a weight type")));
            }
        }
    }
    Ok(bytes)
}

/// The sum of twelve uniform numbers has variance 1.
fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let sum: f32 = (0..3)
        .map(|_| {
            let bits = rng.next_u64();
            (0..4).map(|i| (bits >> (16 * i) & 0xFFFF) as f32 / 65_536.0).sum::<f32>()
        })
        .sum();
    (sum - 6.0) * SPREAD
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::quant::dequantise_row;

    #[test]
    fn weights_of_every_type_have_the_same_spread() -> Result<()> {
        for dtype in DType::WEIGHTS {
            let bytes = unit(dtype)?;
            let mut numbers = vec![0f32; UNIT_BLOCKS * dtype.block_len()];
            dequantise_row(dtype, &bytes, &mut numbers)?;
            let n = numbers.len() as f64;
            let mean = numbers.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
            let deviation = (numbers.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n).sqrt();
            assert!(mean.abs() < 0.0025 && (0.018..0.022).contains(&deviation), "{dtype}: {mean} ± {deviation}");
        }
        Ok(())
    }

    #[test]
    fn shared_and_own_memory_hold_the_same_weights() -> Result<()> {
        let config = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny/chat/config.json");
        let (shared, own) =
            (random_checkpoint(config, DType::BF16, true)?, random_checkpoint(config, DType::BF16, false)?);
        assert_eq!(shared.tensors.len(), own.tensors.len());
        for (name, tensor) in &shared.tensors {
            assert!(*tensor.data == *own.tensors[name].data, "{name}");
        }
        Ok(())
    }

    #[test]
    fn unknown_names_list_the_known_ones() {
        let message = random_checkpoint("gpt-5", DType::F32, true).map(drop).map_err(|e| e.to_string());
        assert!(message.is_err_and(|m| m.contains("gpt-5") && m.contains("qwen3-8b")));
    }
}
