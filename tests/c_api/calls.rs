//! Every function of the C ABI as a call with arguments from somewhere: a test compares the names with the header's.

use super::exports::*;
use std::ffi::{c_char, c_void};

/// Where arguments come from.
pub trait Args {
    fn error(&mut self) -> *mut runtime_error;
    fn handle<T>(&mut self, kind: &str, make: fn(u64) -> T) -> T;
    /// Where a new handle goes.
    fn place<T>(&mut self, kind: &str) -> *mut T;
    /// NUL-terminated, as long as `text_len` says or longer.
    fn text(&mut self) -> *const c_char;
    fn text_len(&mut self) -> usize;
    /// As many elements as `count` says.
    fn list<T>(&mut self) -> *const T;
    fn data(&mut self) -> *const c_void;
    fn buffer<T>(&mut self) -> *mut T;
    fn count(&mut self) -> usize;
    fn small(&mut self) -> usize;
    fn number(&mut self) -> u64;
    fn out<T>(&mut self) -> *mut T;
    fn options<T>(&mut self) -> *const T;
    fn result<T>(&mut self) -> *mut T;
    fn userdata(&mut self) -> *mut c_void;
    fn free(&mut self) -> runtime_free_fn;
    fn wake(&mut self) -> runtime_wake_fn;
    fn log(&mut self) -> runtime_log_fn;
}

/// A function's name and a call of it; its status, where it has one.
pub type Call<A> = (&'static str, fn(&mut A) -> Option<runtime_status>);

fn none<T>(_: T) -> Option<runtime_status> {
    None
}

/// All of them, in the header's order.
// SAFETY (of all calls): `Args` gives NULL or pointers to as much as the header asks for.
#[rustfmt::skip]
#[allow(clippy::undocumented_unsafe_blocks, clippy::multiple_unsafe_ops_per_block, unused_unsafe, clippy::unit_arg, reason = "one reason for all")]
pub fn calls<A: Args>() -> Vec<Call<A>> {
    vec![
        ("runtime_status_name", |a| none(unsafe { runtime_status_name(a.number() as i32) })),
        ("runtime_error_init", |a| none(unsafe { runtime_error_init(a.error()) })),
        ("runtime_version", |_| none(unsafe { runtime_version() })),
        ("runtime_abi_version", |_| none(unsafe { runtime_abi_version() })),
        ("runtime_build_info", |_| none(unsafe { runtime_build_info() })),
        ("runtime_device_info_init", |a| none(unsafe { runtime_device_info_init(a.result::<runtime_device_info>()) })),
        ("runtime_device_count", |a| Some(unsafe { runtime_device_count(a.out::<u32>(), a.error()) })),
        ("runtime_device_get_info", |a| Some(unsafe { runtime_device_get_info(a.number() as u32, a.result::<runtime_device_info>(), a.error()) })),
        ("runtime_engine_options_init", |a| none(unsafe { runtime_engine_options_init(a.result::<runtime_engine_options>()) })),
        ("runtime_engine_create", |a| Some(unsafe { runtime_engine_create(a.options::<runtime_engine_options>(), a.place::<runtime_engine>("runtime_engine"), a.error()) })),
        ("runtime_engine_release", |a| Some(unsafe { runtime_engine_release(a.handle("runtime_engine", |id| runtime_engine { id })) })),
        ("runtime_engine_step", |a| Some(unsafe { runtime_engine_step(a.handle("runtime_engine", |id| runtime_engine { id }), a.small() as u32, a.out::<u32>(), a.error()) })),
        ("runtime_engine_pause", |a| Some(unsafe { runtime_engine_pause(a.handle("runtime_engine", |id| runtime_engine { id }), a.error()) })),
        ("runtime_engine_resume", |a| Some(unsafe { runtime_engine_resume(a.handle("runtime_engine", |id| runtime_engine { id }), a.error()) })),
        ("runtime_event_init", |a| none(unsafe { runtime_event_init(a.result::<runtime_event>()) })),
        ("runtime_engine_poll", |a| Some(unsafe { runtime_engine_poll(a.handle("runtime_engine", |id| runtime_engine { id }), a.result::<runtime_event>(), a.count(), a.out::<usize>(), a.error()) })),
        ("runtime_engine_wait", |a| Some(unsafe { runtime_engine_wait(a.handle("runtime_engine", |id| runtime_engine { id }), 0, a.out::<u32>(), a.error()) })),
        ("runtime_engine_set_wake_callback", |a| Some(unsafe { runtime_engine_set_wake_callback(a.handle("runtime_engine", |id| runtime_engine { id }), a.wake(), a.userdata(), a.error()) })),
        ("runtime_memory_info_init", |a| none(unsafe { runtime_memory_info_init(a.result::<runtime_memory_info>()) })),
        ("runtime_engine_get_memory_info", |a| Some(unsafe { runtime_engine_get_memory_info(a.handle("runtime_engine", |id| runtime_engine { id }), a.result::<runtime_memory_info>(), a.error()) })),
        ("runtime_engine_set_memory_limit", |a| Some(unsafe { runtime_engine_set_memory_limit(a.handle("runtime_engine", |id| runtime_engine { id }), a.number(), a.number(), a.error()) })),
        ("runtime_engine_trim", |a| Some(unsafe { runtime_engine_trim(a.handle("runtime_engine", |id| runtime_engine { id }), a.error()) })),
        ("runtime_pacing_init", |a| none(unsafe { runtime_pacing_init(a.result::<runtime_pacing>()) })),
        ("runtime_engine_set_pacing", |a| Some(unsafe { runtime_engine_set_pacing(a.handle("runtime_engine", |id| runtime_engine { id }), a.options::<runtime_pacing>(), a.error()) })),
        ("runtime_metrics_init", |a| none(unsafe { runtime_metrics_init(a.result::<runtime_metrics>()) })),
        ("runtime_engine_get_metrics", |a| Some(unsafe { runtime_engine_get_metrics(a.handle("runtime_engine", |id| runtime_engine { id }), a.result::<runtime_metrics>(), a.error()) })),
        ("runtime_engine_set_log", |a| Some(unsafe { runtime_engine_set_log(a.handle("runtime_engine", |id| runtime_engine { id }), a.number() as i32, a.log(), a.userdata(), a.error()) })),
        ("runtime_io_init", |a| none(unsafe { runtime_io_init(a.result::<runtime_io>()) })),
        ("runtime_model_options_init", |a| none(unsafe { runtime_model_options_init(a.result::<runtime_model_options>()) })),
        ("runtime_requirements_init", |a| none(unsafe { runtime_requirements_init(a.result::<runtime_requirements>()) })),
        ("runtime_engine_get_requirements", |a| Some(unsafe { runtime_engine_get_requirements(a.handle("runtime_engine", |id| runtime_engine { id }), a.text(), a.text_len(), a.options::<runtime_model_options>(), a.result::<runtime_requirements>(), a.error()) })),
        ("runtime_model_load", |a| Some(unsafe { runtime_model_load(a.handle("runtime_engine", |id| runtime_engine { id }), a.text(), a.text_len(), a.options::<runtime_model_options>(), a.place::<runtime_model>("runtime_model"), a.error()) })),
        ("runtime_model_load_fd", |a| Some(unsafe { runtime_model_load_fd(a.handle("runtime_engine", |id| runtime_engine { id }), a.number() as i32, a.number(), a.number(), a.options::<runtime_model_options>(), a.place::<runtime_model>("runtime_model"), a.error()) })),
        ("runtime_model_load_buffer", |a| Some(unsafe { runtime_model_load_buffer(a.handle("runtime_engine", |id| runtime_engine { id }), a.data(), a.count(), a.free(), a.userdata(), a.options::<runtime_model_options>(), a.place::<runtime_model>("runtime_model"), a.error()) })),
        ("runtime_model_load_io", |a| Some(unsafe { runtime_model_load_io(a.handle("runtime_engine", |id| runtime_engine { id }), a.options::<runtime_io>(), a.options::<runtime_model_options>(), a.place::<runtime_model>("runtime_model"), a.error()) })),
        ("runtime_model_cancel", |a| Some(unsafe { runtime_model_cancel(a.handle("runtime_model", |id| runtime_model { id }), a.error()) })),
        ("runtime_model_wait", |a| Some(unsafe { runtime_model_wait(a.handle("runtime_model", |id| runtime_model { id }), 0, a.error()) })),
        ("runtime_model_info_init", |a| none(unsafe { runtime_model_info_init(a.result::<runtime_model_info>()) })),
        ("runtime_model_get_info", |a| Some(unsafe { runtime_model_get_info(a.handle("runtime_model", |id| runtime_model { id }), a.result::<runtime_model_info>(), a.error()) })),
        ("runtime_model_get_chat_template", |a| Some(unsafe { runtime_model_get_chat_template(a.handle("runtime_model", |id| runtime_model { id }), a.buffer::<c_char>(), a.count(), a.out::<usize>(), a.error()) })),
        ("runtime_model_release", |a| Some(unsafe { runtime_model_release(a.handle("runtime_model", |id| runtime_model { id })) })),
        ("runtime_adapter_load", |a| Some(unsafe { runtime_adapter_load(a.handle("runtime_model", |id| runtime_model { id }), a.text(), a.text_len(), a.place::<runtime_adapter>("runtime_adapter"), a.error()) })),
        ("runtime_adapter_load_buffer", |a| Some(unsafe { runtime_adapter_load_buffer(a.handle("runtime_model", |id| runtime_model { id }), a.text(), a.text_len(), a.data(), a.count(), a.place::<runtime_adapter>("runtime_adapter"), a.error()) })),
        ("runtime_adapter_save", |a| Some(unsafe { runtime_adapter_save(a.handle("runtime_adapter", |id| runtime_adapter { id }), a.text(), a.text_len(), a.error()) })),
        ("runtime_adapter_info_init", |a| none(unsafe { runtime_adapter_info_init(a.result::<runtime_adapter_info>()) })),
        ("runtime_adapter_get_info", |a| Some(unsafe { runtime_adapter_get_info(a.handle("runtime_adapter", |id| runtime_adapter { id }), a.result::<runtime_adapter_info>(), a.error()) })),
        ("runtime_adapter_release", |a| Some(unsafe { runtime_adapter_release(a.handle("runtime_adapter", |id| runtime_adapter { id })) })),
        ("runtime_session_create", |a| Some(unsafe { runtime_session_create(a.handle("runtime_model", |id| runtime_model { id }), a.place::<runtime_session>("runtime_session"), a.error()) })),
        ("runtime_session_set_adapters", |a| Some(unsafe { runtime_session_set_adapters(a.handle("runtime_session", |id| runtime_session { id }), a.list::<runtime_adapter_ref>(), a.count(), a.error()) })),
        ("runtime_session_append_text", |a| Some(unsafe { runtime_session_append_text(a.handle("runtime_session", |id| runtime_session { id }), a.text(), a.text_len(), a.error()) })),
        ("runtime_session_append_tokens", |a| Some(unsafe { runtime_session_append_tokens(a.handle("runtime_session", |id| runtime_session { id }), a.list::<u32>(), a.count(), a.error()) })),
        ("runtime_session_append_messages", |a| Some(unsafe { runtime_session_append_messages(a.handle("runtime_session", |id| runtime_session { id }), a.text(), a.text_len(), a.error()) })),
        ("runtime_generate_options_init", |a| none(unsafe { runtime_generate_options_init(a.result::<runtime_generate_options>()) })),
        ("runtime_session_generate", |a| Some(unsafe { runtime_session_generate(a.handle("runtime_session", |id| runtime_session { id }), a.options::<runtime_generate_options>(), a.place::<runtime_request>("runtime_request"), a.error()) })),
        ("runtime_request_cancel", |a| Some(unsafe { runtime_request_cancel(a.handle("runtime_request", |id| runtime_request { id }), a.error()) })),
        ("runtime_session_fork", |a| Some(unsafe { runtime_session_fork(a.handle("runtime_session", |id| runtime_session { id }), a.place::<runtime_session>("runtime_session"), a.error()) })),
        ("runtime_session_rewind", |a| Some(unsafe { runtime_session_rewind(a.handle("runtime_session", |id| runtime_session { id }), a.small(), a.error()) })),
        ("runtime_session_get_token_count", |a| Some(unsafe { runtime_session_get_token_count(a.handle("runtime_session", |id| runtime_session { id }), a.out::<usize>(), a.error()) })),
        ("runtime_session_get_tokens", |a| Some(unsafe { runtime_session_get_tokens(a.handle("runtime_session", |id| runtime_session { id }), a.buffer::<u32>(), a.count(), a.out::<usize>(), a.error()) })),
        ("runtime_session_save_state", |a| Some(unsafe { runtime_session_save_state(a.handle("runtime_session", |id| runtime_session { id }), a.buffer::<c_void>(), a.count(), a.out::<usize>(), a.error()) })),
        ("runtime_session_save_state_with_cache", |a| Some(unsafe { runtime_session_save_state_with_cache(a.handle("runtime_session", |id| runtime_session { id }), a.buffer::<c_void>(), a.count(), a.out::<usize>(), a.error()) })),
        ("runtime_session_load_state", |a| Some(unsafe { runtime_session_load_state(a.handle("runtime_model", |id| runtime_model { id }), a.data(), a.count(), a.list::<runtime_adapter_ref>(), a.count(), a.place::<runtime_session>("runtime_session"), a.error()) })),
        ("runtime_session_release", |a| Some(unsafe { runtime_session_release(a.handle("runtime_session", |id| runtime_session { id })) })),
        ("runtime_training_options_init", |a| none(unsafe { runtime_training_options_init(a.result::<runtime_training_options>()) })),
        ("runtime_training_create", |a| Some(unsafe { runtime_training_create(a.handle("runtime_model", |id| runtime_model { id }), a.options::<runtime_training_options>(), a.place::<runtime_training>("runtime_training"), a.error()) })),
        ("runtime_training_add_example", |a| Some(unsafe { runtime_training_add_example(a.handle("runtime_training", |id| runtime_training { id }), a.text(), a.text_len(), a.error()) })),
        ("runtime_training_add_tokens", |a| Some(unsafe { runtime_training_add_tokens(a.handle("runtime_training", |id| runtime_training { id }), a.list::<u32>(), a.list::<u8>(), a.count(), a.error()) })),
        ("runtime_training_add_preference", |a| Some(unsafe { runtime_training_add_preference(a.handle("runtime_training", |id| runtime_training { id }), a.text(), a.text_len(), a.error()) })),
        ("runtime_training_seal", |a| Some(unsafe { runtime_training_seal(a.handle("runtime_training", |id| runtime_training { id }), a.error()) })),
        ("runtime_training_start", |a| Some(unsafe { runtime_training_start(a.handle("runtime_training", |id| runtime_training { id }), a.error()) })),
        ("runtime_training_pause", |a| Some(unsafe { runtime_training_pause(a.handle("runtime_training", |id| runtime_training { id }), a.error()) })),
        ("runtime_training_resume", |a| Some(unsafe { runtime_training_resume(a.handle("runtime_training", |id| runtime_training { id }), a.error()) })),
        ("runtime_training_cancel", |a| Some(unsafe { runtime_training_cancel(a.handle("runtime_training", |id| runtime_training { id }), a.error()) })),
        ("runtime_training_checkpoint", |a| Some(unsafe { runtime_training_checkpoint(a.handle("runtime_training", |id| runtime_training { id }), a.text(), a.text_len(), a.error()) })),
        ("runtime_training_snapshot_adapter", |a| Some(unsafe { runtime_training_snapshot_adapter(a.handle("runtime_training", |id| runtime_training { id }), a.place::<runtime_adapter>("runtime_adapter"), a.error()) })),
        ("runtime_training_release", |a| Some(unsafe { runtime_training_release(a.handle("runtime_training", |id| runtime_training { id })) })),
        ("runtime_model_tokenize", |a| Some(unsafe { runtime_model_tokenize(a.handle("runtime_model", |id| runtime_model { id }), a.text(), a.text_len(), a.number() as u32, a.buffer::<u32>(), a.count(), a.out::<usize>(), a.error()) })),
        ("runtime_model_detokenize", |a| Some(unsafe { runtime_model_detokenize(a.handle("runtime_model", |id| runtime_model { id }), a.list::<u32>(), a.count(), a.number() as u32, a.buffer::<c_char>(), a.count(), a.out::<usize>(), a.error()) })),
        ("runtime_model_apply_template", |a| Some(unsafe { runtime_model_apply_template(a.handle("runtime_model", |id| runtime_model { id }), a.text(), a.text_len(), a.number() as u32, a.buffer::<c_char>(), a.count(), a.out::<usize>(), a.error()) })),
        ("runtime_decoder_create", |a| Some(unsafe { runtime_decoder_create(a.handle("runtime_model", |id| runtime_model { id }), a.number() as u32, a.place::<runtime_decoder>("runtime_decoder"), a.error()) })),
        ("runtime_decoder_push", |a| Some(unsafe { runtime_decoder_push(a.handle("runtime_decoder", |id| runtime_decoder { id }), a.number() as u32, a.buffer::<c_char>(), a.count(), a.out::<usize>(), a.error()) })),
        ("runtime_decoder_flush", |a| Some(unsafe { runtime_decoder_flush(a.handle("runtime_decoder", |id| runtime_decoder { id }), a.buffer::<c_char>(), a.count(), a.out::<usize>(), a.error()) })),
        ("runtime_decoder_release", |a| Some(unsafe { runtime_decoder_release(a.handle("runtime_decoder", |id| runtime_decoder { id })) })),
        ("runtime_model_embed", |a| Some(unsafe { runtime_model_embed(a.handle("runtime_model", |id| runtime_model { id }), a.list::<u32>(), a.count(), a.number(), a.place::<runtime_request>("runtime_request"), a.error()) })),
        ("runtime_model_score", |a| Some(unsafe { runtime_model_score(a.handle("runtime_model", |id| runtime_model { id }), a.list::<u32>(), a.count(), a.number(), a.place::<runtime_request>("runtime_request"), a.error()) })),
        ("runtime_vulkan_device_init", |a| none(unsafe { runtime_vulkan_device_init(a.result::<runtime_vulkan_device>()) })),
        ("runtime_cuda_context_init", |a| none(unsafe { runtime_cuda_context_init(a.result::<runtime_cuda_context>()) })),
        // Foreign handles cannot be checked: made-up ones are not the library's to survive.
        ("runtime_engine_create_on_vulkan", |a| Some(unsafe { runtime_engine_create_on_vulkan(a.options::<runtime_engine_options>(), std::ptr::null(), a.place::<runtime_engine>("runtime_engine"), a.error()) })),
        ("runtime_engine_create_on_cuda", |a| Some(unsafe { runtime_engine_create_on_cuda(a.options::<runtime_engine_options>(), std::ptr::null(), a.place::<runtime_engine>("runtime_engine"), a.error()) })),
    ]
}

/// The functions that a header declares.
pub fn declared(header: &str) -> Vec<&str> {
    let starts = |line: &&str| {
        line.starts_with("runtime_")
            || line.starts_with("uint32_t runtime_")
            || line.starts_with("const char *runtime_")
            || line.starts_with("void runtime_")
    };
    let name = |line: &'_ str| line.split('(').next().and_then(|head| head.rsplit([' ', '*']).next()).map(str::len);
    header
        .lines()
        .filter(|line| starts(line) && line.contains('('))
        .filter_map(|line| {
            let end = line.find('(')?;
            let len = name(line)?;
            Some(&line[end - len..end])
        })
        .collect()
}
