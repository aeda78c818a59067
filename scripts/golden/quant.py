"""Random blocks of every weight type with their values according to the `gguf` package.

    pip install gguf==0.19.0 safetensors numpy
    python scripts/golden/quant.py            # writes tests/golden/quant/blocks.safetensors

The file holds `<type>.bytes` (u8) and `<type>.values` (f32); `tests/quant.rs` compares bit for bit.
"""

from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file

TYPES = "F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q4_K Q5_K Q6_K".split()
# Byte offsets of the f16 scales inside a block.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}
# Zero, minus zero, smallest and largest subnormal, smallest normal, one, largest, and negatives.
EDGES = np.array(
    [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x8400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF], np.uint16
)
BLOCKS = 64


def finite_halves(rng, n):
    """Random f16 bit patterns that are neither infinite nor NaN."""
    bits = rng.integers(0, 0x7C00, n, dtype=np.uint16) | (rng.integers(0, 2, n, dtype=np.uint16) << 15)
    edges = min(n, len(EDGES))
    bits[:edges] = EDGES[:edges]
    return bits


def main():
    rng = np.random.default_rng(20261123)
    out = {}
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name]
        block_len, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        if block_len == 1:
            # Every seventh f16/bf16 bit pattern that is not NaN, infinities included.
            bits = np.arange(0, 65536, 7, dtype=np.uint16)
            special = 0x7C00 if name == "F16" else 0x7F80
            bits = bits[(bits & 0x7FFF) <= special]
            bits = np.concatenate([bits, [special, special | 0x8000]]).astype(np.uint16)
            raw = bits.view(np.uint8).reshape(1, -1)
        else:
            raw = rng.integers(0, 256, (BLOCKS, block_bytes), dtype=np.uint8)
            for i, at in enumerate(SCALES[name]):
                halves = np.roll(finite_halves(rng, BLOCKS), 5 * i)
                raw[:, at : at + 2] = halves.view(np.uint8).reshape(BLOCKS, 2)
        values = gguf.quants.dequantize(raw, kind).astype(np.float32)
        assert not np.isnan(values).any(), name
        out[f"{name.lower()}.bytes"] = np.ascontiguousarray(raw.reshape(-1))
        out[f"{name.lower()}.values"] = np.ascontiguousarray(values.reshape(-1))
    path = Path(__file__).parents[2] / "tests/golden/quant/blocks.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(out, path, {"gguf": "0.19.0", "seed": "20261123"})
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
