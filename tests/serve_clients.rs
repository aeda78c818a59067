//! Other clients than OpenAI's for chat against the server: tests/python has a table of calls for each.
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

use runtime::engine::Engine;
use runtime::serve::{ReasoningStyle, ServeOptions};
use serve_support::{ADAPTER, MODEL, Server, python, python_of, roomy_engine, root, tiny_options};
use std::path::Path;
use std::process::Command;

/// A server that sets `<think>` apart, which the tiny model's template does not know.
fn thinking(engine: Engine) -> Server {
    Server::start(engine, ServeOptions { reasoning_style: ReasoningStyle::Think, ..tiny_options() })
}

#[test]
fn responses_and_embeddings_serve_the_openai_client() {
    let engine = roomy_engine(8);
    let (server, thinking) = (Server::tiny(engine.clone()), thinking(engine));
    run("openai_responses.py", &[&server.url(), MODEL, ADAPTER, &thinking.url()]);
}

#[test]
fn messages_serve_the_anthropic_client() {
    let engine = roomy_engine(8);
    let (server, thinking) = (Server::tiny(engine.clone()), thinking(engine.clone()));
    let keys = vec!["other".into(), "secret".into()];
    let locked = Server::start(engine, ServeOptions { api_keys: keys, ..tiny_options() });
    run("anthropic_client.py", &[&server.origin(), MODEL, &thinking.origin(), &locked.origin(), "secret"]);
}

#[test]
fn langchain_and_llama_index_hold_a_conversation_with_a_tool() {
    let server = Server::tiny(roomy_engine(8));
    run_with(&python_of("RUNTIME_FRAMEWORKS_PYTHON", ".venv-frameworks"), "frameworks.py", &[&server.url(), MODEL]);
}

fn run(script: &str, arguments: &[&str]) {
    run_with(&python(), script, arguments);
}

fn run_with(python: &Path, script: &str, arguments: &[&str]) {
    let status = Command::new(python).arg(root().join("tests/python").join(script)).args(arguments).status().unwrap();
    assert!(status.success());
}
