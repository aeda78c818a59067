//! Builds tiny GGUF files in memory, valid ones and deliberately broken ones.
#![allow(dead_code)] // each test binary uses its part

use runtime::format::gguf::{GgufArray, GgufValue};

/// A GGUF file under construction.
#[derive(Clone)]
pub struct Builder {
    pub version: u32,
    pub alignment: u64,
    pub keys: Vec<(String, GgufValue)>,
    /// Name, dimensions in the file's order (innermost first), ggml type code, bytes.
    pub tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

impl Default for Builder {
    fn default() -> Self {
        Self { version: 3, alignment: 32, keys: vec![], tensors: vec![] }
    }
}

impl Builder {
    pub fn key(mut self, key: &str, value: GgufValue) -> Self {
        self.keys.push((key.into(), value));
        self
    }

    pub fn str(self, key: &str, value: &str) -> Self {
        self.key(key, GgufValue::String(value.into()))
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.key(key, GgufValue::U32(value))
    }

    pub fn f32(self, key: &str, value: f32) -> Self {
        self.key(key, GgufValue::F32(value))
    }

    /// An f32 tensor; `shape` outermost first.
    pub fn tensor_f32(mut self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}");
        let dims = shape.iter().rev().map(|d| *d as u64).collect();
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.tensors.push((name.into(), dims, 0, bytes));
        self
    }

    pub fn build(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            string(&mut out, key);
            put(&mut out, value);
        }
        let mut offset = 0u64;
        for (name, dims, kind, bytes) in &self.tensors {
            string(&mut out, name);
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset = (offset + bytes.len() as u64).next_multiple_of(self.alignment);
        }
        for (_, _, _, bytes) in &self.tensors {
            out.resize((out.len() as u64).next_multiple_of(self.alignment) as usize, 0);
            out.extend(bytes);
        }
        out
    }
}

fn string(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

fn put(out: &mut Vec<u8>, value: &GgufValue) {
    let mut typed = |code: u32, bytes: &[u8]| {
        out.extend(code.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        GgufValue::U8(v) => typed(0, &v.to_le_bytes()),
        GgufValue::I8(v) => typed(1, &v.to_le_bytes()),
        GgufValue::U16(v) => typed(2, &v.to_le_bytes()),
        GgufValue::I16(v) => typed(3, &v.to_le_bytes()),
        GgufValue::U32(v) => typed(4, &v.to_le_bytes()),
        GgufValue::I32(v) => typed(5, &v.to_le_bytes()),
        GgufValue::F32(v) => typed(6, &v.to_le_bytes()),
        GgufValue::Bool(v) => typed(7, &[u8::from(*v)]),
        GgufValue::String(s) => {
            typed(8, &[]);
            string(out, s);
        }
        GgufValue::Array(a) => {
            typed(9, &[]);
            put_array(out, a);
        }
        GgufValue::U64(v) => typed(10, &v.to_le_bytes()),
        GgufValue::I64(v) => typed(11, &v.to_le_bytes()),
        GgufValue::F64(v) => typed(12, &v.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &GgufArray) {
    let code: u32 = match array {
        GgufArray::I32(_) => 5,
        GgufArray::F32(_) => 6,
        GgufArray::String(_) => 8,
        GgufArray::Array(_) => 9,
        other => panic!("the builder does not write {other:?}"),
    };
    out.extend(code.to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        GgufArray::I32(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        GgufArray::F32(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        GgufArray::String(v) => v.iter().for_each(|s| string(out, s)),
        GgufArray::Array(v) => v.iter().for_each(|a| put_array(out, a)),
        _ => {}
    }
}

/// Widths of [`tiny`].
pub const HIDDEN: usize = 8;
pub const HEADS: usize = 2;
pub const KV: usize = 1;
pub const HEAD_DIM: usize = 4;
pub const FF: usize = 16;
pub const VOCAB: usize = 10;

/// A one-layer model of `arch` with every tensor in place; row `i` of a matrix holds `i` everywhere.
pub fn tiny(arch: &str) -> Builder {
    let rows = |n: usize, cols: usize| -> Vec<f32> { (0..n * cols).map(|i| (i / cols) as f32).collect() };
    let key = |name: &str| format!("{arch}.{name}");
    let (q, kv) = (HEADS * HEAD_DIM, KV * HEAD_DIM);
    let mut b = Builder::default()
        .str("general.architecture", arch)
        .u32(&key("block_count"), 1)
        .u32(&key("context_length"), 64)
        .u32(&key("embedding_length"), HIDDEN as u32)
        .u32(&key("feed_forward_length"), FF as u32)
        .u32(&key("attention.head_count"), HEADS as u32)
        .u32(&key("attention.head_count_kv"), KV as u32)
        .f32(&key("attention.layer_norm_rms_epsilon"), 1e-5)
        .f32(&key("rope.freq_base"), 1e4)
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", "smollm")
        .str("tokenizer.chat_template", "{{ messages }}")
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
        .tensor_f32("token_embd.weight", &[VOCAB, HIDDEN], &rows(VOCAB, HIDDEN))
        .tensor_f32("output_norm.weight", &[HIDDEN], &[1.0; HIDDEN]);
    for (name, shape) in [
        ("attn_norm", vec![HIDDEN]),
        ("ffn_norm", vec![HIDDEN]),
        ("attn_q", vec![q, HIDDEN]),
        ("attn_k", vec![kv, HIDDEN]),
        ("attn_v", vec![kv, HIDDEN]),
        ("attn_output", vec![HIDDEN, q]),
        ("ffn_gate", vec![FF, HIDDEN]),
        ("ffn_up", vec![FF, HIDDEN]),
        ("ffn_down", vec![HIDDEN, FF]),
    ] {
        let cols = shape.last().copied().unwrap();
        let n = shape.iter().product::<usize>() / cols;
        b = b.tensor_f32(&format!("blk.0.{name}.weight"), &shape, &rows(n, cols));
    }
    if arch == "qwen2" {
        for (name, n) in [("attn_q", q), ("attn_k", kv), ("attn_v", kv)] {
            b = b.tensor_f32(&format!("blk.0.{name}.bias"), &[n], &rows(n, 1));
        }
    }
    if arch == "qwen3" {
        b = b.tensor_f32("blk.0.attn_q_norm.weight", &[HEAD_DIM], &[1.0; HEAD_DIM]);
        b = b.tensor_f32("blk.0.attn_k_norm.weight", &[HEAD_DIM], &[1.0; HEAD_DIM]);
    }
    b
}
