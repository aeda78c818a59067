//! Rust source as text: comments, strings and test modules taken out, and the paths that it names.

use std::fs;
use std::path::{Path, PathBuf};

/// A source file.
pub struct File {
    /// Relative to the repository, with forward slashes.
    pub path: String,
    /// As it stands.
    pub text: String,
    /// Without comments, string contents and `#[cfg(test)]` items; line numbers are kept. Empty for other languages.
    pub code: String,
}

impl File {
    /// The top-level module of the library that the file belongs to; `None` for lib.rs and the program.
    pub fn module(&self) -> Option<&str> {
        let rest = self.path.strip_prefix("src/")?;
        let name = rest.split('/').next()?.trim_end_matches(".rs");
        (name != "bin" && name != "lib").then_some(name)
    }
}

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Rust files below `folder` that are not test modules of their own.
pub fn rust_files(folder: &str) -> Vec<File> {
    files(folder, &["rs"])
        .into_iter()
        .filter(|f| !f.path.ends_with("/tests.rs") && !f.path.contains("/tests/"))
        .collect()
}

/// Files below `folder` with one of these extensions, in order of path.
pub fn files(folder: &str, extensions: &[&str]) -> Vec<File> {
    let mut list = Vec::new();
    walk(&root().join(folder), extensions, &mut list);
    list.sort();
    list.into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
            let code = if path.ends_with(".rs") { without_tests(&bare(&text)) } else { String::new() };
            File { path, text, code }
        })
        .collect()
}

fn walk(folder: &Path, extensions: &[&str], list: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.map(|e| e.unwrap().path()) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && !["target", "node_modules", "golden"].contains(&name.as_str()) {
            walk(&path, extensions, list);
        } else if path.extension().is_some_and(|e| extensions.iter().any(|x| e == *x)) {
            list.push(path);
        }
    }
}

/// Blanks comments and the contents of strings and character literals; keeps every newline.
fn bare(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    let keep_lines = |out: &mut String, span: &[char]| out.extend(span.iter().filter(|c| **c == '\n'));
    while at < chars.len() {
        let rest = &chars[at..];
        let len = match rest {
            ['/', '/', ..] => rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
            ['/', '*', ..] => block_comment(rest),
            ['r', '"' | '#', ..] if !ends_in_word(&out) => raw_string(rest),
            ['"', ..] => 1 + quoted(&rest[1..], '"'),
            ['\'', '\\', ..] => 1 + quoted(&rest[1..], '\''),
            ['\'', _, '\'', ..] => 3,
            _ => 0,
        };
        if len == 0 {
            out.push(chars[at]);
            at += 1;
        } else {
            let comment = chars[at] == '/';
            out.push_str(if comment { " " } else { "\"\"" });
            keep_lines(&mut out, &rest[..len]);
            at += len;
        }
    }
    out
}

fn ends_in_word(out: &str) -> bool {
    out.ends_with(|c: char| c.is_alphanumeric() || c == '_')
}

fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at + 1 < rest.len() {
        match (rest[at], rest[at + 1]) {
            ('/', '*') => (depth, at) = (depth + 1, at + 2),
            ('*', '/') => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

/// Length of `r"…"` or `r#"…"#`; 0 for a raw identifier.
fn raw_string(rest: &[char]) -> usize {
    let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
    if rest.get(1 + hashes) != Some(&'"') {
        return 0;
    }
    let mut at = 2 + hashes;
    while at < rest.len() {
        if rest[at] == '"' && rest[at + 1..].iter().take_while(|c| **c == '#').count() >= hashes {
            return at + 1 + hashes;
        }
        at += 1;
    }
    rest.len()
}

/// Length up to and with the closing quote.
fn quoted(rest: &[char], quote: char) -> usize {
    let mut at = 0;
    while at < rest.len() {
        match rest[at] {
            '\\' => at += 2,
            c if c == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// Blanks each item behind `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        out.push_str(&rest[..at]);
        let item = &rest[at..];
        let mut depth = 0usize;
        let end = item
            .char_indices()
            .find_map(|(i, c)| {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                let done = depth == 0 && (c == '}' || c == ';');
                done.then_some(i + 1)
            })
            .unwrap_or(item.len());
        out.extend(item[..end].chars().filter(|c| *c == '\n'));
        rest = &item[end..];
    }
    out.push_str(rest);
    out
}

/// Identifiers of a line.
pub fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty())
}

/// Every path below `crate::` that the code names, groups (`crate::{a, b::c}`) taken apart.
pub fn paths_used(code: &str) -> Vec<String> {
    let mut list = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            tree(&code[at + "crate::".len()..], "", &mut list);
        }
    }
    list.sort();
    list.dedup();
    list
}

/// Reads one use-tree after `prefix`; returns how much of `text` it took.
fn tree(text: &str, prefix: &str, list: &mut Vec<String>) -> usize {
    let text_start = text.len();
    let mut rest = text.trim_start();
    if let Some(group) = rest.strip_prefix('{') {
        rest = group;
        loop {
            rest = rest.trim_start();
            match rest.chars().next() {
                Some(',') => rest = &rest[1..],
                Some('}') => return text_start - rest.len() + 1,
                Some(c) if c.is_alphabetic() || c == '_' || c == '*' || c == '{' => {
                    rest = &rest[tree(rest, prefix, list)..];
                    // `a as b`: what it is called here does not matter.
                    rest = &rest[rest.find([',', '}']).unwrap_or(rest.len())..];
                }
                _ => return text_start - rest.len(),
            }
        }
    }
    let len = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '*').unwrap_or(rest.len());
    let path = if prefix.is_empty() { rest[..len].to_owned() } else { format!("{prefix}::{}", &rest[..len]) };
    rest = &rest[len..];
    match rest.strip_prefix("::") {
        Some(more) if !more.starts_with('<') => {
            let taken = tree(more, &path, list);
            text_start - more.len() + taken
        }
        _ => {
            list.push(path);
            text_start - rest.len()
        }
    }
}

#[test]
fn reads_source() {
    let code = bare("let a = \"crate::x\"; // crate::y\nlet b = r#\"un\"safe\"#; let c = '\"'; fn d<'a>() {} /* { */");
    assert!(!code.contains("crate") && !code.contains("safe") && code.contains("fn d<'a>()"));
    assert_eq!(without_tests("a\n#[cfg(test)]\nmod t { fn x() {} }\nb"), "a\n\n\nb");
    let paths = paths_used("use crate::{a::B, c::{self, d as e}}; fn f(x: crate::g::H) -> crate::Result<()>");
    assert_eq!(paths, ["Result", "a::B", "c::d", "c::self", "g::H"]);
}
