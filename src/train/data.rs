//! Training data: rows of files become token ids and a mask of the tokens that the loss counts.
//!
//! Five kinds of row, told apart by their keys, with TRL's meaning:
//!
//! | keys | ids | counted by `assistant` |
//! |---|---|---|
//! | `messages` (and `tools`) | the chat template's text | each assistant turn, end-of-turn token included |
//! | `conversations` (ShareGPT) | as `messages`: `from` and `value` become role and content | the same |
//! | `instruction`, `input`, `output` (Alpaca) | as `messages`; without a chat template Stanford's text | the output |
//! | `prompt`, `completion` | both texts, then end-of-text; two lists of messages: the chat template's text | the completion |
//! | `text` | the text, then end-of-text | refused: use `all` |
//!
//! Texts get what the model expects around them (a BOS token, where the tokenizer adds one); what a chat template
//! wrote is taken as it is. `all` counts every token. A row's first token never counts: nothing predicts it.
//! Which files there may be: [`super::files`].

use super::encode::encode;
use super::files::{DataFile, each_row};
use super::recipe::{BadRows, LossOn, Recipe};
use super::rows::Rows;
use crate::error::{Error, Result};
use crate::token::{ChatTemplate, Tokenizer};
use rayon::prelude::*;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// One row of a data file as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// At least two tokens.
    pub ids: Vec<u32>,
    /// Which of them the loss counts; the first never.
    pub counted: Vec<bool>,
    /// Line in the data file (row of a Parquet file), from 1.
    pub line: usize,
}

impl Row {
    /// How many tokens the loss counts.
    pub fn counted(&self) -> usize {
        self.counted.iter().filter(|c| **c).count()
    }
}

/// What was read, and what was left out.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct DataReport {
    /// Rows that will be trained on.
    pub rows: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Tokens that the loss counts.
    pub counted: usize,
    /// Tokens of the longest row.
    pub longest: usize,
    /// Tokens of the shortest row.
    pub shortest: usize,
    /// Half of the rows have at most so many tokens.
    pub median: usize,
    /// 95 of 100 rows have at most so many tokens.
    pub p95: usize,
    /// Rows cut to `max_length`.
    pub truncated: usize,
    /// Lines of rows left out because the loss counts none of their tokens (what remains after the cut, where
    /// they were cut).
    pub skipped: Vec<usize>,
    /// Rows left out because they are malformed, and what is wrong with the first of them (`file:line: …`).
    pub malformed: usize,
    /// Messages of the first malformed rows.
    pub complaints: Vec<String>,
    /// Files, with the rows that each gave and its weight.
    pub files: Vec<(PathBuf, usize, f64)>,
    /// The first row as the model sees it, in parts that the loss counts or not.
    pub example: Vec<(String, bool)>,
    /// Bins that packing made of the rows; 0 without packing.
    pub bins: usize,
}

impl DataReport {
    /// Fills in the lengths of some rows.
    pub(crate) fn measure(&mut self, rows: &Rows) {
        let mut lengths: Vec<usize> = (0..rows.len()).map(|i| rows.tokens(i)).collect();
        lengths.sort_unstable();
        let count = lengths.len();
        let at = |share: usize| lengths.get((count * share).div_ceil(100).max(1) - 1).copied().unwrap_or(0);
        (self.shortest, self.median, self.p95, self.longest) = (at(0), at(50), at(95), at(100));
    }

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
        Some(row)
    }
}

/// Rows that are tokenised at a time, on all cores.
const CHUNK: usize = 512;
/// Malformed rows whose messages are kept.
const COMPLAINTS: usize = 10;

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
/// [`Error::Io`]; [`Error::Format`] for a Parquet file that cannot be read; [`Error::Invalid`] starting with
/// `file:line:` for a row that is not JSON, has none of the known forms or does not tokenize, unless
/// `recipe.bad_rows` leaves these out; [`Error::Invalid`] where no row is left.
pub fn read(recipe: &Recipe, tokenizer: &Tokenizer, chat: Option<&ChatTemplate>) -> Result<(Rows, DataReport)> {
    read_files(&recipe.data, recipe, tokenizer, chat)
}

/// As [`read`], for other files than the recipe's training data.
///
/// # Errors
/// As [`read`].
pub fn read_files(
    files: &[DataFile],
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    chat: Option<&ChatTemplate>,
) -> Result<(Rows, DataReport)> {
    let spill = Some(recipe.output.as_path()).filter(|folder| !folder.as_os_str().is_empty());
    let mut set = Set { recipe, tokenizer, chat, rows: Rows::new(spill), report: DataReport::default(), bad: vec![] };
    for file in files {
        let before = set.rows.len();
        set.rows.next_file();
        let mut waiting: Vec<(usize, Result<Value>)> = Vec::with_capacity(CHUNK);
        each_row(&file.path, &mut |line, row| {
            waiting.push((line, row));
            if waiting.len() < CHUNK { Ok(()) } else { set.take(&file.path, std::mem::take(&mut waiting)) }
        })?;
        set.take(&file.path, waiting)?;
        set.report.files.push((file.path.clone(), set.rows.len() - before, file.weight));
    }
    set.finish(files)
}

struct Set<'a> {
    recipe: &'a Recipe,
    tokenizer: &'a Tokenizer,
    chat: Option<&'a ChatTemplate>,
    rows: Rows,
    report: DataReport,
    /// Lines of malformed rows after the first.
    bad: Vec<usize>,
}

impl Set<'_> {
    /// Tokenises some rows of a file.
    fn take(&mut self, path: &Path, rows: Vec<(usize, Result<Value>)>) -> Result<()> {
        let (loss, tokenizer, chat) = (self.recipe.loss, self.tokenizer, self.chat);
        let encoded: Vec<_> = rows
            .into_par_iter()
            .map(|(line, row)| (line, row.and_then(|row| encode(&row, loss, tokenizer, chat))))
            .collect();
        for (line, row) in encoded {
            match row {
                Ok((ids, counted)) => self.add(line, ids, counted)?,
                Err(error) => {
                    self.report.malformed += 1;
                    if self.report.complaints.len() < COMPLAINTS {
                        self.report.complaints.push(format!("{}:{line}: {error}", path.display()));
                        self.bad.push(line);
                    }
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, line: usize, ids: Vec<u32>, counted: Vec<bool>) -> Result<()> {
        let Some(row) = self.report.take(Row { ids, counted, line }, self.recipe) else { return Ok(()) };
        if self.report.rows == 1 {
            self.report.example = parts(&row, self.tokenizer);
        }
        self.rows.push(&row)
    }

    fn finish(mut self, files: &[DataFile]) -> Result<(Rows, DataReport)> {
        if self.recipe.bad_rows == BadRows::Error
            && let Some(first) = self.report.complaints.first()
        {
            let more = self.report.malformed - 1;
            let listed: Vec<_> = self.bad.iter().skip(1).map(usize::to_string).collect();
            let more = match more {
                0 => String::new(),
                _ => format!(
                    " ({more} more malformed rows: lines {}{})",
                    listed.join(", "),
                    if more > listed.len() { ", …" } else { "" }
                ),
            };
            return Err(Error::invalid(format!("{first}{more}; bad_rows 'skip' would leave such rows out")));
        }
        if self.rows.is_empty() {
            return Err(nothing_left(files, self.recipe, &self.report));
        }
        self.report.measure(&self.rows);
        Ok((self.rows, self.report))
    }
}

/// A row's text in parts that count or not.
fn parts(row: &Row, tokenizer: &Tokenizer) -> Vec<(String, bool)> {
    let pairs: Vec<(u32, bool)> = row.ids.iter().copied().zip(row.counted.iter().copied()).collect();
    let runs = pairs.chunk_by(|a, b| a.1 == b.1);
    runs.map(|run| (tokenizer.decode(&run.iter().map(|(id, _)| *id).collect::<Vec<_>>(), false), run[0].1)).collect()
}

fn nothing_left(files: &[DataFile], recipe: &Recipe, report: &DataReport) -> Error {
    let names: Vec<_> = files.iter().map(|file| file.path.display().to_string()).collect();
    let file = names.join(", ");
    if report.malformed > 0 {
        let first = report.complaints.first().map_or("", String::as_str);
        return Error::invalid(format!("{file}: all {} rows are malformed, the first: {first}", report.malformed));
    }
    if report.skipped.is_empty() {
        return Error::invalid(format!("{file}: no rows; expected one JSON object a line, a JSON list or Parquet"));
    }
    let why = match (recipe.loss, report.truncated) {
        (_, cut) if cut > 0 => format!(" within max_length {}", recipe.max_length),
        (LossOn::Assistant, _) => " (loss 'assistant' counts assistant turns and completions)".into(),
        (LossOn::All, _) => String::new(),
    };
    Error::invalid(format!("{file}: none of the {} rows has a token that the loss counts{why}", report.skipped.len()))
}
