//! `include/runtime.h` is what cbindgen makes of `src/ffi` today. After a wanted change:
//! `RUNTIME_BLESS=1 cargo test --release --test header`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

use std::path::Path;

#[test]
fn the_header_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut builder = cbindgen::Builder::new().with_config(cbindgen::Config::from_root_or_default(root));
    // In the order in which a reader needs them.
    for file in ["status", "error", "library", "model", "generate"] {
        builder = builder.with_src(root.join(format!("src/ffi/{file}.rs")));
    }
    let mut text = Vec::new();
    builder.generate().expect("cbindgen").write(&mut text);
    let text = tidied(&String::from_utf8(text).unwrap());
    let path = root.join("include/runtime.h");
    if std::env::var_os("RUNTIME_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let different = text.lines().zip(committed.lines()).position(|(a, b)| a != b);
    assert!(
        text == committed,
        "include/runtime.h is stale from line {} on: RUNTIME_BLESS=1 cargo test --release --test header",
        different.map_or(committed.lines().count(), |line| line + 1)
    );
}

/// C89 has no `//` comments, and a negative macro belongs in parentheses.
fn portable(line: &str) -> String {
    let line = line.split_once(" //").map_or(line, |(code, _)| code.trim_end());
    match line.strip_prefix("#define ").and_then(|define| define.split_once(" -")) {
        Some((name, value)) => format!("#define {name} (-{value})"),
        None => line.to_owned(),
    }
}

/// Rust's `# Safety` sections are for Rust callers; C has no safe code to warn.
fn tidied(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let closes = |line: &str| line.trim() == "*/";
        if line.trim() == "*" && lines.peek().is_some_and(|next| next.trim() == "* # Safety") {
            while lines.peek().is_some_and(|next| !closes(next)) {
                lines.next();
            }
            continue;
        }
        out.push_str(&portable(line.trim_end()));
        out.push('\n');
    }
    out
}
