//! Writing safetensors as transformers and PEFT do: metadata `{"format": "pt"}`, shards above a size.

use super::lazy::{Bytes, LazyTensor};
use super::safetensors::{INDEX, SINGLE};
use crate::error::{Error, Result};
use crate::tensor::{DType, HostTensor};
use safetensors::tensor::{Dtype as FileType, View};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Where transformers starts a new shard (bytes).
pub const MAX_SHARD_BYTES: usize = 5_000_000_000;

/// A tensor as the crate asks for it. It cannot be told of a failure, so that is kept for afterwards.
struct Entry<'t, 'a> {
    dtype: FileType,
    tensor: &'t LazyTensor<'a>,
    bytes: usize,
    failed: &'t RefCell<Option<Error>>,
}

impl View for Entry<'_, '_> {
    fn dtype(&self) -> FileType {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        let made = if self.failed.borrow().is_some() { None } else { Some(self.tensor.bytes()) };
        match made {
            Some(Ok(Bytes::Borrowed(bytes))) => Cow::Borrowed(bytes),
            Some(Ok(Bytes::Owned(bytes))) => Cow::Owned(bytes),
            Some(Err(error)) => {
                *self.failed.borrow_mut() = Some(error);
                Cow::Owned(Vec::new())
            }
            None => Cow::Owned(Vec::new()),
        }
    }
    fn data_len(&self) -> usize {
        self.bytes
    }
}

/// Writes one file, first under a temporary name: `path` holds either the old content or all of the new.
///
/// # Errors
/// [`Error::Invalid`] for a tensor of a quantised type; [`Error::Io`].
pub fn write_file<'a>(path: &Path, tensors: impl IntoIterator<Item = (&'a str, &'a HostTensor)>) -> Result<()> {
    let tensors: Vec<_> = tensors.into_iter().map(|(name, tensor)| LazyTensor::existing(name, tensor)).collect();
    write_lazy(path, &tensors.iter().collect::<Vec<_>>())
}

/// As [`write_file`], of tensors that are computed one after another.
///
/// # Errors
/// As [`write_file`], and those of computing a tensor.
fn write_lazy(path: &Path, tensors: &[&LazyTensor]) -> Result<()> {
    let failed = RefCell::new(None);
    let mut entries = Vec::new();
    for tensor in tensors {
        let name = tensor.name.as_str();
        let dtype = match tensor.dtype {
            DType::F32 => FileType::F32,
            DType::F16 => FileType::F16,
            DType::BF16 => FileType::BF16,
            DType::U32 => FileType::U32,
            other => {
                return Err(Error::invalid(format!("tensor '{name}' is {other}; safetensors hold plain types")));
            }
        };
        let bytes = tensor.byte_len().unwrap_or(0);
        entries.push((name, Entry { dtype, tensor, bytes, failed: &failed }));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let io = |e: std::io::Error| Error::io(path, e);
    // The crate renames what it wrote whether all of it was made or not.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = std::path::PathBuf::from(temporary);
    let written = safetensors::serialize_to_file(entries, Some(metadata), &temporary);
    let outcome = match (failed.into_inner(), written) {
        (Some(error), _) => Err(error),
        (None, Err(safetensors::SafeTensorError::IoError(e))) => Err(io(e)),
        (None, Err(e)) => Err(Error::format(path.display().to_string(), "header", e.to_string())),
        (None, Ok(())) => Ok(()),
    };
    if outcome.is_err() {
        // What went wrong is the error; a leftover that cannot be removed is not.
        let _ = std::fs::remove_file(&temporary);
        return outcome;
    }
    std::fs::rename(&temporary, path).map_err(io)?;
    // The crate's temporary file is private to the user; a model is as readable as any other file.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).map_err(io)?;
    }
    Ok(())
}

/// As [`write_folder_lazy`], of tensors in memory.
///
/// # Errors
/// As [`write_file`].
pub fn write_folder(folder: &Path, tensors: &BTreeMap<String, HostTensor>, max_shard_bytes: usize) -> Result<()> {
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| LazyTensor::existing(name, tensor)).collect();
    write_folder_lazy(folder, &tensors, max_shard_bytes)
}

/// Writes `model.safetensors` into `folder`, or shards of at most `max_shard_bytes` with their index
/// ([`MAX_SHARD_BYTES`] is what transformers does). A tensor larger than that gets a shard of its own.
/// Tensors are computed one at a time, in the order of the file.
/// Weights of the other layout that an earlier call left in the folder are removed, so that no loader sees both.
///
/// # Errors
/// As [`write_file`], and those of computing a tensor.
pub fn write_folder_lazy(folder: &Path, tensors: &[LazyTensor], max_shard_bytes: usize) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let mut shards: Vec<Vec<&LazyTensor>> = vec![];
    let mut used = usize::MAX;
    for tensor in tensors {
        let bytes = tensor.byte_len().unwrap_or(0);
        match shards.last_mut() {
            Some(shard) if used.saturating_add(bytes) <= max_shard_bytes => {
                used += bytes;
                shard.push(tensor);
            }
            _ => {
                used = bytes;
                shards.push(vec![tensor]);
            }
        }
    }
    let count = shards.len();
    if count <= 1 {
        let path = folder.join(SINGLE);
        write_lazy(&path, &shards.into_iter().flatten().collect::<Vec<_>>())?;
        return remove_others(folder, |name| name == SINGLE);
    }
    let shard_name = |i: usize| format!("model-{:05}-of-{count:05}.safetensors", i + 1);
    let mut weight_map = serde_json::Map::new();
    let (mut total_size, mut total_parameters) = (0, 0);
    for (i, shard) in shards.into_iter().enumerate() {
        for tensor in &shard {
            weight_map.insert(tensor.name.clone(), shard_name(i).into());
            total_size += tensor.byte_len().unwrap_or(0);
            total_parameters += tensor.elements();
        }
        write_lazy(&folder.join(shard_name(i)), &shard)?;
    }
    let metadata = serde_json::json!({ "total_parameters": total_parameters, "total_size": total_size });
    write_json(&folder.join(INDEX), &serde_json::json!({ "metadata": metadata, "weight_map": weight_map }))?;
    let names: Vec<String> = (0..count).map(shard_name).collect();
    remove_others(folder, |name| name == INDEX || names.iter().any(|n| n == name))
}

fn remove_others(folder: &Path, keep: impl Fn(&str) -> bool) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let entry = entry.map_err(|e| Error::io(folder, e))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let ours = name == SINGLE
            || name == INDEX
            || (name.starts_with("model-") && name.contains("-of-") && name.ends_with(".safetensors"));
        if ours && !keep(name) {
            std::fs::remove_file(entry.path()).map_err(|e| Error::io(entry.path(), e))?;
        }
    }
    Ok(())
}

/// Writes pretty JSON with a final newline, through a temporary name in the same folder.
///
/// # Errors
/// [`Error::Io`].
pub fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| Error::internal(e.to_string()))?;
    text.push('\n');
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = std::path::PathBuf::from(temporary);
    std::fs::write(&temporary, text).map_err(|e| Error::io(&temporary, e))?;
    std::fs::rename(&temporary, path).map_err(|e| Error::io(path, e))
}
