//! Calls of tools in an answer's text, in the forms that models are trained on.

use super::call::{CallObject, State};
use super::{Part, tag_begins};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
/// Llama's sign that a call follows; usually a special token, so not in the text.
const PYTHON: &str = "<|python_tag|>";

/// How calls are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Calls {
    /// There are none.
    None,
    /// Hermes, Qwen: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, around them text.
    Hermes,
    /// Llama 3: the whole answer is `{"name": …, "parameters": {…}}`; several are separated by `;`.
    Llama,
    /// A list of Llama's objects: what `tool_choice` "required" has the model write.
    List,
    /// The whole answer is the arguments of this function.
    Named(String),
}

enum At {
    Text,
    Call(CallObject),
    /// Behind a call: separators are skipped.
    Between,
    /// A call that broke after its name was out: skipped up to its closing tag.
    Skip,
}

/// Sets calls apart from content.
pub struct CallReader {
    calls: Calls,
    at: At,
    held: String,
}

impl CallReader {
    pub fn new(calls: Calls) -> Self {
        let at = if matches!(calls, Calls::Llama | Calls::List) { At::Between } else { At::Text };
        Self { calls, at, held: String::new() }
    }

    pub fn push(&mut self, text: &str, out: &mut Vec<Part>) {
        if text.is_empty() {
            return;
        }
        match &self.calls {
            Calls::None => content(text, out),
            Calls::Named(name) => {
                if matches!(self.at, At::Text) {
                    self.at = At::Between;
                    out.push(Part::Call(name.clone()));
                }
                arguments(text, out);
            }
            Calls::Hermes | Calls::Llama | Calls::List => {
                self.held.push_str(text);
                while self.step(out) {}
            }
        }
    }

    pub fn finish(&mut self, out: &mut Vec<Part>) {
        match &mut self.at {
            // Up to the end it may have been the beginning of a tag.
            At::Text => content(&std::mem::take(&mut self.held), out),
            At::Call(call) => {
                if let State::Broken(Some(text)) = call.cut() {
                    if self.calls == Calls::Hermes {
                        content(OPEN, out);
                    }
                    content(&text, out);
                }
            }
            At::Between if self.calls == Calls::Llama && !self.held.trim().is_empty() => {
                content(&std::mem::take(&mut self.held), out);
            }
            At::Between | At::Skip => {}
        }
    }

    /// Goes on by one state; false where more text is needed.
    fn step(&mut self, out: &mut Vec<Part>) -> bool {
        match &mut self.at {
            At::Text => self.text(out),
            At::Between if self.calls == Calls::Hermes => self.between_tags(),
            At::Between => self.between_objects(),
            At::Skip => match self.held.find(CLOSE) {
                Some(at) => {
                    self.held.drain(..at);
                    self.at = At::Between;
                    true
                }
                None => {
                    self.held.drain(..tag_begins(&self.held, CLOSE));
                    false
                }
            },
            At::Call(call) => {
                let text = std::mem::take(&mut self.held);
                match call.push(&text, out) {
                    State::More => false,
                    State::Complete(used) => {
                        self.held = text[used..].to_owned();
                        self.at = At::Between;
                        true
                    }
                    State::Broken(None) => {
                        self.held = text;
                        self.at = At::Skip;
                        true
                    }
                    State::Broken(Some(text)) => {
                        if self.calls == Calls::Hermes {
                            content(OPEN, out);
                        }
                        self.held = text;
                        self.at = At::Text;
                        true
                    }
                }
            }
        }
    }

    /// Content, up to a call.
    fn text(&mut self, out: &mut Vec<Part>) -> bool {
        if self.calls != Calls::Hermes {
            content(&std::mem::take(&mut self.held), out);
            return false;
        }
        if let Some(at) = self.held.find(OPEN) {
            content(self.held[..at].trim_end(), out);
            self.held.drain(..at + OPEN.len());
            self.at = At::Call(CallObject::new());
            return true;
        }
        // White space before a call is not content.
        let keep = self.held[..tag_begins(&self.held, OPEN)].trim_end().len();
        let rest = self.held.split_off(keep);
        content(&std::mem::replace(&mut self.held, rest), out);
        false
    }

    fn between_tags(&mut self) -> bool {
        let body = self.held.trim_start();
        if let Some(rest) = body.strip_prefix(CLOSE) {
            self.held = rest.to_owned();
            return true;
        }
        if body.is_empty() || CLOSE.starts_with(body) {
            return false;
        }
        (self.held, self.at) = (body.to_owned(), At::Text);
        true
    }

    fn between_objects(&mut self) -> bool {
        let separators: &[char] = if self.calls == Calls::List { &['[', ',', ';', ']'] } else { &[';', ','] };
        let body = self.held.trim_start_matches(|c: char| c.is_whitespace() || separators.contains(&c));
        let body = body.strip_prefix(PYTHON).unwrap_or(body).trim_start();
        if body.starts_with('{') {
            (self.held, self.at) = (body.to_owned(), At::Call(CallObject::new()));
            return true;
        }
        if body.is_empty() || PYTHON.starts_with(body) {
            return false;
        }
        self.at = At::Text;
        true
    }
}

fn content(text: &str, out: &mut Vec<Part>) {
    match out.last_mut() {
        _ if text.is_empty() => {}
        Some(Part::Content(last)) => last.push_str(text),
        _ => out.push(Part::Content(text.to_owned())),
    }
}

fn arguments(text: &str, out: &mut Vec<Part>) {
    match out.last_mut() {
        Some(Part::Arguments(last)) => last.push_str(text),
        _ => out.push(Part::Arguments(text.to_owned())),
    }
}
