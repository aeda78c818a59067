//! Writing safetensors as transformers and PEFT do: metadata `{"format": "pt"}`, shards above a size.

use super::safetensors::{INDEX, SINGLE};
use crate::error::{Error, Result};
use crate::tensor::{DType, HostTensor};
use safetensors::tensor::{Dtype as FileType, View};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Where transformers starts a new shard (bytes).
pub const MAX_SHARD_BYTES: usize = 5_000_000_000;

struct Entry<'a> {
    dtype: FileType,
    tensor: &'a HostTensor,
}

impl View for Entry<'_> {
    fn dtype(&self) -> FileType {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.tensor.data)
    }
    fn data_len(&self) -> usize {
        self.tensor.data.len()
    }
}

/// Writes one file, first under a temporary name: `path` holds either the old content or all of the new.
///
/// # Errors
/// [`Error::Invalid`] for a tensor of a quantised type; [`Error::Io`].
pub fn write_file<'a>(path: &Path, tensors: impl IntoIterator<Item = (&'a str, &'a HostTensor)>) -> Result<()> {
    let mut entries = Vec::new();
    for (name, tensor) in tensors {
        let dtype = match tensor.dtype {
            DType::F32 => FileType::F32,
            DType::F16 => FileType::F16,
            DType::BF16 => FileType::BF16,
            DType::U32 => FileType::U32,
            other => {
                return Err(Error::invalid(format!("tensor '{name}' is {other}; safetensors hold plain types")));
            }
        };
        entries.push((name, Entry { dtype, tensor }));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let io = |e: std::io::Error| Error::io(path, e);
    safetensors::serialize_to_file(entries, Some(metadata), path).map_err(|e| match e {
        safetensors::SafeTensorError::IoError(e) => io(e),
        e => Error::format(path.display().to_string(), "header", e.to_string()),
    })?;
    // The crate's temporary file is private to the user; a model is as readable as any other file.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).map_err(io)?;
    }
    Ok(())
}

/// Writes `model.safetensors` into `folder`, or shards of at most `max_shard_bytes` with their index
/// ([`MAX_SHARD_BYTES`] is what transformers does). A tensor larger than that gets a shard of its own.
/// Weights of the other layout that an earlier call left in the folder are removed, so that no loader sees both.
///
/// # Errors
/// As [`write_file`].
pub fn write_folder(folder: &Path, tensors: &BTreeMap<String, HostTensor>, max_shard_bytes: usize) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let mut shards: Vec<Vec<(&str, &HostTensor)>> = vec![];
    let mut used = usize::MAX;
    for (name, tensor) in tensors {
        let bytes = tensor.data.len();
        match shards.last_mut() {
            Some(shard) if used.saturating_add(bytes) <= max_shard_bytes => {
                used += bytes;
                shard.push((name, tensor));
            }
            _ => {
                used = bytes;
                shards.push(vec![(name, tensor)]);
            }
        }
    }
    let count = shards.len();
    if count <= 1 {
        let path = folder.join(SINGLE);
        write_file(&path, shards.into_iter().flatten())?;
        return remove_others(folder, |name| name == SINGLE);
    }
    let shard_name = |i: usize| format!("model-{:05}-of-{count:05}.safetensors", i + 1);
    let mut weight_map = serde_json::Map::new();
    let (mut total_size, mut total_parameters) = (0, 0);
    for (i, shard) in shards.into_iter().enumerate() {
        for (name, tensor) in &shard {
            weight_map.insert((*name).to_owned(), shard_name(i).into());
            total_size += tensor.data.len();
            total_parameters += tensor.len();
        }
        write_file(&folder.join(shard_name(i)), shard)?;
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
