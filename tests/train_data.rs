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
use runtime::train::{BadRows, DataFile, DataReport, LossOn, Recipe};
use std::path::Path;
use train_support::{golden, json, open, smollm2};

fn read_with(model: &LoadedModel, recipe: &Recipe) -> Result<(Vec<Row>, DataReport), String> {
    let (rows, report) = read(recipe, model.tokenizer().unwrap(), model.chat.as_ref()).map_err(|e| e.to_string())?;
    Ok(((0..rows.len()).map(|i| rows.get(i).unwrap()).collect(), report))
}

fn like_golden(model: &Path, rows: &str) {
    let model = open(model, BackendChoice::Cpu);
    let expected = json(&golden(rows));
    for loss in [LossOn::All, LossOn::Assistant] {
        let recipe = Recipe { data: vec![golden("sft/data.jsonl").into()], loss, ..Recipe::default() };
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
    parse_as("data.jsonl", lines.as_bytes(), change)
}

fn parse_as(name: &str, bytes: &[u8], change: impl FnOnce(&mut Recipe)) -> Result<(Vec<Row>, DataReport), String> {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join(name);
    std::fs::write(&data, bytes).unwrap();
    let mut recipe = Recipe { data: vec![data.into()], ..Recipe::default() };
    change(&mut recipe);
    let model = open(&golden("tiny/chat"), BackendChoice::Cpu);
    read_with(&model, &recipe).map_err(|m| m.replace(&format!("{}/", folder.path().display()), ""))
}

const GOOD: &str = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#;

fn refused(line: &[u8], expected: &str) {
    let mut lines = format!("{GOOD}\n\n").into_bytes();
    lines.extend(line);
    let message = parse_as("data.jsonl", &lines, |_| ()).expect_err("refused");
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
    assert!(parse("", |r| r.data = vec!["nowhere".into()]).is_err());
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

/// Every form of the same conversation gives the same tokens.
#[test]
fn sharegpt_and_alpaca_are_messages() {
    let (expected, _) = parse(GOOD, |_| ()).unwrap();
    for row in [
        r#"{"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}]}"#,
        r#"{"conversations":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
        r#"{"instruction":"a","input":"","output":"b"}"#,
        r#"{"instruction":"a","output":"b","text":"the same once more"}"#,
    ] {
        assert_eq!(parse(row, |_| ()).unwrap().0, expected, "{row}");
    }
    let (system, _) =
        parse(r#"{"system":"s","conversations":[{"from":"human","value":"a\nc"},{"from":"gpt","value":"b"}]}"#, |_| ())
            .unwrap();
    assert_eq!(parse(r#"{"instruction":"a","input":"c","output":"b","system":"s"}"#, |_| ()).unwrap().0, system);
    let history = r#"{"instruction":"c","output":"d","history":[["a","b"]]}"#;
    let turns = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"},{"role":"assistant","content":"d"}]}"#;
    assert_eq!(parse(history, |_| ()).unwrap().0, parse(turns, |_| ()).unwrap().0);
    refused(br#"{"conversations":[{"from":"nobody","value":"a"}]}"#, "conversations[0]: unknown 'from' \"nobody\"");
    refused(br#"{"conversations":[{"value":"a"}]}"#, "conversations[0]: expected an object");
    refused(br#"{"conversations":[{"from":"function_call","value":"f("}]}"#, "is not JSON");
    refused(br#"{"instruction":"a"}"#, "'output' must be a string");
}

/// Without a chat template Alpaca's rows get Stanford's text, and only the output counts.
#[test]
fn alpaca_without_a_chat_template() {
    let model = open(&golden("tiny/chat"), BackendChoice::Cpu);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("a.json");
    std::fs::write(&data, r#"[{"instruction":"Add.","input":"1 and 2","output":"3"}]"#).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    let (rows, _) = read(&Recipe { data: vec![data.into()], ..Recipe::default() }, tokenizer, None).unwrap();
    let row = rows.get(0).unwrap();
    let text = tokenizer.decode(&row.ids, true);
    assert!(text.contains("### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:3"), "{text}");
    let counted: Vec<u32> = row.ids.iter().zip(&row.counted).filter(|(_, c)| **c).map(|(id, _)| *id).collect();
    assert_eq!(tokenizer.decode(&counted, true), "3");
}

/// The same 48 rows as JSON Lines, as a JSON list and as Parquet (written by pyarrow, in both of its usual compressions).
#[cfg(feature = "parquet")]
#[test]
fn json_and_parquet_give_the_same_rows() {
    let text = std::fs::read_to_string(golden("sft/data.jsonl")).unwrap();
    let (expected, _) = parse(&text, |_| ()).unwrap();
    let list = format!("[\n{}\n]\n", text.trim_end().replace('\n', ",\n"));
    let (rows, _) = parse_as("data.json", list.as_bytes(), |_| ()).unwrap();
    assert_eq!(rows.iter().map(|r| &r.ids).collect::<Vec<_>>(), expected.iter().map(|r| &r.ids).collect::<Vec<_>>());
    assert_eq!(rows[0].line, 2);
    for name in ["snappy", "zstd"] {
        let bytes = std::fs::read(golden(&format!("sft/data_{name}.parquet"))).unwrap();
        let (rows, _) = parse_as("data.parquet", &bytes, |_| ()).unwrap();
        assert_eq!(rows, expected, "{name}");
    }
    let message = parse_as("data.parquet", b"PAR1 and nothing else", |_| ()).unwrap_err();
    assert!(message.starts_with("data.parquet") && message.contains("Parquet"), "{message}");
    let message = parse_as("data.json", b"[\n{\"messages\": 1},\n{\"messages\"", |_| ()).unwrap_err();
    assert!(message.starts_with("data.json:2: 'messages' must be a list") && message.contains("lines 3"), "{message}");
}

#[test]
fn malformed_rows_are_counted_and_may_be_left_out() {
    let lines = format!("{GOOD}\n{{broken\n{GOOD}\n{{}}\n");
    let message = parse(&lines, |_| ()).unwrap_err();
    assert!(
        message.starts_with("data.jsonl:2: not JSON") && message.contains("(1 more malformed rows: lines 4)"),
        "{message}"
    );
    let (rows, report) = parse(&lines, |r| r.bad_rows = BadRows::Skip).unwrap();
    assert_eq!((rows.len(), report.malformed), (2, 2));
    assert!(report.complaints[0].contains("data.jsonl:2: not JSON") && report.complaints[1].contains(":4: "));
    let message = parse("{broken\n", |r| r.bad_rows = BadRows::Skip).unwrap_err();
    assert!(message.contains("all 1 rows are malformed"), "{message}");
}

#[test]
fn lengths_files_and_the_first_row_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("a.jsonl"), format!("{GOOD}\n").repeat(19)).unwrap();
    let long = r#"{"messages":[{"role":"user","content":"a a a a a a a a"},{"role":"assistant","content":"b"}]}"#;
    std::fs::write(path("b.jsonl"), long).unwrap();
    let data = vec![DataFile::from(path("a.jsonl")), DataFile { path: path("b.jsonl"), weight: 2.0 }];
    let model = open(&golden("tiny/chat"), BackendChoice::Cpu);
    let (rows, report) = read_with(&model, &Recipe { data, ..Recipe::default() }).unwrap();
    let (short, long) = (rows[0].ids.len(), rows[19].ids.len());
    assert!(long > short);
    assert_eq!((report.shortest, report.median, report.p95, report.longest), (short, short, short, long));
    let files: Vec<_> = report.files.iter().map(|(_, rows, weight)| (*rows, *weight)).collect();
    assert_eq!(files, [(19, 1.0), (1, 2.0)]);
    let counted: String =
        report.example.iter().filter(|(_, counted)| *counted).map(|(text, _)| text.as_str()).collect();
    assert!(counted.starts_with('b') || counted.contains("b<|im_end|>"), "{:?}", report.example);
    let whole: String = report.example.iter().map(|(text, _)| text.as_str()).collect();
    assert_eq!(whole, model.tokenizer().unwrap().decode(&rows[0].ids, false));
}
