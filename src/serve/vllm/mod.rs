//! vLLM's own endpoints: tokens, adapters at run time, and the server's state.

pub(super) mod adapters;
pub(super) mod status;
pub(super) mod tokens;
