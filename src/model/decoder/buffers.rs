//! Names of the State buffers that the programs bind.

/// (cos, sin) pairs by position, f32 `[max_len, rope_dim]`.
pub const ROPE: &str = "rope";
/// The flat buffer of what is trained or served as adapters ([`crate::model::lora::LoraLayout`], [`crate::model::whole::TrainLayout`]).
pub const LORA: &str = "lora";
/// Its gradients.
pub const LORA_GRADS: &str = "lora.grads";
/// Adam's first moments.
pub const LORA_M: &str = "lora.m";
/// Adam's second moments.
pub const LORA_V: &str = "lora.v";
/// Of 8-bit moments: the largest first moment of each block.
pub const LORA_M_MAX: &str = "lora.m_max";
/// The largest second moment of each block.
pub const LORA_V_MAX: &str = "lora.v_max";
/// DoRA's magnitudes of adapters that are served, f32.
pub const LORA_MAGNITUDES: &str = "lora.magnitudes";
/// Lengths of the rows of adapted weights, f32, laid out as the magnitudes.
pub const LORA_NORMS: &str = "lora.norms";
/// alpha / rank of each adapter slot, f32 `[1, slots]`.
pub const LORA_SCALES: &str = "lora.scales";

/// The logits of a step's gathered rows, f32 `[most gathered rows, vocab]`.
pub const LOGITS: &str = "logits";
/// The same after what requests want changed in them.
pub const ADJUSTED: &str = "logits.adjusted";

/// The key cache of a layer, `[kv_rows, kv_heads · head_dim]`, or rows of codes (`program::cache`).
pub fn key_cache(layer: usize) -> String {
    format!("kv.{layer}.k")
}

/// The value cache of a layer.
pub fn value_cache(layer: usize) -> String {
    format!("kv.{layer}.v")
}
