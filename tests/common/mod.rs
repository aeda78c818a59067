//! Shared by the integration tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code, missing_docs)]

pub mod device;
pub mod folder;
pub mod gguf;
pub mod text;
