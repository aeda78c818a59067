//! Log-probabilities in the two forms that OpenAI has for them.

use crate::engine::text::TokenPiece;
use crate::token::Tokenizer;
use serde::Serialize;
use std::collections::BTreeMap;

/// `logprobs` of a chat choice.
#[derive(Serialize)]
pub struct ChatLogprobs {
    /// One for each token; `/v1/responses` has the same.
    pub content: Vec<ChatToken>,
}

#[derive(Serialize)]
pub struct ChatToken {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    top_logprobs: Vec<TopToken>,
}

#[derive(Serialize)]
struct TopToken {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// JSON has no infinity; OpenAI and vLLM write -9999 for a probability of zero.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

fn text(tokenizer: &Tokenizer, id: u32) -> String {
    String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned()
}

impl ChatLogprobs {
    pub fn new(tokens: Vec<TokenPiece>, tokenizer: &Tokenizer) -> Self {
        let top = |&(id, logprob): &(u32, f32)| TopToken {
            token: text(tokenizer, id),
            logprob: finite(logprob),
            bytes: tokenizer.token_bytes(id).to_vec(),
        };
        let token = |TokenPiece { bytes, text, logprobs, .. }| {
            logprobs.map(|found| ChatToken {
                token: text,
                logprob: finite(found.logprob),
                bytes,
                top_logprobs: found.top.iter().map(top).collect(),
            })
        };
        Self { content: tokens.into_iter().filter_map(token).collect() }
    }
}

/// `logprobs` of a text choice.
#[derive(Default, Serialize)]
pub struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    /// By text, the chosen token included.
    top_logprobs: Vec<BTreeMap<String, f32>>,
    /// Where each token starts in the choice's text, in characters.
    text_offset: Vec<usize>,
}

impl TextLogprobs {
    /// `offset` is where the first token starts; moves on to where the next one will.
    pub fn new(tokens: Vec<TokenPiece>, tokenizer: &Tokenizer, offset: &mut usize) -> Self {
        let mut all = Self::default();
        for TokenPiece { text: chosen, logprobs, .. } in tokens {
            let Some(found) = logprobs else { continue };
            let top = found.top.iter().map(|&(id, logprob)| (text(tokenizer, id), finite(logprob)));
            let logprob = finite(found.logprob);
            all.top_logprobs.push(top.chain([(chosen.clone(), logprob)]).collect());
            all.token_logprobs.push(logprob);
            all.text_offset.push(*offset);
            *offset += chosen.chars().count();
            all.tokens.push(chosen);
        }
        all
    }
}
