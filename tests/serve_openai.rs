//! OpenAI's own Python client against the server (tests/python/openai_client.py).
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

use runtime::engine::EngineOptions;
use runtime::serve::ServeOptions;
use serve_support::{ADAPTER, MODEL, Server, engine, python, root, smollm2, tiny_engine, tiny_options};
use std::process::Command;

fn run(arguments: &[&str]) {
    let status =
        Command::new(python()).arg(root().join("tests/python/openai_client.py")).args(arguments).status().unwrap();
    assert!(status.success());
}

#[test]
fn the_openai_client_is_served() {
    let engine = tiny_engine(8);
    let open = Server::tiny(engine.clone());
    let keys = vec!["other".into(), "secret".into()];
    let locked = Server::start(engine, ServeOptions { api_keys: keys, ..tiny_options() });
    run(&["all", &open.url(), MODEL, ADAPTER, &locked.url(), "secret"]);
}

#[test]
fn a_real_model_talks_to_the_openai_client() {
    let Some(path) = smollm2() else {
        eprintln!("skipped: SmolLM2 is not there (scripts/test.sh fetches it; RUNTIME_SMOLLM2 names it)");
        return;
    };
    let server =
        Server::start(engine(&path, EngineOptions::default()), ServeOptions { port: 0, ..ServeOptions::default() });
    run(&["talk", &server.url()]);
}
