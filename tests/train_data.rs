//! Rows of training data: token ids and masks against the golden ones, each form of row, and lines that are wrong.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

mod train_support;

use runtime::backend::BackendChoice;
use runtime::model::LoadedModel;
use runtime::train::data::{Row, read};
use runtime::train::{DataReport, LossOn, Recipe};
use std::path::Path;
use train_support::{golden, json, open, smollm2};

fn read_with(model: &LoadedModel, recipe: &Recipe) -> Result<(Vec<Row>, DataReport), String> {
    read(recipe, model.tokenizer().unwrap(), model.chat.as_ref()).map_err(|e| e.to_string())
}

fn like_golden(model: &Path, rows: &str) {
    let model = open(model, BackendChoice::Cpu);
    let expected = json(&golden(rows));
    for loss in [LossOn::All, LossOn::Assistant] {
        let recipe = Recipe { data: golden("sft/data.jsonl"), loss, ..Recipe::default() };
        let (rows, report) = read_with(&model, &recipe).unwrap();
        assert_eq!((rows.len(), report.rows, report.truncated), (48, 48, 0));
        for (row, expected) in rows.iter().zip(expected.as_array().unwrap()) {
            let ids: Vec<u64> = row.ids.iter().map(|id| u64::from(*id)).collect();
            assert_eq!(serde_json::json!(ids), expected["ids"], "line {}", row.line);
            let mask: Vec<u8> = row.counted.iter().map(|c| u8::from(*c)).collect();
            match loss {
                LossOn::Assistant => assert_eq!(serde_json::json!(mask), expected["assistant"], "line {}", row.line),
                LossOn::All => assert!(mask[0] == 0 && mask[1..].iter().all(|m| *m == 1), "line {}", row.line),
            }
        }
    }
}

#[test]
fn tiny_rows_are_the_golden_ones() {
    like_golden(&golden("tiny/chat"), "sft/tiny_rows.json");
}

#[test]
fn smollm2_rows_are_the_golden_ones() {
    if let Some(path) = smollm2() {
        like_golden(&path, "sft/smollm2_rows.json");
    }
}

/// Reads `lines` as a data file called data.jsonl; paths in messages are cut to that.
fn parse(lines: &str, change: impl FnOnce(&mut Recipe)) -> Result<(Vec<Row>, DataReport), String> {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data.jsonl");
    std::fs::write(&data, lines).unwrap();
    let mut recipe = Recipe { data, ..Recipe::default() };
    change(&mut recipe);
    let model = open(&golden("tiny/chat"), BackendChoice::Cpu);
    read_with(&model, &recipe).map_err(|m| m.replace(&format!("{}/", folder.path().display()), ""))
}

const GOOD: &str = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#;

fn refused(line: &[u8], expected: &str) {
    let mut lines = format!("{GOOD}\n\n").into_bytes();
    lines.extend(line);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data.jsonl");
    std::fs::write(&data, lines).unwrap();
    let model = open(&golden("tiny/chat"), BackendChoice::Cpu);
    let message = read_with(&model, &Recipe { data, ..Recipe::default() }).expect_err("refused");
    let message = message.replace(&format!("{}/", folder.path().display()), "");
    assert!(message.starts_with("data.jsonl:3: ") && message.contains(expected), "{message}");
    assert!(!message.contains('\n'), "{message}");
}

#[test]
fn wrong_lines_name_file_and_line() {
    refused(b"{\"messages\": [", "not JSON");
    refused(b"\xff\xfe", "not JSON");
    refused(b"[1, 2]", "a row must be a JSON object");
    refused(b"{\"message\": []}", "found 'message'");
    refused(b"{}", "found none");
    refused(b"{\"messages\": []}", "'messages' is empty");
    refused(b"{\"messages\": \"hi\"}", "'messages' must be a list");
    refused(b"{\"messages\": [{\"content\": \"hi\"}]}", "messages[0] must be an object with a 'role'");
    refused(b"{\"prompt\": \"a\"}", "must both be strings or both be lists");
    refused(b"{\"prompt\": \"a\", \"completion\": []}", "must both be strings or both be lists");
    refused(b"{\"text\": 5}", "'text' must be a string");
    refused(b"{\"text\": \"a\"}", "use loss 'all'");
    refused(b"{\"text\": \"a\", \"prompt\": \"b\"}", "expected the key");
    refused(b"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], \"tools\": 5}", "'tools' must be a list");
}

#[test]
fn a_missing_or_empty_file_is_an_error() {
    assert!(parse("\n\n", |_| ()).unwrap_err().contains("data.jsonl: no rows"));
    assert!(parse("", |r| r.data.push("x")).is_err());
}

#[test]
fn completions_count_and_end_with_end_of_text() {
    let model = open(&golden("tiny/chat"), BackendChoice::Cpu);
    let tokenizer = model.tokenizer().unwrap();
    let eos = tokenizer.eos().unwrap();
    let lines = r#"{"prompt":"Say it:","completion":" hello there"}"#;
    let (rows, _) = parse(lines, |_| ()).unwrap();
    let row = &rows[0];
    assert_eq!(row.ids.last(), Some(&eos));
    let counted: Vec<u32> = row.ids.iter().zip(&row.counted).filter(|(_, c)| **c).map(|(id, _)| *id).collect();
    assert_eq!(tokenizer.decode(&counted, true), " hello there");
    let (all, report) = parse(lines, |r| r.loss = LossOn::All).unwrap();
    assert_eq!(all[0].ids, row.ids);
    assert_eq!(report.counted, row.ids.len() - 1);
}

#[test]
fn a_completion_in_messages_equals_the_whole_conversation() {
    let split = r#"{"prompt":[{"role":"user","content":"a"}],"completion":[{"role":"assistant","content":"b"}]}"#;
    let (split, _) = parse(split, |_| ()).unwrap();
    let (whole, _) = parse(GOOD, |_| ()).unwrap();
    assert_eq!(split, whole);
}

#[test]
fn texts_count_all_tokens_and_end_with_end_of_text() {
    let model = open(&golden("tiny/chat"), BackendChoice::Cpu);
    let eos = model.tokenizer().unwrap().eos().unwrap();
    let (rows, report) = parse("{\"text\":\"one two three\"}\n", |r| r.loss = LossOn::All).unwrap();
    assert_eq!(rows[0].ids.last(), Some(&eos));
    assert_eq!(report.counted, rows[0].ids.len() - 1);
}

#[test]
fn what_is_cut_or_left_out_is_reported() {
    let silent = r#"{"messages":[{"role":"user","content":"nobody answers"}]}"#;
    let lines = format!("{GOOD}\n{silent}\n{GOOD}\n");
    let (rows, report) = parse(&lines, |_| ()).unwrap();
    assert_eq!((rows.len(), report.rows, report.skipped, report.truncated), (2, 2, vec![2], 0));
    assert_eq!(rows[1].line, 3);
    let length = rows[0].ids.len();
    let (rows, report) = parse(GOOD, |r| r.max_length = length - 1).unwrap();
    assert_eq!((rows[0].ids.len(), report.truncated, report.longest), (length - 1, 1, length - 1));
    let message = parse(GOOD, |r| r.max_length = 3).unwrap_err();
    assert!(message.contains("none of the 1 rows has a token that the loss counts within max_length 3"), "{message}");
}
