//! The C ABI. `include/runtime.h` is generated from this folder (`cbindgen.toml`), so the comments here are what an
//! embedder reads: whole sentences, units, who owns what.
//!
//! Conventions: handles are typed 64-bit values ([`handle`]); every entry point is guarded, so that a panic becomes a
//! status ([`guard`]); structs carry their size ([`options`]); nothing is printed and no process-wide state is changed.

mod error;
mod generate;
mod guard;
mod handle;
mod library;
mod model;
mod options;
mod status;
mod text;

pub use error::runtime_error;
pub use generate::{runtime_generate, runtime_generate_options, runtime_generate_options_init, runtime_text_fn};
pub use library::{RUNTIME_ABI_VERSION, runtime_abi_version, runtime_version};
pub use model::{
    RUNTIME_BACKEND_AUTO, RUNTIME_BACKEND_CPU, RUNTIME_BACKEND_CUDA, RUNTIME_BACKEND_WGPU, RUNTIME_COMPUTE_AUTO,
    RUNTIME_COMPUTE_BF16, RUNTIME_COMPUTE_F16, RUNTIME_COMPUTE_F32, runtime_model, runtime_model_load,
    runtime_model_options, runtime_model_options_init, runtime_model_release,
};
pub use status::*;

// The guard catches unwinding panics; with panic=abort it would catch nothing and a host would die with us.
#[cfg(not(panic = "unwind"))]
compile_error!("the C ABI needs panic = \"unwind\"");
