//! Data files: JSON Lines, JSON and Parquet, read row by row, so that a file may be larger than memory.
//!
//! | name ends in | holds | a row's number |
//! |---|---|---|
//! | `.parquet`, or the file starts with `PAR1` | columns; rows become objects, nulls are left out | row, from 1 |
//! | `.json` | one list of objects, or objects one after another | line on which the row starts |
//! | anything else | one object a line; empty lines are passed over | line |

#[cfg(feature = "parquet")]
mod columns;

use crate::error::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A data file, and how often an epoch uses its rows.
#[derive(Clone, Debug, PartialEq)]
pub struct DataFile {
    /// Where it is.
    pub path: PathBuf,
    /// 1: each row once an epoch; 2: twice; 0.5: half of the rows, the other half in the next epoch.
    pub weight: f64,
}

impl<P: Into<PathBuf>> From<P> for DataFile {
    fn from(path: P) -> Self {
        Self { path: path.into(), weight: 1.0 }
    }
}

/// As [`FromStr`] reads it.
impl fmt::Display for DataFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display().to_string();
        let plain = self.weight == 1.0 && path.rsplit_once('=').is_none_or(|(_, end)| end.parse::<f64>().is_err());
        if plain { f.write_str(&path) } else { write!(f, "{path}={}", self.weight) }
    }
}

impl Serialize for DataFile {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// `FILE` or `FILE=WEIGHT`; a file whose whole name exists is taken as it is.
impl FromStr for DataFile {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some((path, weight)) = text.rsplit_once('=')
            && !Path::new(text).exists()
            && let Ok(weight) = weight.parse()
        {
            return Ok(Self { path: path.into(), weight });
        }
        Ok(text.into())
    }
}

impl<'de> Deserialize<'de> for DataFile {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, deny_unknown_fields, expecting = "expected a file, or {path, weight}")]
        enum Form {
            Name(String),
            Whole {
                path: PathBuf,
                #[serde(default = "one")]
                weight: f64,
            },
        }
        fn one() -> f64 {
            1.0
        }
        match Form::deserialize(from)? {
            Form::Name(name) => name.parse().map_err(serde::de::Error::custom),
            Form::Whole { path, weight } => Ok(Self { path, weight }),
        }
    }
}

/// A list of `T`, or one `T` in its place.
pub(super) fn one_or_many<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> std::result::Result<Vec<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected one value or a list of them")]
    enum Form<T> {
        Many(Vec<T>),
        One(T),
    }
    Ok(match Form::deserialize(from)? {
        Form::Many(list) => list,
        Form::One(one) => vec![one],
    })
}

/// Calls `f` with the number and the value of each row, or with what is wrong with it; ends early where `f` fails.
///
/// # Errors
/// [`Error::Io`]; [`Error::Format`] for a Parquet file that cannot be read; what `f` returns.
pub fn each_row(path: &Path, f: &mut dyn FnMut(usize, Result<Value>) -> Result<()>) -> Result<()> {
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let ends = |end: &str| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(end));
    let mut magic = [0; 4];
    let parquet = ends("parquet") || (file.read_exact(&mut magic).is_ok() && &magic == b"PAR1");
    file.rewind().map_err(|e| Error::io(path, e))?;
    if parquet {
        return columns::rows(path, file, f);
    }
    let reader = BufReader::with_capacity(1 << 16, file);
    if ends("json") { json_rows(path, reader, f) } else { lines(path, reader, f) }
}

fn lines(path: &Path, reader: impl BufRead, f: &mut dyn FnMut(usize, Result<Value>) -> Result<()>) -> Result<()> {
    for (index, line) in reader.split(b'\n').enumerate() {
        let bytes = line.map_err(|e| Error::io(path, e))?;
        if !bytes.trim_ascii().is_empty() {
            f(index + 1, parse(&bytes, index == 0))?;
        }
    }
    Ok(())
}

fn parse(bytes: &[u8], first: bool) -> Result<Value> {
    // Windows' editors begin a file with a byte order mark.
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").filter(|_| first).unwrap_or(bytes);
    serde_json::from_slice(bytes).map_err(|e| {
        // The place is the row's: serde's "at line 1" would contradict the line given before.
        let message = e.to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        Error::invalid(format!("not JSON: {message} at column {}", e.column()))
    })
}

/// Cuts a JSON text into the elements of its outermost list (or into the objects that follow one another) without
/// holding more than one of them.
fn json_rows(path: &Path, reader: impl BufRead, f: &mut dyn FnMut(usize, Result<Value>) -> Result<()>) -> Result<()> {
    let mut cut = Cut { line: 1, ..Cut::default() };
    for byte in reader.bytes() {
        let byte = byte.map_err(|e| Error::io(path, e))?;
        if let Some((line, row)) = cut.byte(byte) {
            f(line, parse(&row, line == 1))?;
        }
    }
    if let Some(line) = cut.open() {
        f(line, Err(Error::invalid("not JSON: the file ends within this row")))?;
    }
    Ok(())
}

#[derive(Default)]
struct Cut {
    line: usize,
    /// Whether the outermost list has been opened.
    list: bool,
    seen: bool,
    row: Vec<u8>,
    row_line: usize,
    depth: usize,
    string: bool,
    escaped: bool,
}

impl Cut {
    /// Takes the next byte; gives a row once it is complete, with the line on which it started.
    fn byte(&mut self, byte: u8) -> Option<(usize, Vec<u8>)> {
        let done = self.advance(byte);
        self.line += usize::from(byte == b'\n');
        done.then(|| (self.row_line, std::mem::take(&mut self.row)))
    }

    fn advance(&mut self, byte: u8) -> bool {
        if self.string {
            self.row.push(byte);
            let closes = byte == b'"' && !self.escaped;
            self.escaped = byte == b'\\' && !self.escaped;
            self.string = !closes;
            return closes && self.depth == 0;
        }
        if self.row.is_empty() {
            let skipped = byte.is_ascii_whitespace() || byte == 0xEF || byte == 0xBB || byte == 0xBF;
            if skipped || (self.list && (byte == b',' || byte == b']')) {
                return false;
            }
            if byte == b'[' && !self.seen {
                (self.list, self.seen) = (true, true);
                return false;
            }
            (self.seen, self.row_line) = (true, self.line);
        }
        match byte {
            b'"' => self.string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' if self.depth > 0 => {
                self.depth -= 1;
                self.row.push(byte);
                return self.depth == 0;
            }
            // A number or a word ends where something else begins.
            b',' | b']' if self.depth == 0 => return true,
            _ if self.depth == 0 && byte.is_ascii_whitespace() => return true,
            _ => {}
        }
        self.row.push(byte);
        false
    }

    /// The line of a row that was not complete at the end.
    fn open(&self) -> Option<usize> {
        (!self.row.is_empty()).then_some(self.row_line)
    }
}

#[cfg(not(feature = "parquet"))]
mod columns {
    use super::{Error, File, Path, Result, Value};

    pub fn rows(path: &Path, _: File, _: &mut dyn FnMut(usize, Result<Value>) -> Result<()>) -> Result<()> {
        let path = path.display();
        Err(Error::unsupported(format!("{path}: this build reads no Parquet: build with --features parquet")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str) -> Vec<(usize, String)> {
        let mut rows = Vec::new();
        let path = Path::new("x.json");
        let done = json_rows(path, text.as_bytes(), &mut |line, row| {
            rows.push((line, row.map_or_else(|e| e.to_string(), |v| v.to_string())));
            Ok(())
        });
        assert!(done.is_ok());
        rows
    }

    #[test]
    fn a_list_is_cut_into_its_elements() {
        let rows = cut("[\n  {\"a\": \"]}\\\"\"},\n\n {\"b\":\n [1, {}]}, 7\n]\n");
        let expected = [(2, r#"{"a":"]}\""}"#), (4, r#"{"b":[1,{}]}"#), (5, "7")];
        assert_eq!(rows, expected.map(|(line, row)| (line, row.to_owned())));
        assert_eq!(cut("{\"a\":1}\n{\"a\":2}"), [(1, "{\"a\":1}".to_owned()), (2, "{\"a\":2}".to_owned())]);
        assert!(cut(" [ ] ").is_empty());
    }

    #[test]
    fn a_wrong_element_does_not_hide_the_next() {
        let rows = cut("[{\"a\": x},\n{\"b\": 1}]");
        assert!(rows[0].1.contains("not JSON"), "{rows:?}");
        assert_eq!(rows[1], (2, "{\"b\":1}".to_owned()));
        assert!(cut("[{\"a\": 1").first().is_some_and(|(line, row)| *line == 1 && row.contains("ends within")));
    }

    #[test]
    fn weights_follow_the_name() {
        let file = |text: &str| text.parse::<DataFile>().ok();
        assert_eq!(file("a.jsonl=0.5"), Some(DataFile { path: "a.jsonl".into(), weight: 0.5 }));
        assert_eq!(file("a=b.jsonl"), Some("a=b.jsonl".into()));
        let list: std::result::Result<Vec<DataFile>, _> =
            serde_json::from_str(r#"["a", {"path": "b", "weight": 2}, {"path": "c"}]"#);
        let expected = vec!["a".into(), DataFile { path: "b".into(), weight: 2.0 }, "c".into()];
        assert_eq!(list.ok(), Some(expected));
    }
}
