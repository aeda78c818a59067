//! LoRA adapters in PEFT's format: a folder with adapter_config.json and adapter_model.safetensors.
//!
//! Tensor names: `base_model.model.` + module path + `.lora_A.weight` (`[r, in]`) and `.lora_B.weight`
//! (`[out, r]`); older files carry the adapter's name, `.lora_A.default.weight`. DoRA has `.lora_magnitude_vector` (`[out]`) besides.
//! Weights of `modules_to_save` stand under their own names behind the same prefix: `base_model.model.model.embed_tokens.weight`.

use super::checkpoint::read_json;
use super::quant::dequantise_row;
use super::safetensors::{self, Tensors};
use super::safetensors_write::{write_file, write_json};
use super::source::Source;
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::weights::{module_shape, saved_tensors};
use crate::tensor::{DType, HostTensor};
use std::collections::BTreeMap;
use std::path::Path;

pub use super::peft_config::{AdapterConfig, TargetModules};

/// Configuration file of an adapter.
pub const CONFIG: &str = "adapter_config.json";
/// Weights of an adapter.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts before every module path of a causal language model.
const PREFIX: &str = "base_model.model.";

/// One adapter, checked against a model.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// adapter_config.json.
    pub config: AdapterConfig,
    /// By full module path, for example `model.layers.0.self_attn.q_proj`.
    pub modules: BTreeMap<String, LoraWeights>,
    /// Weights that take the place of the model's (`modules_to_save`), f32, by their names in a checkpoint:
    /// `model.embed_tokens.weight`.
    pub saved: Tensors,
}

/// What is added to one module, `scale · B · A`, and how long its rows are then.
#[derive(Clone, Debug)]
pub struct LoraWeights {
    /// f32 `[r, in]`
    pub a: HostTensor,
    /// f32 `[out, r]`
    pub b: HostTensor,
    /// alpha / r, or alpha / √r.
    pub scale: f32,
    /// DoRA: f32 `[out]`, the length of each row of `W + scale · B · A` after it has been scaled to that.
    pub magnitude: Option<HostTensor>,
}

impl Adapter {
    /// Reads the adapter in `folder` for a model.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] naming key or tensor where the files are corrupt or do not fit the
    /// model; [`Error::Unsupported`] naming features that are not implemented.
    pub fn read(folder: &Path, model: &ModelConfig) -> Result<Self> {
        let config_path = folder.join(CONFIG);
        let raw = read_json(&config_path)?;
        let config = AdapterConfig::from_json(&config_path.display().to_string(), &raw)?;
        let weights = folder.join(WEIGHTS);
        if !weights.is_file() && folder.join("adapter_model.bin").is_file() {
            let message = "weights in adapter_model.bin (a Python pickle); save them as safetensors";
            return Err(Error::unsupported(format!("{}: {message}", folder.display())));
        }
        Self::from_parts(config, &Source::open(&weights)?, model)
    }

    /// As [`Adapter::read`], from a parsed configuration and the bytes of the weights.
    ///
    /// # Errors
    /// As [`Adapter::read`].
    pub fn from_parts(config: AdapterConfig, weights: &Source, model: &ModelConfig) -> Result<Self> {
        let file = weights.name();
        let mut tensors = safetensors::read(weights, &|_| false)?;
        let saved = take_saved(file, &config, &mut tensors, model)?;
        let mut modules = BTreeMap::new();
        for (module, Sides { a, b, magnitude }) in pair(file, tensors)? {
            let place = |side: &str| format!("tensor '{PREFIX}{module}.{side}'");
            let Some([rows, cols]) = module_shape(model, &module) else {
                return Err(Error::format(file, format!("module '{module}'"), "the model has no such linear module"));
            };
            let (r, scale) = config.rank_and_scale(&module)?;
            let expected = [("lora_A.weight", &a, vec![r, cols]), ("lora_B.weight", &b, vec![rows, r])];
            let magnitudes = magnitude.iter().map(|tensor| ("lora_magnitude_vector", tensor, vec![rows]));
            for (side, tensor, expected) in expected.into_iter().chain(magnitudes) {
                if tensor.shape != expected {
                    let message = format!("found shape {:?}, expected {expected:?}", tensor.shape);
                    return Err(Error::format(file, place(side), message));
                }
            }
            if magnitude.is_some() != config.use_dora {
                let is = if config.use_dora { "missing" } else { "there" };
                let message = format!("it is {is}, but {CONFIG} says use_dora {}", config.use_dora);
                return Err(Error::format(file, place("lora_magnitude_vector"), message));
            }
            let magnitude = magnitude.as_ref().map(to_f32).transpose()?;
            modules.insert(module, LoraWeights { a: to_f32(&a)?, b: to_f32(&b)?, scale, magnitude });
        }
        // PEFT creates what the file leaves out, with B = 0: no effect. A file without anything is a mistake.
        if modules.is_empty() && saved.is_empty() {
            return Err(Error::format(file, "header", "found no LoRA tensor"));
        }
        Ok(Self { config, modules, saved })
    }

    /// Refuses what only low-rank products can be used for. `name` appears in the message.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the adapter has saved modules, saying what can be done with it.
    pub fn only_low_rank(&self, name: &str) -> Result<()> {
        let Some(tensor) = self.saved.keys().next() else { return Ok(()) };
        Err(Error::unsupported(format!(
            "adapter '{name}' has modules_to_save ({}, first tensor {tensor}): an adapter beside others is low-rank only; \
             merge it into its model (runtime merge --model … --adapter … --output …) and serve that",
            self.config.modules_to_save.join(", ")
        )))
    }

    /// Writes the folder that `PeftModel.from_pretrained` loads. The weights come first, so that a reader who
    /// sees a new configuration also sees its weights.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let mut tensors = Tensors::new();
        for (module, w) in &self.modules {
            tensors.insert(format!("{PREFIX}{module}.lora_A.weight"), w.a.clone());
            tensors.insert(format!("{PREFIX}{module}.lora_B.weight"), w.b.clone());
            if let Some(magnitude) = &w.magnitude {
                tensors.insert(format!("{PREFIX}{module}.lora_magnitude_vector"), magnitude.clone());
            }
        }
        tensors.extend(self.saved.iter().map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor.clone())));
        write_file(&folder.join(WEIGHTS), tensors.iter().map(|(n, t)| (n.as_str(), t)))?;
        write_json(&folder.join(CONFIG), &self.config.to_json())
    }
}

/// Takes out the tensors of `modules_to_save`; older files have that word and the adapter's name in theirs.
fn take_saved(file: &str, config: &AdapterConfig, tensors: &mut Tensors, model: &ModelConfig) -> Result<Tensors> {
    let mut saved = Tensors::new();
    if config.modules_to_save.is_empty() {
        return Ok(saved);
    }
    let known = saved_tensors(model, &config.modules_to_save)
        .map_err(|e| Error::format(file, "header", format!("of adapter_config.json: {e}")))?;
    for (name, shape) in known {
        let (module, kind) = name.rsplit_once('.').unwrap_or((&name, ""));
        let forms = [
            format!("{PREFIX}{name}"),
            format!("{PREFIX}{module}.modules_to_save.{kind}"),
            format!("{PREFIX}{module}.modules_to_save.default.{kind}"),
        ];
        let Some(tensor) = forms.iter().find_map(|form| tensors.remove(form)) else {
            let message = "missing, and its module is among modules_to_save";
            return Err(Error::format(file, format!("tensor '{PREFIX}{name}'"), message));
        };
        if tensor.shape != shape {
            let message = format!("found shape {:?}, expected {shape:?}", tensor.shape);
            return Err(Error::format(file, format!("tensor '{PREFIX}{name}'"), message));
        }
        saved.insert(name, to_f32(&tensor)?);
    }
    Ok(saved)
}

/// The tensors of one module.
struct Sides {
    a: HostTensor,
    b: HostTensor,
    magnitude: Option<HostTensor>,
}

/// Groups the tensors by module; each module needs A and B, and nothing else but magnitudes is accepted.
fn pair(file: &str, tensors: Tensors) -> Result<BTreeMap<String, Sides>> {
    let mut sides = BTreeMap::<String, [Option<HostTensor>; 3]>::new();
    for (name, tensor) in tensors {
        let (module, side) = parse_name(&name).ok_or_else(|| match feature_of(&name) {
            Some(feature) => Error::unsupported(format!("{file}: tensor '{name}' ({feature})")),
            None => Error::format(
                file,
                format!("tensor '{name}'"),
                format!("expected a name like '{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight'"),
            ),
        })?;
        let slot = &mut sides.entry(module.to_owned()).or_default()[side];
        if slot.is_some() {
            return Err(Error::format(file, format!("tensor '{name}'"), "the module already has this side"));
        }
        *slot = Some(tensor);
    }
    let mut out = BTreeMap::new();
    for (module, sides) in sides {
        match sides {
            [Some(a), Some(b), magnitude] => drop(out.insert(module, Sides { a, b, magnitude })),
            [a, ..] => {
                let missing = if a.is_none() { "lora_A" } else { "lora_B" };
                return Err(Error::format(file, format!("module '{module}'"), format!("{missing} is missing")));
            }
        }
    }
    Ok(out)
}

/// Module path, and 0 for A, 1 for B, 2 for the magnitudes.
fn parse_name(name: &str) -> Option<(&str, usize)> {
    let rest = name.strip_prefix(PREFIX)?;
    let ends = [
        (".lora_A.weight", 0),
        (".lora_A.default.weight", 0),
        (".lora_B.weight", 1),
        (".lora_B.default.weight", 1),
        (".lora_magnitude_vector", 2),
        (".lora_magnitude_vector.weight", 2),
        (".lora_magnitude_vector.default.weight", 2),
    ];
    ends.iter().find_map(|(end, side)| Some((rest.strip_suffix(end)?, *side)))
}

/// What a tensor with an unexpected name belongs to.
fn feature_of(name: &str) -> Option<&'static str> {
    [
        ("lora_embedding", "LoRA on an embedding"),
        ("modules_to_save", "modules_to_save"),
        (".bias", "biases"),
        ("trainable_tokens", "trainable tokens"),
    ]
    .iter()
    .find(|(part, _)| name.contains(part))
    .map(|(_, feature)| *feature)
}

fn to_f32(tensor: &HostTensor) -> Result<HostTensor> {
    if tensor.dtype == DType::F32 {
        return Ok(tensor.clone());
    }
    let mut values = vec![0.0; tensor.len()];
    dequantise_row(tensor.dtype, &tensor.data, &mut values)?;
    HostTensor::from_f32(tensor.shape.clone(), &values)
}
