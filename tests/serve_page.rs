//! The page at `/` in headless Chromium (tests/python/page.py).
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
use serve_support::{MODEL, Server, python, root, tiny_engine, tiny_options};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Nothing in it may be taken for markup.
const HTML_NAME: &str = "<img src=x onerror=document.title='gone'>";

#[test]
fn the_page_works_in_a_browser() {
    let version = Command::new("chromedriver").arg("--version").stdout(Stdio::null()).status();
    if version.is_err() {
        assert!(std::env::var_os("CI").is_none(), "there is no chromedriver");
        eprintln!("skipped: there is no chromedriver (scripts/test.sh installs it)");
        return;
    }
    let engine = tiny_engine(4);
    let served_model_names = vec![MODEL.into(), HTML_NAME.into()];
    let data = tempfile::tempdir().unwrap();
    let fine_tuning = Some(TuneOptions {
        data_dir: data.path().to_owned(),
        names: Vec::new(),
        pace: Pace::default(),
        limits: TuneLimits::default(),
        save_every: Duration::from_secs(60),
    });
    let open = Server::start(engine.clone(), ServeOptions { served_model_names, fine_tuning, ..tiny_options() });
    let locked = Server::start(engine, ServeOptions { api_keys: vec!["secret".into()], ..tiny_options() });
    let page = |server: &Server| format!("http://{}/", server.address);
    let mut command = Command::new(python());
    command.arg(root().join("tests/python/page.py")).args([page(&open), page(&locked), "secret".into()]);
    // A folder for screenshots, for people.
    command.args(std::env::var_os("RUNTIME_SCREENSHOTS"));
    assert!(command.status().unwrap().success());
}
