//! Text to token ids and back: tokenizers, chat templates, streams of text, training masks.
//!
//! - [`Tokenizer`] is built from a `tokenizer.json` or from GGUF metadata ([`GgufTokenizer`]); [`gguf_keys`] is the way back.
//! - [`StreamDecoder`] turns generated ids into text piece by piece; [`StopMatcher`] cuts at stop strings.
//! - [`ChatTemplate`] renders conversations as Hugging Face does; [`assistant_spans`] and
//!   [`encode_chat_for_training`] say which of the text is the assistant's.

mod chat;
mod export;
mod gguf;
mod jinja;
mod mask;
mod pieces;
mod pretokenize;
mod source;
mod spm;
mod stop;
mod stream;
mod to_gguf;
mod tokenizer;

pub use chat::{ChatTemplate, RenderOptions};
pub use gguf::GgufTokenizer;
pub use mask::{AssistantSpans, assistant_spans, encode_chat_for_training};
pub use stop::{StopMatcher, StopOutput};
pub use stream::StreamDecoder;
pub use to_gguf::gguf_keys;
pub use tokenizer::{TokenSpan, Tokenizer};
