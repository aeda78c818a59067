//! The shader files and their variants: a variant is a file, its constants, and which bindings are read-only.

use super::template::{self, Defines};
use crate::tensor::DType;

/// One compiled form of a shader; the key of the pipeline cache.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Variant {
    /// File name without `.wgsl`.
    pub shader: &'static str,
    /// Constants of the template.
    pub defines: Defines,
    /// Bit b: storage binding b (from 1) is `read`.
    pub read_only: u32,
    /// Number of storage bindings.
    pub bindings: u32,
}

impl Variant {
    /// The WGSL text.
    ///
    /// # Errors
    /// A message about the template line that is wrong.
    pub fn source(&self) -> Result<String, String> {
        let text = template::expand(&file, &format!("{}.wgsl", self.shader), &self.defines, self.read_only)?;
        let half = self.defines.get("F16").is_some_and(|on| *on != 0);
        Ok(match self.shader {
            "matmul_coop" => format!("enable f16;\nenable wgpu_cooperative_matrix;\n{text}"),
            _ if half => format!("enable f16;\n{text}"),
            _ => text,
        })
    }
}

/// The flags that select a weight type in `decode.wgsl`.
pub fn weight_flags(dtype: DType) -> Vec<(&'static str, i64)> {
    let flags: &[&'static str] = match dtype {
        DType::F32 | DType::U32 | DType::I8 | DType::E4M3 => &["W_F32"],
        DType::F16 => &["W_F16"],
        DType::BF16 => &["W_BF16"],
        DType::Q8_0 => &["W_Q8_0"],
        DType::Q4_0 => &["W_Q4_0", "NIBBLES"],
        DType::Q4_1 => &["W_Q4_1", "NIBBLES"],
        DType::Q5_0 => &["W_Q5_0", "NIBBLES", "FIFTH"],
        DType::Q5_1 => &["W_Q5_1", "NIBBLES", "FIFTH"],
        DType::Q4_K => &["W_Q4_K", "NIBBLES"],
        DType::Q5_K => &["W_Q5_K", "NIBBLES", "FIFTH"],
        DType::Q6_K => &["W_Q6_K", "NIBBLES"],
        DType::NF4 => &["W_NF4", "NIBBLES"],
    };
    flags.iter().map(|name| (*name, 1)).collect()
}

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        /// Text of a shader file.
        pub fn file(name: &str) -> Option<&'static str> {
            match name {
                $($name => Some(include_str!(concat!("../../../shaders/", $name))),)*
                _ => None,
            }
        }
        /// Every file, parts that are only included too.
        pub const FILES: &[&str] = &[$($name),*];
    };
}

files!(
    "common.wgsl",
    "live.wgsl",
    "reduce.wgsl",
    "decode.wgsl",
    "tile.wgsl",
    "activation.wgsl",
    "attention_mask.wgsl",
    "codes.wgsl",
    "attention_tile.wgsl",
    "embed.wgsl",
    "embed_dw.wgsl",
    "rms_norm.wgsl",
    "rms_norm_backward.wgsl",
    "rms_norm_dw.wgsl",
    "column_sum.wgsl",
    "matmul.wgsl",
    "matmul_rows.wgsl",
    "matmul_vec.wgsl",
    "decode_load.wgsl",
    "decode_value.wgsl",
    "matmul_dx.wgsl",
    "matmul_dx_rows.wgsl",
    "matmul_coop.wgsl",
    "matmul_pack_rows.wgsl",
    "matmul_pack_weight.wgsl",
    "matmul_dw.wgsl",
    "matmul_sum_parts.wgsl",
    "lora_shrink.wgsl",
    "lora_expand.wgsl",
    "dropout.wgsl",
    "dora_norm.wgsl",
    "dora_scale.wgsl",
    "dora_scale_backward.wgsl",
    "qk_norm_rope_kv.wgsl",
    "qk_norm_rope_backward.wgsl",
    "qk_norm_dw.wgsl",
    "attention.wgsl",
    "attention_rows.wgsl",
    "attention_prefill.wgsl",
    "attention_combine.wgsl",
    "attention_decode.wgsl",
    "attention_delta.wgsl",
    "attention_dq.wgsl",
    "attention_dkv.wgsl",
    "attention_dq_tile.wgsl",
    "attention_dkv_tile.wgsl",
    "glu.wgsl",
    "glu_backward.wgsl",
    "gather_rows.wgsl",
    "head_loss.wgsl",
    "preference_loss.wgsl",
    "sample.wgsl",
    "sample_chunks.wgsl",
    "adjust_logits.wgsl",
    "adjust_logits_entries.wgsl",
    "top_logprobs.wgsl",
    "top_logprobs_chunks.wgsl",
    "copy.wgsl",
    "accumulate.wgsl",
    "fill.wgsl",
    "place_adapter.wgsl",
    "grad_norm.wgsl",
    "adamw.wgsl",
    "adamw_8bit.wgsl",
    "lion.wgsl",
    "lion_8bit.wgsl",
    "codes_moment.wgsl",
    "sgd.wgsl",
);
