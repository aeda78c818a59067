//! GGUF metadata: typed values by key, with accessors that name the key when a value is missing or wrong.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// One metadata value.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // the variants are the format's own type names
pub enum GgufValue {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(GgufArray),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array of values of one type; arrays may nest.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // the variants are the format's own type names
pub enum GgufArray {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<GgufArray>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl GgufValue {
    /// The format's name of the type, as messages print it.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::U8(_) => "uint8",
            Self::I8(_) => "int8",
            Self::U16(_) => "uint16",
            Self::I16(_) => "int16",
            Self::U32(_) => "uint32",
            Self::I32(_) => "int32",
            Self::F32(_) => "float32",
            Self::Bool(_) => "bool",
            Self::String(_) => "string",
            Self::Array(_) => "array",
            Self::U64(_) => "uint64",
            Self::I64(_) => "int64",
            Self::F64(_) => "float64",
        }
    }

    /// Any integer that is not negative (writers disagree on widths and signs).
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(v) => Some(v.into()),
            Self::U16(v) => Some(v.into()),
            Self::U32(v) => Some(v.into()),
            Self::U64(v) => Some(v),
            Self::I8(v) => v.try_into().ok(),
            Self::I16(v) => v.try_into().ok(),
            Self::I32(v) => v.try_into().ok(),
            Self::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// A float of either width. An f32 is widened through its shortest decimal form, so that 1e-5 stays 1e-5.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(v) => v.to_string().parse().ok(),
            Self::F64(v) => Some(v),
            _ => None,
        }
    }
}

impl GgufArray {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(v) => v.len(),
            Self::I8(v) => v.len(),
            Self::U16(v) => v.len(),
            Self::I16(v) => v.len(),
            Self::U32(v) => v.len(),
            Self::I32(v) => v.len(),
            Self::F32(v) => v.len(),
            Self::Bool(v) => v.len(),
            Self::String(v) => v.len(),
            Self::Array(v) => v.len(),
            Self::U64(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::F64(v) => v.len(),
        }
    }

    /// True where there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// All metadata of one file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufMetadata {
    pub(super) file: String,
    pub(super) values: BTreeMap<String, GgufValue>,
}

impl GgufMetadata {
    /// Metadata that does not come from a file (tests, converters).
    pub fn new(file: impl Into<String>, values: BTreeMap<String, GgufValue>) -> Self {
        Self { file: file.into(), values }
    }

    /// Name of the file, for messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The value of `key`, whatever its type.
    pub fn get(&self, key: &str) -> Option<&GgufValue> {
        self.values.get(key)
    }

    /// All keys and values, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &GgufValue)> {
        self.values.iter().map(|(k, v)| (k.as_str(), v))
    }

    fn wrong(&self, key: &str, found: &str, expected: &str) -> Error {
        Error::format(&self.file, format!("key '{key}'"), format!("found {found}, expected {expected}"))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a GgufValue) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(v) => read(v).map(Some).ok_or_else(|| self.wrong(key, v.type_name(), expected)),
        }
    }

    /// A string; `None` where the key is absent, an error where it has another type.
    pub fn get_str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", |v| if let GgufValue::String(s) = v { Some(s.as_str()) } else { None })
    }

    /// A boolean.
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a bool", |v| if let GgufValue::Bool(b) = v { Some(*b) } else { None })
    }

    /// An integer that fits u32, of any width.
    pub fn get_u32(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "an integer from 0 to 2^32-1", |v| v.as_u64()?.try_into().ok())
    }

    /// A float of either width.
    pub fn get_f64(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a float", GgufValue::as_f64)
    }

    /// An array of strings.
    pub fn get_array_str(&self, key: &str) -> Result<Option<&[String]>> {
        self.typed(key, "an array of strings", |v| match v {
            GgufValue::Array(GgufArray::String(a)) => Some(a.as_slice()),
            _ => None,
        })
    }

    /// An array of f32 (token scores).
    pub fn get_array_f32(&self, key: &str) -> Result<Option<&[f32]>> {
        self.typed(key, "an array of float32", |v| match v {
            GgufValue::Array(GgufArray::F32(a)) => Some(a.as_slice()),
            _ => None,
        })
    }

    /// An array of integers, widened to i64 (token types).
    pub fn get_array_i64(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.typed(key, "an array of integers", |v| match v {
            GgufValue::Array(GgufArray::U8(a)) => Some(a.iter().map(|x| i64::from(*x)).collect()),
            GgufValue::Array(GgufArray::I8(a)) => Some(a.iter().map(|x| i64::from(*x)).collect()),
            GgufValue::Array(GgufArray::U16(a)) => Some(a.iter().map(|x| i64::from(*x)).collect()),
            GgufValue::Array(GgufArray::I16(a)) => Some(a.iter().map(|x| i64::from(*x)).collect()),
            GgufValue::Array(GgufArray::U32(a)) => Some(a.iter().map(|x| i64::from(*x)).collect()),
            GgufValue::Array(GgufArray::I32(a)) => Some(a.iter().map(|x| i64::from(*x)).collect()),
            GgufValue::Array(GgufArray::I64(a)) => Some(a.clone()),
            GgufValue::Array(GgufArray::U64(a)) => a.iter().map(|x| i64::try_from(*x).ok()).collect(),
            _ => None,
        })
    }

    /// A string that must be there.
    pub fn require_str(&self, key: &str) -> Result<&str> {
        self.get_str(key)?.ok_or_else(|| self.wrong(key, "nothing", "a string"))
    }

    /// An integer that must be there.
    pub fn require_u32(&self, key: &str) -> Result<u32> {
        self.get_u32(key)?.ok_or_else(|| self.wrong(key, "nothing", "an integer"))
    }

    /// An integer given once, or once a layer with the same value in every layer. Models whose layers
    /// differ in shape store an array with different values: those are refused by name.
    pub fn get_uniform_u32(&self, key: &str) -> Result<Option<u32>> {
        if !matches!(self.values.get(key), Some(GgufValue::Array(_))) {
            return self.get_u32(key);
        }
        let all = self.get_array_i64(key)?.unwrap_or_default();
        match all.first() {
            Some(first) if all.iter().all(|v| v == first) => {
                u32::try_from(*first).map(Some).map_err(|_| self.wrong(key, "a negative number", "an integer"))
            }
            _ => Err(Error::unsupported(format!("{}: key '{key}' differs from layer to layer", self.file))),
        }
    }
}
