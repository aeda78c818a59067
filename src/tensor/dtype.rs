//! Element types. Quantised types are ggml's block formats, kept as they are on disk, and bitsandbytes' NF4.

use crate::error::{Error, Result};
use std::fmt;

/// How the elements of a tensor are stored.
///
/// Quantised types store `block_len()` consecutive elements of one row in `block_bytes()` bytes.
/// Layouts: <https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h>.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types)] // the names that users of GGUF know
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of an f32.
    BF16,
    /// Unsigned 32-bit integer (token ids, positions, tables).
    U32,
    /// 32 × 4 bit, one f16 scale.
    Q4_0,
    /// 32 × 4 bit, f16 scale and minimum.
    Q4_1,
    /// 32 × 5 bit, one f16 scale.
    Q5_0,
    /// 32 × 5 bit, f16 scale and minimum.
    Q5_1,
    /// 32 × 8 bit, one f16 scale.
    Q8_0,
    /// 256 × 4 bit, 8 six-bit scales and minimums.
    Q4_K,
    /// 256 × 5 bit, 8 six-bit scales and minimums.
    Q5_K,
    /// 256 × 6 bit, 16 eight-bit scales.
    Q6_K,
    /// 8-bit integer, in caches: rows carry scales of their own (`program::cache`).
    I8,
    /// 8-bit float of 4 exponent and 3 mantissa bits without infinities (<https://arxiv.org/abs/2209.05433>), in caches.
    E4M3,
    /// 64 × 4 bit, one f32 scale: bitsandbytes' 4-bit NormalFloat (<https://arxiv.org/abs/2305.14314>).
    NF4,
}

impl DType {
    /// Every type that a weight may have.
    pub const WEIGHTS: [DType; 12] = [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q8_0,
        DType::Q4_K,
        DType::Q5_K,
        DType::Q6_K,
        DType::NF4,
    ];

    /// Elements in one block; 1 for plain types.
    pub const fn block_len(self) -> usize {
        match self {
            DType::F32 | DType::F16 | DType::BF16 | DType::U32 | DType::I8 | DType::E4M3 => 1,
            DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 | DType::Q8_0 => 32,
            DType::NF4 => 64,
            DType::Q4_K | DType::Q5_K | DType::Q6_K => 256,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::I8 | DType::E4M3 => 1,
            DType::Q4_0 => 18,
            DType::Q4_1 => 20,
            DType::Q5_0 => 22,
            DType::Q5_1 => 24,
            DType::Q8_0 => 34,
            DType::Q4_K => 144,
            DType::Q5_K => 176,
            DType::Q6_K => 210,
            DType::NF4 => 36,
        }
    }

    /// Bytes of `len` consecutive elements, or `None` where `len` is not whole blocks or overflows.
    pub const fn bytes_for(self, len: usize) -> Option<usize> {
        if !len.is_multiple_of(self.block_len()) {
            return None;
        }
        (len / self.block_len()).checked_mul(self.block_bytes())
    }

    /// True for the block formats.
    pub const fn is_quantised(self) -> bool {
        self.block_len() > 1
    }

    /// True for the types of caches that hold 8-bit codes beside scales.
    pub const fn is_code(self) -> bool {
        matches!(self, DType::I8 | DType::E4M3)
    }

    /// The usual name, as in file names and messages: `f16`, `q4_k`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::U32 => "u32",
            DType::I8 => "i8",
            DType::E4M3 => "e4m3",
            DType::Q4_0 => "q4_0",
            DType::Q4_1 => "q4_1",
            DType::Q5_0 => "q5_0",
            DType::Q5_1 => "q5_1",
            DType::Q8_0 => "q8_0",
            DType::Q4_K => "q4_k",
            DType::Q5_K => "q5_k",
            DType::Q6_K => "q6_k",
            DType::NF4 => "nf4",
        }
    }
}

impl std::str::FromStr for DType {
    type Err = Error;

    /// A weight type by its name, in either case.
    fn from_str(text: &str) -> Result<Self> {
        let found = Self::WEIGHTS.into_iter().find(|t| t.name().eq_ignore_ascii_case(text));
        found.ok_or_else(|| {
            let names = Self::WEIGHTS.map(DType::name).join(", ");
            Error::invalid(format!("unknown weight type '{text}': use {names}"))
        })
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
