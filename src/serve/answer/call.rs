//! One call, `{"name": …, "arguments": {…}}`, from text that arrives in pieces.

use super::Part;
use super::members::{Found, Malformed, Members};

/// Reads one call.
pub struct CallObject {
    members: Members,
    /// All of it, until the name is known: no call without a name, so it may have to be content after all.
    raw: String,
    name: Option<String>,
    name_text: String,
    /// Arguments that came before the name.
    early: String,
    /// Arguments that are a string with JSON in it; decoded at its end.
    quoted: Option<String>,
    has_arguments: bool,
}

/// Where a call stands after a piece of text.
#[derive(Debug, PartialEq, Eq)]
pub enum State {
    More,
    /// Complete; so many bytes of the piece belong to it.
    Complete(usize),
    /// No call: what came of it is content. `None` where a part of it is out as a call already.
    Broken(Option<String>),
}

impl CallObject {
    pub fn new() -> Self {
        Self {
            members: Members::new(),
            raw: String::new(),
            name: None,
            name_text: String::new(),
            early: String::new(),
            quoted: None,
            has_arguments: false,
        }
    }

    pub fn push(&mut self, text: &str, out: &mut Vec<Part>) -> State {
        let mut found = Vec::new();
        let result = self.members.push(text, &mut found);
        if self.name.is_none() {
            self.raw.push_str(&text[..*result.as_ref().unwrap_or(&text.len())]);
        }
        let mut closed = false;
        for found in found {
            closed |= found == Found::Close;
            if self.take(found, out).is_err() {
                return self.broken();
            }
        }
        match result {
            Err(Malformed) => self.broken(),
            Ok(used) if closed && self.name.is_some() => State::Complete(used),
            Ok(used) if closed => {
                self.raw.push_str(&text[used..]);
                self.broken()
            }
            Ok(_) => State::More,
        }
    }

    /// The text ends within the call.
    pub fn cut(&mut self) -> State {
        self.broken()
    }

    fn broken(&mut self) -> State {
        State::Broken(self.name.is_none().then(|| std::mem::take(&mut self.raw)))
    }

    fn take(&mut self, found: Found, out: &mut Vec<Part>) -> Result<(), Malformed> {
        match found {
            Found::Value { key, text } if key == "name" => self.name_text.push_str(&text),
            Found::End { key } if key == "name" => {
                let name: String = serde_json::from_str(&self.name_text).map_err(|_| Malformed)?;
                out.push(Part::Call(name.clone()));
                self.name = Some(name);
                let early = std::mem::take(&mut self.early);
                out.extend((!early.is_empty()).then_some(Part::Arguments(early)));
            }
            Found::Value { key, text } if is_arguments(&key) => self.arguments(text, out),
            Found::End { key } if is_arguments(&key) => {
                if let Some(quoted) = self.quoted.take() {
                    let text = serde_json::from_str(&quoted).map_err(|_| Malformed)?;
                    self.release(text, out);
                }
            }
            Found::Close if !self.has_arguments && self.name.is_some() => out.push(Part::Arguments("{}".into())),
            _ => {}
        }
        Ok(())
    }

    fn arguments(&mut self, text: String, out: &mut Vec<Part>) {
        let first = !std::mem::replace(&mut self.has_arguments, true);
        if first && text.starts_with('"') {
            self.quoted = Some(String::new());
        }
        match &mut self.quoted {
            Some(quoted) => quoted.push_str(&text),
            None => self.release(text, out),
        }
    }

    fn release(&mut self, text: String, out: &mut Vec<Part>) {
        if self.name.is_some() {
            out.push(Part::Arguments(text));
        } else {
            self.early.push_str(&text);
        }
    }
}

/// Hermes and Llama have a word each.
fn is_arguments(key: &str) -> bool {
    key == "arguments" || key == "parameters"
}
