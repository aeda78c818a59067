#![allow(clippy::unwrap_used)]

use super::*;
use serde_json::Value;
use std::sync::{Arc, Mutex};

/// Byte-level, with 320 entries: most words are several tokens, an emoji is four.
fn tokenizer() -> Tokenizer {
    let json = std::fs::read("tests/golden/tiny/chat/tokenizer.json").unwrap();
    Tokenizer::from_json(&json, &Value::Null, &Value::Null).unwrap()
}

/// What a sink has got.
#[derive(Default)]
struct Got {
    deltas: Vec<String>,
    tokens: Vec<u32>,
    end: Option<(FinishReason, Usage, Option<String>)>,
    /// Tokens that were sent before the sink gave up.
    sent: usize,
}

fn play(answer: &str, options: TextOptions, min_tokens: usize) -> Got {
    let tokenizer = tokenizer();
    let got = Arc::new(Mutex::new(Got::default()));
    let into = got.clone();
    let sink = move |event| {
        let mut got = into.lock().unwrap();
        match event {
            TextEvent::Prompt(_) => {}
            TextEvent::Delta { text, tokens } => {
                got.deltas.push(text);
                got.tokens.extend(tokens.iter().map(|piece| piece.id));
            }
            TextEvent::Done { reason, usage, stop } => got.end = Some((reason, usage, stop)),
            TextEvent::Failed(error) => unreachable!("{error}"),
        }
        ControlFlow::Continue(())
    };
    let request = Request { prompt: vec![5; 3], min_tokens, ..Request::default() };
    let mut sink = text_sink(Some(&tokenizer), &request, options, Box::new(sink)).unwrap();
    let mut sent = 0;
    let ids = tokenizer.encode(answer, false).unwrap();
    let went_on = ids.into_iter().try_for_each(|id| {
        sent += 1;
        sink(Event::Token { id, logprobs: None })
    });
    if went_on.is_continue() {
        let _ = sink(Event::Done { reason: FinishReason::Length, usage: Usage::default() });
    }
    drop(sink);
    let mut got = std::mem::take(&mut *got.lock().unwrap());
    got.sent = sent;
    got
}

fn stop(stops: &[&str]) -> TextOptions {
    TextOptions { stop: stops.iter().map(|stop| (*stop).to_owned()).collect(), ..TextOptions::default() }
}

#[test]
fn characters_stay_whole() {
    let answer = "naïve 🦀🦀 日本語 é";
    let got = play(answer, TextOptions::default(), 0);
    assert_eq!(got.deltas.concat(), answer);
    assert!(got.deltas.iter().all(|delta| !delta.is_empty() && !delta.contains('\u{fffd}')), "{:?}", got.deltas);
    assert_eq!(got.tokens, tokenizer().encode(answer, false).unwrap());
    assert_eq!(got.end.unwrap().0, FinishReason::Length);
}

#[test]
fn a_stop_string_ends_the_request_and_is_cut() {
    let answer = "one two\n\nUser: three four";
    for stops in [&["User:"][..], &["nothing", "User:", "three"], &["🦀", "ser:", "User:"]] {
        let got = play(answer, stop(stops), 0);
        assert_eq!(got.deltas.concat(), "one two\n\n", "{stops:?}");
        let (reason, usage, found) = got.end.unwrap();
        assert_eq!((reason, found.as_deref()), (FinishReason::Stop, Some("User:")), "{stops:?}");
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (3, got.sent));
        assert!(got.sent < tokenizer().encode(answer, false).unwrap().len(), "nothing more was asked for");
        assert_eq!(tokenizer().decode(&got.tokens, true).trim_end(), "one two", "tokens behind the cut are left out");
    }
    let got = play(answer, TextOptions { include_stop: true, ..stop(&["User:"]) }, 0);
    assert_eq!(got.deltas.concat(), "one two\n\nUser:");
}

#[test]
fn the_beginning_of_a_stop_string_is_held_back_only_while_it_may_be_one() {
    let got = play("aaab aab", stop(&["aab!"]), 0);
    assert_eq!(got.deltas.concat(), "aaab aab");
    assert_eq!(got.end.unwrap().2, None);
    assert!(!got.deltas.is_empty());
}

#[test]
fn stop_strings_wait_for_min_tokens() {
    let min_tokens = tokenizer().encode("x; y", false).unwrap().len();
    let got = play("x; y; z", stop(&[";"]), min_tokens);
    assert_eq!(got.deltas.concat(), "x; y");
}

#[test]
fn without_a_tokenizer_there_are_only_ids() {
    let ids = Arc::new(Mutex::new(Vec::new()));
    let into = ids.clone();
    let sink = move |event| {
        if let TextEvent::Delta { text, tokens } = event {
            assert_eq!(text, "");
            into.lock().unwrap().extend(tokens.iter().map(|piece| piece.id));
        }
        ControlFlow::Continue(())
    };
    let request = Request::default();
    let mut sink = text_sink(None, &request, TextOptions::default(), Box::new(sink)).unwrap();
    let _ = sink(Event::Token { id: 7, logprobs: None });
    let _ = sink(Event::Done { reason: FinishReason::Length, usage: Usage::default() });
    assert_eq!(*ids.lock().unwrap(), [7]);
    let refused = text_sink(None, &request, stop(&["x"]), Box::new(|_| ControlFlow::Continue(())));
    assert!(refused.is_err());
}
