//! GGUF files, versions 2 and 3, little-endian: metadata and memory-mapped tensors; written as version 3 (`write`).
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Layout: magic, version, tensor
//! count, key count; keys with typed values; one record per tensor; padding; tensor data. Everything read
//! here is untrusted: counts are checked against the bytes that remain before memory is reserved.

mod metadata;
mod reader;
mod write;

pub use metadata::{GgufArray, GgufMetadata, GgufValue};
pub use write::write_gguf;

use super::source::Source;
use crate::error::{Error, Result};
use crate::tensor::{DType, HostTensor};
use reader::Cursor;
use std::collections::{BTreeMap, BTreeSet};

const MAGIC: &[u8; 4] = b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
/// ggml's own limit.
const MAX_DIMS: u32 = 4;

/// An opened GGUF file.
#[derive(Clone, Debug)]
pub struct GgufFile {
    /// Format version, 2 or 3.
    pub version: u32,
    /// Typed metadata.
    pub metadata: GgufMetadata,
    /// Tensors under their names in the file; shapes are outermost first. The bytes stay in the map.
    pub tensors: BTreeMap<String, HostTensor>,
}

/// One record of the tensor table.
struct Record {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    /// Relative to the start of the data section.
    offset: u64,
    bytes: u64,
    /// Where the record stands, for messages.
    at: usize,
}

impl GgufFile {
    /// Reads the header and slices the tensors out of `source`; no tensor data is touched.
    ///
    /// # Errors
    /// [`Error::Format`] with key or tensor, byte offset, and what was expected; [`Error::Unsupported`] for
    /// other versions, big-endian files, split files and tensor types outside [`DType::WEIGHTS`].
    pub fn open(source: &Source) -> Result<Self> {
        let file = source.name();
        let bytes = source.bytes();
        let mut cursor = Cursor::new(file, bytes);
        if bytes.len() < 4 || &bytes[..4] != MAGIC {
            return Err(cursor.error("not a GGUF file: it does not start with the bytes 'GGUF'"));
        }
        cursor.u32("the magic")?;
        let version = cursor.u32("the version")?;
        match version {
            2 | 3 => {}
            v if v & 0xffff == 0 => return Err(Error::unsupported(format!("{file}: big-endian GGUF file"))),
            v => return Err(Error::unsupported(format!("{file}: GGUF version {v}; versions 2 and 3 are read"))),
        }
        // A tensor record is at least: name length 8, dims 4, type 4, offset 8. A key: length 8, type 4, value 1.
        let tensors = cursor.count("the tensor count", 24)?;
        let keys = cursor.count("the key count", 13)?;
        let metadata = read_metadata(&mut cursor, file, keys)?;
        refuse_split(&metadata)?;
        let records = read_records(&mut cursor, file, tensors)?;
        let tensors = place(&mut cursor, source, &metadata, records)?;
        Ok(Self { version, metadata, tensors })
    }
}

fn read_metadata(cursor: &mut Cursor, file: &str, count: usize) -> Result<GgufMetadata> {
    let mut values = BTreeMap::new();
    for i in 0..count {
        let at = cursor.pos();
        cursor.about(format!("key {} of {count}", i + 1));
        let key = cursor.string("a key")?;
        cursor.about(format!("key '{key}'"));
        let value = cursor.value()?;
        if values.contains_key(&key) {
            return Err(cursor.error_at(at, "the key appears twice, expected unique keys"));
        }
        values.insert(key, value);
    }
    Ok(GgufMetadata { file: file.to_owned(), values })
}

fn refuse_split(metadata: &GgufMetadata) -> Result<()> {
    match metadata.get("split.count").and_then(GgufValue::as_u64) {
        Some(n) if n > 1 => Err(Error::unsupported(format!(
            "{}: one of {n} split GGUF files (split.count); join them with `llama-gguf-split --merge`",
            metadata.file
        ))),
        _ => Ok(()),
    }
}

fn read_records(cursor: &mut Cursor, file: &str, count: usize) -> Result<Vec<Record>> {
    let mut records = Vec::with_capacity(count);
    let mut names = BTreeSet::new();
    for i in 0..count {
        let at = cursor.pos();
        cursor.about(format!("tensor {} of {count}", i + 1));
        let name = cursor.string("a tensor name")?;
        cursor.about(format!("tensor '{name}'"));
        if !names.insert(name.clone()) {
            return Err(cursor.error_at(at, "the name appears twice, expected unique tensor names"));
        }
        let dims_at = cursor.pos();
        let dims = cursor.u32("the number of dimensions")?;
        if dims > MAX_DIMS {
            return Err(cursor.error_at(dims_at, format!("{dims} dimensions, expected at most {MAX_DIMS}")));
        }
        let mut shape = Vec::with_capacity(dims as usize);
        for _ in 0..dims {
            let at = cursor.pos();
            let dim = cursor.u64("a dimension")?;
            match usize::try_from(dim) {
                Ok(d) if d > 0 => shape.push(d),
                _ => return Err(cursor.error_at(at, format!("dimension {dim}, expected a positive length"))),
            }
        }
        let row = shape.first().copied().unwrap_or(1);
        shape.reverse();
        let type_at = cursor.pos();
        let code = cursor.u32("the tensor type")?;
        let dtype = ggml_type(code).ok_or_else(|| {
            Error::unsupported(format!(
                "{file}: tensor '{name}' at offset {type_at} has type {} ({code}); supported are {}",
                ggml_type_name(code),
                DType::WEIGHTS.map(DType::name).join(", ")
            ))
        })?;
        let rows = shape.iter().rev().skip(1).try_fold(1usize, |n, d| n.checked_mul(*d));
        let bytes = rows.zip(dtype.bytes_for(row)).and_then(|(n, b)| n.checked_mul(b));
        let Some(bytes) = bytes else {
            return Err(cursor.error_at(
                dims_at,
                format!("shape {shape:?} of type {dtype}: expected rows of whole {}-element blocks", dtype.block_len()),
            ));
        };
        let offset = cursor.u64("the data offset")?;
        records.push(Record { name, dtype, shape, offset, bytes: bytes as u64, at });
    }
    Ok(records)
}

/// Checks where the tensors lie (aligned, inside the file, not on top of each other) and slices them.
fn place(
    cursor: &mut Cursor,
    source: &Source,
    metadata: &GgufMetadata,
    mut records: Vec<Record>,
) -> Result<BTreeMap<String, HostTensor>> {
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(v) => match v.as_u64() {
            Some(a) if a.is_power_of_two() && a <= 1 << 20 => a,
            found => {
                let found = found.map_or_else(|| v.type_name().to_owned(), |n| n.to_string());
                cursor.about("key 'general.alignment'");
                return Err(cursor.error(format!("found {found}, expected a power of two up to 1048576")));
            }
        },
    };
    let start = (cursor.pos() as u64).next_multiple_of(alignment);
    let available = (source.bytes().len() as u64).saturating_sub(start);
    records.sort_by_key(|r| r.offset);
    let mut end = 0;
    let mut previous = String::new();
    let mut tensors = BTreeMap::new();
    for r in records {
        cursor.about(format!("tensor '{}'", r.name));
        if r.offset % alignment != 0 {
            return Err(cursor.error_at(r.at, format!("data offset {}, expected a multiple of {alignment}", r.offset)));
        }
        if r.offset < end {
            return Err(cursor.error_at(
                r.at,
                format!("data offset {} overlaps tensor '{previous}', which ends at {end}", r.offset),
            ));
        }
        let range = match r.offset.checked_add(r.bytes) {
            Some(stop) if stop <= available => {
                end = stop;
                (start + r.offset) as usize..(start + stop) as usize
            }
            _ => {
                return Err(cursor.error_at(
                    r.at,
                    format!(
                        "needs {} bytes at data offset {}, but the data section has {available}: the file is truncated or corrupt",
                        r.bytes, r.offset
                    ),
                ));
            }
        };
        let data = source.slice(range).ok_or_else(|| Error::internal("tensor range was checked"))?;
        tensors.insert(r.name.clone(), HostTensor::new(r.dtype, r.shape, data)?);
        previous = r.name;
    }
    Ok(tensors)
}

/// ggml's type codes that this crate decodes.
fn ggml_type(code: u32) -> Option<DType> {
    Some(match code {
        0 => DType::F32,
        1 => DType::F16,
        2 => DType::Q4_0,
        3 => DType::Q4_1,
        6 => DType::Q5_0,
        7 => DType::Q5_1,
        8 => DType::Q8_0,
        12 => DType::Q4_K,
        13 => DType::Q5_K,
        14 => DType::Q6_K,
        30 => DType::BF16,
        _ => return None,
    })
}

/// Names of the types that are refused, so that the message says more than a number.
fn ggml_type_name(code: u32) -> &'static str {
    match code {
        9 => "q8_1",
        10 => "q2_k",
        11 => "q3_k",
        15 => "q8_k",
        16 => "iq2_xxs",
        17 => "iq2_xs",
        18 => "iq3_xxs",
        19 => "iq1_s",
        20 => "iq4_nl",
        21 => "iq3_s",
        22 => "iq2_s",
        23 => "iq4_xs",
        24 => "i8",
        25 => "i16",
        26 => "i32",
        27 => "i64",
        28 => "f64",
        29 => "iq1_m",
        34 => "tq1_0",
        35 => "tq2_0",
        39 => "mxfp4",
        40 => "nvfp4",
        41 => "q1_0",
        _ => "unknown",
    }
}
