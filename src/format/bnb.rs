//! Checkpoints that bitsandbytes has quantised to NF4: a matrix and the tensors beside it become one of type NF4.
//!
//! Beside `X.weight` (u8 codes, two a byte, the first in the upper half) lie `X.weight.absmax` (f32, or u8 codes with double
//! quantisation), `X.weight.quant_map` (f32 of the 16 codes), `X.weight.nested_absmax`, `X.weight.nested_quant_map` and
//! `X.weight.quant_state.bitsandbytes__nf4` (JSON with shape, block sizes and the scales' mean). Source: `QuantState.as_dict`
//! and `dequantize_4bit` of bitsandbytes 0.50.

use super::quant::NF4;
use super::safetensors::Tensors;
use crate::error::{Error, Result};
use crate::tensor::{DType, HostBytes, HostTensor};
use serde_json::Value;

const STATE: &str = ".quant_state.bitsandbytes__nf4";

/// True for a config.json whose weights are read here.
pub fn is_nf4(config: &Value) -> bool {
    let quantization = &config["quantization_config"];
    quantization["quant_method"] == "bitsandbytes"
        && quantization["load_in_4bit"] == true
        && quantization["bnb_4bit_quant_type"] == "nf4"
}

/// Puts quantised matrices together; `file` names the folder in messages.
///
/// # Errors
/// [`Error::Format`] naming the tensor whose companions are missing or do not fit; [`Error::Unsupported`] for other codes
/// or block sizes, and for matrices whose rows are not whole blocks of 64.
pub fn assemble(file: &str, tensors: &mut Tensors) -> Result<()> {
    let names: Vec<String> = tensors.keys().filter_map(|name| name.strip_suffix(STATE)).map(str::to_owned).collect();
    for name in names {
        let whole = matrix(file, &name, tensors)?;
        for end in [STATE, ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"] {
            tensors.remove(&format!("{name}{end}"));
        }
        tensors.insert(name, whole);
    }
    match tensors.iter().find(|(_, tensor)| tensor.dtype == DType::I8) {
        Some((name, _)) => Err(Error::format(file, format!("tensor '{name}'"), "u8 codes without a quant_state")),
        None => Ok(()),
    }
}

fn matrix(file: &str, name: &str, tensors: &Tensors) -> Result<HostTensor> {
    let wrong = |message: String| Error::format(file, format!("tensor '{name}'"), message);
    let part = |end: &str| {
        let key = format!("{name}{end}");
        tensors.get(&key).ok_or_else(|| wrong(format!("'{key}' is missing")))
    };
    let floats = |end: &str| {
        let tensor = part(end)?;
        match tensor.dtype {
            DType::F32 => Ok(bytemuck::pod_collect_to_vec::<u8, f32>(&tensor.data)),
            other => Err(wrong(format!("'{name}{end}' is {other}, expected f32"))),
        }
    };
    let state: Value =
        serde_json::from_slice(&part(STATE)?.data).map_err(|e| wrong(format!("its quant_state is not JSON: {e}")))?;
    let codes = tensors.get(name).ok_or_else(|| wrong("missing".into()))?;
    let shape: Option<Vec<usize>> =
        state["shape"].as_array().and_then(|dims| dims.iter().map(|d| Some(d.as_u64()? as usize)).collect());
    let shape =
        shape.filter(|s| s.len() == 2).ok_or_else(|| wrong("its quant_state has no shape of two numbers".into()))?;
    if state["blocksize"] != 64 {
        return Err(Error::unsupported(format!("{file}: tensor '{name}': blocks of {}, not 64", state["blocksize"])));
    }
    if floats(".quant_map")?.iter().zip(NF4).any(|(theirs, ours)| (theirs - ours).abs() > 1e-6) {
        return Err(Error::unsupported(format!("{file}: tensor '{name}': its codes are not NF4's")));
    }
    if !shape[1].is_multiple_of(64) {
        let message = format!("{file}: tensor '{name}': rows of {} numbers, expected multiples of 64", shape[1]);
        return Err(Error::unsupported(message));
    }
    let blocks = shape[0].checked_mul(shape[1]).unwrap_or(0) / 64;
    let absmax = part(".absmax")?;
    let scales = match absmax.dtype {
        DType::F32 => floats(".absmax")?,
        _ => {
            let (nested, map) = (floats(".nested_absmax")?, floats(".nested_quant_map")?);
            let size = state["nested_blocksize"].as_u64().unwrap_or(0) as usize;
            let offset = state["nested_offset"].as_f64().unwrap_or(0.0) as f32;
            if size == 0 || map.len() != 256 || nested.len() != absmax.len().div_ceil(size) {
                return Err(wrong("the scales of its scales do not fit".into()));
            }
            absmax
                .data
                .iter()
                .enumerate()
                .map(|(i, code)| map[usize::from(*code)] * nested[i / size] + offset)
                .collect()
        }
    };
    if codes.dtype != DType::I8 || codes.len() != blocks * 32 || scales.len() != blocks {
        let (bytes, found) = (codes.len(), scales.len());
        return Err(wrong(format!("{bytes} bytes of codes and {found} scales for shape {shape:?}")));
    }
    let mut bytes = Vec::with_capacity(blocks * 36);
    for (codes, scale) in codes.data.as_chunks::<32>().0.iter().zip(&scales) {
        bytes.extend(codes);
        bytes.extend(scale.to_le_bytes());
    }
    HostTensor::new(DType::NF4, shape, HostBytes::from_vec(bytes))
}
