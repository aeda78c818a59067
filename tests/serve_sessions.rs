//! The building blocks of training over HTTP: what they compute is what serving says, and states bring everything back.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]
#![cfg(feature = "serve")]

mod serve_support;

use runtime::engine::pacing::Pace;
use runtime::serve::ServeOptions;
use runtime::tune::{TuneLimits, TuneOptions};
use serde_json::{Value, json};
use serve_support::{MODEL, Server, answer, tiny_engine, tiny_options};
use std::time::Duration;
use tempfile::TempDir;

const SESSIONS: &str = "/v1/training/sessions";

fn server() -> (Server, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let fine_tuning = Some(TuneOptions {
        data_dir: folder.path().to_owned(),
        names: Vec::new(),
        pace: Pace::default(),
        limits: TuneLimits::default(),
        save_every: Duration::from_secs(60),
    });
    (Server::start(tiny_engine(4), ServeOptions { fine_tuning, ..tiny_options() }), folder)
}

fn post(server: &Server, path: &str, body: Value) -> Value {
    let (status, text) = server.post(path, &body.to_string());
    assert_eq!(status, 200, "{path}: {text}");
    serde_json::from_str(&text).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn near(a: &[f64], b: &[f64], most: f64) {
    assert_eq!(a.len(), b.len());
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst <= most, "{worst}: {a:?} {b:?}");
}

#[test]
fn a_session_trains_samples_and_comes_back() {
    let (server, _folder) = server();
    let session = post(&server, SESSIONS, json!({"base_model": MODEL, "rank": 4, "seed": 5, "max_tokens": 64}));
    let (id, name) = (session["id"].as_str().unwrap().to_owned(), session["model"].as_str().unwrap().to_owned());
    let call = |verb: &str, body: Value| post(&server, &format!("{SESSIONS}/{id}/{verb}"), body);
    let tokens: Vec<u32> = (0..30u32).map(|i| 5 + (i * 37) % 300).collect();
    let weights: Vec<f64> = (0..30).map(|i| if i < 10 { 0.0 } else { 1.0 }).collect();
    let data = json!([{"tokens": tokens, "weights": weights}]);
    let forward = || numbers(&call("forward", json!({"data": [{"tokens": tokens}]}))["logprobs"][0]);

    // The adapter begins as nothing: what is said of the text is what the base model says.
    let scored = |model: &str| {
        let body =
            json!({"model": model, "prompt": tokens, "max_tokens": 1, "echo": true, "logprobs": 0, "temperature": 0});
        let scored = post(&server, "/v1/completions", body);
        numbers(&json!(scored["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap()[1..30].to_vec()))
    };
    let before = forward();
    near(&before, &scored(MODEL), 1e-5);

    // Steps: the loss is the weighted sum, and it falls.
    let mut losses = Vec::new();
    for step in 1..=5 {
        let passed = call("forward_backward", json!({"data": data, "loss_fn": "cross_entropy"}));
        let logprobs = numbers(&passed["logprobs"][0]);
        let sum: f64 = -logprobs.iter().zip(&weights[1..]).map(|(logprob, weight)| logprob * weight).sum::<f64>();
        assert!((passed["loss"].as_f64().unwrap() - sum).abs() < 1e-4);
        losses.push(sum);
        let done = call("optim_step", json!({"learning_rate": 0.02, "max_grad_norm": 1.0}));
        assert!(done["step"] == step && done["grad_norm"].as_f64().unwrap() > 0.0, "{done}");
    }
    assert!(losses.windows(2).all(|pair| pair[1] < pair[0]), "{losses:?}");

    // Samples are of the weights as they are, with the log-probabilities of training.
    let body = json!({"prompt": &tokens[..8], "max_tokens": 12, "num_samples": 3, "seed": 1});
    let drawn = call("sample", body.clone());
    assert_eq!((drawn["model"].as_str().unwrap(), drawn["sequences"].as_array().unwrap().len()), (name.as_str(), 3));
    assert_eq!(call("sample", body)["sequences"], drawn["sequences"], "a seed repeats them");
    near(&forward(), &scored(&name), 1e-5);
    for sequence in drawn["sequences"].as_array().unwrap() {
        let sampled: Vec<u32> =
            sequence["tokens"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect();
        let whole = [&tokens[..8], &sampled].concat();
        let trained = numbers(&call("forward", json!({"data": [{"tokens": whole}]}))["logprobs"][0]);
        near(&trained[7..], &numbers(&sequence["logprobs"]), 1e-4);
    }

    // A state brings back adapter and moments: the same step has the same result.
    call("save_state", json!({"name": "here"}));
    let here = forward();
    let step = || {
        call("forward_backward", json!({"data": data}));
        call("optim_step", json!({"learning_rate": 0.02}));
        forward()
    };
    let after = step();
    assert_ne!(here, after);
    assert_eq!(call("load_state", json!({"name": "here"}))["step"], 5);
    assert_eq!(forward(), here);
    assert_eq!(step(), after);

    // Where the tokens were drawn with the weights as they are, importance sampling has the policy gradient.
    let now = [vec![0.0], forward()].concat();
    let policy = json!([{"tokens": tokens, "weights": weights, "logprobs": now}]);
    let passed = call("forward_backward", json!({"data": policy, "loss_fn": "importance_sampling"}));
    assert!((passed["loss"].as_f64().unwrap() + 20.0).abs() < 1e-3, "{passed}");
    let norm = |call: Value| call["grad_norm"].as_f64().unwrap();
    let sampled = norm(call("optim_step", json!({"learning_rate": 0.0})));
    call("forward_backward", json!({"data": data}));
    let plain = norm(call("optim_step", json!({"learning_rate": 0.0})));
    assert!((sampled / plain - 1.0).abs() < 1e-4, "{sampled} {plain}");

    // Refusals name what is wrong; nothing is trained by them.
    for (verb, body, param) in [
        ("forward_backward", json!({}), json!("data")),
        ("forward_backward", json!({"data": [{"tokens": [1, 2], "wieghts": [1, 1]}]}), json!("data[0]")),
        ("forward_backward", json!({"data": data, "loss_fn": "ppo"}), json!("loss_fn")),
        ("optim_step", json!({"lr": 1}), json!("learning_rate")),
        ("sample", json!({"prompt": [1]}), json!("max_tokens")),
        ("save_state", json!({"name": "../x"}), json!("name")),
        ("save_state", json!({"name": "here"}), json!("name")),
        ("load_state", json!({"name": "elsewhere"}), json!("name")),
    ] {
        let (status, message, found, _) = server.refused(&format!("{SESSIONS}/{id}/{verb}"), &body.to_string());
        assert!(matches!(status, 400 | 404) && found == param, "{verb} {body}: {status} {message} {found}");
    }
    for body in [
        json!({"data": [{"tokens": [1, 2], "weights": [1]}]}),
        json!({"data": []}),
        json!({"data": [{"tokens": vec![1; 65]}]}),
        json!({"data": [{"tokens": [1, 2]}], "loss_fn": "importance_sampling"}),
    ] {
        let (status, message, ..) = server.refused(&format!("{SESSIONS}/{id}/forward_backward"), &body.to_string());
        assert!(status == 400 && message.contains("data"), "{body}: {message}");
    }
    assert_eq!(server.refused(SESSIONS, &json!({"base_model": "nobody"}).to_string()).2, "base_model");
    assert_eq!(server.refused(SESSIONS, &json!({"base_model": MODEL, "rank": 99}).to_string()).2, "rank");

    assert_eq!(answer(server.send("DELETE", &format!("{SESSIONS}/{id}"), "", "")).0, 200);
    assert_eq!(server.refused(&format!("{SESSIONS}/{id}/optim_step"), "{\"learning_rate\": 1}").0, 404);
    assert!(!server.get("/v1/models").1.contains(&name));
}
