//! Writing GGUF, version 3: metadata and tensors in the order given, each computed when its turn comes.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use super::{DEFAULT_ALIGNMENT, GgufArray, GgufValue, MAGIC};
use crate::error::{Error, Result};
use crate::format::lazy::LazyTensor;
use crate::tensor::DType;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Version that is written.
const VERSION: u32 = 3;

/// Writes a file, first under a temporary name: `path` holds either the old content or all of the new. Gives its bytes.
///
/// # Errors
/// [`Error::Invalid`] for a tensor whose type GGUF lacks or whose rows are not whole blocks; [`Error::Io`]; those of
/// computing a tensor.
pub fn write_gguf(path: &Path, keys: &[(String, GgufValue)], tensors: &[LazyTensor]) -> Result<u64> {
    let header = header(keys, tensors)?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let written = body(&temporary, &header, tensors);
    let renamed = written.and_then(|bytes| {
        std::fs::rename(&temporary, path).map_err(|e| Error::io(path, e))?;
        Ok(bytes)
    });
    if renamed.is_err() {
        // What went wrong is the error; a leftover that cannot be removed is not.
        let _ = std::fs::remove_file(&temporary);
    }
    renamed
}

fn body(path: &Path, header: &[u8], tensors: &[LazyTensor]) -> Result<u64> {
    let io = |e| Error::io(path, e);
    let mut out = BufWriter::new(File::create(path).map_err(io)?);
    let mut at = header.len() as u64;
    out.write_all(header).map_err(io)?;
    for tensor in tensors {
        let padding = at.next_multiple_of(DEFAULT_ALIGNMENT) - at;
        out.write_all(&vec![0; padding as usize]).map_err(io)?;
        let bytes = tensor.bytes()?;
        out.write_all(&bytes).map_err(io)?;
        at += padding + bytes.len() as u64;
    }
    // ggml's reader wants the last tensor padded, too.
    let padding = at.next_multiple_of(DEFAULT_ALIGNMENT) - at;
    out.write_all(&vec![0; padding as usize]).map_err(io)?;
    out.into_inner().map_err(|e| Error::io(path, e.into_error()))?.sync_all().map_err(io)?;
    Ok(at + padding)
}

fn header(keys: &[(String, GgufValue)], tensors: &[LazyTensor]) -> Result<Vec<u8>> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((keys.len() as u64).to_le_bytes());
    for (key, value) in keys {
        string(&mut out, key);
        out.extend(value_code(value).to_le_bytes());
        put_value(&mut out, value);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        let name = &tensor.name;
        let code = type_code(tensor.dtype)
            .ok_or_else(|| Error::invalid(format!("tensor '{name}' is {}, which GGUF does not have", tensor.dtype)))?;
        let bytes = tensor.byte_len().ok_or_else(|| {
            let (dtype, block) = (tensor.dtype, tensor.dtype.block_len());
            Error::invalid(format!(
                "tensor '{name}' of shape {:?} is not whole blocks of {block} ({dtype})",
                tensor.shape
            ))
        })?;
        string(&mut out, name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|dim| out.extend((*dim as u64).to_le_bytes()));
        out.extend(code.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset = (offset + bytes as u64).next_multiple_of(DEFAULT_ALIGNMENT);
    }
    Ok(out)
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn value_code(value: &GgufValue) -> u32 {
    match value {
        GgufValue::U8(_) => 0,
        GgufValue::I8(_) => 1,
        GgufValue::U16(_) => 2,
        GgufValue::I16(_) => 3,
        GgufValue::U32(_) => 4,
        GgufValue::I32(_) => 5,
        GgufValue::F32(_) => 6,
        GgufValue::Bool(_) => 7,
        GgufValue::String(_) => 8,
        GgufValue::Array(_) => 9,
        GgufValue::U64(_) => 10,
        GgufValue::I64(_) => 11,
        GgufValue::F64(_) => 12,
    }
}

fn put_value(out: &mut Vec<u8>, value: &GgufValue) {
    match value {
        GgufValue::U8(v) => out.extend(v.to_le_bytes()),
        GgufValue::I8(v) => out.extend(v.to_le_bytes()),
        GgufValue::U16(v) => out.extend(v.to_le_bytes()),
        GgufValue::I16(v) => out.extend(v.to_le_bytes()),
        GgufValue::U32(v) => out.extend(v.to_le_bytes()),
        GgufValue::I32(v) => out.extend(v.to_le_bytes()),
        GgufValue::F32(v) => out.extend(v.to_le_bytes()),
        GgufValue::Bool(v) => out.push(u8::from(*v)),
        GgufValue::String(v) => string(out, v),
        GgufValue::Array(v) => put_array(out, v),
        GgufValue::U64(v) => out.extend(v.to_le_bytes()),
        GgufValue::I64(v) => out.extend(v.to_le_bytes()),
        GgufValue::F64(v) => out.extend(v.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &GgufArray) {
    let head = |out: &mut Vec<u8>, code: u32, len: usize| {
        out.extend(code.to_le_bytes());
        out.extend((len as u64).to_le_bytes());
    };
    macro_rules! numbers {
        ($code:literal, $values:expr) => {{
            head(out, $code, $values.len());
            $values.iter().for_each(|v| out.extend(v.to_le_bytes()));
        }};
    }
    match array {
        GgufArray::U8(v) => numbers!(0, v),
        GgufArray::I8(v) => numbers!(1, v),
        GgufArray::U16(v) => numbers!(2, v),
        GgufArray::I16(v) => numbers!(3, v),
        GgufArray::U32(v) => numbers!(4, v),
        GgufArray::I32(v) => numbers!(5, v),
        GgufArray::F32(v) => numbers!(6, v),
        GgufArray::Bool(v) => {
            head(out, 7, v.len());
            out.extend(v.iter().map(|v| u8::from(*v)));
        }
        GgufArray::String(v) => {
            head(out, 8, v.len());
            v.iter().for_each(|v| string(out, v));
        }
        GgufArray::Array(v) => {
            head(out, 9, v.len());
            v.iter().for_each(|v| put_array(out, v));
        }
        GgufArray::U64(v) => numbers!(10, v),
        GgufArray::I64(v) => numbers!(11, v),
        GgufArray::F64(v) => numbers!(12, v),
    }
}

/// ggml's code of a type; `None` for types that are not ggml's.
fn type_code(dtype: DType) -> Option<u32> {
    (0..32).find(|code| super::ggml_type(*code) == Some(dtype))
}
