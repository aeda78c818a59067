//! What completions and embeddings begin with: one text or several, as text or as tokens.

use super::ApiError;
use crate::model::LoadedModel;
use serde::Deserialize;

/// The four forms.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string, a list of strings, a list of token ids, or a list of such lists")]
pub enum Texts {
    One(String),
    Many(Vec<String>),
    Ids(Vec<u32>),
    IdLists(Vec<Vec<u32>>),
}

impl Texts {
    /// Token ids of each text; `field` is where the texts came from.
    pub fn ids(self, field: &str, model: &LoadedModel, add_special: bool) -> Result<Vec<Vec<u32>>, ApiError> {
        let encode = |text: &String| model.tokenizer()?.encode(text, add_special);
        let lists = match self {
            Self::One(text) => vec![encode(&text)?],
            Self::Many(texts) => texts.iter().map(encode).collect::<Result<_, _>>()?,
            Self::Ids(ids) => vec![ids],
            Self::IdLists(lists) => lists,
        };
        let vocab_size = model.config().vocab;
        if let Some(id) = lists.iter().flatten().find(|id| **id as usize >= vocab_size) {
            return Err(ApiError::field(field, format!("`{field}`: {id} is not a token id below {vocab_size}")));
        }
        if lists.is_empty() || lists.iter().any(Vec::is_empty) {
            return Err(ApiError::field(field, format!("`{field}` must have at least one token")));
        }
        Ok(lists)
    }
}
