//! Preference data: rows of a chosen and a rejected answer become two rows of tokens each.
//!
//! | keys | what is a prompt |
//! |---|---|
//! | `prompt`, `chosen`, `rejected`: texts | the prompt |
//! | `prompt`, `chosen`, `rejected`: lists of messages | the prompt, in the chat template |
//! | `chosen`, `rejected`: lists of messages | the messages with which both begin |
//! | `chosen`, `rejected`: texts | the text with which both begin, up to a space |
//! | `input`, `preferred_output`, `non_preferred_output` (OpenAI's) | `input.messages`, in the chat template |
//!
//! Answers become tokens as `completion` of the plain form does (`train::data`), as TRL does it.

use crate::error::{Error, Result};
use crate::token::{ChatTemplate, Tokenizer};
use crate::train::data::{DataReport, Row};
use crate::train::encode::encode;
use crate::train::files::each_row;
use crate::train::recipe::{LossOn, Recipe};
use crate::train::rows::Rows;
use serde_json::{Value, json};

/// Reads `recipe.data`: rows in pairs, chosen first. Counted are the answers' tokens.
///
/// # Errors
/// [`Error::Io`]; [`Error::Invalid`] starting with `file:line:` for a row that is not JSON, has none of the known forms or
/// does not tokenize; [`Error::Invalid`] where no pair is left.
pub fn read(recipe: &Recipe, tokenizer: &Tokenizer, chat: Option<&ChatTemplate>) -> Result<(Rows, DataReport)> {
    let (mut rows, mut report) = (Rows::new(None), DataReport::default());
    for file in &recipe.data {
        let before = report.rows;
        rows.next_file();
        each_row(&file.path, &mut |line, row| {
            let pair = row.and_then(|row| pair(&row, tokenizer, chat));
            let pair = pair.map_err(|e| Error::invalid(format!("{}:{line}: {e}", file.path.display())))?;
            add(recipe, line, pair, &mut rows, &mut report)
        })?;
        report.files.push((file.path.clone(), report.rows - before, file.weight));
    }
    if rows.is_empty() {
        let files: Vec<_> = recipe.data.iter().map(|file| file.path.display().to_string()).collect();
        return Err(Error::invalid(format!(
            "{}: no pair to train on ({} have an answer without tokens within max_length {})",
            files.join(", "),
            report.skipped.len(),
            recipe.max_length
        )));
    }
    report.measure(&rows);
    Ok((rows, report))
}

type Encoded = (Vec<u32>, Vec<bool>);

fn pair(row: &Value, tokenizer: &Tokenizer, chat: Option<&ChatTemplate>) -> Result<[Encoded; 2]> {
    let openai = openai(row)?;
    let row = openai.as_ref().unwrap_or(row);
    let (prompt, answers) = split(row)?;
    let one = |answer: Value| {
        let mut plain = json!({ "prompt": prompt, "completion": answer });
        for key in ["tools", "chat_template_kwargs"] {
            plain[key] = row[key].clone();
        }
        encode(&plain, LossOn::Assistant, tokenizer, chat)
    };
    let [chosen, rejected] = answers;
    Ok([one(chosen)?, one(rejected)?])
}

/// A pair from JSON in one of the forms above: chosen, rejected. `line` is its number in messages.
///
/// # Errors
/// [`Error::Invalid`] naming what is wrong; those of tokenizer and template.
pub fn rows(value: &Value, line: usize, tokenizer: &Tokenizer, chat: Option<&ChatTemplate>) -> Result<[Row; 2]> {
    let pair = pair(value, tokenizer, chat)?;
    Ok(pair.map(|(ids, counted)| Row { ids, counted, line }))
}

/// Pairs from memory, chosen first.
///
/// # Errors
/// [`Error::Invalid`] where no pair is left.
pub fn take(recipe: &Recipe, given: &[Row]) -> Result<(Rows, DataReport)> {
    let (mut rows, mut report) = (Rows::new(None), DataReport::default());
    rows.next_file();
    for pair in given.as_chunks::<2>().0 {
        let encoded = |row: &Row| (row.ids.clone(), row.counted.clone());
        add(recipe, pair[0].line, [encoded(&pair[0]), encoded(&pair[1])], &mut rows, &mut report)?;
    }
    if rows.is_empty() {
        return Err(Error::invalid(format!(
            "none of the {} pairs has tokens of both answers within max_length {}",
            given.len() / 2,
            recipe.max_length
        )));
    }
    report.measure(&rows);
    Ok((rows, report))
}

fn add(recipe: &Recipe, line: usize, pair: [Encoded; 2], rows: &mut Rows, report: &mut DataReport) -> Result<()> {
    let mut cut = false;
    let pair = pair.map(|(mut ids, mut counted)| {
        cut |= ids.len() > recipe.max_length;
        ids.truncate(recipe.max_length);
        counted.truncate(recipe.max_length);
        if let Some(first) = counted.first_mut() {
            *first = false;
        }
        Row { ids, counted, line }
    });
    report.truncated += usize::from(cut);
    if pair.iter().any(|row| row.counted() == 0) {
        report.skipped.push(line);
        return Ok(());
    }
    report.rows += 1;
    for row in &pair {
        report.tokens += row.ids.len();
        report.counted += row.counted();
        rows.push(row)?;
    }
    Ok(())
}

/// OpenAI's form as TRL's; `None` for a row of another form.
fn openai(row: &Value) -> Result<Option<Value>> {
    let (input, chosen, rejected) = (&row["input"], &row["preferred_output"], &row["non_preferred_output"]);
    if chosen.is_null() && rejected.is_null() {
        return Ok(None);
    }
    for (key, value) in
        [("input.messages", &input["messages"]), ("preferred_output", chosen), ("non_preferred_output", rejected)]
    {
        if value.as_array().is_none_or(Vec::is_empty) {
            return Err(Error::invalid(format!("'{key}' must be a list of messages")));
        }
    }
    Ok(Some(json!({
        "prompt": input["messages"], "chosen": chosen, "rejected": rejected, "tools": input["tools"],
    })))
}

/// Prompt and both answers.
fn split(row: &Value) -> Result<(Value, [Value; 2])> {
    let (chosen, rejected) = (&row["chosen"], &row["rejected"]);
    match (&row["prompt"], chosen, rejected) {
        (Value::String(_), Value::String(_), Value::String(_))
        | (Value::Array(_), Value::Array(_), Value::Array(_)) => {
            Ok((row["prompt"].clone(), [chosen.clone(), rejected.clone()]))
        }
        (Value::Null, Value::Array(a), Value::Array(b)) => {
            let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
            if same == 0 || same == a.len() || same == b.len() {
                return Err(Error::invalid(
                    "'chosen' and 'rejected' must begin with the same messages and then differ, or there must be a 'prompt'",
                ));
            }
            Ok((a[..same].into(), [a[same..].into(), b[same..].into()]))
        }
        (Value::Null, Value::String(a), Value::String(b)) => {
            let mut same =
                a.char_indices().zip(b.chars()).take_while(|((_, a), b)| a == b).map(|((i, c), _)| i + c.len_utf8());
            let mut at = same.by_ref().last().unwrap_or(0);
            // A space belongs to the word after it.
            if a[..at].ends_with(' ') {
                at -= 1;
            }
            if at == 0 {
                return Err(Error::invalid(
                    "'chosen' and 'rejected' have no common beginning, and there is no 'prompt'",
                ));
            }
            Ok((a[..at].into(), [a[at..].into(), b[at..].into()]))
        }
        _ => Err(Error::invalid(
            "expected 'chosen' and 'rejected', and a 'prompt' unless both begin alike: all texts, or all lists of messages",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_beginning_is_the_prompt() {
        let (prompt, answers) = split(&json!({ "chosen": "Q: who? A: Ada", "rejected": "Q: who? A: me" })).unwrap();
        assert_eq!((prompt, answers), (json!("Q: who? A:"), [json!(" Ada"), json!(" me")]));
        let m = |text: &str| json!({ "role": "user", "content": text });
        let (prompt, answers) = split(&json!({ "chosen": [m("q"), m("a")], "rejected": [m("q"), m("b")] })).unwrap();
        assert_eq!((prompt, answers), (json!([m("q")]), [json!([m("a")]), json!([m("b")])]));
        for bad in [
            json!({ "chosen": "a" }),
            json!({ "chosen": "a", "rejected": "b" }),
            json!({ "prompt": "p", "chosen": [m("a")], "rejected": "b" }),
            json!({ "chosen": [m("a")], "rejected": [m("a")] }),
        ] {
            assert!(split(&bad).is_err(), "{bad}");
        }
    }
}
