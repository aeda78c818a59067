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

use serve_support::{ADAPTER, MODEL, Server, python, roomy_engine, root};
use std::process::Command;

#[test]
fn responses_and_embeddings_serve_the_openai_client() {
    let server = Server::tiny(roomy_engine(8));
    run("openai_responses.py", &[&server.url(), MODEL, ADAPTER]);
}

fn run(script: &str, arguments: &[&str]) {
    let status = Command::new(python()).arg(root().join("tests/python").join(script)).args(arguments).status().unwrap();
    assert!(status.success());
}
