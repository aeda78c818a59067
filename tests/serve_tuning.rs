//! OpenAI's fine-tuning API with OpenAI's own client (tests/python/openai_tuning.py): SmolLM2 learns a fact while it serves.
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
use runtime::engine::{EngineOptions, KvSize};
use runtime::serve::ServeOptions;
use runtime::tune::{TuneLimits, TuneOptions};
use serde_json::Value;
use serve_support::variants::TINY;
use serve_support::{Server, engine, python, root, smollm2, tiny_options};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

fn tuning(data_dir: &Path) -> Option<TuneOptions> {
    let pace = Pace { train_share: 0.8, itl_slo: None };
    let limits = TuneLimits { files: 4, file_bytes: 100_000, ..TuneLimits::default() };
    let save_every = Duration::from_secs(3600);
    Some(TuneOptions { data_dir: data_dir.to_owned(), names: Vec::new(), pace, limits, save_every })
}

fn options() -> EngineOptions {
    EngineOptions {
        max_seqs: 4,
        max_len: Some(256),
        kv: KvSize::Tokens(1024),
        max_adapters: 4,
        max_rank: 8,
        ..EngineOptions::default()
    }
}

fn run(arguments: &[&str]) {
    let script = root().join("tests/python/openai_tuning.py");
    assert!(Command::new(python()).arg(script).args(arguments).status().unwrap().success());
}

#[test]
fn the_openai_client_lives_through_a_job() {
    let Some(model) = smollm2() else {
        assert!(std::env::var_os("CI").is_none(), "SmolLM2 is not there");
        eprintln!("skipped: SmolLM2 is not there (scripts/test.sh fetches it)");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let limits = TuneLimits { files: 10, ..TuneLimits::default() };
    let fine_tuning = tuning(folder.path()).map(|tuning| TuneOptions { limits, ..tuning });
    let served_model_names = vec!["smollm2".into()];
    let server =
        Server::start(engine(&model, options()), ServeOptions { fine_tuning, served_model_names, ..tiny_options() });
    run(&["life", &server.url(), "smollm2"]);
}

#[test]
fn what_is_wrong_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine(&root().join(TINY), options());
    let server = Server::start(engine, ServeOptions { fine_tuning: tuning(folder.path()), ..tiny_options() });
    run(&["refusals", &server.url(), "tiny", folder.path().to_str().unwrap()]);
}

#[test]
fn without_fine_tuning_its_endpoints_say_so() {
    let server = Server::start(engine(&root().join(TINY), options()), tiny_options());
    for path in ["/v1/files", "/v1/fine_tuning/jobs"] {
        let (status, text) = server.get(path);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(status, 404, "{text}");
        assert!(value["error"]["message"].as_str().unwrap().contains("--fine-tuning"), "{text}");
    }
}
