//! Weights quantised while a checkpoint is loaded: what QLoRA trains on (<https://arxiv.org/abs/2305.14314>).

use super::weights::LINEARS;
use crate::error::{Error, Result};
use crate::format::quant::{dequantise_row, quantise_row};
use crate::program::dynamic_map;
use crate::tensor::{DType, HostBytes, HostTensor};
use rayon::prelude::*;

/// Scales of a block whose own scales are rounded together.
const NESTED_BLOCK: usize = 256;

/// Whether a tensor is what bitsandbytes quantises: the matrix of a linear module of a layer. Embedding and head stay.
pub fn is_quantised(name: &str) -> bool {
    let module = name.strip_suffix(".weight");
    module.is_some_and(|m| m.starts_with("model.layers.") && LINEARS.iter().any(|linear| m.ends_with(linear)))
}

/// The matrix in `dtype`. NF4 is made with double quantisation: scales are rounded to 8 bits by blocks of 256 and kept as
/// what they are read back as, so that the numbers are those of bitsandbytes.
///
/// # Errors
/// [`Error::Invalid`] for a tensor that is quantised already, or whose rows are not whole blocks.
pub fn quantised(name: &str, tensor: &HostTensor, dtype: DType) -> Result<HostTensor> {
    if tensor.dtype.is_quantised() {
        let has = tensor.dtype;
        return Err(Error::invalid(format!("tensor '{name}' is {has}: only models in 16 or 32 bits become {dtype}")));
    }
    let cols = tensor.cols();
    if !cols.is_multiple_of(dtype.block_len()) {
        let block = dtype.block_len();
        return Err(Error::invalid(format!(
            "tensor '{name}' has rows of {cols} numbers, which {dtype} cannot hold: it takes multiples of {block}"
        )));
    }
    let row = |bytes: &[u8]| {
        let mut numbers = vec![0.0; cols];
        dequantise_row(tensor.dtype, bytes, &mut numbers)?;
        quantise_row(dtype, &numbers)
    };
    let rows: Vec<Vec<u8>> = tensor
        .data
        .par_chunks_exact((tensor.data.len() / tensor.rows().max(1)).max(1))
        .map(row)
        .collect::<Result<_>>()?;
    let mut bytes = rows.concat();
    if dtype == DType::NF4 {
        round_scales(&mut bytes);
    }
    HostTensor::new(dtype, tensor.shape.clone(), HostBytes::from_vec(bytes))
}

/// bitsandbytes' `compress_statistics`: scales less their mean, in 8-bit codes of their block's largest.
fn round_scales(bytes: &mut [u8]) {
    let (blocks, _) = bytes.as_chunks_mut::<36>();
    let scale = |block: &[u8; 36]| f32::from_le_bytes([block[32], block[33], block[34], block[35]]);
    let mean = (blocks.iter().map(|b| f64::from(scale(b))).sum::<f64>() / blocks.len().max(1) as f64) as f32;
    let map = dynamic_map(true);
    for group in blocks.chunks_mut(NESTED_BLOCK) {
        let top = group.iter().fold(0.0f32, |top, block| top.max((scale(block) - mean).abs()));
        for block in group {
            let x = if top > 0.0 { (scale(block) - mean) / top } else { 0.0 };
            // Nearest: between two codes, the number of means of neighbours below it.
            let code = map.windows(2).filter(|pair| (pair[0] + pair[1]) * 0.5 < x).count();
            block[32..].copy_from_slice(&(map[code] * top + mean).to_le_bytes());
        }
    }
}
