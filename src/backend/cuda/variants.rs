//! Kernel files that are compiled in parts, each with one value of a definition: a program loads the parts that it uses.
//! `build.rs` uses this file too.

/// Names of weight types, as in `DType::name`.
const WEIGHTS: &[&str] = &["f32", "bf16", "f16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k", "nf4"];

/// Those of them that have integer dot products.
const DOTS: &[&str] = &["q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k"];

/// Head widths of the tensor cores' kernels; 0 leaves only the plain ones.
const HEADS: &[&str] = &["0", "64", "80", "96", "128", "256"];

/// File, definition, values.
pub const VARIANTS: &[(&str, &str, &[&str])] = &[
    ("attention", "HEAD_DIM", HEADS),
    ("attention_backward", "HEAD_DIM", HEADS),
    ("attention_decode", "HEAD_DIM", HEADS),
    ("sm90_attention", "HEAD_DIM", &["64", "128", "256"]),
    ("sm90_attention_backward", "HEAD_DIM", &["64", "128"]),
    ("dora_norm", "WEIGHT_ONLY", WEIGHTS),
    ("embed", "WEIGHT_ONLY", WEIGHTS),
    ("lora_expand", "ADAPTER_16", &["0", "1"]),
    ("lora_shrink", "ADAPTER_16", &["0", "1"]),
    ("matmul_decode", "WEIGHT_ONLY", WEIGHTS),
    ("matmul_dots", "WEIGHT_ONLY", DOTS),
    ("matmul_rows", "WEIGHT_ONLY", WEIGHTS),
    ("sm90_matmul", "BY_SLOT", &["0", "1"]),
];

/// Each part of a file with the compiler option that makes it: `("attention/64", "-DHEAD_DIM=64")`; the file itself
/// where it has no parts.
pub fn parts(file: &str) -> Vec<(String, Option<String>)> {
    match VARIANTS.iter().find(|(name, ..)| *name == file) {
        Some((_, define, values)) => {
            values.iter().map(|v| (format!("{file}/{v}"), Some(format!("-D{define}={v}")))).collect()
        }
        None => vec![(file.to_owned(), None)],
    }
}
