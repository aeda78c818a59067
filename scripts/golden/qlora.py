"""QLoRA: a checkpoint that bitsandbytes has quantised, and PEFT's fine-tuning on what it reads back.

Reads   tests/golden/tiny/chat_wide, tests/golden/sft/data.jsonl.
Writes  tests/golden/qlora/
          nf4/                 chat_wide with its linear modules in NF4 with double quantisation, in the files that
                               transformers writes for bitsandbytes (.absmax, .quant_map, .nested_*, .quant_state.*)
          expected.safetensors two of its matrices as bitsandbytes reads them back
          curve.json           30 optimizer steps of LoRA on the matrices as read back, in f32; the recipe of peft_sft.py
          init/                the initial adapter
Rerun   python scripts/golden/tiny.py --only chat_wide && python scripts/golden/qlora.py     (1 minute)

Rounding and reading back are `quantize_4bit` and `dequantize_4bit` of bitsandbytes' CPU backend, on f32.
"""

import json
import shutil

import bitsandbytes.functional as bnb
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from common import GOLDEN, PROJECTIONS, arguments, renderer, versions, write_json
from peft_sft import SEED, read_rows, save_adapter, train, with_adapter

MODEL = GOLDEN / "tiny" / "chat_wide"
OUT = GOLDEN / "qlora"
KEPT = ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"]
CASE = {"loss": "assistant", "rank": 4, "alpha": 8, "lr": 2e-3, "init_b": 0.02, "seed": SEED, "batch_size": 2, "grad_accum": 2,
        "warmup_steps": 5, "max_steps": 30, "weight_decay": 0.01, "max_grad_norm": 1.0}


def quantised(model):
    """Replaces every linear module's weight with what bitsandbytes reads back; gives the tensors of the files."""
    tensors, kept = {}, {}
    for name, weight in model.named_parameters():
        if not any(f".{p}.weight" in name for p in PROJECTIONS):
            tensors[name] = weight.data.to(torch.bfloat16)
            continue
        codes, state = bnb.quantize_4bit(weight.data, blocksize=64, quant_type="nf4", compress_statistics=True)
        tensors[name] = codes
        tensors.update({f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()})
        weight.data = bnb.dequantize_4bit(codes, quant_state=state)
        if name in KEPT:
            kept[name] = weight.data.clone()
    return {n: t.contiguous() for n, t in tensors.items()}, kept


def main():
    arguments(__doc__)
    shutil.rmtree(OUT, ignore_errors=True)
    (OUT / "nf4").mkdir(parents=True)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager")
    tensors, kept = quantised(model)
    save_file(tensors, OUT / "nf4" / "model.safetensors", {"format": "pt"})
    save_file(kept, OUT / "expected.safetensors")
    config = json.loads((MODEL / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "uint8"}
    (OUT / "nf4" / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]:
        shutil.copy(MODEL / name, OUT / "nf4")

    fast = AutoTokenizer.from_pretrained(MODEL)
    rows = read_rows(fast.backend_tokenizer, renderer(fast.backend_tokenizer, fast.chat_template), GOLDEN / "sft/data.jsonl")
    model = with_adapter(model, CASE["rank"], CASE["alpha"], CASE["init_b"])
    save_adapter(model, OUT / "init", "tests/golden/qlora/nf4")
    steps = list(train(model, rows, CASE["loss"], CASE["lr"], steps=CASE["max_steps"]))
    print(" ".join(f"{s['loss']:.4f}" for s in steps))
    write_json(OUT / "curve.json", {"versions": versions(), "cases": [{"name": "qlora", **CASE, "steps": steps}]})


if __name__ == "__main__":
    main()
