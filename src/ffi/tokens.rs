//! Text to tokens and back, embeddings, log-probabilities.

use super::engine::{place, release};
use super::error::{Failure, runtime_error};
use super::guard::guarded;
use super::handle::Handles;
use super::model::{MODELS, runtime_model};
use super::session::{asked, heard, runtime_request};
use super::status::runtime_status;
use super::text;
use crate::embed::{EventKind, Model, Request};
use crate::error::Error;
use crate::token::{RenderOptions, StreamDecoder};
use std::ffi::c_char;
use std::sync::{Arc, Mutex, PoisonError};

/// Text from tokens that come one by one. Copy it freely: it is a number, not a pointer.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub struct runtime_decoder {
    /// Zero: no decoder.
    pub id: u64,
}

/// What a handle stands for.
pub(super) static DECODERS: Handles<Mutex<StreamDecoder>> = Handles::new("decoder");

/// The tokens of a text. add_special non-zero: with what the tokenizer puts around a text, a BOS token for example. ids,
/// of capacity elements, may be NULL to ask for the number, which goes to *count.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_model_tokenize(
    model: runtime_model,
    text: *const c_char,
    text_len: usize,
    add_special: u32,
    ids: *mut u32,
    capacity: usize,
    count: *mut usize,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        let model = MODELS.get(model.id)?.loaded()?;
        // SAFETY: the caller's promise.
        let text = unsafe { text::read("text", text, text_len)? };
        let tokens = model.tokenizer()?.encode(text, add_special != 0)?;
        // SAFETY: the caller's promise.
        unsafe { text::give(&tokens, ids, capacity, count) }
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_model_tokenize", error, body) }
}

/// The text of count tokens. skip_special non-zero: without special tokens. buffer, of capacity bytes, may be NULL to ask
/// for the length; *len is the length without the NUL, which is written where there is room. For tokens that come one by
/// one use a runtime_decoder: a token may be a part of a character.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_model_detokenize(
    model: runtime_model,
    ids: *const u32,
    count: usize,
    skip_special: u32,
    buffer: *mut c_char,
    capacity: usize,
    len: *mut usize,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        let model = MODELS.get(model.id)?.loaded()?;
        // SAFETY: the caller's promise.
        let ids = unsafe { text::list("ids", ids, count)? };
        let text = model.tokenizer()?.decode(ids, skip_special != 0);
        // SAFETY: the caller's promise.
        unsafe { text::give_text(&text, buffer, capacity, len) }
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_model_detokenize", error, body) }
}

/// Messages as the text that the model was trained on: what runtime_session_append_messages appends. messages_json as
/// there; add_generation_prompt non-zero: with the beginning of the assistant's turn. The rest as
/// runtime_model_detokenize.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_model_apply_template(
    model: runtime_model,
    messages_json: *const c_char,
    messages_len: usize,
    add_generation_prompt: u32,
    buffer: *mut c_char,
    capacity: usize,
    len: *mut usize,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        let model = MODELS.get(model.id)?.loaded()?;
        // SAFETY: the caller's promise.
        let messages = unsafe { text::json("messages_json", messages_json, messages_len)? };
        if !messages.is_array() {
            return Err(Error::invalid("messages must be a JSON list").into());
        }
        let options = RenderOptions { add_generation_prompt: add_generation_prompt != 0, ..RenderOptions::default() };
        let text = model.chat()?.render(&messages, &options)?;
        // SAFETY: the caller's promise.
        unsafe { text::give_text(&text, buffer, capacity, len) }
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_model_apply_template", error, body) }
}

/// Makes a decoder of a model's tokens. skip_special non-zero: special tokens have no text. On success *decoder is the new
/// handle, to be given to runtime_decoder_release once.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_decoder_create(
    model: runtime_model,
    skip_special: u32,
    decoder: *mut runtime_decoder,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        // SAFETY: the caller's promise.
        let out = unsafe { place("decoder", decoder)? };
        out.id = 0;
        let model = MODELS.get(model.id)?.loaded()?;
        out.id = DECODERS.insert(Arc::new(Mutex::new(model.tokenizer()?.stream(skip_special != 0))))?;
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_decoder_create", error, body) }
}

/// Takes a token and gives the text that is complete with it, whole characters only; often none. 1024 bytes of buffer are
/// always enough; where they are too few, the text is kept for the next call.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_decoder_push(
    decoder: runtime_decoder,
    token: u32,
    buffer: *mut c_char,
    capacity: usize,
    len: *mut usize,
    error: *mut runtime_error,
) -> runtime_status {
    // SAFETY: the caller's promise.
    let body = || unsafe { decoded(decoder, buffer, capacity, len, |stream| stream.push(token)) };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_decoder_push", error, body) }
}

/// Ends the text: an unfinished character becomes U+FFFD. The decoder can then begin anew.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_decoder_flush(
    decoder: runtime_decoder,
    buffer: *mut c_char,
    capacity: usize,
    len: *mut usize,
    error: *mut runtime_error,
) -> runtime_status {
    // SAFETY: the caller's promise.
    let body = || unsafe { decoded(decoder, buffer, capacity, len, StreamDecoder::flush) };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_decoder_flush", error, body) }
}

unsafe fn decoded(
    decoder: runtime_decoder,
    buffer: *mut c_char,
    capacity: usize,
    len: *mut usize,
    step: impl FnOnce(&mut StreamDecoder) -> Option<String>,
) -> Result<(), Failure> {
    if buffer.is_null() {
        return Err(Error::invalid("buffer is NULL: there is no place for the text").into());
    }
    let decoder = DECODERS.get(decoder.id)?;
    let mut stream = decoder.lock().unwrap_or_else(PoisonError::into_inner);
    let mut ahead = stream.clone();
    let text = step(&mut ahead).unwrap_or_default();
    // SAFETY: the caller's promise is passed on.
    unsafe { text::give_text(&text, buffer, capacity, len)? };
    // What did not fit is not lost.
    *stream = ahead;
    Ok(())
}

/// Gives a decoder back. Zero is allowed and does nothing.
#[unsafe(no_mangle)]
pub extern "C" fn runtime_decoder_release(decoder: runtime_decoder) -> runtime_status {
    release("runtime_decoder_release", &DECODERS, decoder.id)
}

/// The arguments of the two functions below, and the request's handle.
unsafe fn ask(
    model: runtime_model,
    (ids, count): (*const u32, usize),
    (kind, userdata): (EventKind, u64),
    request: *mut runtime_request,
    begin: impl FnOnce(&Model, &[u32], &Arc<Request>) -> crate::Result<()>,
) -> Result<(), Failure> {
    // SAFETY: the caller's promise is passed on.
    let (out, ids) = unsafe { (place("request", request)?, text::list("ids", ids, count)?) };
    out.id = 0;
    let model = MODELS.get(model.id)?;
    let request = Request::new(model.host(), kind, userdata);
    let id = asked(model.host(), &request)?;
    match begin(&model, ids, &request) {
        Ok(()) => {
            out.id = id;
            Ok(())
        }
        Err(error) => {
            request.withdraw();
            heard(model.host(), id);
            Err(error.into())
        }
    }
}

/// Asks for the embedding of count tokens and returns at once: RUNTIME_EVENT_EMBEDDING brings the last token's output of the
/// last layer, after the norm, `hidden` numbers, not normalised. userdata comes back in the event.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_model_embed(
    model: runtime_model,
    ids: *const u32,
    count: usize,
    userdata: u64,
    request: *mut runtime_request,
    error: *mut runtime_error,
) -> runtime_status {
    let kind = EventKind::Embedding;
    // SAFETY: the caller's promise.
    let body = || unsafe { ask(model, (ids, count), (kind, userdata), request, Model::embed) };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_model_embed", error, body) }
}

/// Asks for the log-probability, in nat, of each of count tokens but the first, given those before it, and returns at once:
/// RUNTIME_EVENT_SCORES brings them. userdata comes back in the event.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_model_score(
    model: runtime_model,
    ids: *const u32,
    count: usize,
    userdata: u64,
    request: *mut runtime_request,
    error: *mut runtime_error,
) -> runtime_status {
    let kind = EventKind::Scores;
    // SAFETY: the caller's promise.
    let body = || unsafe { ask(model, (ids, count), (kind, userdata), request, Model::score) };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_model_score", error, body) }
}
