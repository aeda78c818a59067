//! Variants of the tiny model, in folders of their own.

use super::root;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// The tiny model itself.
pub const TINY: &str = "tests/golden/tiny/chat";

const FILES: [&str; 6] = [
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// The tokens `<think>` and `</think>`: the last ones of the vocabulary, whose merges go.
pub const OPEN_THINK: u32 = 318;
pub const CLOSE_THINK: u32 = 319;

const GENERATION: &str = "{{- '<|im_start|>assistant\\n' }}";
const THINKING: &str = "{{- '<|im_start|>assistant\\n<think>\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{- '\\n</think>\\n\\n' }}{%- endif %}";

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// With a context of 4,096 tokens.
pub fn long_model() -> TempDir {
    let (from, to) = (root().join(TINY), tempfile::tempdir().unwrap());
    for name in FILES {
        fs::copy(from.join(name), to.path().join(name)).unwrap();
    }
    edit(&to.path().join("config.json"), |config| config["max_position_embeddings"] = 4096.into());
    to
}

/// One that reasons as well: its vocabulary has `<think>` and `</think>`, its template opens the reasoning.
pub fn thinking_model() -> TempDir {
    let folder = long_model();
    let template = folder.path().join("chat_template.jinja");
    let text = fs::read_to_string(&template).unwrap();
    assert!(text.contains(GENERATION), "{text}");
    fs::write(&template, text.replace(GENERATION, THINKING)).unwrap();
    edit(&folder.path().join("tokenizer.json"), |tokenizer| {
        let merges = tokenizer["model"]["merges"].as_array_mut().unwrap();
        merges.truncate(merges.len() - 2);
        let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        vocab.retain(|_, id| id.as_u64().unwrap() < u64::from(OPEN_THINK));
        for (id, text) in [(OPEN_THINK, "<think>"), (CLOSE_THINK, "</think>")] {
            tokenizer["model"]["vocab"][text] = id.into();
            tokenizer["added_tokens"].as_array_mut().unwrap().push(json!({
                "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                "special": false,
            }));
        }
    });
    folder
}
