//! One prompt in, text out piece by piece.

use super::error::{Failure, runtime_error};
use super::guard::guarded;
use super::model::{MODELS, runtime_model};
use super::options::{self, Versioned};
use super::status::runtime_status;
use super::text;
use crate::engine::text::{TextEvent, TextOptions, submit_text};
use crate::engine::{Engine, FinishReason, Request, SamplingParams};
use crate::error::Error;
use crate::token::RenderOptions;
use std::ffi::{c_char, c_void};
use std::ops::ControlFlow;
use std::sync::mpsc;

/// Receives text as it is generated, on the thread that called runtime_generate. text is UTF-8, len bytes long, NOT
/// NUL-terminated, never ends within a character, and is valid only during the call. Return 0 to go on; any other
/// value ends the generation, and runtime_generate returns RUNTIME_ERROR_CANCELLED. The callback may call any function
/// of this library.
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub type runtime_text_fn = Option<unsafe extern "C" fn(userdata: *mut c_void, text: *const c_char, len: usize) -> i32>;

/// How to generate. Zero in a field means its default; RUNTIME_GENERATE_OPTIONS_INIT and runtime_generate_options_init
/// set struct_size and leave the rest zero.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub struct runtime_generate_options {
    /// sizeof(runtime_generate_options) of the caller's header.
    pub struct_size: u32,
    /// Most tokens to generate. 0: 128.
    pub max_tokens: u32,
    /// 0: always the most likely token. Higher is more varied; 1 is the model's own distribution.
    pub temperature: f32,
    /// Only the most likely tokens that together reach this probability. 0: all.
    pub top_p: f32,
    /// Only this many of the most likely tokens. 0: all.
    pub top_k: u32,
    /// Non-zero: the prompt is a user's message, to be put into the model's chat template. 0: the model goes on with the
    /// prompt as it stands.
    pub chat: u32,
    /// Same seed, same text. 0: another one for every call.
    pub seed: u64,
}

// SAFETY: integers and floats only; the u64 is aligned without padding.
unsafe impl Versioned for runtime_generate_options {
    const NAME: &'static str = "runtime_generate_options";
    const FIRST_SIZE: usize = 32;
}

/// Sets all fields to their defaults. NULL is allowed and does nothing.
///
/// # Safety
/// `options` is NULL or points to a writable struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_generate_options_init(options: *mut runtime_generate_options) {
    if options.is_null() {
        return;
    }
    let struct_size = size_of::<runtime_generate_options>() as u32;
    // SAFETY: not NULL, so writable.
    unsafe {
        options.write(runtime_generate_options {
            struct_size,
            max_tokens: 0,
            temperature: 0.0,
            top_p: 0.0,
            top_k: 0,
            chat: 0,
            seed: 0,
        });
    }
}

/// Generates text after a prompt and returns when it is complete: the model ended it, or max_tokens were used up.
///
/// prompt is UTF-8, prompt_len bytes long (SIZE_MAX: NUL-terminated). options may be NULL. on_text receives the text
/// with userdata as its first argument. error may be NULL. Several threads may generate with one model at the same
/// time; their requests are computed together.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_generate(
    model: runtime_model,
    prompt: *const c_char,
    prompt_len: usize,
    options: *const runtime_generate_options,
    on_text: runtime_text_fn,
    userdata: *mut c_void,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        let engine = MODELS.get(model.id)?;
        // SAFETY: the caller's promise.
        let (prompt, options) = unsafe { (text::read("prompt", prompt, prompt_len)?, options::read(options)?) };
        let Some(on_text) = on_text else { return Err(Error::invalid("on_text is NULL").into()) };
        let request = request(&engine, prompt, &options)?;
        run(&engine, request, options.chat == 0, |text| {
            // SAFETY: the caller's function and its own userdata; the text outlives the call.
            unsafe { on_text(userdata, text.as_ptr().cast(), text.len()) == 0 }
        })
    };
    // SAFETY: the caller's promise.
    unsafe { guarded(error, body) }
}

fn request(engine: &Engine, prompt: &str, options: &runtime_generate_options) -> Result<Request, Failure> {
    let model = engine.model();
    let prompt = if options.chat == 0 {
        model.tokenizer()?.encode(prompt, true)?
    } else {
        let template = model.chat()?;
        let messages = serde_json::json!([{ "role": "user", "content": prompt }]);
        let render = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        model.tokenizer()?.encode(&template.render(&messages, &render)?, false)?
    };
    let mut request = Request { prompt, ..Request::default() };
    if options.max_tokens > 0 {
        request.max_tokens = options.max_tokens as usize;
    }
    request.sampling = SamplingParams {
        temperature: options.temperature,
        top_p: if options.top_p == 0.0 { 1.0 } else { options.top_p },
        top_k: options.top_k as usize,
        seed: (options.seed != 0).then_some(options.seed),
        ..SamplingParams::default()
    };
    Ok(request)
}

/// The text travels from the engine's thread to this one, so that a slow callback delays nobody else.
fn run(
    engine: &Engine,
    request: Request,
    continues_prompt: bool,
    mut on_text: impl FnMut(&str) -> bool,
) -> Result<(), Failure> {
    let (sender, events) = mpsc::channel();
    // The receiver goes when the caller cancels; the engine then drops the request.
    let sink = move |event| match sender.send(event) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    };
    let options = TextOptions { continues_prompt, ..TextOptions::default() };
    let id = submit_text(engine, request, options, Box::new(sink))?;
    for event in events {
        match event {
            TextEvent::Delta { text, .. } if !text.is_empty() && !on_text(&text) => {
                engine.cancel(id);
                return Err(Error::Cancelled.into());
            }
            TextEvent::Prompt(_) | TextEvent::Delta { .. } => {}
            TextEvent::Done { reason: FinishReason::Cancelled, .. } => return Err(Error::Cancelled.into()),
            TextEvent::Done { .. } => return Ok(()),
            TextEvent::Failed(error) => return Err(error.into()),
        }
    }
    Err(Error::internal("the engine dropped a request").into())
}
