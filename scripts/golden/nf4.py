"""Numbers rounded to NF4 by bitsandbytes, and read back.

    pip install torch numpy safetensors bitsandbytes==0.50.2
    python scripts/golden/nf4.py              # writes tests/golden/quant/nf4.safetensors

The table and the values read back are the package's; rounding is `quantize_4bit` as its `backends/default/ops.py` defines
it (blocks of 64, the first of two elements in the upper half of a byte), which is compared with what its CPU backend gives.

The file holds `table`, `numbers`, `codes` (u8), `absmax` and `values`.
"""

from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from safetensors.torch import save_file

BLOCK = 64


def main():
    torch.manual_seed(20261123)
    table = bnb.get_4bit_type("nf4", device="cpu")
    table = table / table.abs().max()
    x = torch.randn(48 * BLOCK) * 0.02
    x[BLOCK : 2 * BLOCK] = 0
    # Blocks whose numbers are those of the table, and a spread of sizes.
    x[2 * BLOCK : 3 * BLOCK] = table.repeat(4) * 0.5
    x[3 * BLOCK : 4 * BLOCK] *= 10.0 ** torch.arange(-32, 32)
    blocks = x.reshape(-1, BLOCK)
    absmax = blocks.abs().max(dim=1)[0]
    scaled = (blocks * (1.0 / absmax.clamp(min=1e-38)).view(-1, 1)).clamp(-1, 1).reshape(-1)
    q = torch.bucketize(scaled, (table[:-1] + table[1:]) / 2).to(torch.uint8)
    codes = q[::2] << 4 | q[1::2]
    theirs, state = bnb.quantize_4bit(x, blocksize=BLOCK, quant_type="nf4", compress_statistics=False)
    different = (theirs.reshape(-1) != codes).sum().item()
    print(f"{different} of {codes.numel()} bytes differ from the package's CPU backend")
    assert torch.equal(state.absmax, absmax)
    state.absmax = absmax
    values = bnb.dequantize_4bit(codes.view(-1, 1), quant_state=state)
    assert torch.equal(values.reshape(-1), table[q.long()] * absmax.repeat_interleave(BLOCK))
    out = {"table": table, "numbers": x, "codes": codes, "absmax": absmax, "values": values.reshape(-1)}
    path = Path(__file__).parents[2] / "tests/golden/quant/nf4.safetensors"
    save_file({k: t.contiguous() for k, t in out.items()}, path, {"bitsandbytes": "0.50.2"})
    print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
