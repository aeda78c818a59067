//! The members of one JSON object whose text arrives in pieces.

/// What a piece of text holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// More of a value, as it is written.
    Value { key: String, text: String },
    /// The value is complete.
    End { key: String },
    /// The object is complete.
    Close,
}

/// The text is no JSON object.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Open,
    /// Before a key, or the end of an object.
    Key,
    InKey,
    Colon,
    /// Before a value.
    Value,
    InValue,
    /// Behind a value.
    Next,
    Closed,
}

/// Walks through an object. Values are not checked: whoever uses them parses them.
pub struct Members {
    at: At,
    key: String,
    /// Open brackets of the value.
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The value is no string and has no brackets: it ends where the object goes on.
    bare: bool,
}

impl Members {
    pub fn new() -> Self {
        let key = String::new();
        Self { at: At::Open, key, depth: 0, in_string: false, escaped: false, bare: false }
    }

    /// Reads until the object is complete; how many bytes belong to it.
    pub fn push(&mut self, text: &str, out: &mut Vec<Found>) -> Result<usize, Malformed> {
        for (at, c) in text.char_indices() {
            if self.at == At::Closed {
                return Ok(at);
            }
            self.step(c, out)?;
        }
        Ok(text.len())
    }

    fn step(&mut self, c: char, out: &mut Vec<Found>) -> Result<(), Malformed> {
        self.at = match (self.at, c) {
            (At::InKey, _) => return self.key_step(c),
            (At::InValue, _) => return self.value_step(c, out),
            (before, ' ' | '\t' | '\n' | '\r') => before,
            (At::Open, '{') => At::Key,
            (At::Key, '"') => {
                self.key.clear();
                At::InKey
            }
            (At::Colon, ':') => At::Value,
            (At::Value, '}' | ',' | ']') => return Err(Malformed),
            (At::Value, _) => {
                self.at = At::InValue;
                self.bare = !matches!(c, '"' | '{' | '[');
                return self.value_step(c, out);
            }
            (At::Next, ',') => At::Key,
            (At::Key | At::Next, '}') => {
                out.push(Found::Close);
                At::Closed
            }
            _ => return Err(Malformed),
        };
        Ok(())
    }

    fn key_step(&mut self, c: char) -> Result<(), Malformed> {
        match c {
            '"' => self.at = At::Colon,
            // No key that matters is written with escapes.
            '\\' => return Err(Malformed),
            c => self.key.push(c),
        }
        Ok(())
    }

    fn value_step(&mut self, c: char, out: &mut Vec<Found>) -> Result<(), Malformed> {
        if self.bare && self.depth == 0 && matches!(c, ',' | '}' | ' ' | '\t' | '\n' | '\r') {
            out.push(Found::End { key: self.key.clone() });
            self.at = At::Next;
            return if matches!(c, ',' | '}') { self.step(c, out) } else { Ok(()) };
        }
        match out.last_mut() {
            Some(Found::Value { text, .. }) => text.push(c),
            _ => out.push(Found::Value { key: self.key.clone(), text: c.to_string() }),
        }
        match c {
            _ if self.escaped => self.escaped = false,
            '\\' if self.in_string => self.escaped = true,
            '"' => self.in_string = !self.in_string,
            _ if self.in_string => {}
            '{' | '[' => self.depth += 1,
            '}' | ']' => self.depth = self.depth.checked_sub(1).ok_or(Malformed)?,
            _ => {}
        }
        if !self.bare && self.depth == 0 && !self.in_string {
            out.push(Found::End { key: self.key.clone() });
            self.at = At::Next;
        }
        Ok(())
    }
}
