//! Every weight decoder against the `gguf` Python package (scripts/golden/quant.py) and bitsandbytes
//! (scripts/golden/nf4.py), bit for bit.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

use runtime::format::quant::{NF4, bf16_to_f32, dequantise_row, f16_to_f32, quantise_nf4};
use runtime::tensor::DType;
use safetensors::SafeTensors;

#[test]
fn decoders_equal_the_gguf_package() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/quant/blocks.safetensors");
    let file = std::fs::read(path).unwrap();
    let golden = SafeTensors::deserialize(&file).unwrap();
    for dtype in DType::WEIGHTS.into_iter().filter(|d| ![DType::F32, DType::NF4].contains(d)) {
        let bytes = golden.tensor(&format!("{dtype}.bytes")).unwrap().data();
        let want = golden.tensor(&format!("{dtype}.values")).unwrap().data();
        let want: Vec<u32> = want.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        let mut got = vec![f32::NAN; want.len()];
        dequantise_row(dtype, bytes, &mut got).unwrap();
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            assert_eq!(g.to_bits(), *w, "{dtype} element {i}: {g} against {}", f32::from_bits(*w));
        }
    }
}

#[test]
fn nf4_equals_bitsandbytes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/quant/nf4.safetensors");
    let file = std::fs::read(path).unwrap();
    let golden = SafeTensors::deserialize(&file).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        golden.tensor(name).unwrap().data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    assert_eq!(NF4.map(f32::to_bits).to_vec(), floats("table").iter().map(|x| x.to_bits()).collect::<Vec<_>>());
    let (codes, absmax) = (golden.tensor("codes").unwrap().data(), floats("absmax"));
    let bytes: Vec<u8> =
        codes.chunks(32).zip(&absmax).flat_map(|(codes, top)| [codes, &top.to_le_bytes()].concat()).collect();
    assert_eq!(quantise_nf4(&floats("numbers")).unwrap(), bytes);
    let want = floats("values");
    let mut got = vec![f32::NAN; want.len()];
    dequantise_row(DType::NF4, &bytes, &mut got).unwrap();
    assert_eq!(got, want);
    assert!(quantise_nf4(&[0.0; 65]).is_err());
}

#[test]
fn halves_equal_the_half_crate_for_every_bit_pattern() {
    for bits in 0..=u16::MAX {
        let (a, b) = (f16_to_f32(bits), half::f16::from_bits(bits).to_f32());
        assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "f16 {bits:#06x}: {a} against {b}");
        let (a, b) = (bf16_to_f32(bits), half::bf16::from_bits(bits).to_f32());
        assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "bf16 {bits:#06x}: {a} against {b}");
    }
}

#[test]
fn wrong_lengths_are_refused() {
    let mut out = [0.0; 32];
    assert!(dequantise_row(DType::Q4_0, &[0; 17], &mut out).is_err());
    assert!(dequantise_row(DType::Q4_0, &[0; 18], &mut out[..31]).is_err());
    assert!(dequantise_row(DType::U32, &[0; 128], &mut out).is_err());
    assert!(dequantise_row(DType::F32, &[0; 128], &mut out).is_ok());
}
