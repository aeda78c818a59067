"""A tiny LoRA adapter as PEFT writes it, and the way back.

    pip install peft transformers torch
    python scripts/golden/adapter.py             # writes tests/golden/peft/
    python scripts/golden/adapter.py --check DIR # loads an adapter that this crate wrote with PEFT

The base model is random and never stored: only its config.json is, because shapes are all that matters.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parents[2] / "tests/golden/peft"
BASE = dict(
    vocab_size=32, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=64,
)


def write():
    torch.manual_seed(7)
    model = LlamaForCausalLM(LlamaConfig(**BASE))
    lora = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=False,
        rank_pattern={"layers.1.self_attn.q_proj": 2}, alpha_pattern={"down_proj": 3}, use_rslora=True,
    )
    peft = get_peft_model(model, lora)
    peft.save_pretrained(HERE / "adapter")
    (HERE / "adapter/README.md").unlink()  # a model card, with nothing to test
    scales = {
        name.removeprefix("base_model.model."): module.scaling["default"]
        for name, module in peft.named_modules()
        if hasattr(module, "lora_A")
    }
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **BASE}
    (HERE / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (HERE / "scales.json").write_text(json.dumps(scales, indent=1, sort_keys=True) + "\n")
    print("wrote", HERE, len(scales), "modules")


def check(folder):
    base = LlamaForCausalLM(LlamaConfig(**BASE))
    peft = PeftModel.from_pretrained(base, folder)
    state = {k.replace(".default", ""): v for k, v in peft.state_dict().items() if "lora_" in k}
    saved = load_file(Path(folder) / "adapter_model.safetensors")
    assert state.keys() == saved.keys(), (sorted(state)[:3], sorted(saved)[:3])
    assert all(torch.equal(state[k], saved[k]) for k in saved)
    scales = json.loads((HERE / "scales.json").read_text())
    for name, module in peft.named_modules():
        if hasattr(module, "lora_A"):
            want = scales[name.removeprefix("base_model.model.")]
            assert abs(module.scaling["default"] - want) < 1e-6, name
    theirs = json.loads((HERE / "adapter/adapter_config.json").read_text())
    ours = json.loads((Path(folder) / "adapter_config.json").read_text())
    for key in ("base_model_name_or_path", "init_lora_weights"):
        theirs.pop(key), ours.pop(key)
    assert list(theirs) == list(ours), set(theirs) ^ set(ours)
    assert theirs == ours, [k for k in theirs if theirs[k] != ours[k]]
    print("PEFT loads", folder, len(saved), "tensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", metavar="DIR")
    args = parser.parse_args()
    sys.exit(check(args.check) if args.check else write())
