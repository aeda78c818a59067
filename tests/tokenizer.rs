//! Token ids against llama.cpp (GGUF) and transformers (tokenizer.json), on 300 odd strings.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

#[path = "common/text.rs"]
mod text;

use runtime::Error;
use runtime::format::Checkpoint;
use runtime::token::{ChatTemplate, GgufTokenizer, RenderOptions, Tokenizer, encode_chat_for_training};
use serde_json::{Value, json};
use text::{golden, list, sentencepiece, smollm2, strings};

/// Asserts equality of all rows, showing the first few strings that differ.
fn compare(what: &str, rows: impl Iterator<Item = (String, Vec<u32>, Vec<u32>)>) {
    let (mut count, mut differing) = (0, Vec::new());
    for (text, got, want) in rows {
        count += 1;
        if got != want {
            differing.push(format!("{text:?}\n   got  {got:?}\n   want {want:?}"));
        }
    }
    assert!(count >= 200, "{what}: only {count} strings");
    let shown = differing.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
    assert!(differing.is_empty(), "{what}: {} of {count} strings differ\n{shown}", differing.len());
}

#[test]
fn smollm2_is_llama_cpp() {
    let tokenizer = Tokenizer::from_gguf(smollm2()).unwrap();
    let want: Vec<Vec<u32>> = list(&golden("smollm2_smollm.json")["ids"]);
    let rows = strings().into_iter().zip(want).map(|(text, want)| {
        let got = tokenizer.encode(&text, false).unwrap();
        // Byte-level text survives the round trip.
        assert_eq!(tokenizer.decode(&got, false), text);
        (text, got, want)
    });
    compare("smollm", rows);
    assert_eq!(tokenizer.vocab_size(), 49152);
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
    assert!(!tokenizer.add_bos());
    assert!(tokenizer.is_special(1) && !tokenizer.is_special(100));
    assert_eq!(tokenizer.token_id("<|im_start|>"), Some(1));
    assert_eq!(tokenizer.token_str(1).as_deref(), Some("<|im_start|>"));
    let the = tokenizer.token_id("Ġthe").unwrap();
    assert_eq!(tokenizer.token_bytes(the), b" the");
    assert_eq!(tokenizer.token_bytes(1_000_000), b"");
    assert!(tokenizer.end_ids().contains(&2));
}

#[test]
fn checkpoint_has_tokenizer_and_template() {
    let checkpoint = Checkpoint::open(&text::smollm2_path()).unwrap();
    let tokenizer = Tokenizer::from_source(&checkpoint.tokenizer).unwrap();
    let template = ChatTemplate::from_checkpoint(&checkpoint, &tokenizer).unwrap().unwrap();
    assert_eq!(template.source(), golden("chat.json")["templates"]["smollm2"]["source"]);
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    let chat = template.render(&json!([{"role": "user", "content": "Hi"}]), &options).unwrap();
    assert!(chat.ends_with("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"), "{chat}");
    let ids = tokenizer.encode(&chat, false).unwrap();
    assert_eq!(ids.iter().filter(|&&id| id == 1).count(), 3);
    assert_eq!(tokenizer.decode(&ids, false), chat);
}

#[test]
fn pre_tokenizer_kinds_are_llama_cpp() {
    let (strings, base) = (strings(), smollm2());
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizer");
    let mut failures = Vec::new();
    let mut kinds = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !name.starts_with("smollm2_") || name == "smollm2_smollm.json" {
            continue;
        }
        kinds += 1;
        let golden = golden(&name);
        let pre = golden["pre"].as_str().unwrap();
        let tokenizer = Tokenizer::from_gguf(GgufTokenizer { pre: Some(pre.into()), ..base.clone() }).unwrap();
        let (index, want): (Vec<usize>, Vec<String>) = (list(&golden["index"]), list(&golden["digests"]));
        let differing: Vec<String> = index
            .iter()
            .zip(&want)
            .filter_map(|(&i, want)| {
                let ids = tokenizer.encode(&strings[i], false).unwrap();
                (digest(&ids) != *want).then(|| format!("{:?} -> {ids:?}", strings[i]))
            })
            .collect();
        if !differing.is_empty() {
            failures.push(format!(
                "{pre}: {} of {}: {}",
                differing.len(),
                want.len(),
                differing[..differing.len().min(4)].join("; ")
            ));
        }
    }
    assert!(kinds >= 15);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn sentencepiece_is_llama_cpp() {
    let golden = golden("spm.json");
    for (key, prefix) in [("ids_prefix", true), ("ids_no_prefix", false)] {
        let tokenizer = sentencepiece(prefix);
        let want: Vec<Vec<u32>> = list(&golden[key]);
        compare(
            key,
            strings().into_iter().zip(want).map(|(text, want)| {
                let got = tokenizer.encode(&text, false).unwrap();
                (text, got, want)
            }),
        );
        assert!(tokenizer.add_bos());
        assert_eq!(tokenizer.encode("", true).unwrap(), [1]);
    }
    // Decoding is SentencePiece's own.
    let (tokenizer, strings) = (sentencepiece(true), strings());
    let (index, want): (Vec<usize>, Vec<String>) = (list(&golden["decoded_index"]), list(&golden["decoded"]));
    for (i, want) in index.into_iter().zip(want) {
        assert_eq!(tokenizer.decode(&tokenizer.encode(&strings[i], false).unwrap(), false), want);
    }
}

#[test]
fn tokenizer_json_is_transformers() {
    let strings = strings();
    for name in ["qwen2", "llama3", "sentencepiece"] {
        let golden = golden(&format!("hf_{name}.json"));
        let bytes = serde_json::to_vec(&golden["tokenizer"]).unwrap();
        let tokenizer = Tokenizer::from_json(&bytes, &Value::Null, &Value::Null).unwrap();
        let (index, ids): (Vec<usize>, Vec<Vec<u32>>) = (list(&golden["index"]), list(&golden["ids"]));
        compare(
            name,
            index.iter().zip(&ids).map(|(&i, want)| {
                let got = tokenizer.encode(&strings[i], false).unwrap();
                (strings[i].clone(), got, want.clone())
            }),
        );
        assert_eq!(tokenizer.encode("Hello", true).unwrap(), list::<u32>(&golden["with_special"]), "{name}");
        for (key, skip) in [("decoded", false), ("decoded_skip", true)] {
            for (ids, want) in ids.iter().zip(list::<String>(&golden[key])) {
                // How many U+FFFD broken bytes become is not fixed; everything else is.
                if !want.contains('\u{FFFD}') {
                    assert_eq!(tokenizer.decode(ids, skip), want, "{name} {key}");
                }
            }
        }
    }
}

#[test]
fn configuration_files_are_heeded() {
    let golden = golden("hf_qwen2.json");
    let bytes = serde_json::to_vec(&golden["tokenizer"]).unwrap();
    let plain = Tokenizer::from_json(&bytes, &Value::Null, &Value::Null).unwrap();
    let size = plain.vocab_size();
    let config = json!({
        "bos_token": "<|endoftext|>", "eos_token": {"content": "<|im_end|>"}, "add_bos_token": true, "add_eos_token": false,
        "added_tokens_decoder": {size.to_string(): {"content": "<extra>", "special": true}}});
    let tokenizer = Tokenizer::from_json(&bytes, &config, &json!({"pad_token": "<|endoftext|>"})).unwrap();
    assert!(tokenizer.add_bos() && tokenizer.pad() == tokenizer.bos() && tokenizer.pad().is_some());
    let ids = tokenizer.encode("a<extra>b", true).unwrap();
    assert_eq!(ids[0], tokenizer.bos().unwrap());
    assert!(ids.contains(&(size as u32)) && tokenizer.is_special(size as u32));
    assert_eq!(tokenizer.decode(&ids, true), "ab");
    let wrong = json!({"added_tokens_decoder": {"5000": {"content": "<extra>"}}});
    assert!(matches!(Tokenizer::from_json(&bytes, &wrong, &Value::Null), Err(Error::Format { .. })));
}

#[test]
fn offsets_cover_the_text() {
    let strings = strings();
    for tokenizer in [Tokenizer::from_gguf(smollm2()).unwrap(), sentencepiece(true), sentencepiece(false)] {
        for text in &strings {
            let tokens = tokenizer.encode_with_offsets(text, false).unwrap();
            assert_eq!(tokens.iter().map(|t| t.id).collect::<Vec<_>>(), tokenizer.encode(text, false).unwrap());
            let mut end = 0;
            for token in &tokens {
                assert!(text.get(token.bytes.clone()).is_some(), "{text:?}: {token:?} is not on character boundaries");
                assert!(token.bytes.start <= end, "{text:?}: a gap before {token:?}");
                end = end.max(token.bytes.end);
            }
            assert_eq!(end, text.len(), "{text:?}");
        }
    }
}

#[test]
fn training_mask_follows_tokens() {
    let tokenizer = Tokenizer::from_gguf(smollm2()).unwrap();
    let source = golden("chat.json")["templates"]["smollm2"]["source"].clone();
    let template = ChatTemplate::from_gguf(source.as_str(), &tokenizer).unwrap().unwrap();
    let messages = json!([
        {"role": "user", "content": "What is 12 + 30?"}, {"role": "assistant", "content": "It is 42 😀."},
        {"role": "user", "content": "Thanks"}, {"role": "assistant", "content": " Bye\n"}]);
    let (ids, counted) = encode_chat_for_training(&tokenizer, &template, &messages, &RenderOptions::default()).unwrap();
    let kept: Vec<u32> = ids.iter().zip(&counted).filter(|(_, c)| **c).map(|(&id, _)| id).collect();
    assert_eq!(tokenizer.decode(&kept, false), "It is 42 😀.<|im_end|>\n Bye\n<|im_end|>\n");
    // The definition in tokens: what follows the tokens of the conversation with a generation prompt.
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    let prompt = template.render(&json!(messages.as_array().unwrap()[..3]), &options).unwrap();
    let prompt = tokenizer.encode(&prompt, false).unwrap();
    assert_eq!(ids[..prompt.len()], prompt);
    assert!(counted[prompt.len()..].iter().all(|c| *c) && !counted[prompt.len() - 1]);
}

#[test]
fn refuses_what_it_does_not_know() {
    let text = |gguf: GgufTokenizer| Tokenizer::from_gguf(gguf).unwrap_err().to_string();
    let base = GgufTokenizer {
        model: "gpt2".into(),
        tokens: ["a", "b", "ab"].map(String::from).to_vec(),
        merges: Some(vec!["a b".into()]),
        ..GgufTokenizer::default()
    };
    assert!(Tokenizer::from_gguf(base.clone()).is_ok());
    let error = text(GgufTokenizer { pre: Some("nope".into()), ..base.clone() });
    assert!(error.contains("'nope'") && error.contains("llama-bpe") && error.contains("smollm"), "{error}");
    let error = text(GgufTokenizer { model: "t5".into(), ..base.clone() });
    assert!(error.contains("'t5'") && error.contains("gpt2"), "{error}");
    assert!(text(GgufTokenizer { merges: None, ..base.clone() }).contains("merges"));
    assert!(text(GgufTokenizer { merges: Some(vec!["ab".into()]), ..base.clone() }).contains("merges"));
    assert!(text(GgufTokenizer { merges: Some(vec!["a c".into()]), ..base.clone() }).contains("merges"));
    assert!(text(GgufTokenizer { bos: Some(3), ..base.clone() }).contains("bos_token_id"));
    assert!(text(GgufTokenizer { token_types: Some(vec![1]), ..base.clone() }).contains("token_type"));
    assert!(text(GgufTokenizer { tokens: ["a", "a"].map(String::from).to_vec(), ..base.clone() }).contains("both"));
    assert!(text(GgufTokenizer { tokens: vec![], ..base.clone() }).contains("tokens"));
    assert!(text(GgufTokenizer { model: "llama".into(), ..base }).contains("scores"));
    let error = Tokenizer::from_json(b"{", &Value::Null, &Value::Null).unwrap_err();
    assert!(error.to_string().starts_with("tokenizer.json"), "{error}");
}

/// 64-bit FNV-1a, as the golden script has it.
fn digest(ids: &[u32]) -> String {
    let joined = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let hash = joined
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}
