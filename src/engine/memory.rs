//! How much memory the key/value cache gets, and what of it a token takes.

use super::kv::PAGE;
use super::steps::StepSizes;
use super::{DEFAULT_MAX_LEN, EngineOptions};
use crate::backend::Limits;
use crate::error::{Error, Result};
use crate::format::Checkpoint;
use crate::model::lora::{LoraLayout, Projection};
use crate::model::{LoadedModel, ModelConfig};
use crate::program::cache::row_len;
use crate::tensor::DType;
use std::str::FromStr;

/// Size of the key/value cache. Whatever is asked for, it is no larger than all requests of an engine can fill.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KvSize {
    /// Tokens, for all requests together.
    Tokens(usize),
    /// Bytes, keys and values of all layers together.
    Bytes(u64),
    /// What is left of this share of the device's memory, weights, adapters and a step's intermediates taken off. Where the
    /// device does not say how much memory it has, as [`KvSize::default`].
    Share(f64),
}

impl Default for KvSize {
    /// 512 MiB, which suits a program that has other things to do with the memory.
    fn default() -> Self {
        KvSize::Bytes(512 << 20)
    }
}

/// Type of the key/value cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// The device's own: that of activations on CUDA, f16 where wgpu has it, else f32.
    #[default]
    Auto,
    /// 8-bit floats (e4m3), each head of a token with its own scale.
    Fp8,
    /// 8-bit integers, each head of a token with its own scale.
    Int8,
}

impl KvType {
    /// vLLM's name.
    pub fn as_str(self) -> &'static str {
        match self {
            KvType::Auto => "auto",
            KvType::Fp8 => "fp8",
            KvType::Int8 => "int8",
        }
    }

    /// The element type for a model on its device.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for 8 bits where heads are no whole words.
    pub(super) fn dtype(self, model: &LoadedModel) -> Result<DType> {
        let dtype = match self {
            KvType::Auto => return Ok(model.device.limits().kv_dtype),
            KvType::Fp8 => DType::E4M3,
            KvType::Int8 => DType::I8,
        };
        match model.config().head_dim {
            width if width % 4 == 0 => Ok(dtype),
            width => Err(Error::unsupported(format!("a cache of 8 bits for heads of width {width}: a multiple of 4"))),
        }
    }
}

impl FromStr for KvType {
    type Err = Error;

    /// vLLM's names.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(KvType::Auto),
            "fp8" | "fp8_e4m3" => Ok(KvType::Fp8),
            "int8" => Ok(KvType::Int8),
            other => Err(Error::invalid(format!(
                "a key/value cache of type '{other}': use auto (the type that --dtype names), fp8, fp8_e4m3 or int8"
            ))),
        }
    }
}

/// What an engine will need of a device's memory: estimates, from above where they are none too many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requirements {
    /// Bytes of the weights.
    pub weights: u64,
    /// Bytes of the key/value cache.
    pub kv: u64,
    /// Bytes of keys and values a token.
    pub kv_token: u64,
    /// Bytes of the intermediates of the largest step, and of its logits.
    pub activations: u64,
    /// Bytes of the adapters' places.
    pub adapters: u64,
}

impl Requirements {
    /// Of an engine that would serve `checkpoint` on a device, before anything is put there.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a cache that cannot hold one context.
    pub fn of(checkpoint: &Checkpoint, limits: &Limits, options: &EngineOptions) -> Result<Self> {
        let c = &checkpoint.config;
        let max_len = options.max_len.unwrap_or(c.max_positions.min(DEFAULT_MAX_LEN));
        let max_rows = options.max_step_tokens.min(limits.max_step_rows).max(options.max_seqs);
        let max_gathered = options.max_seqs.max(16).min(max_rows);
        let kv_token = token_bytes(c, limits.kv_dtype);
        let context = max_len.next_multiple_of(PAGE);
        let useful = context.saturating_mul(options.max_seqs);
        let tokens = match options.kv {
            KvSize::Tokens(tokens) => tokens.min(useful),
            KvSize::Bytes(bytes) if options.kv == KvSize::default() => {
                useful.min(((bytes / kv_token) as usize).max(context))
            }
            KvSize::Bytes(bytes) => useful.min((bytes / kv_token) as usize),
            KvSize::Share(_) => useful,
        };
        if tokens < context {
            return Err(Error::invalid(format!("a cache of {tokens} tokens cannot hold one context of {max_len}")));
        }
        let bank = LoraLayout::new(c, options.max_rank, options.max_adapters, &Projection::ALL);
        let magnitudes = if options.dora { 2 * bank.magnitudes_len * DType::F32.block_bytes() } else { 0 };
        let adapters = bank.len * limits.activations.block_bytes() + magnitudes;
        Ok(Self {
            // Vectors are kept in f32 everywhere.
            weights: checkpoint
                .tensors
                .values()
                .map(|t| if t.shape.len() == 1 { 4 * t.len() as u64 } else { t.data.len() as u64 })
                .sum(),
            kv: tokens as u64 * kv_token,
            kv_token,
            activations: rows_bytes(c, max_rows, max_gathered),
            adapters: if options.max_adapters == 0 { 0 } else { adapters as u64 },
        })
    }
}

/// Bytes of one token's keys and values in all layers.
fn token_bytes(c: &ModelConfig, dtype: DType) -> u64 {
    (2 * c.layers * row_len(dtype, c.kv_heads, c.head_dim) * dtype.block_bytes()) as u64
}

/// Left for the driver and for what the estimate of a step's intermediates misses.
const RESERVE: u64 = 512 << 20;

impl KvSize {
    /// Pages of a cache for the steps of an engine, with a draft model or without; one whole context at least.
    ///
    /// # Errors
    /// [`Error::Invalid`] where that does not fit what was asked for; [`Error::OutOfMemory`] where it does not fit the device.
    pub(super) fn pages(self, model: &LoadedModel, draft: Option<&LoadedModel>, sizes: &StepSizes) -> Result<usize> {
        // Both models have every page, in the same type.
        let bytes = |model: &LoadedModel| token_bytes(model.config(), sizes.kv_dtype);
        let per_token = bytes(model) + draft.map_or(0, bytes);
        let context = sizes.max_len.next_multiple_of(PAGE);
        let useful = context.saturating_mul(sizes.max_seqs);
        let tokens = match self {
            KvSize::Tokens(tokens) if tokens < context => {
                let max_len = sizes.max_len;
                return Err(Error::invalid(format!("a cache of {tokens} tokens cannot hold one context of {max_len}")));
            }
            KvSize::Tokens(tokens) => tokens,
            // A context that is longer than the default allows is still served.
            KvSize::Bytes(_) if self == KvSize::default() => useful.min(self.affordable(per_token).max(context)),
            KvSize::Bytes(bytes) => useful.min(at_least(self.affordable(per_token), context, || {
                format!("a cache of {bytes} bytes holds {} tokens", bytes / per_token)
            })?),
            KvSize::Share(share) => match model.device.free_memory()? {
                None => return KvSize::default().pages(model, draft, sizes),
                Some((free, total)) => {
                    if !(share > 0.0 && share <= 1.0) {
                        return Err(Error::invalid(format!("the share of memory must lie in (0, 1], got {share}")));
                    }
                    let used = total - free.min(total);
                    let step = step_bytes(model, sizes) + draft.map_or(0, |draft| step_bytes(draft, sizes));
                    let left = ((total as f64 * share) as u64).saturating_sub(used + step + RESERVE);
                    let tokens = (left / per_token) as usize;
                    useful.min(at_least(tokens, context, || {
                        format!(
                            "{:.1} of {:.1} GiB are in use and a step takes {:.1}: the cache holds {tokens} tokens",
                            gib(used),
                            gib(total),
                            gib(step + RESERVE)
                        )
                    })?)
                }
            },
        };
        Ok(tokens / PAGE)
    }

    fn affordable(self, per_token: u64) -> usize {
        match self {
            KvSize::Bytes(bytes) => (bytes / per_token) as usize,
            _ => 0,
        }
    }
}

fn at_least(tokens: usize, context: usize, why: impl FnOnce() -> String) -> Result<usize> {
    if tokens < context {
        let why = why();
        return Err(Error::invalid(format!(
            "{why}, and one context takes {context}: ask for a shorter one or more memory"
        )));
    }
    Ok(tokens)
}

/// Intermediates of the largest step: what lives at once in a layer, and the logits, as they come and adjusted. An estimate from above, because the
/// programs themselves can only be planned once the cache is there.
fn step_bytes(model: &LoadedModel, sizes: &StepSizes) -> u64 {
    rows_bytes(model.config(), sizes.max_rows, sizes.max_gathered)
}

fn rows_bytes(c: &ModelConfig, rows: usize, gathered: usize) -> u64 {
    let row = 4 * c.hidden + 3 * c.intermediate + 4 * (c.heads + c.kv_heads) * c.head_dim;
    4 * (rows * row + 2 * gathered * c.vocab) as u64
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1u32 << 30)
}
