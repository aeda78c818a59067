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
use runtime::serve::{ServeOptions, ToolStyle};
use serde_json::json;
use serve_support::variants::{CLOSE_THINK, OPEN_THINK, thinking_model};
use serve_support::{
    ADAPTER, ADAPTER_FOLDER, MODEL, Server, engine, python, roomy_engine, root, smollm2, tiny_options,
};
use std::process::Command;

fn run(arguments: &[&str]) {
    let status =
        Command::new(python()).arg(root().join("tests/python/openai_client.py")).args(arguments).status().unwrap();
    assert!(status.success());
}

#[test]
fn the_openai_client_is_served() {
    let shared = roomy_engine(8);
    let open = Server::tiny(shared.clone());
    let keys = vec!["other".into(), "secret".into()];
    let locked = Server::start(shared.clone(), ServeOptions { api_keys: keys, ..tiny_options() });
    let llama = Server::start(shared, ServeOptions { tool_style: ToolStyle::Llama3Json, ..tiny_options() });
    let thinking = Server::tiny(engine(thinking_model().path(), EngineOptions::default()));
    let no_queue = EngineOptions { max_waiting: Some(0), ..EngineOptions::default() };
    let full = Server::tiny(engine(&root().join("tests/golden/tiny/chat"), no_queue));
    let places = json!({
        "url": open.url(), "model": MODEL, "adapter": ADAPTER, "folder": root().join(ADAPTER_FOLDER),
        "locked": locked.url(), "key": "secret", "llama": llama.url(), "full": full.url(),
        "thinking": thinking.url(), "open_think": OPEN_THINK, "close_think": CLOSE_THINK,
    });
    run(&["all", &places.to_string()]);
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
