//! The C ABI. `include/runtime.h` is generated from this folder (`cbindgen.toml`), so the comments here are what an
//! embedder reads: whole sentences, units, who owns what.
//!
//! Conventions: handles are typed 64-bit values ([`handle`]); every entry point is guarded, so that a panic becomes a
//! status ([`guard`]); structs carry their size ([`options`]); nothing is printed and no process-wide state is changed. What the
//! functions do is `embed`'s business.
#![allow(clippy::too_many_arguments, reason = "C functions take their results as arguments, too")]

mod adapter;
mod engine;
mod error;
mod event;
mod guard;
mod handle;
mod interop;
mod io;
mod library;
mod memory;
mod model;
mod options;
mod session;
mod status;
#[cfg(test)]
mod tests;
mod text;
mod tokens;
mod training;

pub use adapter::{
    runtime_adapter, runtime_adapter_get_info, runtime_adapter_info, runtime_adapter_info_init, runtime_adapter_load,
    runtime_adapter_load_buffer, runtime_adapter_ref, runtime_adapter_release, runtime_adapter_save,
};
pub use engine::{
    RUNTIME_BACKEND_AUTO, RUNTIME_BACKEND_CPU, RUNTIME_BACKEND_CUDA, RUNTIME_BACKEND_WGPU, RUNTIME_COMPUTE_AUTO,
    RUNTIME_COMPUTE_BF16, RUNTIME_COMPUTE_F16, RUNTIME_COMPUTE_F32, RUNTIME_RUN_STEPPED, RUNTIME_RUN_THREAD,
    runtime_engine, runtime_engine_create, runtime_engine_options, runtime_engine_options_init, runtime_engine_pause,
    runtime_engine_release, runtime_engine_resume, runtime_engine_step,
};
pub use error::{runtime_error, runtime_error_init};
pub use event::*;
pub use interop::*;
pub use io::{runtime_free_fn, runtime_io, runtime_io_init, runtime_io_read_fn, runtime_io_size_fn};
pub use library::*;
pub use memory::*;
pub use model::{
    RUNTIME_KV_AUTO, RUNTIME_KV_FP8, RUNTIME_KV_INT8, runtime_engine_get_requirements, runtime_model,
    runtime_model_cancel, runtime_model_get_chat_template, runtime_model_get_info, runtime_model_info,
    runtime_model_info_init, runtime_model_load, runtime_model_load_buffer, runtime_model_load_fd,
    runtime_model_load_io, runtime_model_options, runtime_model_options_init, runtime_model_release,
    runtime_model_wait, runtime_requirements, runtime_requirements_init,
};
pub use session::*;
pub use status::*;
pub use tokens::*;
pub use training::*;

// The guard catches unwinding panics; with panic=abort it would catch nothing and a host would die with us.
#[cfg(not(panic = "unwind"))]
compile_error!("the C ABI needs panic = \"unwind\"");
