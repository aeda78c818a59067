//! Anthropic's Messages API.

mod content;
pub(super) mod error;
pub(super) mod messages;
mod reply;
mod request;
