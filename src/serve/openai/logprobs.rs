//! Log-probabilities in the two forms that OpenAI has for them.

use crate::engine::TokenLogprobs;
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
    logprob: f64,
    bytes: Vec<u8>,
    top_logprobs: Vec<TopToken>,
}

#[derive(Serialize)]
struct TopToken {
    token: String,
    logprob: f64,
    bytes: Vec<u8>,
}

/// JSON has no infinity; OpenAI and vLLM write -9999 for a probability of zero. In f64, so that streams and whole answers
/// write the same digits.
fn finite(logprob: f32) -> f64 {
    f64::from(logprob).max(-9999.0)
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
    /// `None` for the first token of an echoed prompt, which nothing predicts.
    token_logprobs: Vec<Option<f64>>,
    /// By text, the chosen token included.
    top_logprobs: Vec<Option<BTreeMap<String, f64>>>,
    /// Where each token starts in the choice's text, in characters.
    text_offset: Vec<usize>,
}

impl TextLogprobs {
    /// Adds the tokens of an echoed prompt; `found` is about those after the first.
    pub fn echo(&mut self, ids: &[u32], found: &[TokenLogprobs], tokenizer: &Tokenizer, offset: &mut usize) {
        let found = std::iter::once(None).chain(found.iter().map(Some));
        ids.iter().zip(found).for_each(|(id, found)| self.push(text(tokenizer, *id), found, tokenizer, offset));
    }

    /// Adds tokens of the answer. `offset` is where the first one starts; moves on to where the next one will.
    pub fn answer(&mut self, tokens: Vec<TokenPiece>, tokenizer: &Tokenizer, offset: &mut usize) {
        for TokenPiece { text, logprobs, .. } in tokens {
            if logprobs.is_some() {
                self.push(text, logprobs.as_ref(), tokenizer, offset);
            }
        }
    }

    fn push(&mut self, chosen: String, found: Option<&TokenLogprobs>, tokenizer: &Tokenizer, offset: &mut usize) {
        let top = |found: &TokenLogprobs| {
            let top = found.top.iter().map(|&(id, logprob)| (text(tokenizer, id), finite(logprob)));
            top.chain([(chosen.clone(), finite(found.logprob))]).collect()
        };
        self.top_logprobs.push(found.map(top));
        self.token_logprobs.push(found.map(|found| finite(found.logprob)));
        self.text_offset.push(*offset);
        *offset += chosen.chars().count();
        self.tokens.push(chosen);
    }
}

/// vLLM's `prompt_logprobs`: for each token of a prompt that token and the likeliest ones, by id; nothing for the first.
#[derive(Serialize)]
pub struct PromptLogprobs(Vec<Option<BTreeMap<u32, PromptToken>>>);

#[derive(Serialize)]
struct PromptToken {
    logprob: f64,
    /// 1 for the likeliest; unknown for a token that is not among those reported.
    rank: Option<usize>,
    decoded_token: String,
}

impl PromptLogprobs {
    /// `found` is about the tokens of `ids` after the first.
    pub fn new(ids: &[u32], found: &[TokenLogprobs], tokenizer: &Tokenizer) -> Self {
        let entry = |id: u32, logprob: f32, rank: Option<usize>| {
            (id, PromptToken { logprob: finite(logprob), rank, decoded_token: text(tokenizer, id) })
        };
        let of = |(own, found): (&u32, &TokenLogprobs)| {
            let top = found.top.iter().zip(1..).map(|(&(id, logprob), rank)| entry(id, logprob, Some(rank)));
            Some(std::iter::once(entry(*own, found.logprob, None)).chain(top).collect())
        };
        Self(std::iter::once(None).chain(ids.iter().skip(1).zip(found).map(of)).collect())
    }
}
