//! Sessions and requests: a text that grows.

use super::adapter::{blend, runtime_adapter_ref};
use super::engine::{place, release};
use super::error::{Failure, runtime_error};
use super::guard::{guarded, shielded};
use super::handle::Handles;
use super::model::{MODELS, runtime_model};
use super::options::{self, Versioned, init};
use super::status::runtime_status;
use super::text;
use crate::embed::{Generate, Host, Request, Session};
use crate::engine::{Grammar, SamplingParams};
use crate::error::Error;
use std::collections::{BTreeMap, HashSet};
use std::ffi::{c_char, c_void};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A text that grows: what the program appends, and what the model answers. Many sessions can use one model; one thread
/// at a time uses a session. Copy it freely: it is a number, not a pointer.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub struct runtime_session {
    /// Zero: no session.
    pub id: u64,
}

/// A request that runs. It needs no release: its handle ends when its last event is polled, and is stale from then on.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub struct runtime_request {
    /// Zero: no request.
    pub id: u64,
}

/// What a handle stands for.
pub(super) static SESSIONS: Handles<Session> = Handles::new("session");
/// What a handle stands for.
pub(super) static REQUESTS: Handles<Request> = Handles::new("request");

/// Requests whose last event was not polled, by the engine that it would be polled from. An engine that was released has no entry.
static UNHEARD: Mutex<BTreeMap<usize, HashSet<u64>>> = Mutex::new(BTreeMap::new());

fn unheard() -> MutexGuard<'static, BTreeMap<usize, HashSet<u64>>> {
    UNHEARD.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key(host: &Arc<Host>) -> usize {
    Arc::as_ptr(host).addr()
}

/// An engine that can be polled.
pub(super) fn opened(host: &Arc<Host>) {
    unheard().insert(key(host), HashSet::new());
}

/// An engine that cannot be polled any more: nobody will hear of its requests.
pub(super) fn closed(host: &Arc<Host>) {
    let ids = unheard().remove(&key(host)).unwrap_or_default();
    ids.into_iter().for_each(|id| drop(REQUESTS.remove(id)));
}

/// A handle for a request that is about to be made.
pub(super) fn asked(host: &Arc<Host>, request: &Arc<Request>) -> Result<u64, Failure> {
    let mut unheard = unheard();
    let Some(ids) = unheard.get_mut(&key(host)) else {
        return Err(Error::invalid("the engine was released: nobody could hear of the answer").into());
    };
    let id = REQUESTS.insert(request.clone())?;
    ids.insert(id);
    request.named(id);
    Ok(id)
}

/// A request whose last event was polled, or that was not made.
pub(super) fn heard(host: &Arc<Host>, id: u64) {
    if let Some(ids) = unheard().get_mut(&key(host)) {
        ids.remove(&id);
    }
    drop(REQUESTS.remove(id));
}

/// Makes an empty session on a model that is ready. On success *session is the new handle, to be given to
/// runtime_session_release once; on failure it is zero.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_session_create(
    model: runtime_model,
    session: *mut runtime_session,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        // SAFETY: the caller's promise.
        let out = unsafe { place("session", session)? };
        out.id = 0;
        out.id = SESSIONS.insert(Session::new(&MODELS.get(model.id)?)?)?;
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_session_create", error, body) }
}

/// The adapters that answer in this session from now on, each with a scale; count 0: the plain model. Their ranks together
/// must not pass max_rank of the model's options.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_session_set_adapters(
    session: runtime_session,
    adapters: *const runtime_adapter_ref,
    count: usize,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        let session = SESSIONS.get(session.id)?;
        // SAFETY: the caller's promise.
        Ok(session.set_adapters(unsafe { blend(adapters, count)? })?)
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_session_set_adapters", error, body) }
}

/// Appends text as it stands: the model will go on with it. What the tokenizer puts at the beginning of a text comes with
/// the first. After messages, it is the beginning of the assistant's answer.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_session_append_text(
    session: runtime_session,
    text: *const c_char,
    text_len: usize,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        let session = SESSIONS.get(session.id)?;
        // SAFETY: the caller's promise.
        session.append_text(unsafe { text::read("text", text, text_len)? })?;
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_session_append_text", error, body) }
}

/// Appends count tokens.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_session_append_tokens(
    session: runtime_session,
    ids: *const u32,
    count: usize,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        let session = SESSIONS.get(session.id)?;
        // SAFETY: the caller's promise.
        session.append_tokens(unsafe { text::list("ids", ids, count)? })?;
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_session_append_tokens", error, body) }
}

/// Appends messages: a JSON list of objects with "role" and "content", as OpenAI's API has them. The model's chat template
/// puts them into text; answers become the assistant's messages. A session is made either of messages or of text and
/// tokens.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_session_append_messages(
    session: runtime_session,
    messages_json: *const c_char,
    messages_len: usize,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        let session = SESSIONS.get(session.id)?;
        // SAFETY: the caller's promise.
        session.append_messages(unsafe { text::json("messages_json", messages_json, messages_len)? })?;
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_session_append_messages", error, body) }
}

/// An answer of any form.
pub const RUNTIME_GRAMMAR_NONE: i32 = 0;
/// A JSON object; grammar is not used.
pub const RUNTIME_GRAMMAR_JSON: i32 = 1;
/// JSON that the JSON schema in grammar describes.
pub const RUNTIME_GRAMMAR_JSON_SCHEMA: i32 = 2;
/// Text that the regular expression in grammar matches as a whole.
pub const RUNTIME_GRAMMAR_REGEX: i32 = 3;
/// One of the texts in grammar, a JSON list of strings.
pub const RUNTIME_GRAMMAR_CHOICE: i32 = 4;
/// A grammar in Lark's syntax, whose first rule is `start`.
pub const RUNTIME_GRAMMAR_LARK: i32 = 5;

/// How to answer. Zero in a field means its default.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub struct runtime_generate_options {
    /// sizeof(runtime_generate_options) of the caller's header.
    pub struct_size: u32,
    /// Most tokens to generate. 0: 128, or fewer where the context has no room for them.
    pub max_tokens: u32,
    /// The answer does not end before so many.
    pub min_tokens: u32,
    /// 0: always the most likely token. Higher is more varied; 1 is the model's own distribution.
    pub temperature: f32,
    /// Only the most likely tokens that together reach this probability. 0: all.
    pub top_p: f32,
    /// Only tokens at least this share as likely as the most likely one. 0: all.
    pub min_p: f32,
    /// Only this many of the most likely tokens. 0: all.
    pub top_k: u32,
    /// Above 1: tokens of the text so far become less likely. 0: 1, no change.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens that the answer has.
    pub presence_penalty: f32,
    /// Subtracted once for each time that the answer has a token.
    pub frequency_penalty: f32,
    /// One of RUNTIME_GRAMMAR.
    pub grammar_type: i32,
    /// Requests with smaller numbers are served first.
    pub priority: i32,
    /// Same seed, same text. 0: another one for every call.
    pub seed: u64,
    /// What the answer must look like.
    pub grammar: *const c_char,
    /// Bytes of grammar; SIZE_MAX: NUL-terminated.
    pub grammar_len: usize,
    /// NUL-terminated strings; the answer ends before the first of them that appears.
    pub stop: *const *const c_char,
    /// How many.
    pub stop_count: usize,
    /// Non-zero: go on past the model's end-of-text tokens.
    pub ignore_eos: u32,
    /// Non-zero: text events carry the log-probabilities of their tokens.
    pub logprobs: u32,
    /// Comes back in the request's events.
    pub userdata: u64,
}

// SAFETY: integers, floats and pointers, no padding.
unsafe impl Versioned for runtime_generate_options {
    const NAME: &'static str = "runtime_generate_options";
    const FIRST_SIZE: usize = size_of::<runtime_generate_options>();
}

/// Sets struct_size and clears the rest: all defaults. NULL is allowed and does nothing.
///
/// # Safety
/// `options` is NULL or points to a writable struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_generate_options_init(options: *mut runtime_generate_options) {
    // SAFETY: the caller's promise.
    shielded("runtime_generate_options_init", (), || unsafe { init(options) });
}

unsafe fn translated(options: &runtime_generate_options) -> Result<Generate, Failure> {
    // SAFETY: the caller's promise is passed on.
    let (grammar, stops) = unsafe {
        let grammar = text::read("grammar", options.grammar, options.grammar_len)?;
        (grammar, text::list("stop", options.stop, options.stop_count)?)
    };
    // SAFETY: as above.
    let stop = stops.iter().map(|stop| unsafe { text::read("stop", *stop, usize::MAX) }.map(str::to_owned));
    let or_one = |x: f32| if x == 0.0 { 1.0 } else { x };
    Ok(Generate {
        max_tokens: options.max_tokens as usize,
        min_tokens: options.min_tokens as usize,
        sampling: SamplingParams {
            temperature: options.temperature,
            top_p: or_one(options.top_p),
            top_k: options.top_k as usize,
            min_p: options.min_p,
            repetition_penalty: or_one(options.repetition_penalty),
            presence_penalty: options.presence_penalty,
            frequency_penalty: options.frequency_penalty,
            logit_bias: Vec::new(),
            seed: (options.seed != 0).then_some(options.seed),
        },
        stop: stop.collect::<Result<_, _>>()?,
        ignore_eos: options.ignore_eos != 0,
        grammar: form(options.grammar_type, grammar)?,
        logprobs: options.logprobs != 0,
        priority: options.priority,
    })
}

fn form(kind: i32, grammar: &str) -> Result<Option<Grammar>, Failure> {
    let json = || {
        serde_json::from_str::<serde_json::Value>(grammar)
            .map_err(|e| Failure::from(Error::invalid(format!("grammar is not JSON: {e}"))))
    };
    Ok(Some(match kind {
        RUNTIME_GRAMMAR_NONE => return Ok(None),
        RUNTIME_GRAMMAR_JSON => Grammar::JsonObject,
        RUNTIME_GRAMMAR_JSON_SCHEMA => Grammar::JsonSchema(json()?),
        RUNTIME_GRAMMAR_REGEX => Grammar::Regex(grammar.into()),
        RUNTIME_GRAMMAR_CHOICE => {
            let texts = json()?
                .as_array()
                .and_then(|list| list.iter().map(|text| text.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>());
            let texts = texts.filter(|texts| !texts.is_empty());
            Grammar::Choice(texts.ok_or_else(|| Error::invalid("grammar is no JSON list of strings"))?)
        }
        RUNTIME_GRAMMAR_LARK => Grammar::Lark(grammar.into()),
        other => {
            return Err(Error::invalid(format!("grammar_type is {other}, expected one of RUNTIME_GRAMMAR")).into());
        }
    }))
}

/// Begins to answer and returns at once. RUNTIME_EVENT_TEXT events follow, then one RUNTIME_EVENT_REQUEST_DONE; the answer
/// is appended to the session. Until then the session only takes runtime_request_cancel; other calls get
/// RUNTIME_ERROR_BUSY. options may be NULL. *request is what cancels it.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_session_generate(
    session: runtime_session,
    options: *const runtime_generate_options,
    request: *mut runtime_request,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        // SAFETY: the caller's promise.
        let (out, options) = unsafe { (place("request", request)?, options::read(options)?) };
        out.id = 0;
        let session = SESSIONS.get(session.id)?;
        // SAFETY: the caller's promise.
        let generate = unsafe { translated(&options)? };
        // The handle comes first, so that the request's events can carry it.
        let request = session.ask(options.userdata);
        let host = session.model().host();
        let id = asked(host, &request)?;
        match session.generate(generate, &request) {
            Ok(()) => {
                out.id = id;
                Ok(())
            }
            Err(error) => {
                heard(host, id);
                Err(error.into())
            }
        }
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_session_generate", error, body) }
}

/// Ends a request: its last event comes at once, with RUNTIME_ERROR_CANCELLED, and the engine stops working on it within a
/// slice. What it has answered so far stays in the session. Legal from any thread at any time; for a request that has
/// ended RUNTIME_ERROR_STALE_HANDLE, which can be ignored.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_request_cancel(request: runtime_request, error: *mut runtime_error) -> runtime_status {
    let body = || REQUESTS.get(request.id).map(|object| object.cancel());
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_request_cancel", error, body) }
}

/// Makes a session with the same text and adapters. Nothing is computed again: both share the keys and values of what they
/// have in common.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_session_fork(
    session: runtime_session,
    fork: *mut runtime_session,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        // SAFETY: the caller's promise.
        let out = unsafe { place("fork", fork)? };
        out.id = 0;
        out.id = SESSIONS.insert(SESSIONS.get(session.id)?.fork()?)?;
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_session_fork", error, body) }
}

/// Cuts the text to its first tokens tokens. To go on with messages, rewind to what runtime_session_get_token_count gave
/// after an append or an answer.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_session_rewind(
    session: runtime_session,
    tokens: usize,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || Ok(SESSIONS.get(session.id)?.rewind(tokens)?);
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_session_rewind", error, body) }
}

/// How many tokens the text has.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_session_get_token_count(
    session: runtime_session,
    count: *mut usize,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        // SAFETY: the caller's promise.
        let out = unsafe { place("count", count)? };
        *out = SESSIONS.get(session.id)?.token_count();
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_session_get_token_count", error, body) }
}

/// The tokens of the text. ids, of capacity elements, may be NULL to ask for the number, which goes to *count.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_session_get_tokens(
    session: runtime_session,
    ids: *mut u32,
    capacity: usize,
    count: *mut usize,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        let tokens = SESSIONS.get(session.id)?.tokens();
        // SAFETY: the caller's promise.
        unsafe { text::give(&tokens, ids, capacity, count) }
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_session_get_tokens", error, body) }
}

/// Gives a session's bytes to the caller.
///
/// # Safety
/// As [`text::give`].
unsafe fn give_state(
    session: runtime_session,
    save: fn(&Session) -> Result<Vec<u8>, Error>,
    data: *mut c_void,
    capacity: usize,
    size: *mut usize,
) -> Result<(), Failure> {
    let bytes = save(&*SESSIONS.get(session.id)?)?;
    // SAFETY: the caller's promise.
    unsafe { text::give(&bytes, data.cast::<u8>(), capacity, size) }
}

/// The session as bytes, to be restored later, by another process too: text and messages, and hashes of the model and the
/// adapters that they belong to. Keys and values are computed again. data, of capacity bytes, may be NULL to ask for the
/// size, which goes to *size.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_session_save_state(
    session: runtime_session,
    data: *mut c_void,
    capacity: usize,
    size: *mut usize,
    error: *mut runtime_error,
) -> runtime_status {
    // SAFETY: the caller's promise.
    let body = || unsafe { give_state(session, Session::save, data, capacity, size) };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_session_save_state", error, body) }
}

/// As runtime_session_save_state, with the keys and values of the text, as far as the engine's cache still has them: some tens
/// of kilobytes a token. Restored on an engine that stores them in the same way, the session goes on without computing its text
/// again. Waits for a slice where one is being worked on. The size may be another in the next call.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_session_save_state_with_cache(
    session: runtime_session,
    data: *mut c_void,
    capacity: usize,
    size: *mut usize,
    error: *mut runtime_error,
) -> runtime_status {
    // SAFETY: the caller's promise.
    let body = || unsafe { give_state(session, Session::save_with_cache, data, capacity, size) };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_session_save_state_with_cache", error, body) }
}

/// Makes a session of what runtime_session_save_state or runtime_session_save_state_with_cache gave. The model must be
/// the same, and adapters the same with the same scales; damaged bytes give RUNTIME_ERROR_FORMAT.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_session_load_state(
    model: runtime_model,
    data: *const c_void,
    size: usize,
    adapters: *const runtime_adapter_ref,
    adapter_count: usize,
    session: *mut runtime_session,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        // SAFETY: the caller's promise.
        let (out, bytes, adapters) = unsafe {
            let out = place("session", session)?;
            out.id = 0;
            (out, text::list("data", data.cast::<u8>(), size)?, blend(adapters, adapter_count)?)
        };
        out.id = SESSIONS.insert(Session::restore(&MODELS.get(model.id)?, bytes, adapters)?)?;
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_session_load_state", error, body) }
}

/// Gives a session back. A request that runs on it goes on to its end. Zero is allowed and does nothing.
#[unsafe(no_mangle)]
pub extern "C" fn runtime_session_release(session: runtime_session) -> runtime_status {
    release("runtime_session_release", &SESSIONS, session.id)
}
