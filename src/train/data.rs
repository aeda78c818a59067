//! Training data: JSONL rows become token ids and a mask of the tokens that the loss counts.
//!
//! Three kinds of row, told apart by their keys, with TRL's meaning:
//!
//! | keys | ids | counted by `assistant` |
//! |---|---|---|
//! | `messages` (and `tools`) | the chat template's text | each assistant turn, end-of-turn token included |
//! | `prompt`, `completion` | both texts, then end-of-text; two lists of messages: the chat template's text | the completion |
//! | `text` | the text, then end-of-text | refused: use `all` |
//!
//! Texts get what the model expects around them (a BOS token, where the tokenizer adds one); what a chat template
//! wrote is taken as it is. `all` counts every token. A row's first token never counts: nothing predicts it.

use super::encode::encode;
use super::recipe::{LossOn, Recipe};
use crate::error::{Error, Result};
use crate::token::{ChatTemplate, Tokenizer};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// One row of the data file as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// At least two tokens.
    pub ids: Vec<u32>,
    /// Which of them the loss counts; the first never.
    pub counted: Vec<bool>,
    /// Line in the data file, from 1.
    pub line: usize,
}

impl Row {
    /// How many tokens the loss counts.
    pub fn counted(&self) -> usize {
        self.counted.iter().filter(|c| **c).count()
    }
}

/// What was read, and what was left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct DataReport {
    /// Rows that will be trained on.
    pub rows: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Tokens that the loss counts.
    pub counted: usize,
    /// Tokens of the longest row.
    pub longest: usize,
    /// Rows cut to `max_length`.
    pub truncated: usize,
    /// Lines of rows left out because the loss counts none of their tokens (what remains after the cut, where
    /// they were cut).
    pub skipped: Vec<usize>,
    /// Bins that packing made of the rows; 0 without packing.
    pub bins: usize,
}

impl DataReport {
    /// Cuts a row to `recipe.max_length` and takes note of it; `None` where the loss then counts none of its tokens.
    pub(super) fn take(&mut self, mut row: Row, recipe: &Recipe) -> Option<Row> {
        if row.ids.len() > recipe.max_length {
            row.ids.truncate(recipe.max_length);
            row.counted.truncate(recipe.max_length);
            self.truncated += 1;
        }
        if let Some(first) = row.counted.first_mut() {
            *first = false;
        }
        if row.counted() == 0 {
            self.skipped.push(row.line);
            return None;
        }
        self.rows += 1;
        self.tokens += row.ids.len();
        self.counted += row.counted();
        self.longest = self.longest.max(row.ids.len());
        Some(row)
    }
}

/// One row, from JSON in one of the forms above; `line` is its number in messages.
///
/// # Errors
/// [`Error::Invalid`] naming the key that is wrong; those of tokenizer and template.
pub fn row(
    value: &Value,
    line: usize,
    loss: LossOn,
    tokenizer: &Tokenizer,
    chat: Option<&ChatTemplate>,
) -> Result<Row> {
    let (ids, counted) = encode(value, loss, tokenizer, chat)?;
    Ok(Row { ids, counted, line })
}

/// Reads `recipe.data`.
///
/// # Errors
/// [`Error::Io`]; [`Error::Invalid`] starting with `file:line:` for a row that is not JSON, has none of the known
/// forms or does not tokenize; [`Error::Invalid`] where no row is left.
pub fn read(recipe: &Recipe, tokenizer: &Tokenizer, chat: Option<&ChatTemplate>) -> Result<(Vec<Row>, DataReport)> {
    let path = &recipe.data;
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let (mut rows, mut report) = (Vec::new(), DataReport::default());
    for (index, line) in BufReader::new(file).split(b'\n').enumerate() {
        let bytes = line.map_err(|e| Error::io(path, e))?;
        let at = index + 1;
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let row = parse(&bytes).and_then(|row| encode(&row, recipe.loss, tokenizer, chat));
        let (ids, counted) = row.map_err(|e| located(path, at, &e))?;
        rows.extend(report.take(Row { ids, counted, line: at }, recipe));
    }
    if rows.is_empty() {
        return Err(nothing_left(path, recipe, &report));
    }
    Ok((rows, report))
}

fn parse(bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|e| {
        // The row is one line, so serde's "at line 1" would contradict the line given before.
        let message = e.to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        Error::invalid(format!("not JSON: {message} at column {}", e.column()))
    })
}

fn located(path: &Path, line: usize, error: &Error) -> Error {
    Error::invalid(format!("{}:{line}: {error}", path.display()))
}

fn nothing_left(path: &Path, recipe: &Recipe, report: &DataReport) -> Error {
    let file = path.display();
    if report.skipped.is_empty() {
        return Error::invalid(format!("{file}: no rows; expected one JSON object a line"));
    }
    let why = match (recipe.loss, report.truncated) {
        (_, cut) if cut > 0 => format!(" within max_length {}", recipe.max_length),
        (LossOn::Assistant, _) => " (loss 'assistant' counts assistant turns and completions)".into(),
        (LossOn::All, _) => String::new(),
    };
    Error::invalid(format!("{file}: none of the {} rows has a token that the loss counts{why}", report.skipped.len()))
}
