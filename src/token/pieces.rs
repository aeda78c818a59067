//! The bytes behind each token id, and the rules that make text of a sequence of them.
//!
//! Decoding works on bytes, not on token strings: a streamed answer, `logprobs.bytes` and a whole
//! decode then agree by construction. It equals the decoder of the `tokenizers` crate on all text that
//! is valid UTF-8; bytes that are not become U+FFFD as `String::from_utf8_lossy` does it.

use serde_json::Value;

use crate::{Error, Result};

/// SentencePiece's visible space.
pub(super) const META: &str = "▁";

/// How token strings stand for bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Rules {
    /// GPT-2's alphabet: one printable character per byte.
    pub byte_level: bool,
    /// Replacements on the token string, in order.
    pub replace: Vec<(String, String)>,
    /// `<0xE4>` is that byte.
    pub byte_fallback: bool,
    /// One space at the very start of the text is dropped.
    pub strip_space: bool,
}

impl Rules {
    /// The rules of a GPT-2 style vocabulary.
    pub(super) fn byte_level() -> Self {
        Self { byte_level: true, ..Self::default() }
    }

    /// The rules of a SentencePiece vocabulary.
    pub(super) fn sentencepiece(strip_space: bool) -> Self {
        Self { replace: vec![(META.into(), " ".into())], byte_fallback: true, strip_space, byte_level: false }
    }

    /// Reads the `decoder` of a tokenizer.json.
    pub(super) fn from_json(decoder: &Value) -> Result<Self> {
        let mut rules = Self::default();
        rules.read(decoder)?;
        Ok(rules)
    }

    fn read(&mut self, decoder: &Value) -> Result<()> {
        let text = |key: &str| decoder.get(key).and_then(Value::as_str);
        let unsupported = |what: String| {
            Err(Error::unsupported(format!(
                "tokenizer.json: decoder {what}; known are ByteLevel, Metaspace, and Sequence of Replace, ByteFallback, Fuse, Strip"
            )))
        };
        match text("type") {
            Some("ByteLevel") => self.byte_level = true,
            Some("ByteFallback") => self.byte_fallback = true,
            Some("Fuse") => {}
            Some("Metaspace") => {
                self.replace.push((text("replacement").unwrap_or(META).into(), " ".into()));
                // `add_prefix_space` is the older spelling of `prepend_scheme`.
                let never = text("prepend_scheme") == Some("never")
                    || decoder.get("add_prefix_space").and_then(Value::as_bool) == Some(false);
                self.strip_space = !never;
            }
            Some("Replace") => match (decoder["pattern"]["String"].as_str(), text("content")) {
                (Some(from), Some(to)) => self.replace.push((from.into(), to.into())),
                _ => return unsupported("Replace with a regular expression".into()),
            },
            Some("Strip") => {
                let count = |key: &str| decoder.get(key).and_then(Value::as_u64).unwrap_or(0);
                match (text("content"), count("start"), count("stop")) {
                    (Some(" "), 1, 0) => self.strip_space = true,
                    (_, 0, 0) => {}
                    _ => return unsupported("Strip of anything but one leading space".into()),
                }
            }
            Some("Sequence") => {
                for part in decoder["decoders"].as_array().into_iter().flatten() {
                    self.read(part)?;
                }
            }
            Some(other) => return unsupported(format!("'{other}'")),
            None => return unsupported("is missing".into()),
        }
        Ok(())
    }

    /// The bytes of the vocabulary entry `token`.
    pub(super) fn bytes(&self, token: &str) -> Vec<u8> {
        if self.byte_level {
            // A character outside the alphabet makes it plain text, as in the `tokenizers` crate.
            return token
                .chars()
                .map(byte_of_char)
                .collect::<Option<Vec<u8>>>()
                .unwrap_or_else(|| token.as_bytes().to_vec());
        }
        if self.byte_fallback
            && let Some(byte) = fallback_byte(token)
        {
            return vec![byte];
        }
        let text = self.replace.iter().fold(token.to_owned(), |text, (from, to)| text.replace(from, to));
        text.into_bytes()
    }
}

/// `<0xE4>` → `0xE4`.
fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    // `from_str_radix` alone would take a sign.
    let digits = hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    digits.then(|| u8::from_str_radix(hex, 16).ok()).flatten()
}

/// The inverse of GPT-2's `bytes_to_unicode`: printable Latin-1 stands for itself, the other 68 bytes
/// are the characters from U+0100 on, in order.
fn byte_of_char(character: char) -> Option<u8> {
    let code = u32::from(character);
    match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => u8::try_from(code).ok(),
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7F).ok(),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// The bytes of every id, in one buffer.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Pieces {
    /// Appends the bytes of the next id.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
    }

    /// The bytes of `id`; none for an id outside the vocabulary.
    pub(super) fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.ends.get(id - 1).copied().unwrap_or(0) };
        self.ends.get(id).and_then(|&end| self.bytes.get(start..end)).unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_character() {
        let mut seen: Vec<u8> = (0..0x200).filter_map(char::from_u32).filter_map(byte_of_char).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..=255).collect::<Vec<u8>>());
        assert_eq!(byte_of_char('Ġ'), Some(b' '));
        assert_eq!(byte_of_char('Ċ'), Some(b'\n'));
    }

    #[test]
    fn fallback_bytes() {
        assert_eq!(fallback_byte("<0x0A>"), Some(10));
        assert_eq!(fallback_byte("<0x0>"), None);
        assert_eq!(fallback_byte("<0x+1>"), None);
    }
}
