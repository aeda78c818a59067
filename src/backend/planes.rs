//! How weights lie on the device: the file's bits, rearranged into planes that shaders load 16 bytes wide.
//!
//! ggml's blocks are 18 to 210 bytes and start at any byte, WGSL addresses 32-bit words. So each row is cut
//! into groups of 32 elements (plain types are padded with zeros to whole groups) and the parts of the groups
//! go to separate planes, in order of group. No value is rounded: `shaders/decode.wgsl` computes ggml's
//! formulas from the same bits.
//!
//! | type | plane 0 (vec4 words) | plane 1 | plane 2 | plane 3 |
//! |---|---|---|---|---|
//! | f32, f16, bf16 | the elements | | | |
//! | Q4_0 | 32 × 4 bit | d: half | | |
//! | Q4_1 | 32 × 4 bit | (d, m): word | | |
//! | Q5_0 | 32 × 4 bit | fifth bits: word | d: half | |
//! | Q5_1 | 32 × 4 bit | fifth bits: word | (d, m): word | |
//! | Q8_0 | 32 × 8 bit | d: half | | |
//! | Q4_K | 32 × 4 bit | (scale, min): half | (d, dmin) of 8 groups: word | |
//! | Q5_K | 32 × 4 bit | fifth bits: word | (scale, min): half | (d, dmin) of 8 groups: word |
//! | Q6_K | 32 × 4 bit | upper 2 bits: 2 words | 2 × 8-bit scale: half | d of 8 groups: half |
//! | NF4 | 32 × 4 bit | absmax of 2 groups: f32 | | |
//!
//! Element e of a group has its 4 bits at bit `4 · (e % 8)` of word `e / 8`, its fifth bit at bit e.

use crate::tensor::DType;

/// Elements of a group.
pub const GROUP: usize = 32;

/// Sizes of the planes of some rows of a weight.
#[derive(Clone, Copy, Debug)]
pub struct Planes {
    /// Element type.
    pub dtype: DType,
    /// Groups in a row.
    pub groups: usize,
}

impl Planes {
    /// Planes of rows of `cols` elements.
    pub fn new(dtype: DType, cols: usize) -> Self {
        Self { dtype, groups: cols.div_ceil(GROUP) }
    }

    /// Half-words (16 bit) that `groups` groups take in each plane.
    fn halves(&self, groups: usize) -> [usize; 4] {
        let each: [(usize, usize); 4] = match self.dtype {
            DType::F32 | DType::U32 => [(64, 1), (0, 1), (0, 1), (0, 1)],
            DType::F16 | DType::BF16 => [(32, 1), (0, 1), (0, 1), (0, 1)],
            DType::I8 | DType::E4M3 => [(16, 1), (0, 1), (0, 1), (0, 1)],
            DType::Q4_0 => [(8, 1), (1, 1), (0, 1), (0, 1)],
            DType::Q4_1 => [(8, 1), (2, 1), (0, 1), (0, 1)],
            DType::Q5_0 => [(8, 1), (2, 1), (1, 1), (0, 1)],
            DType::Q5_1 => [(8, 1), (2, 1), (2, 1), (0, 1)],
            DType::Q8_0 => [(16, 1), (1, 1), (0, 1), (0, 1)],
            DType::Q4_K => [(8, 1), (1, 1), (2, 8), (0, 1)],
            DType::Q5_K => [(8, 1), (2, 1), (1, 1), (2, 8)],
            DType::Q6_K => [(8, 1), (4, 1), (1, 1), (1, 8)],
            DType::NF4 => [(8, 1), (2, 2), (0, 1), (0, 1)],
        };
        each.map(|(halves, per)| halves * groups.div_ceil(per))
    }

    /// Words of each plane of `rows` rows, without the padding between planes; exact where a plane is whole words.
    pub fn plane_words(&self, rows: usize) -> [usize; 4] {
        self.halves(rows * self.groups).map(|halves| halves.div_ceil(2))
    }

    /// Where each plane starts, in 32-bit words from the start of a part of `rows` rows, and the words of the part.
    pub fn offsets(&self, rows: usize) -> ([usize; 4], usize) {
        let mut at = 0;
        let starts = self.halves(rows * self.groups).map(|halves| {
            let start = at;
            at += halves.div_ceil(8) * 4; // planes start at whole vec4s
            start
        });
        (starts, at)
    }

    /// Rows that fit in `bytes`, a multiple of 8 where it can be.
    pub fn rows_within(&self, bytes: usize) -> usize {
        let per_eight = self.halves(8 * self.groups).iter().sum::<usize>() * 2;
        let slack = 4 * 16;
        match bytes.saturating_sub(slack) / per_eight.max(1) {
            0 => 1,
            eights => eights * 8,
        }
    }

    /// Rearranges `rows` rows of file bytes; `cols` elements in a row.
    pub fn pack(&self, data: &[u8], rows: usize, cols: usize) -> Vec<u32> {
        let (starts, words) = self.offsets(rows);
        let mut out = vec![0u32; words];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut out);
        match self.dtype {
            plain if !plain.is_quantised() => {
                let size = self.dtype.block_bytes();
                let (row, padded) = (cols * size, self.groups * GROUP * size);
                for (source, target) in data.chunks_exact(row.max(1)).zip(bytes.chunks_exact_mut(padded.max(1))) {
                    target[..row].copy_from_slice(source);
                }
            }
            _ => {
                let planes = starts.map(|words| words * 4);
                for (b, block) in data.chunks_exact(self.dtype.block_bytes()).enumerate() {
                    pack_block(self.dtype, b, block, bytes, planes);
                }
            }
        }
        out
    }
}

/// Packs 32 four-bit values so that element e lies at bit 4e.
fn nibbles(value: impl Fn(usize) -> u8) -> [u8; 16] {
    std::array::from_fn(|i| value(2 * i) & 15 | (value(2 * i + 1) & 15) << 4)
}

/// ggml's order within 16 bytes: elements 0–15 in the low halves, 16–31 in the high halves.
fn split_nibbles(q: &[u8]) -> [u8; 16] {
    nibbles(|e| if e < 16 { q[e] } else { q[e - 16] >> 4 })
}

/// Six-bit scale and minimum of group j of a Q4_K or Q5_K block (ggml's `get_scale_min_k4`).
fn scale_min(j: usize, s: &[u8]) -> [u8; 2] {
    if j < 4 {
        [s[j] & 63, s[j + 4] & 63]
    } else {
        [s[j + 4] & 15 | (s[j - 4] >> 6) << 4, s[j + 4] >> 4 | (s[j] >> 6) << 4]
    }
}

fn pack_block(dtype: DType, b: usize, block: &[u8], out: &mut [u8], plane: [usize; 4]) {
    let mut put =
        |p: usize, at: usize, bytes: &[u8]| out[plane[p] + at..plane[p] + at + bytes.len()].copy_from_slice(bytes);
    match dtype {
        DType::Q4_0 => {
            put(0, 16 * b, &split_nibbles(&block[2..18]));
            put(1, 2 * b, &block[..2]);
        }
        DType::Q4_1 => {
            put(0, 16 * b, &split_nibbles(&block[4..20]));
            put(1, 4 * b, &block[..4]);
        }
        DType::Q5_0 => {
            put(0, 16 * b, &split_nibbles(&block[6..22]));
            put(1, 4 * b, &block[2..6]);
            put(2, 2 * b, &block[..2]);
        }
        DType::Q5_1 => {
            put(0, 16 * b, &split_nibbles(&block[8..24]));
            put(1, 4 * b, &block[4..8]);
            put(2, 4 * b, &block[..4]);
        }
        DType::Q8_0 => {
            put(0, 32 * b, &block[2..34]);
            put(1, 2 * b, &block[..2]);
        }
        DType::Q4_K | DType::Q5_K => {
            let five = dtype == DType::Q5_K;
            let quants = if five { &block[48..176] } else { &block[16..144] };
            for j in 0..8 {
                let group = 8 * b + j;
                let q = &quants[32 * (j / 2)..];
                put(0, 16 * group, &nibbles(|e| q[e] >> (4 * (j % 2))));
                put(if five { 2 } else { 1 }, 2 * group, &scale_min(j, &block[4..16]));
                if five {
                    let high = (0..32).fold(0u32, |bits, e| bits | u32::from(block[16 + e] >> j & 1) << e);
                    put(1, 4 * group, &high.to_le_bytes());
                }
            }
            put(if five { 3 } else { 2 }, 4 * b, &block[..4]);
        }
        DType::Q6_K => {
            let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
            for j in 0..8 {
                // Halves of 128 elements: groups 0..4 and 4..8; within a half, group k takes the low nibbles of
                // bytes 32·(k%2).. where k < 2 and the high ones where k >= 2, and bits 2k of 32 high bytes.
                let (half, k) = (j / 4, j % 4);
                let group = 8 * b + j;
                let q = &low[64 * half + 32 * (k % 2)..];
                put(0, 16 * group, &nibbles(|e| q[e] >> (4 * (k / 2))));
                let upper =
                    (0..32).fold(0u64, |bits, e| bits | u64::from(high[32 * half + e] >> (2 * k) & 3) << (2 * e));
                put(1, 8 * group, &upper.to_le_bytes());
                put(2, 2 * group, &scales[2 * j..2 * j + 2]);
            }
            put(3, 2 * b, &block[208..210]);
        }
        DType::NF4 => {
            for half in 0..2 {
                let q = &block[16 * half..];
                put(0, 16 * (2 * b + half), &nibbles(|e| if e % 2 == 0 { q[e / 2] >> 4 } else { q[e / 2] }));
            }
            put(1, 4 * b, &block[32..36]);
        }
        DType::F32 | DType::F16 | DType::BF16 | DType::U32 | DType::I8 | DType::E4M3 => {}
    }
}
