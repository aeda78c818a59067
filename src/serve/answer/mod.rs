//! What an answer's text means: reasoning, content, calls of tools. The text comes in pieces of any size; the parts
//! that come out are the same for every division, so a stream and a whole answer agree.

mod blocks;
mod call;
mod members;
mod reasoning;
mod tools;

pub(super) use blocks::{Block, Blocks, Change, Kind};
pub(super) use tools::Calls;

use crate::engine::GrammarStart;
use crate::engine::text::TokenPiece;
use reasoning::ReasoningReader;
use tools::CallReader;

/// A part of an answer, in order of appearance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Text between `<think>` and `</think>`.
    Reasoning(String),
    /// Text for the user.
    Content(String),
    /// A call begins: the function's name.
    Call(String),
    /// More of the newest call's arguments, as JSON text.
    Arguments(String),
}

/// Whether and how an answer's reasoning is set apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reasoning {
    /// It is content like everything else.
    Inline,
    /// `<think>` opens it; where the prompt ends with that tag, the answer starts inside.
    Tagged {
        /// The prompt has opened it.
        open: bool,
    },
}

/// What to look for in an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Form {
    pub reasoning: Reasoning,
    pub calls: Calls,
    /// More calls than one; else those after the first are dropped.
    pub parallel: bool,
}

impl Form {
    /// From where on the answer to `prompt` keeps to a grammar: that is about the content, not the reasoning.
    pub fn grammar_start(&self, prompt: &str) -> GrammarStart {
        match self.reasoning {
            Reasoning::Tagged { open: true } => GrammarStart::Thinking,
            // A template that closes the reasoning itself asks for none.
            Reasoning::Tagged { open: false } if !prompt.trim_end().ends_with("</think>") => GrammarStart::MayThink,
            _ => GrammarStart::Begin,
        }
    }
}

/// Reads one answer.
pub(super) struct Reader {
    reasoning: Option<ReasoningReader>,
    calls: CallReader,
    parallel: bool,
    calls_seen: usize,
}

impl Reader {
    pub fn new(form: &Form) -> Self {
        let reasoning = match form.reasoning {
            Reasoning::Inline => None,
            Reasoning::Tagged { open } => Some(ReasoningReader::new(open)),
        };
        Self { reasoning, calls: CallReader::new(form.calls.clone()), parallel: form.parallel, calls_seen: 0 }
    }

    /// Takes more of the text.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        let mut out = Vec::new();
        match &mut self.reasoning {
            None => self.calls.push(text, &mut out),
            Some(reasoning) => {
                let (thought, rest) = reasoning.push(text);
                out.extend((!thought.is_empty()).then_some(Part::Reasoning(thought)));
                self.calls.push(&rest, &mut out);
            }
        }
        self.kept(out)
    }

    /// Ends the text: what was held back in case it became a tag comes out.
    pub fn finish(&mut self) -> Vec<Part> {
        let mut out = Vec::new();
        if let Some(reasoning) = &mut self.reasoning {
            let (thought, rest) = reasoning.finish();
            out.extend((!thought.is_empty()).then_some(Part::Reasoning(thought)));
            self.calls.push(&rest, &mut out);
        }
        self.calls.finish(&mut out);
        self.kept(out)
    }

    /// Whether the text is within reasoning now.
    pub fn is_reasoning(&self) -> bool {
        self.reasoning.as_ref().is_some_and(ReasoningReader::is_inside)
    }

    /// Takes more of the text only to learn whether it is a part of the reasoning.
    fn push_counts(&mut self, text: &str) -> bool {
        let before = self.is_reasoning();
        self.push(text);
        before || self.is_reasoning()
    }

    /// Calls so far.
    pub fn calls(&self) -> usize {
        if self.parallel { self.calls_seen } else { self.calls_seen.min(1) }
    }

    fn kept(&mut self, mut parts: Vec<Part>) -> Vec<Part> {
        parts.retain(|part| {
            self.calls_seen += usize::from(matches!(part, Part::Call(_)));
            let of_call = matches!(part, Part::Call(_) | Part::Arguments(_));
            !of_call || self.parallel || self.calls_seen <= 1
        });
        parts
    }
}

/// All parts of a whole answer, neighbours of one kind as one.
pub(super) fn read_whole(form: &Form, text: &str) -> Vec<Part> {
    let mut reader = Reader::new(form);
    let mut parts = reader.push(text);
    parts.extend(reader.finish());
    merged(parts)
}

fn merged(parts: Vec<Part>) -> Vec<Part> {
    parts.into_iter().fold(Vec::new(), |mut all: Vec<Part>, part| {
        match (all.last_mut(), part) {
            (Some(Part::Content(last)), Part::Content(more)) => last.push_str(&more),
            (Some(Part::Reasoning(last)), Part::Reasoning(more)) => last.push_str(&more),
            (Some(Part::Arguments(last)), Part::Arguments(more)) => last.push_str(&more),
            (_, part) => all.push(part),
        }
        all
    })
}

/// How many tokens of an answer are reasoning, its tags included.
pub(super) fn reasoning_tokens(form: &Form, tokens: &[TokenPiece]) -> usize {
    let mut reader = Reader::new(form);
    tokens.iter().filter(|token| reader.push_counts(&token.text)).count()
}

/// Where the longest ending of `text` begins that is the beginning of `tag`.
fn tag_begins(text: &str, tag: &str) -> usize {
    let longest = tag.len().saturating_sub(1).min(text.len());
    (text.len() - longest..text.len())
        .find(|at| text.get(*at..).is_some_and(|tail| tag.starts_with(tail)))
        .unwrap_or(text.len())
}

#[cfg(test)]
mod tests;
