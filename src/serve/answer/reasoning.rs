//! `<think>…</think>` before the answer proper: Qwen3, DeepSeek-R1 and their kin.

use super::tag_begins;

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// Nothing but white space so far.
    Start,
    Inside,
    /// Only white space since `</think>`: templates put empty lines there.
    Closed,
    After,
}

/// Sets reasoning apart from what follows.
pub struct ReasoningReader {
    at: At,
    held: String,
    /// Some reasoning is out, so white space in it matters.
    begun: bool,
}

impl ReasoningReader {
    /// `open`: the prompt ends with `<think>`.
    pub fn new(open: bool) -> Self {
        Self { at: if open { At::Inside } else { At::Start }, held: String::new(), begun: false }
    }

    pub fn is_inside(&self) -> bool {
        self.at == At::Inside
    }

    /// Reasoning, and what is not.
    pub fn push(&mut self, text: &str) -> (String, String) {
        self.held.push_str(text);
        let mut thought = String::new();
        loop {
            match self.at {
                At::Start => {
                    let body = self.held.trim_start();
                    if let Some(rest) = body.strip_prefix(OPEN) {
                        (self.held, self.at) = (rest.to_owned(), At::Inside);
                    } else if OPEN.starts_with(body) {
                        return (thought, String::new());
                    } else {
                        self.at = At::After;
                    }
                }
                At::Inside => match self.held.find(CLOSE) {
                    Some(end) => {
                        let rest = self.held.split_off(end + CLOSE.len());
                        self.held.truncate(end);
                        let held = std::mem::replace(&mut self.held, rest);
                        thought.push_str(self.trimmed(&held).trim_end());
                        self.at = At::Closed;
                    }
                    None => {
                        // A tag may begin here, and white space before it is not wanted.
                        let keep = self.held[..tag_begins(&self.held, CLOSE)].trim_end().len();
                        let rest = self.held.split_off(keep);
                        let held = std::mem::replace(&mut self.held, rest);
                        thought.push_str(self.trimmed(&held));
                        return (thought, String::new());
                    }
                },
                At::Closed => {
                    let body = self.held.trim_start();
                    if body.is_empty() {
                        return (thought, String::new());
                    }
                    (self.held, self.at) = (body.to_owned(), At::After);
                }
                At::After => return (thought, std::mem::take(&mut self.held)),
            }
        }
    }

    /// What was held back at the end.
    pub fn finish(&mut self) -> (String, String) {
        let held = std::mem::take(&mut self.held);
        match self.at {
            At::Inside => (self.trimmed(&held).trim_end().to_owned(), String::new()),
            At::Start | At::After => (String::new(), held),
            At::Closed => (String::new(), String::new()),
        }
    }

    /// Without the white space that the reasoning starts with.
    fn trimmed<'a>(&mut self, text: &'a str) -> &'a str {
        let text = if self.begun { text } else { text.trim_start() };
        self.begun |= !text.is_empty();
        text
    }
}
