//! Safetensors: single files and sharded folders in, single files and sharded folders out.
//!
//! Format: <https://github.com/huggingface/safetensors#format>. The `safetensors` crate checks the header
//! (offsets without holes or overlaps, lengths that fit shape and type); this file adds names, offsets and
//! the folder conventions of Hugging Face. Tensor data stays in the map and has no alignment beyond a byte.

use super::source::Source;
use crate::error::{Error, Result};
use crate::tensor::{DType, HostTensor};
use safetensors::tensor::{Dtype as FileType, Metadata};
use safetensors::{SafeTensorError, SafeTensors};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

/// Name of the index of a sharded model.
pub const INDEX: &str = "model.safetensors.index.json";
/// Name of an unsharded model.
pub const SINGLE: &str = "model.safetensors";

/// Tensors by name.
pub type Tensors = BTreeMap<String, HostTensor>;

/// Reads one file. Tensors for which `skip` is true are left out, whatever their type.
///
/// # Errors
/// [`Error::Format`] where the header is corrupt or the file truncated, [`Error::Unsupported`] naming a
/// tensor whose type is not f32, f16 or bf16.
pub fn read(source: &Source, skip: &dyn Fn(&str) -> bool) -> Result<Tensors> {
    read_types(source, skip, &[])
}

/// Reads a file of this program's own state, which may hold u32, too.
///
/// # Errors
/// As [`read`].
pub fn read_state(source: &Source) -> Result<Tensors> {
    read_types(source, &|_| false, &[(FileType::U32, DType::U32)])
}

/// `more`: types besides the plain ones, and what they are read as.
fn read_types(source: &Source, skip: &dyn Fn(&str) -> bool, more: &[(FileType, DType)]) -> Result<Tensors> {
    let file = source.name();
    let (header, metadata) = read_header(source)?;
    let data = 8 + header;
    let mut out = Tensors::new();
    for (name, info) in metadata.tensors() {
        if skip(&name) {
            continue;
        }
        let (start, end) = info.data_offsets;
        let dtype = match info.dtype {
            FileType::F32 => DType::F32,
            FileType::F16 => DType::F16,
            FileType::BF16 => DType::BF16,
            other if more.iter().any(|(file, _)| *file == other) => {
                more.iter().find(|(file, _)| *file == other).map_or(DType::F32, |(_, dtype)| *dtype)
            }
            other => {
                let at = data + start;
                return Err(Error::unsupported(format!(
                    "{file}: tensor '{name}' at offset {at} has type {other}; supported are F32, F16, BF16"
                )));
            }
        };
        let place = || format!("tensor '{name}' at offset {}", data + start);
        let bytes = source
            .slice(data + start..data + end)
            .ok_or_else(|| Error::format(file, place(), format!("expected {} bytes inside the file", end - start)))?;
        let tensor = HostTensor::new(dtype, info.shape.clone(), bytes)
            .map_err(|e| Error::format(file, place(), e.to_string()))?;
        out.insert(name, tensor);
    }
    Ok(out)
}

/// Length and content of the header, with messages that say where it is wrong.
fn read_header(source: &Source) -> Result<(usize, Metadata)> {
    let (file, bytes) = (source.name(), source.bytes());
    let Some(length) = bytes.first_chunk::<8>().map(|b| u64::from_le_bytes(*b)) else {
        let message = format!("expected 8 bytes of header length, the file has {}", bytes.len());
        return Err(Error::format(file, "header at offset 0", message));
    };
    let rest = bytes.len() as u64 - 8;
    if length > rest {
        let message = format!("header length {length}, but only {rest} bytes follow: the file is truncated or corrupt");
        return Err(Error::format(file, "header at offset 0", message));
    }
    let (n, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| match e {
        SafeTensorError::MetadataIncompleteBuffer => Error::format(
            file,
            format!("data at offset {}", 8 + length),
            format!(
                "the tensors of the header do not end where the file does ({} bytes of data): truncated or corrupt",
                rest - length
            ),
        ),
        SafeTensorError::InvalidOffset(name) => Error::format(
            file,
            format!("tensor '{name}' in the header at offset 8"),
            "its data offsets leave a hole, overlap another tensor or run backwards",
        ),
        e => Error::format(file, "header at offset 8", e.to_string()),
    })?;
    Ok((n, metadata))
}

/// Reads `model.safetensors`, or every shard that `model.safetensors.index.json` lists.
///
/// # Errors
/// As [`read`]; also where a shard is missing, a shard's name leaves the folder, a tensor of the index is not
/// in its shard, or two shards hold the same name.
pub fn read_folder(folder: &Path, skip: &dyn Fn(&str) -> bool) -> Result<Tensors> {
    read_folder_types(folder, skip, &[])
}

/// As [`read_folder`], of a folder that may also hold bytes, which are read as [`DType::I8`].
///
/// # Errors
/// As [`read_folder`].
pub fn read_folder_with_bytes(folder: &Path, skip: &dyn Fn(&str) -> bool) -> Result<Tensors> {
    read_folder_types(folder, skip, &[(FileType::U8, DType::I8)])
}

fn read_folder_types(folder: &Path, skip: &dyn Fn(&str) -> bool, more: &[(FileType, DType)]) -> Result<Tensors> {
    let single = folder.join(SINGLE);
    if single.is_file() {
        return read_types(&Source::open(&single)?, skip, more);
    }
    let index = folder.join(INDEX);
    if !index.is_file() {
        return Err(missing_weights(folder));
    }
    let shards = read_index(&Source::open(&index)?)?;
    let mut out = Tensors::new();
    for (shard, names) in shards {
        let path = folder.join(&shard);
        if !path.is_file() {
            let message = format!("the shard is missing from {}; download it again", folder.display());
            return Err(Error::format(index.display().to_string(), format!("shard '{shard}'"), message));
        }
        let tensors = read_types(&Source::open(&path)?, skip, more)?;
        if let Some(name) = names.iter().find(|n| !skip(n) && !tensors.contains_key(*n)) {
            return Err(Error::format(
                index.display().to_string(),
                format!("tensor '{name}'"),
                format!("listed in shard '{shard}', which does not hold it"),
            ));
        }
        for (name, tensor) in tensors {
            if out.contains_key(&name) {
                let place = format!("tensor '{name}'");
                return Err(Error::format(path.display().to_string(), place, "another shard holds it too"));
            }
            out.insert(name, tensor);
        }
    }
    Ok(out)
}

fn missing_weights(folder: &Path) -> Error {
    let old = ["pytorch_model.bin", "pytorch_model.bin.index.json"].iter().find(|f| folder.join(f).is_file());
    match old {
        Some(f) => Error::unsupported(format!(
            "{}: weights in {f} (a Python pickle); convert them to safetensors",
            folder.display()
        )),
        None => {
            Error::format(folder.display().to_string(), "weights", format!("found no {SINGLE}, {INDEX} or .gguf file"))
        }
    }
}

/// Shard names with the tensors that each must hold.
fn read_index(source: &Source) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let file = source.name();
    let json: serde_json::Value = serde_json::from_slice(source.bytes())
        .map_err(|e| Error::format(file, format!("line {} column {}", e.line(), e.column()), e.to_string()))?;
    let map = json
        .get("weight_map")
        .and_then(|m| m.as_object())
        .ok_or_else(|| Error::format(file, "key 'weight_map'", "expected an object of tensor names and file names"))?;
    let mut shards = BTreeMap::<String, BTreeSet<String>>::new();
    for (tensor, shard) in map {
        let place = || format!("key 'weight_map.{tensor}'");
        let shard = shard
            .as_str()
            .ok_or_else(|| Error::format(file, place(), format!("found {shard}, expected a file name")))?;
        // An index is untrusted: a shard has to be a plain name inside the folder.
        let mut parts = Path::new(shard).components();
        let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
        if !plain || shard.contains(['\\', ':', '/']) {
            let message = format!("found '{shard}', expected a file name inside the folder");
            return Err(Error::format(file, place(), message));
        }
        shards.entry(shard.to_owned()).or_default().insert(tensor.clone());
    }
    Ok(shards)
}
