//! What several test files share.

use std::collections::HashMap;
use std::path::PathBuf;

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

/// SmolLM2's tokenizer metadata from its GGUF file: `RUNTIME_SMOLLM2`, or where scripts/test.sh puts it.
pub fn smollm2() -> GgufTokenizer {
    let default = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = std::env::var_os("RUNTIME_SMOLLM2").map_or(default, PathBuf::from);
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}; set RUNTIME_SMOLLM2", path.display()));
    let mut keys = metadata(&bytes);
    let mut take = |name: &str| keys.remove(&format!("tokenizer.ggml.{name}")).unwrap_or(Value::Null);
    let id = |value: Value| value.as_u64().map(|id| id as u32);
    GgufTokenizer {
        model: take("model").as_str().unwrap().into(),
        pre: take("pre").as_str().map(Into::into),
        tokens: list(&take("tokens")),
        token_types: Some(list(&take("token_type"))),
        merges: Some(list(&take("merges"))),
        bos: id(take("bos_token_id")),
        eos: id(take("eos_token_id")),
        pad: id(take("padding_token_id")),
        unk: id(take("unknown_token_id")),
        add_bos: take("add_bos_token").as_bool(),
        ..GgufTokenizer::default()
    }
}

/// The small SentencePiece model of `spm.json`.
#[allow(dead_code, reason = "not every test file uses it")]
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

/// Every metadata key of a GGUF file. Stands in for the library's own parser.
fn metadata(bytes: &[u8]) -> HashMap<String, Value> {
    struct Reader<'a>(&'a [u8]);
    impl Reader<'_> {
        fn number<const N: usize>(&mut self) -> u64 {
            let (head, rest) = self.0.split_at(N);
            self.0 = rest;
            head.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b))
        }
        fn string(&mut self) -> String {
            let len = self.number::<8>() as usize;
            let (head, rest) = self.0.split_at(len);
            self.0 = rest;
            String::from_utf8_lossy(head).into_owned()
        }
        fn value(&mut self, kind: u64) -> Value {
            match kind {
                0 | 1 => self.number::<1>().into(),
                7 => (self.number::<1>() != 0).into(),
                2 | 3 => self.number::<2>().into(),
                4 => self.number::<4>().into(),
                5 => (self.number::<4>() as u32 as i32).into(),
                6 => f64::from(f32::from_bits(self.number::<4>() as u32)).into(),
                8 => self.string().into(),
                9 => {
                    let (kind, len) = (self.number::<4>(), self.number::<8>());
                    (0..len).map(|_| self.value(kind)).collect()
                }
                10 | 11 => self.number::<8>().into(),
                _ => f64::from_bits(self.number::<8>()).into(),
            }
        }
    }
    let mut reader = Reader(&bytes[16..]);
    let count = reader.number::<8>();
    (0..count)
        .map(|_| {
            let key = reader.string();
            let kind = reader.number::<4>();
            (key, reader.value(kind))
        })
        .collect()
}
