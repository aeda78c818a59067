//! A session on disk: a magic, a version, what it belongs to, its text.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `RTSESSN\0` |
//! | 4 | version, little-endian: 1 |
//! | 8 | the model's hash |
//! | 8 | FNV-1a of the rest |
//! | … | JSON: `adapters` (hash, scale), `tokens`, `messages` and `open` of a conversation |

use super::load::{FNV, fnv};
use super::session::{Chat, SessionState};
use crate::error::{Error, Result};
use serde_json::{Value, json};

const MAGIC: &[u8; 8] = b"RTSESSN\0";
const VERSION: u32 = 1;
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
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&model.to_le_bytes());
    bytes.extend_from_slice(&fnv(FNV, &body).to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// The session in these bytes, if it belongs to this model and these adapters.
pub fn load(bytes: &[u8], model: u64, adapters: &[(u64, f32)]) -> Result<SessionState> {
    let wrong = |place: &str, message: &str| Error::format("session", place, message);
    let Some((header, body)) = bytes.split_at_checked(HEADER) else {
        return Err(wrong("header", "too short for a saved session"));
    };
    if header[..8] != *MAGIC {
        return Err(wrong("magic", "this is no saved session"));
    }
    let number = |at: usize, len: usize| header[at..at + len].iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
    if number(8, 4) != u64::from(VERSION) {
        return Err(Error::unsupported(format!("a saved session of version {}, expected {VERSION}", number(8, 4))));
    }
    if number(12, 8) != model {
        return Err(Error::invalid("the session was saved with another model"));
    }
    if number(20, 8) != fnv(FNV, body) {
        return Err(wrong("body", "damaged"));
    }
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
    Ok(SessionState::restored(tokens, chat))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_comes_back_and_what_is_damaged_does_not() {
        let chat = Chat { messages: vec![json!({"role": "user", "content": "é"})], open: Some("so".into()) };
        let state = SessionState::restored(vec![1, 2, 3], Some(chat));
        let bytes = save(&state, 7, &[(9, 0.5)]).unwrap_or_default();
        let back = load(&bytes, 7, &[(9, 0.5)]).ok();
        assert_eq!(back.as_ref().map(|s| (&s.tokens, &s.chat)), Some((&state.tokens, &state.chat)));
        assert!(matches!(load(&bytes, 8, &[(9, 0.5)]), Err(Error::Invalid(_))), "another model");
        assert!(matches!(load(&bytes, 7, &[(9, 1.0)]), Err(Error::Invalid(_))), "another scale");
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(load(&damaged, 7, &[(9, 0.5)]).is_err(), "byte {at}");
            assert!(load(&bytes[..at], 7, &[(9, 0.5)]).is_err(), "cut at {at}");
        }
    }
}
