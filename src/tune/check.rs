//! Whether files hold what a job needs: OpenAI's rules, with the line in every message.

use super::records::{Failure, Method};
use super::refusal::Refusal;
use crate::error::{Error, Result};
use crate::model::LoadedModel;
use crate::train::{DataReport, Preference, Recipe};
use crate::train::{data, preference};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Fewest examples of a training file, as at OpenAI.
pub const LEAST_ROWS: usize = 10;

/// Refuses an upload that is no JSON Lines.
pub fn lines(path: &Path) -> std::result::Result<(), Refusal> {
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let mut rows = 0;
    for (index, line) in BufReader::new(file).split(b'\n').enumerate() {
        let line = line.map_err(|e| Error::io(path, e))?;
        if line.trim_ascii().is_empty() {
            continue;
        }
        rows += 1;
        if !matches!(serde_json::from_slice(line.trim_ascii()), Ok(Value::Object(_))) {
            let start: String = String::from_utf8_lossy(&line).chars().take(40).collect();
            let message = format!(
                "Expected file to have JSONL format, where every line is a valid JSON dictionary. Line {} is not a dictionary \
                 (HINT: line starts with: {start:?}).",
                index + 1
            );
            return Err(Refusal::field("file", message).code("invalid_file_format"));
        }
    }
    match rows {
        0 => Err(Refusal::field("file", "The file is empty.").code("empty_file")),
        _ => Ok(()),
    }
}

/// Reads a job's file as training will; gives what was found. `param` is the job's field that names it.
///
/// # Errors
/// [`Failure`] with the line that is wrong.
pub fn rows(
    path: &Path,
    param: &str,
    method: Method,
    model: &LoadedModel,
    longest: usize,
) -> std::result::Result<DataReport, Failure> {
    let fail = |message: String| Failure {
        code: format!("invalid_{param}"),
        message: format!("The job failed due to an invalid {} file. {message}", param.trim_end_matches("_file")),
        param: Some(param.to_owned()),
    };
    // The server's own paths are nobody's business.
    let plain = |error: Error| {
        let text = error.to_string();
        let place = format!("{}:", path.display());
        match text.strip_prefix(&place) {
            Some(rest) => format!("Line {rest}"),
            None => text.replace(&path.display().to_string(), "the file"),
        }
    };
    // Nothing is cut off: a row that is too long is found by its length.
    let recipe = Recipe {
        data: vec![path.into()],
        max_length: usize::MAX,
        preference: (method == Method::Dpo).then(Preference::default),
        ..Recipe::default()
    };
    let read = || -> Result<_> {
        let (tokenizer, chat) = (model.tokenizer()?, model.chat.as_ref());
        match method {
            Method::Supervised => data::read(&recipe, tokenizer, chat),
            Method::Dpo => preference::data::read(&recipe, tokenizer, chat),
        }
    };
    let (rows, report) = read().map_err(|error| fail(plain(error)))?;
    for i in 0..rows.len() {
        let tokens = rows.tokens(i);
        if tokens > longest {
            let line = rows.get(i).map_or(0, |row| row.line);
            return Err(fail(format!("Line {line}: the example has {tokens} tokens, the limit is {longest}.")));
        }
    }
    if param == "training_file" && report.rows < LEAST_ROWS {
        let count = report.rows;
        return Err(fail(format!(
            "The file has {count} example(s) that the loss counts, but must have at least {LEAST_ROWS} examples."
        )));
    }
    Ok(report)
}
