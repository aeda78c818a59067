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
use runtime::engine::{Engine, EngineOptions, KvSize, Request, SamplingParams};

fn engine(kv_tokens: usize, max_seqs: usize) -> Engine {
    let model = load(&repository("tests/golden/tiny/chat"), BackendChoice::Cpu);
    let options = EngineOptions {
        max_len: Some(160),
        kv: KvSize::Tokens(kv_tokens),
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

/// Tokens are chosen on the device, unless somebody in the step needs logits: the same tokens come out.
#[test]
fn tokens_chosen_on_the_device_and_on_the_host_are_the_same() {
    let filters: [(f32, f32, usize, f32); 6] = [
        (0.0, 1.0, 0, 0.0),
        (1.0, 1.0, 0, 0.0),
        (0.8, 0.9, 0, 0.0),
        (1.2, 1.0, 20, 0.0),
        (0.9, 0.8, 30, 0.02),
        (5.0, 0.99, 0, 0.1),
    ];
    let engine = engine(960, 2);
    for (n, (temperature, top_p, top_k, min_p)) in filters.into_iter().enumerate() {
        let sampling =
            SamplingParams { temperature, top_p, top_k, min_p, seed: Some(n as u64), ..SamplingParams::default() };
        let on_device = Request { sampling, ..request(n as u32) };
        let on_host = Request { logprobs: Some(1), ..on_device.clone() };
        // A bias of 0 and a minimum length change nothing but the path, the latter for half of the answer.
        let mut biased = on_device.clone();
        biased.sampling.logit_bias = vec![(1, 0.0)];
        let changing = Request { min_tokens: 50, stop_ids: vec![4000], ..on_device.clone() };
        let ids = |request: Request| generate_text(&engine, request, TextOptions::default()).unwrap().ids;
        let want = ids(on_device.clone());
        assert_eq!(want.len(), 100);
        for (name, request) in [("logprobs", on_host.clone()), ("bias", biased), ("min_tokens", changing)] {
            assert_eq!(ids(request), want, "{name}: {n}");
        }
        // In one step with a request that needs its logits, the other is sampled on the host, too.
        let (left, right) = std::thread::scope(|scope| {
            let left = scope.spawn(|| ids(on_device));
            (ids(on_host), left.join().unwrap())
        });
        assert_eq!((&left, &right), (&want, &want), "together: {n}");
    }
}
