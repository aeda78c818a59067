//! Which tokens of a conversation are the assistant's: the ones an assistant-only loss counts.
//!
//! A turn's tokens are all that the template places after the turn's generation prompt, up to the next
//! turn, its end-of-turn token included. For ChatML that is `content<|im_end|>\n`: the line end comes
//! from the assistant's turn, before the next turn begins.

use std::ops::Range;

use serde_json::Value;

use super::chat::{ChatTemplate, RenderOptions};
use super::tokenizer::Tokenizer;
use crate::{Error, Result};

/// A rendered conversation and the byte ranges of its assistant turns, ascending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssistantSpans {
    /// The whole conversation.
    pub text: String,
    /// One range per assistant message, or per `{% generation %}` block.
    pub spans: Vec<Range<usize>>,
}

/// Renders `messages` and finds the assistant's turns in the text.
///
/// A turn starts where the conversation before it, rendered with a generation prompt, ends. It ends
/// where the conversation up to and including it ends. Templates that rewrite earlier turns once later
/// ones exist (Qwen3 drops their reasoning) fail the second; there the next turn's own text, found by
/// leaving this turn out, marks the end. What remains is left to the template's `{% generation %}`. A turn of `weight` 0 is left
/// out, as OpenAI's fine-tuning has it.
///
/// # Errors
/// [`Error::Text`] naming the message whose turn cannot be located and why, or a template's own error.
pub fn assistant_spans(template: &ChatTemplate, messages: &Value, options: &RenderOptions) -> Result<AssistantSpans> {
    let options = RenderOptions { add_generation_prompt: false, continue_final_message: false, ..options.clone() };
    let list = messages.as_array().ok_or_else(|| Error::invalid("messages must be a list"))?;
    let (text, blocks) = template.render_with_spans(messages, &options)?;
    let conversation = Conversation { template, list, options, text: &text };
    let mut spans = Vec::new();
    for (i, message) in list.iter().enumerate() {
        if message["role"] != "assistant" {
            continue;
        }
        match conversation.turn(i) {
            Ok(_) if message["weight"].as_f64() == Some(0.0) => {}
            Ok(span) => spans.push(span),
            Err(error) if list.iter().any(|message| message["weight"].as_f64() == Some(0.0)) => return Err(error),
            // What the template itself marks is better than nothing.
            Err(_) if !blocks.is_empty() => {
                spans = blocks;
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(AssistantSpans { text, spans })
}

/// No answer begins with it, and no generation prompt contains it.
const OTHER: &str = "\u{E0F0}";

/// What both begin with.
fn common<'a>(a: &'a str, b: &str) -> &'a str {
    let same = a.char_indices().zip(b.chars()).find(|((_, a), b)| a != b).map(|((at, _), _)| at);
    &a[..same.unwrap_or(a.len().min(b.len()))]
}

struct Conversation<'a> {
    template: &'a ChatTemplate,
    list: &'a [Value],
    options: RenderOptions,
    text: &'a str,
}

impl Conversation<'_> {
    fn render(&self, messages: Vec<Value>, add_generation_prompt: bool) -> Result<String> {
        let options = RenderOptions { add_generation_prompt, ..self.options.clone() };
        self.template.render(&Value::Array(messages), &options)
    }

    fn turn(&self, i: usize) -> Result<Range<usize>> {
        let fail = |why: String| Error::Text(format!("messages[{i}]: cannot locate the assistant's turn: {why}"));
        let prompt = self
            .render(self.list[..i].to_vec(), true)
            .map_err(|error| fail(format!("the chat template refuses the messages before it: {error}")))?;
        let start = match self.text.starts_with(&prompt) {
            true => prompt.len(),
            // Some open the model's turn with words that a finished turn does not keep (DeepSeek-R1's `<think>`).
            false => self.header(i, &prompt).ok_or_else(|| {
                fail("the chat template renders the messages before it, or the generation prompt, differently once it follows".into())
            })?,
        };
        let end = self
            .end(i)
            .filter(|&end| end >= start)
            .ok_or_else(|| fail("the chat template renders it differently once other messages follow".into()))?;
        Ok(start..end)
    }

    /// Where the turn begins if only the last part of the generation prompt is not in the text: what the prompt has in
    /// common with the conversation in which this turn says something else. `None` where messages before it differ.
    fn header(&self, i: usize, prompt: &str) -> Option<usize> {
        let before = self.render(self.list[..i].to_vec(), false).ok()?;
        let mut other = self.list.to_vec();
        other[i].as_object_mut()?.insert("content".into(), Value::String(OTHER.into()));
        let other = self.render(other, false).ok()?;
        let start = common(common(prompt, &other), self.text).len();
        (start >= before.len() && self.text.starts_with(&before)).then_some(start)
    }

    fn end(&self, i: usize) -> Option<usize> {
        if i + 1 == self.list.len() {
            return Some(self.text.len());
        }
        if let Ok(whole) = self.render(self.list[..=i].to_vec(), false)
            && self.text.starts_with(&whole)
        {
            return Some(whole.len());
        }
        // The next turn's text: what it adds to the conversation before this turn.
        let next = &self.list[i + 1];
        let before = self.render(self.list[..i].to_vec(), false).ok()?;
        let without = self.render([&self.list[..i], std::slice::from_ref(next)].concat(), false).ok()?;
        let added = without.strip_prefix(before.as_str()).filter(|added| !added.is_empty())?;
        let through = self.render(self.list[..=i + 1].to_vec(), false).ok()?;
        let end = through.strip_suffix(added)?;
        self.text.starts_with(&through).then_some(end.len())
    }
}

/// Tokenizes a conversation for training: ids, and for each whether an assistant-only loss counts it.
///
/// The text is tokenized once and nothing is added to what the template wrote. A token counts if it
/// starts within an assistant turn.
///
/// # Errors
/// As [`assistant_spans`].
pub fn encode_chat_for_training(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    messages: &Value,
    options: &RenderOptions,
) -> Result<(Vec<u32>, Vec<bool>)> {
    let AssistantSpans { text, spans } = assistant_spans(template, messages, options)?;
    let tokens = tokenizer.encode_with_offsets(&text, false)?;
    let ids = tokens.iter().map(|token| token.id).collect();
    let counted = tokens.iter().map(|token| spans.iter().any(|span| span.contains(&token.bytes.start))).collect();
    Ok((ids, counted))
}
