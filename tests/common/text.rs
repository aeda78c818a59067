//! What the tests of text share.
#![allow(dead_code, reason = "no test file uses all of it")]

use std::path::PathBuf;

use runtime::format::{GgufFile, Source};
use runtime::token::{GgufTokenizer, Tokenizer};
use serde_json::Value;

/// A file under tests/golden/tokenizer, parsed.
pub fn golden(name: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizer").join(name);
    serde_json::from_slice(&std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

pub fn list<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The strings of the golden tokenizer files.
pub fn strings() -> Vec<String> {
    list(&golden("strings.json"))
}

/// SmolLM2's GGUF file: `RUNTIME_SMOLLM2`, or where scripts/test.sh puts it.
pub fn smollm2_path() -> PathBuf {
    let default = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = std::env::var_os("RUNTIME_SMOLLM2").map_or(default, PathBuf::from);
    assert!(path.is_file(), "{} is missing; scripts/test.sh fetches it, RUNTIME_SMOLLM2 names another", path.display());
    path
}

/// SmolLM2's tokenizer metadata.
pub fn smollm2() -> GgufTokenizer {
    let source = Source::open(&smollm2_path()).unwrap();
    GgufTokenizer::from_metadata(&GgufFile::open(&source).unwrap().metadata).unwrap()
}

/// The small SentencePiece model of `spm.json`.
pub fn sentencepiece(add_space_prefix: bool) -> Tokenizer {
    let vocab = &golden("spm.json")["vocab"];
    Tokenizer::from_gguf(GgufTokenizer {
        model: "llama".into(),
        tokens: list(&vocab["tokens"]),
        scores: Some(list(&vocab["scores"])),
        token_types: Some(list(&vocab["types"])),
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        add_space_prefix: Some(add_space_prefix),
        ..GgufTokenizer::default()
    })
    .unwrap()
}
