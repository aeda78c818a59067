//! Models and adapters as GGUF, for llama.cpp and what is built on it.
//!
//! Which tensor of a file type has which element type follows llama.cpp's `llama_tensor_get_type`.

use super::{check_modules, floats, lora_of, merged, whole_of};
use crate::error::{Error, Result};
use crate::format::gguf::{GgufValue, write_gguf};
use crate::format::lazy::{Bytes, LazyTensor};
use crate::format::peft::Adapter;
use crate::format::{Checkpoint, TokenizerSource, to_gguf};
use crate::model::ModelConfig;
use crate::model::weights::{EMBED, HEAD};
use crate::tensor::{DType, HostTensor};
use crate::token::gguf_keys;
use std::path::Path;
use std::str::FromStr;

/// Types of GGUF files that are written, by llama.cpp's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types)] // the names that users of GGUF know
pub enum FileType {
    /// All matrices in f32.
    F32,
    /// All matrices in f16.
    F16,
    /// All matrices in bf16.
    BF16,
    /// All matrices in Q8_0.
    Q8_0,
    /// Q4_0, the head in Q6_K.
    Q4_0,
    /// Q4_K; the head, and half of the value and down projections, in Q6_K.
    Q4_K_M,
}

impl FileType {
    /// All of them, with their names and their codes in `general.file_type`.
    const ALL: [(Self, &str, u32); 6] = [
        (Self::F32, "f32", 0),
        (Self::F16, "f16", 1),
        (Self::BF16, "bf16", 32),
        (Self::Q8_0, "q8_0", 7),
        (Self::Q4_0, "q4_0", 2),
        (Self::Q4_K_M, "q4_k_m", 15),
    ];

    fn code(self) -> u32 {
        Self::ALL.iter().find(|(kind, ..)| *kind == self).map_or(0, |(.., code)| *code)
    }

    /// The type of a plain file; `None` for quantised ones.
    pub fn plain(self) -> Option<DType> {
        match self {
            Self::F32 => Some(DType::F32),
            Self::F16 => Some(DType::F16),
            Self::BF16 => Some(DType::BF16),
            Self::Q8_0 | Self::Q4_0 | Self::Q4_K_M => None,
        }
    }

    /// The type of one tensor.
    fn dtype(self, name: &str, tensor: &HostTensor, layers: usize, tied_head: bool) -> DType {
        if tensor.shape.len() < 2 {
            return DType::F32;
        }
        let is_head = name == HEAD || (name == EMBED && tied_head);
        let wanted = match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::BF16 => DType::BF16,
            Self::Q8_0 => DType::Q8_0,
            Self::Q4_0 | Self::Q4_K_M if is_head => DType::Q6_K,
            Self::Q4_0 => DType::Q4_0,
            Self::Q4_K_M if more_bits(name, layers) => DType::Q6_K,
            Self::Q4_K_M => DType::Q4_K,
        };
        // Rows that are not whole blocks take the next type whose blocks are smaller.
        let fits = |dtype: &DType| tensor.cols().is_multiple_of(dtype.block_len());
        let smaller = match wanted {
            DType::Q4_K => DType::Q5_0,
            DType::Q6_K => DType::Q8_0,
            other => other,
        };
        [wanted, smaller].into_iter().find(fits).unwrap_or(DType::F16)
    }
}

impl FromStr for FileType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.iter().find(|(_, name, _)| name.eq_ignore_ascii_case(text));
        found.map(|(kind, ..)| *kind).ok_or_else(|| {
            let names = Self::ALL.map(|(_, name, _)| name).join(", ");
            Error::invalid(format!("unknown file type '{text}': use {names}"))
        })
    }
}

/// Whether Q4_K_M gives a tensor more bits: value and down projections of the first and last eighth of the layers and of
/// every third in between (`use_more_bits`).
fn more_bits(name: &str, layers: usize) -> bool {
    let module = [".self_attn.v_proj.weight", ".mlp.down_proj.weight"].iter().find_map(|end| name.strip_suffix(end));
    let layer = module.and_then(|rest| rest.rsplit('.').next()?.parse::<usize>().ok());
    let eighth = layers / 8;
    layer.is_some_and(|i| i < eighth || i >= 7 * layers / 8 || (i - eighth) % 3 == 2)
}

fn text(value: &str) -> GgufValue {
    GgufValue::String(value.to_owned())
}

/// Writes the model, merged with `adapter` where there is one, as one GGUF file with tokenizer and chat template. Gives its
/// bytes.
///
/// A tensor that neither the adapter nor the file type changes keeps its bits.
///
/// # Errors
/// [`Error::Invalid`] for an adapter that does not fit; [`Error::Unsupported`] for what GGUF or llama.cpp cannot express,
/// naming it; [`Error::Io`].
pub fn write_model_gguf(
    checkpoint: &Checkpoint,
    adapter: Option<&Adapter>,
    path: &Path,
    file_type: FileType,
) -> Result<u64> {
    check_modules(checkpoint, adapter)?;
    if matches!((checkpoint.path.canonicalize(), path.canonicalize()), (Ok(a), Ok(b)) if a == b) {
        return Err(Error::invalid(format!("{}: is the model itself; name another file", path.display())));
    }
    let config = &checkpoint.config;
    let name = checkpoint.path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut keys = vec![
        ("general.architecture".to_owned(), text(to_gguf::architecture(config))),
        ("general.type".into(), text("model")),
        ("general.name".into(), text(&name)),
        ("general.file_type".into(), GgufValue::U32(file_type.code())),
        ("general.quantization_version".into(), GgufValue::U32(2)),
    ];
    keys.extend(to_gguf::metadata(config)?);
    keys.extend(gguf_keys(&checkpoint.tokenizer, config.vocab, config.bos, &config.eos)?);
    // A GGUF's own template is among its tokenizer's keys.
    if let (Some(template), false) =
        (&checkpoint.chat_template, matches!(checkpoint.tokenizer, TokenizerSource::Gguf(_)))
    {
        keys.push(("tokenizer.chat_template".into(), text(template)));
    }
    let whole = whole_of(checkpoint, adapter);
    let tied_head = config.tied_head && !whole.contains_key(HEAD);
    let mut tensors = Vec::with_capacity(whole.len() + 1);
    if let Some(divisors) = to_gguf::rope_divisors(config) {
        let bytes: Vec<u8> = divisors.iter().flat_map(|x| x.to_le_bytes()).collect();
        let make = move || Ok(Bytes::Owned(bytes.clone()));
        tensors.push(LazyTensor::new(to_gguf::ROPE_FREQS, DType::F32, vec![divisors.len()], make));
    }
    for (name, tensor) in whole {
        let dtype = file_type.dtype(name, tensor, config.layers, tied_head);
        let lora = lora_of(adapter, name);
        let make = move || {
            let bytes = merged(name, tensor, lora, dtype)?;
            Ok(match to_gguf::interleaved_heads(config, name) {
                Some(_) => Bytes::Owned(to_gguf::interleave(&bytes, to_gguf::rows(tensor), config)),
                None => bytes,
            })
        };
        tensors.push(LazyTensor::new(to_gguf::tensor_name(name)?, dtype, tensor.shape.clone(), make));
    }
    write_gguf(path, &keys, &tensors)
}

/// Writes an adapter as llama.cpp's LoRA file (`llama-cli --lora FILE`), in f32 or f16. Gives its bytes.
///
/// The file has one alpha, which llama.cpp divides by each module's rank; what else a module's scale holds goes into its B.
///
/// # Errors
/// [`Error::Unsupported`] for a type other than f32 and f16, and for DoRA; [`Error::Io`].
pub fn write_adapter_gguf(config: &ModelConfig, adapter: &Adapter, path: &Path, dtype: DType) -> Result<u64> {
    if !matches!(dtype, DType::F32 | DType::F16) {
        return Err(Error::unsupported(format!("an adapter in {dtype}: GGUF adapters are f32 or f16")));
    }
    adapter.only_low_rank("for a GGUF file of its own")?;
    if adapter.config.use_dora {
        let way =
            "llama.cpp's adapters have no magnitudes; merge it into its model (runtime export without --adapter-only)";
        return Err(Error::unsupported(format!("a DoRA adapter as GGUF: {way}")));
    }
    let alpha = adapter.config.lora_alpha as f32;
    let keys = [
        ("general.architecture".to_owned(), text(to_gguf::architecture(config))),
        ("general.type".into(), text("adapter")),
        ("adapter.type".into(), text("lora")),
        ("adapter.lora.alpha".into(), GgufValue::F32(alpha)),
        ("general.file_type".into(), GgufValue::U32(if dtype == DType::F16 { 1 } else { 0 })),
        ("general.quantization_version".into(), GgufValue::U32(2)),
    ];
    let mut tensors = Vec::with_capacity(2 * adapter.modules.len());
    for (module, lora) in &adapter.modules {
        let weight = format!("{module}.weight");
        let name = to_gguf::tensor_name(&weight)?;
        let a = move || Ok(Bytes::Owned(super::encode(module, &floats(&lora.a)?, lora.a.cols(), dtype)?));
        tensors.push(LazyTensor::new(format!("{name}.lora_a"), dtype, lora.a.shape.clone(), a));
        let extra = lora.scale * lora.a.rows() as f32 / alpha;
        let b = move || {
            let values: Vec<f32> = floats(&lora.b)?.iter().map(|x| x * extra).collect();
            let bytes = super::encode(module, &values, lora.b.cols(), dtype)?;
            Ok(Bytes::Owned(match to_gguf::interleaved_heads(config, &format!("{module}.weight")) {
                Some(_) => to_gguf::interleave(&bytes, lora.b.rows(), config),
                None => bytes,
            }))
        };
        tensors.push(LazyTensor::new(format!("{name}.lora_b"), dtype, lora.b.shape.clone(), b));
    }
    write_gguf(path, &keys, &tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layers_that_get_more_bits() {
        let down = |i: &usize| format!("model.layers.{i}.mlp.down_proj.weight");
        let chosen = |layers| (0..layers).filter(move |i| more_bits(&down(i), layers));
        // What llama.cpp takes for Llama 3's 32 layers and SmolLM2's 30.
        assert_eq!(chosen(32).collect::<Vec<_>>(), [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]);
        assert_eq!(chosen(30).collect::<Vec<_>>(), [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29]);
        assert!(!more_bits("model.layers.0.mlp.up_proj.weight", 32));
    }
}
