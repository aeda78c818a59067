//! One checkpoint, wherever it comes from: configuration, tensors under Hugging Face names, tokenizer
//! material and chat template, all checked against each other.

use super::gguf::{GgufFile, GgufMetadata};
use super::safetensors::{self, Tensors};
use super::source::Source;
use super::{bnb, from_gguf};
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::families::config_from_json;
use crate::model::keys::Keys;
use crate::model::weights::{EMBED, HEAD, expected_tensors, is_harmless};
use crate::tensor::HostTensor;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// An opened and checked model. Tensor bytes stay memory-mapped.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// What was opened: a .gguf file or a folder.
    pub path: PathBuf,
    /// What the decoder needs to know.
    pub config: ModelConfig,
    /// Exactly the tensors that the configuration implies, under Hugging Face names. `lm_head.weight` is
    /// absent where the head shares the embedding.
    pub tensors: BTreeMap<String, HostTensor>,
    /// What a tokenizer can be built from.
    pub tokenizer: TokenizerSource,
    /// The default chat template, as Jinja source.
    pub chat_template: Option<String>,
    /// generation_config.json, or null.
    pub generation: Value,
    /// config.json as it is; for GGUF one with which transformers loads the same model.
    pub raw_config: Value,
}

/// Where the vocabulary is.
#[derive(Clone, Debug)]
pub enum TokenizerSource {
    /// Hugging Face's files.
    Json {
        /// The bytes of tokenizer.json.
        tokenizer_json: Vec<u8>,
        /// tokenizer_config.json, null where it is absent.
        tokenizer_config: Value,
        /// special_tokens_map.json, null where it is absent.
        special_tokens_map: Value,
    },
    /// `tokenizer.ggml.*` of a GGUF file.
    Gguf(GgufMetadata),
    /// The folder has no tokenizer.json: token ids still work.
    None,
}

impl Checkpoint {
    /// Opens a .gguf file, a Hugging Face folder, a folder with exactly one .gguf file, or the folder around a
    /// .safetensors file.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`] and [`Error::Unsupported`], naming file, tensor or key.
    pub fn open(path: &Path) -> Result<Self> {
        let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if meta.is_dir() {
            return Self::open_folder(path);
        }
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        if extension == "safetensors" {
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            return Self::open_folder(parent);
        }
        // Any other file has to be GGUF, whatever its name; the reader says so if not.
        Self::from_gguf(path, &Source::open(path)?)
    }

    /// Opens GGUF bytes; `path` is only remembered.
    ///
    /// # Errors
    /// [`Error::Format`] and [`Error::Unsupported`], naming tensor or key and offset.
    pub fn from_gguf(path: &Path, source: &Source) -> Result<Self> {
        let file = GgufFile::open(source)?;
        let from_gguf::Converted { config, raw_config, mut tensors } = from_gguf::convert(&file)?;
        check(source.name(), &config, &mut tensors)?;
        let chat_template = file.metadata.get_str("tokenizer.chat_template")?.map(str::to_owned);
        let tokenizer = match file.metadata.get_str("tokenizer.ggml.model")? {
            // What a model without a vocabulary says.
            Some("none" | "no_vocab") => TokenizerSource::None,
            _ => TokenizerSource::Gguf(file.metadata),
        };
        Ok(Self {
            path: path.to_owned(),
            config,
            tensors,
            tokenizer,
            chat_template,
            generation: Value::Null,
            raw_config,
        })
    }

    fn open_folder(folder: &Path) -> Result<Self> {
        let config_path = folder.join("config.json");
        if !config_path.is_file() {
            let file = only_gguf(folder)?;
            return Self::from_gguf(&file, &Source::open(&file)?);
        }
        let raw_config = read_json(&config_path)?;
        let mut config = config_from_json(&config_path.display().to_string(), &raw_config)?;
        let generation = optional_json(&folder.join("generation_config.json"))?;
        if !generation.is_null() {
            let name = folder.join("generation_config.json").display().to_string();
            for id in Keys::new(&name, &generation)?.token_ids("eos_token_id")?.unwrap_or_default() {
                if !config.eos.contains(&id) {
                    config.eos.push(id);
                }
            }
        }
        let mut tensors = match bnb::is_nf4(&raw_config) {
            true => safetensors::read_folder_with_bytes(folder, &is_harmless)?,
            false => safetensors::read_folder(folder, &is_harmless)?,
        };
        if bnb::is_nf4(&raw_config) {
            bnb::assemble(&folder.display().to_string(), &mut tensors)?;
        }
        untie(&mut config, &mut tensors);
        check(&folder.display().to_string(), &config, &mut tensors)?;
        let (tokenizer, chat_template) = read_tokenizer(folder)?;
        Ok(Self { path: folder.to_owned(), config, tensors, tokenizer, chat_template, generation, raw_config })
    }

    /// A tensor that [`Checkpoint::open`] has checked to be there.
    ///
    /// # Errors
    /// [`Error::Internal`] for a name that the configuration does not imply.
    pub fn tensor(&self, name: &str) -> Result<&HostTensor> {
        self.tensors.get(name).ok_or_else(|| Error::internal(format!("the checkpoint has no tensor '{name}'")))
    }
}

/// What transformers does with a tied head: either of the two tensors serves as both; where both are stored
/// and differ, they are not tied.
fn untie(config: &mut ModelConfig, tensors: &mut Tensors) {
    if !config.tied_head {
        return;
    }
    let Some(head) = tensors.remove(HEAD) else { return };
    match tensors.get(EMBED) {
        None => drop(tensors.insert(EMBED.to_owned(), head)),
        Some(embed) => {
            let same = embed.dtype == head.dtype && embed.shape == head.shape && *embed.data == *head.data;
            if !same {
                config.tied_head = false;
                tensors.insert(HEAD.to_owned(), head);
            }
        }
    }
}

/// Every implied tensor is there with its shape, and nothing else is.
fn check(file: &str, config: &ModelConfig, tensors: &mut Tensors) -> Result<()> {
    tensors.retain(|name, _| !is_harmless(name));
    let mut known = BTreeSet::new();
    for (name, shape) in expected_tensors(config) {
        let place = || format!("tensor '{name}'");
        let Some(tensor) = tensors.get(&name) else {
            return Err(Error::format(file, place(), format!("missing, expected shape {shape:?}")));
        };
        if tensor.shape != shape {
            return Err(Error::format(file, place(), format!("found shape {:?}, expected {shape:?}", tensor.shape)));
        }
        known.insert(name);
    }
    let unknown: Vec<_> = tensors.keys().filter(|n| !known.contains(*n)).collect();
    match unknown.as_slice() {
        [] => Ok(()),
        [first, ..] => {
            let list = unknown.iter().take(5).map(|n| format!("'{n}'")).collect::<Vec<_>>().join(", ");
            let more = unknown.len().saturating_sub(5);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let message = format!("a {} model has no such tensor; unexpected are {list}{more}", config.family.name());
            Err(Error::format(file, format!("tensor '{first}'"), message))
        }
    }
}

fn only_gguf(folder: &Path) -> Result<PathBuf> {
    let mut found = vec![];
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            found.push(path);
        }
    }
    found.sort();
    match (found.len(), found.pop()) {
        (1, Some(file)) => Ok(file),
        (0, _) | (_, None) => {
            Err(Error::format(folder.display().to_string(), "config.json", "found neither it nor a .gguf file"))
        }
        (n, Some(last)) => Err(Error::invalid(format!(
            "{}: holds {n} .gguf files; name one, for example {}",
            folder.display(),
            last.display()
        ))),
    }
}

/// Parses a JSON file.
pub(super) fn read_json(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| {
        Error::format(path.display().to_string(), format!("line {} column {}", e.line(), e.column()), e.to_string())
    })
}

fn optional_json(path: &Path) -> Result<Value> {
    if path.is_file() { read_json(path) } else { Ok(Value::Null) }
}

fn read_tokenizer(folder: &Path) -> Result<(TokenizerSource, Option<String>)> {
    let tokenizer_config = optional_json(&folder.join("tokenizer_config.json"))?;
    let path = folder.join("chat_template.jinja");
    let template = if path.is_file() {
        Some(std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?)
    } else {
        template_of(&tokenizer_config)
    };
    let path = folder.join("tokenizer.json");
    if !path.is_file() {
        return Ok((TokenizerSource::None, template));
    }
    let tokenizer_json = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let special_tokens_map = optional_json(&folder.join("special_tokens_map.json"))?;
    Ok((TokenizerSource::Json { tokenizer_json, tokenizer_config, special_tokens_map }, template))
}

/// `chat_template` of tokenizer_config.json: a string, or a list of named ones of which "default" is kept.
fn template_of(tokenizer_config: &Value) -> Option<String> {
    match tokenizer_config.get("chat_template")? {
        Value::String(s) => Some(s.clone()),
        Value::Array(all) => all
            .iter()
            .find(|t| t.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|t| t.get("template")?.as_str())
            .map(str::to_owned),
        _ => None,
    }
}
