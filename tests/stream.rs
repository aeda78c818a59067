//! Streaming says what decoding says, one whole character at a time; stop strings cut it.
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

use proptest::prelude::*;
use runtime::token::{StopMatcher, Tokenizer};
use serde_json::Value;
use text::{golden, sentencepiece, smollm2, strings};

fn tokenizers() -> Vec<Tokenizer> {
    let json = |name: &str| {
        let bytes = serde_json::to_vec(&golden(name)["tokenizer"]).unwrap();
        Tokenizer::from_json(&bytes, &Value::Null, &Value::Null).unwrap()
    };
    vec![
        Tokenizer::from_gguf(smollm2()).unwrap(),
        sentencepiece(true),
        sentencepiece(false),
        json("hf_qwen2.json"),
        json("hf_sentencepiece.json"),
    ]
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip: bool) -> String {
    let mut stream = tokenizer.stream(skip);
    let mut text: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
    text.extend(stream.flush());
    text
}

#[test]
fn real_text() {
    for tokenizer in tokenizers() {
        for text in strings() {
            let ids = tokenizer.encode(&text, false).unwrap();
            let mut stream = tokenizer.stream(false);
            let mut whole = String::new();
            for &id in &ids {
                if let Some(piece) = stream.push(id) {
                    // Text without broken bytes never shows a replacement character on the way.
                    assert!(text.contains('\u{FFFD}') || !piece.contains('\u{FFFD}'), "{text:?}: {piece:?}");
                    assert!(!piece.is_empty());
                    whole += &piece;
                }
            }
            assert_eq!(stream.flush(), None);
            assert_eq!(whole, tokenizer.decode(&ids, false));
        }
    }
}

#[test]
fn emoji_comes_whole() {
    let tokenizer = Tokenizer::from_gguf(smollm2()).unwrap();
    let ids = tokenizer.encode("👨‍👩‍👧 \u{10ffff}", false).unwrap();
    let mut stream = tokenizer.stream(true);
    let pieces: Vec<String> = ids.iter().filter_map(|&id| stream.push(id)).collect();
    assert!(pieces.len() > 2 && pieces.concat() == "👨‍👩‍👧 \u{10ffff}", "{pieces:?}");
    // Cut in the middle of a character, the end is marked as broken.
    let mut stream = tokenizer.stream(true);
    let cut: String = ids[..1].iter().filter_map(|&id| stream.push(id)).collect();
    if cut.is_empty() {
        assert_eq!(stream.flush().as_deref(), Some("\u{FFFD}"));
    }
}

#[test]
fn leading_space_of_sentencepiece() {
    let tokenizer = sentencepiece(true);
    let ids = tokenizer.encode("hello", false).unwrap();
    assert_eq!(streamed(&tokenizer, &ids, true), "hello");
    let mut stream = tokenizer.stream(true).continuing();
    assert_eq!(ids.iter().filter_map(|&id| stream.push(id)).collect::<String>(), " hello");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_ids(seeds in prop::collection::vec(any::<u32>(), 0..60), skip in any::<bool>()) {
        thread_local!(static ALL: Vec<Tokenizer> = tokenizers());
        ALL.with(|all| {
            for tokenizer in all {
                // A few low ids, where bytes and special tokens live, and ids beyond the vocabulary.
                let size = tokenizer.vocab_size() as u32 + 3;
                let ids: Vec<u32> = seeds.iter().map(|&n| if n % 2 == 0 { n / 2 % size } else { n / 2 % 300 }).collect();
                prop_assert_eq!(streamed(tokenizer, &ids, skip), tokenizer.decode(&ids, skip));
            }
            Ok(())
        })?;
    }

    #[test]
    fn stops_do_not_depend_on_pieces(text in "[abc✓]{0,40}", stops in prop::collection::vec("[abc✓]{0,4}", 0..4), cuts in prop::collection::vec(1usize..5, 1..40)) {
        let run = |pieces: &[&str]| {
            let mut matcher = StopMatcher::new(stops.clone());
            let mut out = String::new();
            let mut stop = None;
            for piece in pieces {
                let step = matcher.push(piece);
                out += &step.text;
                stop = stop.or(step.stop);
            }
            out += &matcher.flush();
            (out, stop.map(|i| stops[i].clone()))
        };
        let chars: Vec<String> = text.chars().map(String::from).collect();
        let (mut pieces, mut at) = (Vec::new(), 0);
        for cut in cuts.iter().cycle() {
            if at >= chars.len() { break; }
            let end = (at + cut).min(chars.len());
            pieces.push(chars[at..end].concat());
            at = end;
        }
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        let whole = run(&[&text]);
        prop_assert_eq!(run(&pieces), whole.clone());
        // What came out is the beginning of the text and holds no stop string.
        prop_assert!(text.starts_with(&whole.0));
        let holds_stop = stops.iter().any(|s| !s.is_empty() && whole.0.contains(s.as_str()));
        prop_assert!(!holds_stop);
        if whole.1.is_none() {
            prop_assert_eq!(whole.0, text);
        }
    }
}

#[test]
fn holds_back_only_what_may_be_a_stop() {
    let mut matcher = StopMatcher::new(vec!["\n\nUser:".into(), "END".into()]);
    assert_eq!(matcher.push("Hello E").text, "Hello ");
    assert_eq!(matcher.push("x\n").text, "Ex");
    assert_eq!(matcher.push("\nUse").text, "");
    assert_eq!(matcher.push("d it").text, "\n\nUsed it");
    let end = matcher.push(" now END of");
    assert_eq!((end.text.as_str(), end.stop), (" now ", Some(1)));
    assert!(matcher.stopped() && matcher.push("more").text.is_empty() && matcher.flush().is_empty());
}
