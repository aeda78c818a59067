//! Tokens to text, and which tokens belong to which text.

use super::{TextOptions, TokenPiece};
use crate::engine::TokenLogprobs;
use crate::token::{StopMatcher, StreamDecoder, Tokenizer};
use std::collections::VecDeque;

/// What has become certain with one more token.
#[derive(Default)]
pub struct Output {
    pub text: String,
    pub tokens: Vec<TokenPiece>,
    pub stop: Option<String>,
}

/// A token whose text is not out yet, with its place in the answer's text, in bytes.
struct Waiting {
    start: usize,
    end: usize,
    piece: TokenPiece,
}

/// The answer so far.
pub struct Assembler {
    text: Option<(Tokenizer, StreamDecoder)>,
    matcher: StopMatcher,
    options: TextOptions,
    min_tokens: usize,
    /// Tokens so far.
    pub count: usize,
    /// Bytes of text that the tokens so far have made.
    decoded: usize,
    /// Bytes of it that are out; the matcher holds the rest.
    released: usize,
    waiting: VecDeque<Waiting>,
}

impl Assembler {
    pub fn new(tokenizer: Option<&Tokenizer>, options: TextOptions, min_tokens: usize) -> Self {
        let text = tokenizer.map(|tokenizer| {
            let decoder = tokenizer.stream(options.skip_special);
            (tokenizer.clone(), if options.continues_prompt { decoder.continuing() } else { decoder })
        });
        let matcher = StopMatcher::new(options.stop.clone());
        let waiting = VecDeque::new();
        Self { text, matcher, options, min_tokens, count: 0, decoded: 0, released: 0, waiting }
    }

    pub fn push(&mut self, id: u32, logprobs: Option<TokenLogprobs>) -> Output {
        self.count += 1;
        let (bytes, decoded) = match &mut self.text {
            Some((tokenizer, decoder)) => (tokenizer.token_bytes(id).to_vec(), decoder.push(id)),
            None => (Vec::new(), None),
        };
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let piece = TokenPiece { id, bytes, text, logprobs };
        let start = self.decoded;
        self.decoded += decoded.as_ref().map_or(0, String::len);
        // A token without text of its own (a part of a character) goes out with the text that follows.
        let end = if decoded.is_some() { self.decoded } else { self.decoded + 1 };
        self.waiting.push_back(Waiting { start, end, piece });
        decoded.map_or_else(Output::default, |text| self.matched(text))
    }

    /// Ends the answer: nothing is held back any more.
    pub fn finish(&mut self) -> Output {
        let tail = self.text.as_mut().and_then(|(_, decoder)| decoder.flush()).unwrap_or_default();
        let mut output = self.matched(tail);
        output.text.push_str(&self.matcher.flush());
        output.tokens.extend(self.waiting.drain(..).map(|waiting| waiting.piece));
        output
    }

    /// Takes new text; lets out what no stop string can claim.
    fn matched(&mut self, text: String) -> Output {
        if self.count <= self.min_tokens {
            self.released += text.len();
            return Output { text, tokens: self.released_tokens(), stop: None };
        }
        let found = self.matcher.push(&text);
        let mut text = found.text;
        let stop = found.stop.and_then(|i| self.options.stop.get(i).cloned());
        if let Some(stop) = stop.as_deref().filter(|_| self.options.include_stop) {
            text.push_str(stop);
        }
        self.released += text.len();
        let mut tokens = self.released_tokens();
        if stop.is_some() {
            // The token that the cut goes through belongs to the answer; those behind it do not.
            let rest = self.waiting.drain(..).filter(|waiting| waiting.start < self.released);
            tokens.extend(rest.map(|waiting| waiting.piece));
        }
        Output { text, tokens, stop }
    }

    fn released_tokens(&mut self) -> Vec<TokenPiece> {
        let out = self.waiting.iter().take_while(|waiting| waiting.end <= self.released).count();
        self.waiting.drain(..out).map(|waiting| waiting.piece).collect()
    }
}
