//! Typed access to a JSON object, with errors that name file and key.

use crate::error::{Error, Result};
use serde_json::{Map, Value};

/// An object of a configuration file. A key with the value null counts as absent, as it does in transformers.
#[derive(Clone, Copy, Debug)]
pub struct Keys<'a> {
    file: &'a str,
    /// Dotted path of the object inside the file; empty at the top.
    path: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    /// Wraps the top-level object of `file`.
    ///
    /// # Errors
    /// [`Error::Format`] where `value` is not an object.
    pub fn new(file: &'a str, value: &'a Value) -> Result<Self> {
        let map = value.as_object().ok_or_else(|| Error::format(file, "top level", "expected a JSON object"))?;
        Ok(Self { file, path: "", map })
    }

    /// The object under `key`; `None` where it is absent, null or empty.
    pub fn object(&self, key: &'a str) -> Result<Option<Keys<'a>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) if map.is_empty() => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Keys { file: self.file, path: key, map })),
            Some(v) => Err(self.wrong(key, v, "an object")),
        }
    }

    /// File name, for messages.
    pub fn file(&self) -> &'a str {
        self.file
    }

    /// The value of `key`; `None` where it is absent or null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// True where the key is present, null included.
    pub fn contains(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// All keys and values.
    pub fn iter(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.map.iter()
    }

    /// `key 'a.b'`, for messages.
    pub fn place(&self, key: &str) -> String {
        if self.path.is_empty() { format!("key '{key}'") } else { format!("key '{}.{key}'", self.path) }
    }

    /// An [`Error::Format`] about `key`.
    pub fn error(&self, key: &str, message: impl Into<String>) -> Error {
        Error::format(self.file, self.place(key), message)
    }

    fn wrong(&self, key: &str, found: &Value, expected: &str) -> Error {
        // A hostile file may hold megabytes here; the message stays one line.
        let found: String = found.to_string().chars().take(60).collect();
        self.error(key, format!("found {found}, expected {expected}"))
    }

    fn typed<T>(&self, key: &str, expected: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => read(v).map(Some).ok_or_else(|| self.wrong(key, v, expected)),
        }
    }

    /// A positive integer below 2^31 (a size: products of two of them fit in 64 bits).
    pub fn size(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "an integer from 1 to 2147483647", |v| {
            v.as_u64().filter(|n| (1..1 << 31).contains(n)).map(|n| n as usize)
        })
    }

    /// An integer from 0, below 2^31.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "an integer from 0 to 2147483647", |v| v.as_u64().filter(|n| *n < 1 << 31).map(|n| n as usize))
    }

    /// A finite number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |v| v.as_f64().filter(|n| n.is_finite()))
    }

    /// A finite number above zero.
    pub fn positive(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number above 0", |v| v.as_f64().filter(|n| n.is_finite() && *n > 0.0))
    }

    /// A boolean.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A string.
    pub fn str(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a string", Value::as_str)
    }

    /// A list of finite numbers above zero.
    pub fn positives(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.typed(key, "a list of numbers above 0", |v| {
            v.as_array()?.iter().map(|n| n.as_f64().filter(|n| n.is_finite() && *n > 0.0)).collect()
        })
    }

    /// A list of strings.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        self.typed(key, "a list of strings", |v| v.as_array()?.iter().map(Value::as_str).collect())
    }

    /// A token id or a list of them.
    pub fn token_ids(&self, key: &str) -> Result<Option<Vec<u32>>> {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        self.typed(key, "a token id or a list of them", |v| match v {
            Value::Array(all) => all.iter().map(id).collect(),
            // Some files say -1 for "none".
            Value::Number(n) if n.as_i64() == Some(-1) => Some(vec![]),
            v => id(v).map(|n| vec![n]),
        })
    }
}
