//! An answer as a list of blocks, one for each run of parts of one kind: the items of `/v1/responses`, the content
//! of `/v1/messages`.

use super::{Form, Part, Reader};
use crate::engine::text::TokenPiece;

/// What a block consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Reasoning,
    Text,
    /// A call of this function; the block's text is its arguments, as JSON.
    Call(String),
}

/// A block, as far as it is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    pub kind: Kind,
    pub text: String,
    /// The tokens of a text for which there are log-probabilities.
    pub tokens: Vec<TokenPiece>,
}

/// What a piece of the answer does to the list.
#[derive(Debug, PartialEq)]
pub enum Change {
    Open(Kind),
    /// More of the open block.
    More {
        text: String,
        tokens: Vec<TokenPiece>,
    },
    /// The open block is complete.
    Close(Block),
}

/// Divides one answer.
pub struct Blocks {
    reader: Reader,
    open: Option<Block>,
    /// Tokens whose text the reader still holds.
    tokens: Vec<TokenPiece>,
    /// How many tokens were reasoning.
    pub reasoning_tokens: usize,
}

impl Blocks {
    pub fn new(form: &Form) -> Self {
        Self { reader: Reader::new(form), open: None, tokens: Vec::new(), reasoning_tokens: 0 }
    }

    /// Takes more of the text, and the tokens that end in it.
    pub fn push(&mut self, text: &str, tokens: Vec<TokenPiece>) -> Vec<Change> {
        let count = tokens.len();
        self.tokens.extend(tokens.into_iter().filter(|token| token.logprobs.is_some()));
        let before = self.reader.is_reasoning();
        let parts = self.reader.push(text);
        self.reasoning_tokens += if before || self.reader.is_reasoning() { count } else { 0 };
        self.changes(parts)
    }

    /// Ends the text.
    pub fn finish(&mut self) -> Vec<Change> {
        let parts = self.reader.finish();
        let mut out = self.changes(parts);
        out.extend(self.open.take().map(Change::Close));
        out
    }

    fn changes(&mut self, parts: Vec<Part>) -> Vec<Change> {
        let mut out = Vec::new();
        for part in parts {
            match part {
                Part::Reasoning(text) => self.text(Kind::Reasoning, text, &mut out),
                Part::Content(text) => self.text(Kind::Text, text, &mut out),
                Part::Call(name) => self.open(Kind::Call(name), &mut out),
                Part::Arguments(text) => self.more(text, &mut out),
            }
        }
        out
    }

    fn text(&mut self, kind: Kind, text: String, out: &mut Vec<Change>) {
        if self.open.as_ref().is_none_or(|open| open.kind != kind) {
            self.open(kind, out);
        }
        self.more(text, out);
    }

    fn open(&mut self, kind: Kind, out: &mut Vec<Change>) {
        out.extend(self.open.take().map(Change::Close));
        self.open = Some(Block { kind: kind.clone(), text: String::new(), tokens: Vec::new() });
        out.push(Change::Open(kind));
    }

    fn more(&mut self, text: String, out: &mut Vec<Change>) {
        let Some(open) = &mut self.open else { return };
        let mut tokens = std::mem::take(&mut self.tokens);
        if open.kind != Kind::Text {
            // Only a text reports its tokens.
            tokens.clear();
        }
        open.text.push_str(&text);
        open.tokens.extend(tokens.iter().cloned());
        out.push(Change::More { text, tokens });
    }
}
