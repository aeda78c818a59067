"""Asks PEFT and transformers about folders that our program wrote. A check, not golden data.

Reads   one of
          --model GGUF|FOLDER                     the bare model (a GGUF must be SmolLM2's)
          --model GGUF|FOLDER --adapter DIR       with an adapter as `runtime train` writes it, loaded by PEFT
          --model MERGED_FOLDER                   a folder as `runtime merge` writes it
        and the token ids: --ids 1,2,3 or --ids-file FILE (a JSON list, or a list of lists).
Writes  one JSON object to stdout: {"ids", "logprobs", "next_top5", "lora_tensors", "vocab"}; a list of such objects
        where several id lists were given. The fields are those of `runtime score --json`; f32 throughout.
Rerun   python scripts/golden/peft_load.py --model M --adapter DIR --ids 1,2,3
        --tokenizer additionally loads the folder's tokenizer and adds "text", the ids decoded by it.

Fails where PEFT misses or does not expect a tensor of the adapter, or where transformers finds a merged folder's
weights incomplete: a silent mismatch would leave LoRA at its initial values and look like a working file.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from common import default_model, load_smollm2, teacher_forced


def load_base(path, attention):
    if path.suffix == ".gguf":
        return load_smollm2(path, attention)
    model, info = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation=attention,
                                                       output_loading_info=True)
    wrong = {key: sorted(value) for key, value in info.items() if value}
    if wrong:
        sys.exit(f"error: {path}: {wrong}")
    return model


def load_adapter(model, path):
    with safe_open(path / "adapter_model.safetensors", "pt") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    model = PeftModel.from_pretrained(model, path)
    wanted = {name.replace(".default.", ".").replace(".modules_to_save.", "."): tuple(value.shape)
              for name, value in model.named_parameters() if "lora_" in name or ".modules_to_save." in name}
    if stored != wanted:
        missing, extra = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
        shapes = sorted(n for n in wanted.keys() & stored.keys() if wanted[n] != stored[n])
        sys.exit(f"error: {path}: missing {missing[:3]}, unexpected {extra[:3]}, other shapes {shapes[:3]}")
    return model, len(stored)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=default_model())
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--ids", help="1,2,3")
    parser.add_argument("--ids-file", type=Path)
    parser.add_argument("--attention", default="eager", choices=["eager", "sdpa"])
    parser.add_argument("--tokenizer", action="store_true")
    args = parser.parse_args()
    if (args.ids is None) == (args.ids_file is None):
        parser.error("give --ids or --ids-file")
    lists = [int(i) for i in args.ids.split(",")] if args.ids else json.loads(args.ids_file.read_text())
    several = bool(lists) and isinstance(lists[0], list)

    model, tensors = load_base(args.model, args.attention), 0
    if args.adapter:
        model, tensors = load_adapter(model, args.adapter)
    model.eval()
    answers = []
    for ids in lists if several else [lists]:
        logprobs, top5 = teacher_forced(model, ids)
        answer = {"ids": ids, "logprobs": logprobs, "next_top5": top5, "lora_tensors": tensors,
                  "vocab": model.config.vocab_size}
        if args.tokenizer:
            answer["text"] = AutoTokenizer.from_pretrained(args.model).decode(ids)
        answers.append(answer)
    print(json.dumps(answers if several else answers[0]))


if __name__ == "__main__":
    main()
