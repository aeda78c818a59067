//! The engine's promises to callers: answers do not depend on what else is running.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

mod common;

use common::device::{load, repository};
use runtime::backend::BackendChoice;
use runtime::engine::text::{TextOptions, generate_text};
use runtime::engine::{Engine, EngineOptions, Request, SamplingParams};

fn engine(kv_tokens: usize, max_seqs: usize) -> Engine {
    let model = load(&repository("tests/golden/tiny/chat"), BackendChoice::Cpu);
    let options = EngineOptions {
        max_len: Some(160),
        kv_tokens: Some(kv_tokens),
        max_seqs,
        max_step_tokens: 24,
        ..EngineOptions::default()
    };
    Engine::start(model, options).unwrap()
}

fn request(n: u32) -> Request {
    let sampling =
        SamplingParams { temperature: 0.8, top_p: 0.9, seed: Some(u64::from(n)), ..SamplingParams::default() };
    let prompt = (0..20 + n).map(|i| 10 + (i * 7 + n) % 200).collect();
    Request { prompt, max_tokens: 100, ignore_eos: true, sampling, ..Request::default() }
}

fn ids(engine: &Engine, n: u32) -> Vec<u32> {
    generate_text(engine, request(n), TextOptions::default()).unwrap().ids
}

#[test]
fn answers_are_the_same_alone_together_and_when_the_cache_is_too_small() {
    let alone = engine(160, 1);
    let want: Vec<Vec<u32>> = (0..6).map(|n| ids(&alone, n)).collect();
    assert!(want.iter().all(|ids| ids.len() == 100));
    // 6 requests of about 125 tokens: together they fit 960 tokens, and have to be parked in turn with 320.
    for kv_tokens in [960, 320] {
        let shared = engine(kv_tokens, 6);
        let got: Vec<Vec<u32>> = std::thread::scope(|scope| {
            let running: Vec<_> = (0..6)
                .map(|n| {
                    scope.spawn({
                        let shared = shared.clone();
                        move || ids(&shared, n)
                    })
                })
                .collect();
            running.into_iter().map(|r| r.join().unwrap()).collect()
        });
        assert_eq!(got, want, "with a cache of {kv_tokens} tokens");
    }
}

#[test]
fn what_cannot_work_is_refused() {
    let engine = engine(160, 1);
    let refused = |change: &dyn Fn(&mut Request)| {
        let mut request = request(0);
        change(&mut request);
        generate_text(&engine, request, TextOptions::default()).unwrap_err().to_string()
    };
    assert!(refused(&|r| r.prompt.clear()).contains("no tokens"));
    assert!(refused(&|r| r.prompt[3] = 5000).contains("token 5000 at 3"));
    assert!(refused(&|r| r.max_tokens = 1000).contains("160 tokens"));
    assert!(refused(&|r| r.adapter = Some("nobody".into())).contains("'nobody'"));
    assert!(refused(&|r| r.sampling.top_p = 0.0).contains("top_p"));
    assert!(refused(&|r| r.sampling.temperature = f32::NAN).contains("temperature"));
    assert_eq!(ids(&engine, 1).len(), 100, "the engine lives on");
}
