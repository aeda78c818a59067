//! Text from ids that arrive one by one.

use super::tokenizer::Tokenizer;

/// Emits text as soon as it is final: never a part of a code point, and all pieces together are what
/// [`Tokenizer::decode`] makes of all ids.
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// A space at the very start is to be dropped (SentencePiece), and nothing has come yet.
    at_start: bool,
    /// Bytes of an unfinished code point: 3 at most between calls.
    pending: Vec<u8>,
}

impl StreamDecoder {
    pub(super) fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        let at_start = tokenizer.strips_space();
        Self { tokenizer, skip_special, at_start, pending: Vec::new() }
    }

    /// For text that continues a prompt: a leading space is a part of it.
    #[must_use]
    pub fn continuing(mut self) -> Self {
        self.at_start = false;
        self
    }

    /// Takes one id; `None` while the text so far ends within a code point or the id has no text.
    pub fn push(&mut self, id: u32) -> Option<String> {
        if self.skip_special && self.tokenizer.is_special(id) {
            return None;
        }
        let mut bytes = self.tokenizer.token_bytes(id);
        if self.at_start && !bytes.is_empty() {
            self.at_start = false;
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.pending.extend_from_slice(bytes);
        let text = self.take_final();
        (!text.is_empty()).then_some(text)
    }

    /// Ends the stream: an unfinished code point becomes U+FFFD.
    pub fn flush(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.pending);
        (!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned())
    }

    /// Moves out everything that later bytes cannot change.
    fn take_final(&mut self) -> String {
        let mut text = String::new();
        loop {
            let (valid, invalid) = match std::str::from_utf8(&self.pending) {
                Ok(all) => (all.len(), None),
                Err(error) => (error.valid_up_to(), error.error_len()),
            };
            text.push_str(&String::from_utf8_lossy(&self.pending[..valid]));
            self.pending.drain(..valid + invalid.unwrap_or(0));
            match invalid {
                Some(_) => text.push(char::REPLACEMENT_CHARACTER),
                None => return text,
            }
        }
    }
}
