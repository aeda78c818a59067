//! The rules of the house that a compiler does not check: who may use whom, where `unsafe` may stand, which files
//! belong to an op. Each rule is a table here; an exception is a row with its reason.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

#[path = "tidy/source.rs"]
mod source;

use source::{File, paths_used, root, rust_files};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What a module of `src/` may name of its siblings, as prefixes of paths below `crate::`.
///
/// Read from top to bottom, this is the dependency order: plain data, files and text, programs, backends, models,
/// then what runs them, then what the outside world talks to.
const EDGES: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("tensor", &["error"]),
    // A checkpoint is its tensors, its configuration as plain data and the parts of its tokenizer. What a family
    // calls its keys and tensors is `model`'s knowledge, kept there as data.
    (
        "format",
        &["error", "tensor", "model::config", "model::families", "model::keys", "model::rope", "model::weights"],
    ),
    ("token", &["error", "format"]),
    // Which gate an op applies is a word of the configuration: plain data.
    ("program", &["error", "tensor", "model::config::Activation"]),
    // Backends decode quantised blocks with the format's pure functions, so that there is one truth for them.
    ("backend", &["error", "tensor", "program", "format::quant", "model::config::Activation"]),
    ("model", &["error", "tensor", "token", "format", "program", "backend"]),
    // Sums over processes know devices and their buffers, nothing of what is trained.
    ("collective", &["error", "tensor", "backend"]),
    ("engine", &["error", "tensor", "token", "format", "program", "backend", "model"]),
    // Training shares the device with serving through these two, and knows nothing else of the engine.
    (
        "train",
        &[
            "error",
            "tensor",
            "token",
            "format",
            "program",
            "backend",
            "collective",
            "model",
            "engine::memory",
            "engine::pacing",
        ],
    ),
    // Answers come from the engine and gradients from the trainer, of the same weights: it stands above both.
    ("grpo", &["error", "tensor", "token", "format", "backend", "model", "engine", "train"]),
    // Jobs that train beside requests: it needs engine and trainer, and knows nothing of HTTP.
    ("tune", &["error", "tensor", "token", "format", "backend", "model", "engine", "train"]),
    ("serve", &["error", "token", "format", "backend", "model", "engine", "train", "tune"]),
    // What an embedding program needs, in safe Rust; the C ABI puts it into C's words.
    ("embed", &["error", "tensor", "token", "format", "backend", "model", "engine", "train"]),
    ("ffi", &["error", "token", "format", "backend", "model", "engine", "train", "embed"]),
];

/// Where `unsafe` may stand, and why. Folders end in `/`.
const UNSAFE: &[(&str, &str)] = &[
    ("src/backend/cuda/", "calls the NVIDIA driver"),
    ("src/backend/wgpu/", "creates trusted shader modules"),
    ("src/backend/foreign.rs", "hands on handles that a host promises to be valid"),
    ("src/ffi/", "the C ABI"),
    ("src/bin/runtime/main.rs", "sets an environment variable before any thread starts"),
    ("src/format/source.rs", "a memory map is only as constant as the file below it"),
    ("src/backend/cpu/gemm.rs", "the gemm crate takes raw pointers and strides"),
];

/// Calls that end the process or write to its streams; the library returns errors instead.
const FORBIDDEN: &[&str] = &[
    ".unwrap()",
    ".expect(",
    "panic!(",
    "todo!(",
    "unimplemented!(",
    "println!(",
    "eprintln!(",
    "print!(",
    "eprint!(",
    "dbg!(",
    "process::exit(",
    "process::abort(",
];

/// Files that an op lacks. `*` stands for every op.
const MISSING: &[(&str, &str, &str)] =
    &[("attention_backward", "shaders", "three passes: attention_delta, attention_dq, attention_dkv")];

/// Shaders and kernels that are no op of their own.
const PARTS: &[&str] = &["common", "activation", "decode", "live", "reduce", "tile", "codes", "sum"];

/// A file longer than this says why in its first comment.
const MAX_LINES: usize = 600;

#[test]
fn modules_use_only_what_lies_below_them() {
    let mut wrong = Vec::new();
    for file in rust_files("src") {
        let Some(module) = file.module() else { continue };
        let Some((_, allowed)) = EDGES.iter().find(|(name, _)| *name == module) else {
            wrong.push(format!("{}: module '{module}' has no row in EDGES", file.path));
            continue;
        };
        for path in paths_used(&file.code) {
            let own = path == module || path.starts_with(&format!("{module}::"));
            // `crate::Error` and `crate::Result` are re-exports of `error`.
            let root_item = path.starts_with(char::is_uppercase);
            let fits = |prefix: &&str| path == **prefix || path.starts_with(&format!("{prefix}::"));
            if !(own || root_item || allowed.iter().any(fits)) {
                wrong.push(format!("{}: '{module}' may not use crate::{path}", file.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_stands_only_where_it_must() {
    let mut wrong = Vec::new();
    for file in rust_files("src") {
        let allowed = UNSAFE.iter().any(|(place, _)| match place.strip_suffix('/') {
            Some(_) => file.path.starts_with(place),
            None => file.path == *place,
        });
        for (number, line) in file.code.lines().enumerate() {
            if !allowed && source::words(line).any(|word| word == "unsafe") {
                wrong.push(format!("{}:{}: {}", file.path, number + 1, line.trim()));
            }
        }
    }
    for (place, _) in UNSAFE {
        if !root().join(place).exists() {
            wrong.push(format!("{place} is in the table and not in the tree"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_library_neither_panics_nor_prints() {
    let mut wrong = Vec::new();
    for file in rust_files("src").into_iter().filter(|f| !f.path.starts_with("src/bin/")) {
        for (number, line) in file.code.lines().enumerate() {
            for call in FORBIDDEN {
                let found = line.match_indices(call).any(|(at, _)| {
                    // `println!(` is not `eprintln!(`, and neither is `reprint!(`.
                    call.starts_with('.') || !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_')
                });
                if found {
                    wrong.push(format!("{}:{}: {}", file.path, number + 1, line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_op_has_the_same_name_everywhere() {
    let ops = op_names();
    assert!(ops.len() > 10, "found only {ops:?} in src/program/op.rs");
    let table = fs::read_to_string(root().join("tests/ops.rs")).unwrap_or_default()
        + &rust_files("tests/ops").iter().map(|f| f.text.as_str()).collect::<String>();
    let lower = table.to_lowercase();
    let mut wrong = Vec::new();
    for op in &ops {
        // `Op::MatMulDx` for matmul_dx: case and underscores aside, the variant is the name.
        let variant = format!("op::{}", op.replace('_', ""));
        let places = [
            ("shaders", root().join(format!("shaders/{op}.wgsl")).exists()),
            ("kernels", root().join(format!("kernels/{op}.cu")).exists()),
            ("tests/ops.rs", table.contains(&format!("\"{op}\"")) || lower.contains(&variant)),
        ];
        for (place, exists) in places {
            let excused = MISSING.iter().any(|(name, at, _)| (*name == "*" || name == op) && *at == place);
            if !exists && !excused {
                wrong.push(format!("op '{op}' is missing in {place}"));
            }
        }
    }
    for (folder, extension) in [("shaders", "wgsl"), ("kernels", "cu")] {
        for name in names_in(folder, extension) {
            // A faster variant starts with the architecture and ends in the op: `sm90_matmul.cu`; a variant for some
            // shapes or types starts with the op: `matmul_rows.wgsl`.
            let belongs = ops.iter().any(|op| name.starts_with(op.as_str()) || name.ends_with(&format!("_{op}")));
            if !belongs && !PARTS.iter().any(|part| name.starts_with(part)) {
                wrong.push(format!("{folder}/{name}.{extension} is named after no op"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The names in `Op::name`.
fn op_names() -> Vec<String> {
    let text = fs::read_to_string(root().join("src/program/op.rs")).unwrap();
    let body = text.split("fn name(&self)").nth(1).expect("Op::name");
    let body = body.split("\n    }\n").next().unwrap();
    body.lines().filter_map(|line| line.split_once("=> \"")?.1.split('"').next().map(str::to_owned)).collect()
}

fn names_in(folder: &str, extension: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(root().join(folder)) else { return Vec::new() };
    entries
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let fits = path.extension().is_some_and(|e| e == extension);
            fits.then(|| path.file_stem().unwrap().to_string_lossy().into_owned())
        })
        .collect()
}

#[test]
fn a_long_file_says_why() {
    let mut wrong = Vec::new();
    for file in sources() {
        let lines = file.text.lines().count();
        let opening: String = file
            .text
            .lines()
            .take_while(|line| line.starts_with("//") || line.starts_with('#') || line.starts_with("\"\"\""))
            .collect::<Vec<_>>()
            .join(" ");
        if lines > MAX_LINES && !opening.contains("long because") {
            wrong.push(format!("{}: {lines} lines and no 'long because …' in its first comment", file.path));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_scratch_files() {
    const TOP: &[&str] = &[
        ".ci",
        ".cargo",
        ".github",
        ".gitattributes",
        ".gitignore",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "README.md",
        "benches",
        "bindings",
        "build.rs",
        "cbindgen.toml",
        "clippy.toml",
        "docs",
        "examples",
        "fuzz",
        "include",
        "kernels",
        "rust-toolchain.toml",
        "rustfmt.toml",
        "scripts",
        "shaders",
        "src",
        "tests",
    ];
    let Some(files) = tracked() else { return };
    let mut wrong = Vec::new();
    for path in files {
        let top = path.split('/').next().unwrap();
        let name = path.rsplit('/').next().unwrap().to_lowercase();
        let scratch = [".orig", ".rej", ".bak", ".tmp", ".swp", "~", ".log", ".old"].iter().any(|e| name.ends_with(e))
            || ["scratch", "untitled", "copy_of", "deleteme"].iter().any(|s| name.starts_with(s));
        if scratch || !TOP.contains(&top) {
            wrong.push(path);
        }
    }
    assert!(wrong.is_empty(), "not part of the house: {wrong:?}");
}

#[test]
fn the_public_header_is_mostly_documentation() {
    let text = fs::read_to_string(root().join("include/runtime.h")).unwrap();
    let (mut inside, mut comment, mut all) = (false, 0, 0);
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        all += 1;
        inside |= line.starts_with("/*");
        comment += usize::from(inside);
        inside &= !line.ends_with("*/");
    }
    let share = 100 * comment / all;
    println!("include/runtime.h: {comment} of {all} lines are comment ({share} %)");
    assert!(share >= 70, "only {share} % of include/runtime.h is comment");
}

/// Not a rule, a mirror: run with `--nocapture` to see how large each folder has become.
#[test]
fn lines_per_folder() {
    let mut lines: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for file in sources() {
        let folder = Path::new(&file.path).parent().unwrap().display().to_string();
        let entry = lines.entry(folder).or_default();
        *entry = (entry.0 + 1, entry.1 + file.text.lines().count());
    }
    let total: usize = lines.values().map(|(_, n)| n).sum();
    for (folder, (files, n)) in &lines {
        println!("{n:>7} lines {files:>4} files  {folder}");
    }
    println!("{total:>7} lines in all");
    assert!(total > 0);
}

/// Everything written by hand in a programming language.
fn sources() -> Vec<File> {
    let folders =
        ["src", "tests", "benches", "examples", "shaders", "kernels", "scripts", "bindings", "include", "fuzz"];
    let written = ["rs", "wgsl", "cu", "cuh", "py", "sh", "c", "hpp"];
    folders.iter().flat_map(|folder| source::files(folder, &written)).collect()
}

/// What git tracks; `None` in a source archive.
fn tracked() -> Option<Vec<String>> {
    let output = std::process::Command::new("git").arg("-C").arg(root()).args(["ls-files", "-z"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let list: Vec<String> = text.split('\0').filter(|p| !p.is_empty()).map(str::to_owned).collect();
    (output.status.success() && !list.is_empty()).then_some(list)
}
