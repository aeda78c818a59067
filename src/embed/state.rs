//! A session on disk: a magic, a version, what it belongs to, its text.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `RTSESSN\0` |
//! | 4 | version, little-endian: 1, or 2 with keys and values |
//! | 8 | the model's hash |
//! | 8 | FNV-1a of the rest |
//! | 8 | version 2: bytes of the JSON |
//! | … | JSON: `adapters` (hash, scale), `tokens`, `messages` and `open` of a conversation |
//! | 8 | version 2: how the cache stores keys and values |
//! | 8 | version 2: pages of them |
//! | … | version 2: of each layer the keys, then the values, page by page |

use super::load::{FNV, fnv};
use super::session::{Chat, SessionState};
use crate::error::{Error, Result};
use serde_json::{Value, json};

const MAGIC: &[u8; 8] = b"RTSESSN\0";
const VERSION: u32 = 1;
const WITH_CACHE: u32 = 2;
const HEADER: usize = 28;

/// The bytes of a session.
pub fn save(state: &SessionState, model: u64, adapters: &[(u64, f32)]) -> Result<Vec<u8>> {
    let chat = state.chat.as_ref();
    let body = json!({
        "adapters": adapters,
        "tokens": state.tokens,
        "messages": chat.map(|chat| &chat.messages),
        "open": chat.and_then(|chat| chat.open.as_ref()),
    });
    let body = serde_json::to_vec(&body).map_err(|e| Error::internal(format!("a session as JSON: {e}")))?;
    Ok(file(VERSION, model, &body))
}

fn file(version: u32, model: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&model.to_le_bytes());
    bytes.extend_from_slice(&fnv(FNV, body).to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// A saved session with keys and values: how they are stored, pages, bytes.
pub fn with_cache(bytes: Vec<u8>, (format, pages, cache): (u64, usize, Vec<u8>)) -> Vec<u8> {
    let (header, json) = bytes.split_at(HEADER);
    let mut body = Vec::with_capacity(24 + json.len() + cache.len());
    body.extend_from_slice(&(json.len() as u64).to_le_bytes());
    body.extend_from_slice(json);
    body.extend_from_slice(&format.to_le_bytes());
    body.extend_from_slice(&(pages as u64).to_le_bytes());
    body.extend_from_slice(&cache);
    file(WITH_CACHE, number(header, 12, 8), &body)
}

/// A little-endian number of `len` bytes.
fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b))
}

/// Keys and values as they were saved: how they are stored, pages, bytes.
pub type SavedCache<'a> = (u64, usize, &'a [u8]);

/// The session in these bytes, if it belongs to this model and these adapters.
pub fn load<'a>(
    bytes: &'a [u8],
    model: u64,
    adapters: &[(u64, f32)],
) -> Result<(SessionState, Option<SavedCache<'a>>)> {
    let wrong = |place: &str, message: &str| Error::format("session", place, message);
    let Some((header, body)) = bytes.split_at_checked(HEADER) else {
        return Err(wrong("header", "too short for a saved session"));
    };
    if header[..8] != *MAGIC {
        return Err(wrong("magic", "this is no saved session"));
    }
    let version = number(header, 8, 4);
    if version != u64::from(VERSION) && version != u64::from(WITH_CACHE) {
        return Err(Error::unsupported(format!(
            "a saved session of version {version}, expected {VERSION} or {WITH_CACHE}"
        )));
    }
    if number(header, 12, 8) != model {
        return Err(Error::invalid("the session was saved with another model"));
    }
    if number(header, 20, 8) != fnv(FNV, body) {
        return Err(wrong("body", "damaged"));
    }
    let (body, cache) = match version == u64::from(WITH_CACHE) {
        false => (body, None),
        true => {
            let cut = || wrong("body", "cut off");
            let (len, rest) = body.split_at_checked(8).ok_or_else(cut)?;
            let len = usize::try_from(number(len, 0, 8)).map_err(|_| cut())?;
            let (json, rest) = rest.split_at_checked(len).ok_or_else(cut)?;
            let (numbers, cache) = rest.split_at_checked(16).ok_or_else(cut)?;
            let pages = usize::try_from(number(numbers, 8, 8)).map_err(|_| cut())?;
            (json, Some((number(numbers, 0, 8), pages, cache)))
        }
    };
    let body: Value = serde_json::from_slice(body).map_err(|e| wrong("body", &e.to_string()))?;
    let saved: Vec<(u64, f32)> =
        serde_json::from_value(body["adapters"].clone()).map_err(|e| wrong("adapters", &e.to_string()))?;
    if saved != adapters {
        return Err(Error::invalid(format!(
            "the session was saved with {} adapters, and these are not the same",
            saved.len()
        )));
    }
    let tokens = serde_json::from_value(body["tokens"].clone()).map_err(|e| wrong("tokens", &e.to_string()))?;
    let open = body["open"].as_str().map(str::to_owned);
    let chat = body["messages"].as_array().map(|messages| Chat { messages: messages.clone(), open });
    Ok((SessionState::restored(tokens, chat), cache))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_comes_back_and_what_is_damaged_does_not() {
        let chat = Chat { messages: vec![json!({"role": "user", "content": "é"})], open: Some("so".into()) };
        let state = SessionState::restored(vec![1, 2, 3], Some(chat));
        let bytes = save(&state, 7, &[(9, 0.5)]).unwrap_or_default();
        let cached = with_cache(bytes.clone(), (5, 3, vec![1, 2, 3, 4]));
        for (bytes, cache) in [(&bytes, None), (&cached, Some((5, 3, &[1, 2, 3, 4][..])))] {
            let back = load(bytes, 7, &[(9, 0.5)]).ok();
            let parts = back.as_ref().map(|(s, cache)| (&s.tokens, &s.chat, *cache));
            assert_eq!(parts, Some((&state.tokens, &state.chat, cache)));
        }
        assert!(matches!(load(&bytes, 8, &[(9, 0.5)]), Err(Error::Invalid(_))), "another model");
        assert!(matches!(load(&bytes, 7, &[(9, 1.0)]), Err(Error::Invalid(_))), "another scale");
        for bytes in [bytes, cached] {
            for at in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1;
                assert!(load(&damaged, 7, &[(9, 0.5)]).is_err(), "byte {at}");
                assert!(load(&bytes[..at], 7, &[(9, 0.5)]).is_err(), "cut at {at}");
            }
        }
    }
}
