//! Fields that name tokens.

use super::{ApiError, Fields};
use crate::model::LoadedModel;
use serde_json::{Map, Value};

/// `logit_bias`: by token id, as JSON has it a string.
pub fn logit_bias(fields: &mut Fields, vocab_size: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let biases: Map<String, Value> = fields.take("logit_bias")?.unwrap_or_default();
    let wrong = |message: String| ApiError::field("logit_bias", message);
    let read = |(token, bias): (String, Value)| {
        let id = token.parse().ok().filter(|&id: &u32| (id as usize) < vocab_size);
        let id = id.ok_or_else(|| wrong(format!("`logit_bias`: '{token}' is not a token id below {vocab_size}")))?;
        let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
        let bias = bias.ok_or_else(|| wrong(format!("`logit_bias` of token {id} must be a number in [-100, 100]")))?;
        Ok((id, bias as f32))
    };
    biases.into_iter().map(read).collect()
}

/// `allowed_token_ids`.
pub fn allowed(fields: &mut Fields, vocab_size: usize) -> Result<Option<Vec<u32>>, ApiError> {
    const NAME: &str = "allowed_token_ids";
    let Some(ids) = fields.take::<Vec<u32>>(NAME)? else { return Ok(None) };
    match ids.iter().find(|id| **id as usize >= vocab_size) {
        _ if ids.is_empty() => Err(ApiError::field(NAME, format!("`{NAME}` needs one token id at least"))),
        Some(id) => Err(ApiError::field(NAME, format!("`{NAME}`: {id} is no token id below {vocab_size}"))),
        None => Ok(Some(ids)),
    }
}

/// The tokens of `bad_words`; as at vLLM, also of a word after a space, where that is as many tokens and begins with another one.
pub fn bad_words(fields: &mut Fields, model: &LoadedModel) -> Result<Vec<Vec<u32>>, ApiError> {
    const NAME: &str = "bad_words";
    let words: Vec<String> = fields.take(NAME)?.unwrap_or_default();
    let mut runs = Vec::new();
    for word in words {
        let word = word.trim_start();
        if word.is_empty() {
            return Err(ApiError::field(NAME, format!("`{NAME}` must have no empty words")));
        }
        let tokenizer = model.tokenizer()?;
        let (plain, spaced) = (tokenizer.encode(word, false)?, tokenizer.encode(&format!(" {word}"), false)?);
        let other = spaced.len() == plain.len() && spaced.first() != plain.first();
        runs.push(plain);
        runs.extend(other.then_some(spaced));
    }
    Ok(runs)
}
