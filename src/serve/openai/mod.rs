//! OpenAI's endpoints, with vLLM's additions to the request body.

pub(super) mod chat;
mod chat_reply;
pub(super) mod completions;
mod completions_reply;
pub(super) mod embeddings;
mod error;
mod fields;
pub(super) mod files;
pub(super) mod fine_tuning;
mod logprobs;
pub(super) mod messages;
pub(super) mod models;
mod pages;
mod params;
mod reply;
pub(super) mod responses;
mod responses_input;
mod responses_reply;
mod texts;
mod tokens;

pub(super) use error::ApiError;
pub(super) use fields::Fields;
pub(super) use params::{Defaults, Params};
