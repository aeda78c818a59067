//! GGUF: what valid files become, and what every kind of broken file says.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

mod common;

use common::gguf::{Builder, HEAD_DIM, HEADS, HIDDEN, tiny};
use runtime::format::gguf::{GgufArray, GgufFile, GgufValue};
use runtime::format::{Checkpoint, Source, TokenizerSource, describe};
use runtime::model::{Family, RopeScaling};
use std::path::Path;

fn open(bytes: Vec<u8>) -> runtime::Result<Checkpoint> {
    Checkpoint::from_gguf(Path::new("tiny.gguf"), &Source::from_bytes("tiny.gguf", bytes))
}

fn error(bytes: Vec<u8>) -> String {
    open(bytes).expect_err("the file is broken").to_string()
}

/// First column of every row of an f32 matrix, or all of a vector.
fn rows(c: &Checkpoint, name: &str) -> Vec<f32> {
    let t = c.tensor(name).unwrap();
    let values: Vec<f32> = t.data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let step = if t.shape.len() == 1 { 1 } else { t.cols() };
    values.into_iter().step_by(step).collect()
}

#[test]
fn families() {
    for (arch, family) in [("llama", Family::Llama), ("qwen2", Family::Qwen2), ("qwen3", Family::Qwen3)] {
        let mut b = tiny(arch);
        if arch == "qwen3" {
            b = b.u32("qwen3.attention.key_length", HEAD_DIM as u32);
        }
        let c = open(b.build()).unwrap();
        assert_eq!(c.config.family, family);
        assert_eq!(c.config.hidden, HIDDEN);
        assert_eq!(c.config.head_dim, HEAD_DIM);
        assert!(c.config.tied_head);
        assert_eq!(c.config.rms_norm_eps, 1e-5);
        assert_eq!((c.config.bos, c.config.eos.as_slice()), (Some(1), &[2][..]));
        assert_eq!(c.config.qkv_bias, arch == "qwen2");
        assert_eq!(c.config.qk_norm, arch == "qwen3");
        assert_eq!(c.chat_template.as_deref(), Some("{{ messages }}"));
        assert!(
            matches!(&c.tokenizer, TokenizerSource::Gguf(m) if m.require_str("tokenizer.ggml.pre").unwrap() == "smollm")
        );
        assert_eq!(c.raw_config["model_type"], arch);
        let d = describe(&c);
        assert_eq!(d.bytes, d.parameters * 4);
        assert_eq!(d.tokenizer, "gguf (gpt2, smollm)");
    }
}

#[test]
fn q_and_k_of_llama_are_put_back_in_order() {
    let c = open(tiny("llama").build()).unwrap();
    // The file holds rows 0, 1, 2, 3 of a head: those are (half 0, j 0), (half 1, j 0), (0, 1), (1, 1).
    assert_eq!(rows(&c, "model.layers.0.self_attn.q_proj.weight"), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    assert_eq!(rows(&c, "model.layers.0.self_attn.k_proj.weight"), [0.0, 2.0, 1.0, 3.0]);
    assert_eq!(rows(&c, "model.layers.0.self_attn.v_proj.weight"), [0.0, 1.0, 2.0, 3.0]);
    let c = open(tiny("qwen2").build()).unwrap();
    assert_eq!(rows(&c, "model.layers.0.self_attn.q_proj.bias"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
}

#[test]
fn rope_freqs_become_divisors() {
    let c = open(tiny("llama").tensor_f32("rope_freqs.weight", &[2], &[1.0, 8.0]).build()).unwrap();
    assert_eq!(c.config.rope_scaling, RopeScaling::Divisors { divisors: vec![1.0, 8.0] });
    // The equivalent config.json gives the same frequencies.
    let same = runtime::model::families::config_from_json("config.json", &c.raw_config).unwrap();
    let f = |config| runtime::model::rope::frequencies(config, 1000);
    assert_eq!(f(&c.config), f(&same));
    assert!(
        error(tiny("llama").tensor_f32("rope_freqs.weight", &[2], &[1.0, 0.0]).build()).contains("rope_freqs.weight")
    );
}

#[test]
fn metadata_becomes_configuration() {
    let b = tiny("llama").str("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 4.0);
    assert_eq!(open(b.build()).unwrap().config.rope_scaling, RopeScaling::Linear { factor: 4.0 });
    let b = tiny("qwen2")
        .str("qwen2.rope.scaling.type", "yarn")
        .f32("qwen2.rope.scaling.factor", 4.0)
        .u32("qwen2.rope.scaling.original_context_length", 16);
    assert!(matches!(
        open(b.build()).unwrap().config.rope_scaling,
        RopeScaling::Yarn { factor: 4.0, original_max_positions: 16, .. }
    ));
    let c = open(tiny("llama").u32("llama.attention.sliding_window", 5).build()).unwrap();
    assert_eq!((c.config.family, c.config.windows), (Family::Mistral, vec![Some(5)]));
    let heads = GgufArray::I32(vec![HEADS as i32]);
    let mut b = tiny("llama");
    b.keys.retain(|(k, _)| k != "llama.attention.head_count");
    assert_eq!(open(b.key("llama.attention.head_count", GgufValue::Array(heads)).build()).unwrap().config.heads, HEADS);
    let nested = GgufArray::Array(vec![GgufArray::Array(vec![GgufArray::I32(vec![1])])]);
    assert!(open(tiny("llama").key("x", GgufValue::Array(nested)).build()).is_ok());
    let mut v2 = tiny("llama");
    v2.version = 2;
    assert!(open(v2.build()).is_ok());
    let mut aligned = tiny("llama").u32("general.alignment", 64);
    aligned.alignment = 64;
    assert!(open(aligned.build()).is_ok());
}

#[test]
fn unsupported_inputs_are_named() {
    let says = |b: Builder, parts: &[&str]| {
        let e = error(b.build());
        parts.iter().for_each(|p| assert!(e.contains(p), "{e:?} does not say {p:?}"));
    };
    says(tiny("gpt2"), &["gpt2", "llama, qwen2, qwen3"]);
    says(tiny("llama").u32("llama.expert_count", 8), &["expert_count"]);
    says(tiny("llama").u32("split.count", 3), &["3 split GGUF files"]);
    says(tiny("llama").str("llama.rope.scaling.type", "mystery"), &["mystery"]);
    says(tiny("llama").tensor_f32("blk.0.mystery.weight", &[1], &[0.0]), &["blk.0.mystery.weight", "unexpected"]);
    let mut b = tiny("llama");
    b.tensors[2].2 = 10;
    says(b, &["blk.0.attn_norm.weight", "q2_k (10)", "offset"]);
    let mut b = tiny("llama");
    b.version = 1;
    says(b, &["version 1"]);
    let mut b = tiny("llama");
    b.version = 3u32.swap_bytes();
    says(b, &["big-endian"]);
}

#[test]
fn broken_files_say_where() {
    let says = |bytes: Vec<u8>, parts: &[&str]| {
        let e = error(bytes);
        parts.iter().for_each(|p| assert!(e.contains(p), "{e:?} does not say {p:?}"));
        assert!(!e.contains('\n'));
    };
    says(vec![], &["does not start with", "offset 0"]);
    says(b"GGML....".to_vec(), &["does not start with"]);
    says(b"GGUF\x03\0\0\0".to_vec(), &["tensor count", "offset 8"]);
    let mut huge = tiny("llama").build();
    huge[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    says(huge, &["tensor count is 18446744073709551615", "offset 8", "at most"]);
    let mut bad_key = tiny("llama").build();
    bad_key[24..32].copy_from_slice(&(1u64 << 40).to_le_bytes());
    says(bad_key, &["key 1 of", "offset 24"]);
    let mut utf8 = tiny("llama").build();
    utf8[33] = 0xff;
    says(utf8, &["UTF-8", "offset 33"]);
    let full = tiny("llama").build();
    says(full[..full.len() - 4].to_vec(), &["truncated"]);
    says(full[..200].to_vec(), &["offset"]);
    says(tiny("llama").u32("llama.block_count", 1).build(), &["llama.block_count", "twice"]);
    says(tiny("llama").tensor_f32("output_norm.weight", &[1], &[0.0]).build(), &["output_norm.weight", "twice"]);
    says(tiny("llama").u32("general.alignment", 48).build(), &["general.alignment", "power of two"]);
    let deep = (0..9).fold(GgufArray::I32(vec![]), |a, _| GgufArray::Array(vec![a]));
    says(tiny("llama").key("deep", GgufValue::Array(deep)).build(), &["'deep'", "nest deeper"]);
    let mut b = tiny("llama");
    b.tensors[0].1 = vec![8, 0];
    says(b.build(), &["token_embd.weight", "dimension 0"]);
    let mut b = tiny("llama");
    b.tensors[0].1 = vec![u64::MAX / 2, 4];
    says(b.build(), &["token_embd.weight"]);
    let mut b = tiny("llama");
    b.tensors[0].1 = vec![1; 5];
    says(b.build(), &["5 dimensions"]);
    let mut b = tiny("llama");
    b.tensors[0].2 = 2; // q4_0 rows of 8 elements
    says(b.build(), &["token_embd.weight", "32-element blocks"]);
    let mut b = tiny("llama");
    b.tensors.retain(|t| t.0 != "blk.0.ffn_up.weight");
    says(b.build(), &["model.layers.0.mlp.up_proj.weight", "missing", "[16, 8]"]);
    let mut b = tiny("llama");
    b.keys.retain(|(k, _)| k != "llama.context_length");
    says(b.build(), &["llama.context_length", "nothing"]);
    let mut b = tiny("llama");
    b.keys.retain(|(k, _)| k != "llama.embedding_length");
    says(b.str("llama.embedding_length", "eight").build(), &["llama.embedding_length", "string", "integer"]);
}

#[test]
fn overlapping_tensors_are_refused() {
    let mut bytes = tiny("llama").build();
    // The record of output_norm.weight ends with its offset; point it at the embedding.
    let name = b"output_norm.weight";
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap() + name.len() + 4 + 8 + 4;
    bytes[at..at + 8].copy_from_slice(&32u64.to_le_bytes());
    let e = error(bytes.clone());
    assert!(e.contains("overlaps") && e.contains("output_norm.weight"), "{e}");
    bytes[at..at + 8].copy_from_slice(&33u64.to_le_bytes());
    assert!(error(bytes).contains("multiple of 32"));
}

#[test]
fn a_real_model_opens() {
    let Ok(path) = std::env::var("RUNTIME_TEST_GGUF") else { return };
    let source = Source::open(Path::new(&path)).unwrap();
    assert!(!GgufFile::open(&source).unwrap().tensors.is_empty());
    let c = Checkpoint::open(Path::new(&path)).unwrap();
    assert!(describe(&c).parameters > 0);
}
