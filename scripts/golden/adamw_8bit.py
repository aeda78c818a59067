"""AdamW and Lion with 8-bit moments: three updates of each with bitsandbytes' map and block-wise rounding.

    pip install torch numpy safetensors bitsandbytes==0.50.2
    python scripts/golden/adamw_8bit.py       # writes tests/golden/adamw_8bit/{updates,lion}.safetensors

The maps are `bitsandbytes.functional.create_dynamic_map`; moments are read back by its `dequantize_blockwise` (blocks of
256). Rounding is written out as its `backends/default/ops.py` and its CUDA kernels do it, to the nearest number of the map;
the package's CPU library looks codes up in a coarser table. So is what its CUDA optimizer does besides
(kOptimizerStatic8bit2StateBlockwise): a negative first moment keeps its sign. The update is torch.optim.AdamW's, in f32.

The file holds `map.signed`, `map.unsigned`, `params.0`, and for step 1 to 3 `grads.N`, `params.N`, `m.N`, `v.N` (u8),
`m_max.N`, `v_max.N`. Lion's has no v; its update is that of kOptimizerStatic8bit1StateBlockwise, with betas 0.9 and 0.99.
"""

from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from safetensors.torch import save_file

BLOCK = 256
N = 2500  # the last block is not full
LR, BETA1, BETA2, EPS, DECAY = 1e-2, 0.9, 0.999, 1e-8, 0.01


def rounded(x, code, signed):
    blocks = x.split(BLOCK)
    absmax = torch.stack([block.abs().max() for block in blocks])
    scaled = torch.cat([block / top.clamp(min=1e-38) for block, top in zip(blocks, absmax)])
    q = torch.bucketize(scaled, (code[:-1] + code[1:]) / 2)
    if signed:
        q = torch.where((x < 0) & (code[q] == 0), q - 1, q)
    return q.to(torch.uint8), absmax


def read(q, absmax, code):
    return bnb.dequantize_blockwise(q, absmax=absmax, code=code, blocksize=BLOCK)


def write(name, out):
    path = Path(__file__).parents[2] / "tests/golden/adamw_8bit" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: t.contiguous() for k, t in out.items()}, path, {"bitsandbytes": "0.50.2"})
    print(path, path.stat().st_size)


def gradients(step):
    # Gradients of very different sizes; some blocks' are all zero at first.
    g = torch.randn(N) * 10 ** (torch.rand(N) * 6 - 6)
    if step == 1:
        g[256:512] = 0
    return g


def lion():
    torch.manual_seed(20261201)
    code = bnb.create_dynamic_map(signed=True)
    beta1, beta2 = torch.tensor([BETA1, 0.99])
    p, m = torch.randn(N), torch.zeros(N)
    out = {"params.0": p.clone()}
    for step in range(1, 4):
        g = gradients(step)
        p = p * (1 - LR * DECAY) - LR * torch.sign(beta1 * m + (1 - beta1) * g)
        m = beta2 * m + (1 - beta2) * g
        out[f"grads.{step}"], out[f"params.{step}"] = g, p.clone()
        out[f"m.{step}"], out[f"m_max.{step}"] = rounded(m, code, True)
        m = read(out[f"m.{step}"], out[f"m_max.{step}"], code)
    write("lion", out)


def main():
    torch.manual_seed(20261123)
    maps = {True: bnb.create_dynamic_map(signed=True), False: bnb.create_dynamic_map(signed=False)}
    out = {"map.signed": maps[True], "map.unsigned": maps[False]}
    beta1, beta2 = torch.tensor([BETA1, BETA2])  # f32 all through, as in the CUDA kernel
    p = torch.randn(N)
    m, v = torch.zeros(N), torch.zeros(N)
    out["params.0"] = p.clone()
    for step in range(1, 4):
        g = gradients(step)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        p = p * (1 - LR * DECAY)
        p = p - LR / (1 - BETA1**step) * m / (v.sqrt() / (1 - BETA2**step) ** 0.5 + EPS)
        out[f"grads.{step}"], out[f"params.{step}"] = g, p.clone()
        for name, x, signed in [("m", m, True), ("v", v, False)]:
            q, absmax = rounded(x, maps[signed], signed)
            out[f"{name}.{step}"], out[f"{name}_max.{step}"] = q, absmax
        m = read(out[f"m.{step}"], out[f"m_max.{step}"], maps[True])
        v = read(out[f"v.{step}"], out[f"v_max.{step}"], maps[False])
    write("updates", out)
    lion()


if __name__ == "__main__":
    main()
