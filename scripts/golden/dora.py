"""DoRA as PEFT does it: 30 steps in f32, on plain weights and on NF4 as bitsandbytes reads it back; an adapter beside biases.

Reads   tests/golden/tiny/chat, tests/golden/tiny/chat_wide, tests/golden/tiny/qwen2, tests/golden/sft/data.jsonl.
Writes  tests/golden/dora/
          curves.json         two cases: settings, and losses, norms and rates of 30 steps (the recipe of peft_sft.py)
          init, init_nf4      their initial adapters: A and B are the hash of peft_sft.py (B within 0.02), the magnitudes PEFT's
          final               the adapter after the first case's 30 steps
          biased              an adapter of rank 2 for tiny/qwen2 (whose q, k and v have biases), magnitudes changed by up to 30 %
          logits.json         for `final` and `biased`: token ids, and their log-probabilities by PEFT with the adapter beside
                              the weights, and after merge_and_unload
Rerun   python scripts/golden/dora.py     (1 minute)
"""

import math
import shutil

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from common import GOLDEN, PROJECTIONS, arguments, hash_uniform, renderer, teacher_forced, versions, write_json
from peft_sft import SEED, peft_name, read_rows, save_adapter, train
from qlora import CASE as RECIPE, quantised

OUT = GOLDEN / "dora"


def load(name):
    return AutoModelForCausalLM.from_pretrained(GOLDEN / "tiny" / name, dtype=torch.float32, attn_implementation="eager")


def adapted(base, rank, change=0.0):
    model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, bias="none", use_dora=True,
                                            target_modules=PROJECTIONS, task_type="CAUSAL_LM"))
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        uniform = lambda bound: torch.from_numpy(hash_uniform(SEED, peft_name(name), tuple(weight.shape), bound))
        if "magnitude" in name:
            weight.data = weight.data * (1.0 + uniform(change)) if change else weight.data
        else:
            weight.data = uniform(1.0 / math.sqrt(weight.shape[1]) if "lora_A" in name else 0.02)
    return model


def scored(model, ids):
    return [round(v, 7) for v in teacher_forced(model, ids)[0]]


def logits(name, model, base, ids):
    model.eval()
    beside = scored(model, ids)
    merged = scored(model.merge_and_unload(), ids)
    print(name, "largest difference after merging", max(abs(a - b) for a, b in zip(beside, merged)))
    return {"adapter": name, "model": base, "ids": ids, "beside": beside, "merged": merged}


def main():
    arguments(__doc__)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    cases, scores = [], []
    for name, base, lr in [("dora", "chat", 5e-3), ("dora_nf4", "chat_wide", 2e-3)]:
        fast = AutoTokenizer.from_pretrained(GOLDEN / "tiny" / base)
        rows = read_rows(fast.backend_tokenizer, renderer(fast.backend_tokenizer, fast.chat_template), GOLDEN / "sft/data.jsonl")
        model = load(base)
        if name == "dora_nf4":
            quantised(model)
        case = {**RECIPE, "lr": lr}
        model = adapted(model, case["rank"])
        save_adapter(model, OUT / ("init_nf4" if name == "dora_nf4" else "init"), f"tests/golden/tiny/{base}")
        steps = list(train(model, rows, case["loss"], lr, steps=case["max_steps"]))
        print(name, " ".join(f"{s['loss']:.4f}" for s in steps), flush=True)
        cases.append({"name": name, **case, "steps": steps})
        if name == "dora":
            save_adapter(model, OUT / "final", "tests/golden/tiny/chat")
            scores.append(logits("final", model, "tiny/chat", rows[5][0]))
    model = adapted(load("qwen2"), 2, change=0.3)
    save_adapter(model, OUT / "biased", "tests/golden/tiny/qwen2")
    vocab = model.config.vocab_size
    scores.append(logits("biased", model, "tiny/qwen2", [(i * 37 + 5) % vocab for i in range(40)]))
    write_json(OUT / "curves.json", {"versions": versions(), "cases": cases})
    write_json(OUT / "logits.json", {"versions": versions(), "cases": scores})


if __name__ == "__main__":
    main()
