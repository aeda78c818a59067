//! `include/runtime.h` and `runtime_interop.h` are what cbindgen makes of `src/ffi` today. After a wanted change:
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
    let config = cbindgen::Config::from_root_or_default(root);
    // In the order in which a reader needs them.
    let files = [
        "status", "error", "library", "engine", "event", "memory", "io", "model", "adapter", "session", "training",
        "tokens",
    ];
    up_to_date("runtime.h", config, &files);
}

#[test]
fn the_interop_header_is_up_to_date() {
    let mut config = cbindgen::Config::from_root_or_default(Path::new(env!("CARGO_MANIFEST_DIR")));
    config.include_guard = Some("RUNTIME_INTEROP_H".into());
    config.includes = vec!["runtime.h".into()];
    config.header = Some(INTEROP.into());
    up_to_date("runtime_interop.h", config, &["interop"]);
}

const INTEROP: &str = "/*
 * runtime_interop.h - EXPERIMENTAL: engines on a device that the host has made already, a renderer's or a simulation's.
 *
 * Generated from src/ffi/interop.rs by cbindgen: edit the comments there, not here.
 *
 * What is declared here may change in any version; runtime.h's rules hold otherwise. No header of Vulkan or CUDA is needed:
 * handles are passed as pointers.
 */";

fn up_to_date(name: &str, config: cbindgen::Config, files: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut builder = cbindgen::Builder::new().with_config(config);
    for file in files {
        builder = builder.with_src(root.join(format!("src/ffi/{file}.rs")));
    }
    let mut text = Vec::new();
    builder.generate().expect("cbindgen").write(&mut text);
    let text = tidied(&String::from_utf8(text).unwrap());
    let path = root.join("include").join(name);
    if std::env::var_os("RUNTIME_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let different = text.lines().zip(committed.lines()).position(|(a, b)| a != b);
    assert!(
        text == committed,
        "include/{name} is stale from line {} on: RUNTIME_BLESS=1 cargo test --release --test header",
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
    initialised(&out)
}

/// After each struct that carries its size, a macro that sets it and clears the rest.
fn initialised(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut fields: Vec<&str> = Vec::new();
    for line in text.lines() {
        out.push_str(line);
        out.push('\n');
        match line.strip_prefix("} ").and_then(|rest| rest.strip_suffix(';')) {
            Some(name) => {
                if fields.first().is_some_and(|field| field.ends_with("struct_size;")) {
                    // An array, or a handle within the struct.
                    let braced = |field: &str| {
                        let kind = field.trim_start().split(' ').next().unwrap_or_default();
                        let handle = kind.starts_with("runtime_") && kind != "runtime_status" && !kind.ends_with("_fn");
                        handle || field.contains('[')
                    };
                    let zero = |field: &&str| if braced(field) { "{ 0 }" } else { "0" };
                    let zeros: Vec<&str> = fields[1..].iter().map(zero).collect();
                    let name_upper = name.to_uppercase();
                    let (head, value) = (
                        format!("#define {name_upper}_INIT"),
                        format!("{{ (uint32_t)sizeof({name}), {} }}", zeros.join(", ")),
                    );
                    let fits = head.len() + value.len() < 120;
                    let between = if fits { " " } else { " \\\n    " };
                    out.push_str(&format!(
                        "\n/**\n * All defaults: {name} x = {name_upper}_INIT;\n */\n{head}{between}{value}\n"
                    ));
                }
                fields.clear();
            }
            None if line.starts_with("typedef struct") => fields.clear(),
            None if line.starts_with("    ") && line.ends_with(';') => fields.push(line),
            None => {}
        }
    }
    out
}
