//! A cursor over untrusted bytes: every read is checked, every error says where and what was expected.

use super::metadata::{GgufArray, GgufValue};
use crate::error::{Error, Result};

/// Arrays nest at most this deep; real files use one level, and recursion must end.
const MAX_DEPTH: usize = 4;

pub(super) struct Cursor<'a> {
    file: &'a str,
    bytes: &'a [u8],
    pos: usize,
    subject: String,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a str, bytes: &'a [u8]) -> Self {
        Self { file, bytes, pos: 0, subject: "header".into() }
    }

    /// What the next reads belong to, for messages.
    pub(super) fn about(&mut self, subject: impl Into<String>) {
        self.subject = subject.into();
    }

    pub(super) fn pos(&self) -> usize {
        self.pos
    }

    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.pos
    }

    /// An error at the current position.
    pub(super) fn error(&self, message: impl Into<String>) -> Error {
        self.error_at(self.pos, message)
    }

    pub(super) fn error_at(&self, pos: usize, message: impl Into<String>) -> Error {
        Error::format(self.file, format!("{} at offset {pos}", self.subject), message)
    }

    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        match self.bytes.get(self.pos..).and_then(|rest| rest.get(..n)) {
            Some(part) => {
                self.pos += n;
                Ok(part)
            }
            None => Err(self.error(format!(
                "expected {n} bytes for {what}, but only {} remain: the file is truncated or corrupt",
                self.remaining()
            ))),
        }
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A count of items that take at least `min_bytes` each: refused before anything is reserved where the
    /// rest of the file cannot hold them.
    pub(super) fn count(&mut self, what: &str, min_bytes: usize) -> Result<usize> {
        let at = self.pos;
        let n = self.u64(what)?;
        match usize::try_from(n) {
            Ok(n) if n <= self.remaining() / min_bytes => Ok(n),
            _ => Err(self.error_at(
                at,
                format!(
                    "{what} is {n}, but the {} bytes that remain hold at most {}",
                    self.remaining(),
                    self.remaining() / min_bytes
                ),
            )),
        }
    }

    pub(super) fn string(&mut self, what: &str) -> Result<String> {
        let n = self.count(&format!("length of {what}"), 1)?;
        let at = self.pos;
        let bytes = self.take(n, what)?;
        match std::str::from_utf8(bytes) {
            Ok(s) => Ok(s.to_owned()),
            Err(e) => Err(self.error_at(at + e.valid_up_to(), format!("{what} is not valid UTF-8"))),
        }
    }

    fn bool(&mut self) -> Result<bool> {
        match self.array::<1>("a bool")? {
            [0] => Ok(false),
            [1] => Ok(true),
            [b] => Err(self.error_at(self.pos - 1, format!("found {b}, expected a bool (0 or 1)"))),
        }
    }

    pub(super) fn value(&mut self) -> Result<GgufValue> {
        let at = self.pos;
        Ok(match self.u32("a value type")? {
            0 => GgufValue::U8(u8::from_le_bytes(self.array("a uint8")?)),
            1 => GgufValue::I8(i8::from_le_bytes(self.array("an int8")?)),
            2 => GgufValue::U16(u16::from_le_bytes(self.array("a uint16")?)),
            3 => GgufValue::I16(i16::from_le_bytes(self.array("an int16")?)),
            4 => GgufValue::U32(self.u32("a uint32")?),
            5 => GgufValue::I32(i32::from_le_bytes(self.array("an int32")?)),
            6 => GgufValue::F32(f32::from_le_bytes(self.array("a float32")?)),
            7 => GgufValue::Bool(self.bool()?),
            8 => GgufValue::String(self.string("a string value")?),
            9 => GgufValue::Array(self.values(0)?),
            10 => GgufValue::U64(self.u64("a uint64")?),
            11 => GgufValue::I64(i64::from_le_bytes(self.array("an int64")?)),
            12 => GgufValue::F64(f64::from_le_bytes(self.array("a float64")?)),
            t => return Err(self.error_at(at, format!("unknown value type {t}, expected 0 to 12"))),
        })
    }

    fn numbers<const N: usize, T>(&mut self, decode: fn([u8; N]) -> T) -> Result<Vec<T>> {
        let n = self.count("array length", N)?;
        let bytes = self.take(n * N, "array elements")?;
        Ok(bytes.as_chunks::<N>().0.iter().map(|b| decode(*b)).collect())
    }

    fn values(&mut self, depth: usize) -> Result<GgufArray> {
        let at = self.pos;
        if depth == MAX_DEPTH {
            return Err(self.error(format!("arrays nest deeper than {MAX_DEPTH} levels")));
        }
        Ok(match self.u32("an array element type")? {
            0 => GgufArray::U8(self.numbers(u8::from_le_bytes)?),
            1 => GgufArray::I8(self.numbers(i8::from_le_bytes)?),
            2 => GgufArray::U16(self.numbers(u16::from_le_bytes)?),
            3 => GgufArray::I16(self.numbers(i16::from_le_bytes)?),
            4 => GgufArray::U32(self.numbers(u32::from_le_bytes)?),
            5 => GgufArray::I32(self.numbers(i32::from_le_bytes)?),
            6 => GgufArray::F32(self.numbers(f32::from_le_bytes)?),
            7 => {
                let n = self.count("array length", 1)?;
                GgufArray::Bool((0..n).map(|_| self.bool()).collect::<Result<_>>()?)
            }
            8 => {
                // A string costs at least its 8-byte length.
                let n = self.count("array length", 8)?;
                let mut all = Vec::with_capacity(n);
                for _ in 0..n {
                    all.push(self.string("an array element")?);
                }
                GgufArray::String(all)
            }
            9 => {
                // An inner array costs at least its type and its length.
                let n = self.count("array length", 12)?;
                let mut all = Vec::with_capacity(n);
                for _ in 0..n {
                    all.push(self.values(depth + 1)?);
                }
                GgufArray::Array(all)
            }
            10 => GgufArray::U64(self.numbers(u64::from_le_bytes)?),
            11 => GgufArray::I64(self.numbers(i64::from_le_bytes)?),
            12 => GgufArray::F64(self.numbers(f64::from_le_bytes)?),
            t => return Err(self.error_at(at, format!("unknown array element type {t}, expected 0 to 12"))),
        })
    }
}
