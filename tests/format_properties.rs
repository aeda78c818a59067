//! Mutated and truncated files: no panic, no allocation beyond what the file justifies.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

mod common;

use common::gguf::tiny;
use proptest::prelude::*;
use runtime::format::gguf::{GgufArray, GgufValue};
use runtime::format::peft::AdapterConfig;
use runtime::format::{Checkpoint, Source, safetensors};
use runtime::model::families::config_from_json;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;
use std::sync::LazyLock;

/// Counts what the current thread has allocated and not freed, and the highest value that reached.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // The thread may be going away: then nobody asks.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: every call goes to the system allocator unchanged; the counters allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: same contract as ours.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: same contract as ours.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `f` and returns the most memory that it held at once.
fn peak<T>(f: impl FnOnce() -> T) -> usize {
    let before = LIVE.with(Cell::get);
    PEAK.with(|p| p.set(before));
    drop(f());
    (PEAK.with(Cell::get) - before) as usize
}

/// A file of n bytes may cost this much: names, maps and typed arrays of everything in it.
fn justified(n: usize) -> usize {
    16 * n + (64 << 10)
}

static GGUF: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let strings = GgufArray::String(vec!["a".into(), "bc".into(), "def".into()]);
    let nested = GgufArray::Array(vec![GgufArray::I32(vec![1, 2]), GgufArray::F32(vec![0.5])]);
    tiny("llama")
        .key("tokenizer.ggml.tokens", GgufValue::Array(strings))
        .key("x.nested", GgufValue::Array(nested))
        .key("x.float", GgufValue::F64(0.25))
        .build()
});

static SAFETENSORS: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let raw = common::folder::config("llama", "LlamaForCausalLM", serde_json::json!({}));
    common::folder::write(dir.path(), &raw);
    std::fs::read(dir.path().join(safetensors::SINGLE)).unwrap()
});

static ADAPTER: &str = include_str!("golden/peft/adapter/adapter_config.json");

/// Where and what to overwrite; positions lean towards the header, values towards the extremes.
fn edits(len: usize) -> impl Strategy<Value = Vec<(usize, Vec<u8>)>> {
    let value = prop_oneof![
        any::<u8>().prop_map(|b| vec![b]),
        any::<u32>().prop_map(|v| v.to_le_bytes().to_vec()),
        prop_oneof![Just(u64::MAX), Just(1 << 63), Just(1 << 40), Just(0), Just(i64::MAX as u64), any::<u64>()]
            .prop_map(|v| v.to_le_bytes().to_vec()),
    ];
    let at = prop_oneof![0..len.min(64), 0..len.min(2048), 0..len];
    proptest::collection::vec((at, value), 1..6)
}

fn mutate(good: &[u8], edits: &[(usize, Vec<u8>)], keep: usize) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for (at, value) in edits {
        let end = (at + value.len()).min(bytes.len());
        bytes[*at..end].copy_from_slice(&value[..end - at]);
    }
    bytes.truncate(keep);
    bytes
}

fn check_gguf(bytes: Vec<u8>) {
    let n = bytes.len();
    let source = Source::from_bytes("mutated.gguf", bytes);
    let used = peak(|| Checkpoint::from_gguf(Path::new("mutated.gguf"), &source));
    assert!(used <= justified(n), "{used} bytes for a file of {n}");
}

fn check_safetensors(bytes: Vec<u8>) {
    let n = bytes.len();
    let source = Source::from_bytes("mutated.safetensors", bytes);
    let used = peak(|| safetensors::read(&source, &|_| false));
    assert!(used <= justified(n), "{used} bytes for a file of {n}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn gguf_mutated(edits in edits(GGUF.len()), keep in prop_oneof![Just(usize::MAX), 0..GGUF.len()]) {
        check_gguf(mutate(&GGUF, &edits, keep));
    }

    #[test]
    fn safetensors_mutated(edits in edits(SAFETENSORS.len()), keep in prop_oneof![Just(usize::MAX), 0..SAFETENSORS.len()]) {
        check_safetensors(mutate(&SAFETENSORS, &edits, keep));
    }

    #[test]
    fn adapter_config_mutated(edits in edits(ADAPTER.len()), keep in prop_oneof![Just(usize::MAX), 0..ADAPTER.len()]) {
        let bytes = mutate(ADAPTER.as_bytes(), &edits, keep);
        if let Ok(json) = serde_json::from_slice(&bytes) {
            let n = bytes.len();
            let used = peak(|| AdapterConfig::from_json("adapter_config.json", &json));
            assert!(used <= justified(n), "{used} bytes for a file of {n}");
        }
    }

    #[test]
    fn any_number_in_a_model_config(key in 0usize..9, value in prop_oneof![any::<i64>().prop_map(serde_json::Value::from), any::<f64>().prop_map(serde_json::Value::from), Just(serde_json::Value::Null)]) {
        let keys = ["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
            "intermediate_size", "vocab_size", "max_position_embeddings", "partial_rotary_factor"];
        let mut extra = serde_json::Map::new();
        extra.insert(keys[key].into(), value);
        let raw = common::folder::config("qwen3", "Qwen3ForCausalLM", extra.into());
        let used = peak(|| config_from_json("config.json", &raw));
        assert!(used <= justified(1024), "{used} bytes");
    }
}

#[test]
fn every_truncation_is_an_error_and_nothing_else() {
    for keep in 0..GGUF.len() {
        let source = Source::from_bytes("cut.gguf", GGUF[..keep].to_vec());
        let e = Checkpoint::from_gguf(Path::new("cut.gguf"), &source).expect_err("truncated").to_string();
        assert!(e.contains("cut.gguf") && e.contains("offset"), "{keep}: {e}");
    }
    for keep in 0..SAFETENSORS.len() {
        let source = Source::from_bytes("cut.safetensors", SAFETENSORS[..keep].to_vec());
        let e = safetensors::read(&source, &|_| false).expect_err("truncated").to_string();
        assert!(e.contains("cut.safetensors") && e.contains("offset"), "{keep}: {e}");
    }
}

/// The counter has to notice what it is here for.
#[test]
fn the_counter_counts() {
    assert!(peak(|| vec![0u8; 1 << 20]) >= 1 << 20);
}
