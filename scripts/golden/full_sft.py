"""Full fine-tuning by transformers, and PEFT's modules_to_save, 30 steps each on tiny models.

Reads   tests/golden/tiny/NAME, tests/golden/sft/tiny_rows.json.
Writes  tests/golden/full/cases.json                   a case each: settings; losses, norms and rates of 30 steps; log-probabilities
                                                       of a row after them
        tests/golden/full/NAME.gradients.safetensors   gradients of every parameter at the first step, before clipping
        tests/golden/full/init                         the initial adapter of the case with modules_to_save
        tests/golden/full/saved, tests/golden/full/embed   adapters after 30 steps, as PEFT saves them
Rerun   python scripts/golden/full_sft.py              (1 minute)

Rows are those of tiny_rows.json in file order, 2 x 2 a step, each id modulo the vocabulary, cut after 96 tokens; all tokens count.
AdamW as in peft_sft.py, with the two groups of transformers' Trainer: no decay on biases and norms. Full fine-tuning trains every
parameter in f32. modules_to_save: rank 4, alpha 8, B within 0.02 (peft_sft.py), dropout 0, and the modules named in the case.
"""

import json
import shutil

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup
from transformers.trainer_pt_utils import get_parameter_names

from common import GOLDEN, PROJECTIONS, hash_uniform, versions, write_json
from peft_sft import ACCUMULATE, BATCH, SEED, counted, micro_batch_loss, peft_name, save_adapter, scored, trainable

STEPS, WARMUP, DECAY, LENGTH = 30, 5, 0.1, 96
OUT = GOLDEN / "full"
# Tied heads with norms of q and k, with biases; heads of their own with norms, with biases of q, k and v and a window; all biases.
FULL = [("chat", 2e-3), ("chat_llama", 2e-3), ("qwen3", 2e-3), ("qwen2_window", 2e-3), ("llama_bias", 2e-3)]
SAVED = [("saved", "chat", ["embed_tokens", "lm_head", "norm"], 2e-3), ("embed", "chat_llama", ["embed_tokens"], 2e-3)]
FORBIDDEN = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]  # Trainer.get_decay_parameter_names


def load(name):
    return AutoModelForCausalLM.from_pretrained(GOLDEN / "tiny" / name, dtype=torch.float32, attn_implementation="eager")


def read_rows(vocab):
    rows = json.loads((GOLDEN / "sft/tiny_rows.json").read_text())
    return [([i % vocab for i in row["ids"][:LENGTH]], [1] * len(row["ids"][:LENGTH])) for row in rows]


def groups(model):
    decayed = set(get_parameter_names(model, [torch.nn.LayerNorm], FORBIDDEN))
    parameters = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return [{"params": [p for n, p in parameters if n in decayed], "weight_decay": DECAY},
            {"params": [p for n, p in parameters if n not in decayed], "weight_decay": 0.0}]


def train(model, rows, lr, on_gradients=None):
    model.train()
    weights = trainable(model)
    optimizer = torch.optim.AdamW(groups(model), lr=lr, betas=(0.9, 0.999), eps=1e-8)
    schedule = get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS)
    per_step = BATCH * ACCUMULATE
    for step in range(1, STEPS + 1):
        chosen = [rows[((step - 1) * per_step + i) % len(rows)] for i in range(per_step)]
        total = sum(counted(row, "all") for row in chosen)
        optimizer.zero_grad()
        loss = 0.0
        for row in chosen:
            part = micro_batch_loss(model, [row], "all") / total
            part.backward()
            loss += part.item()
        if step == 1 and on_gradients:
            on_gradients({n: p.grad.clone().contiguous() for n, p in weights.items()})
        norm = torch.nn.utils.clip_grad_norm_(weights.values(), 1.0).item()
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        yield {"step": step, "loss": loss, "grad_norm": norm, "lr": rate, "counted": total,
               "tokens": sum(len(ids) for ids, _ in chosen)}
    model.eval()


def run(model, case, lr, gradients):
    rows = read_rows(model.config.vocab_size)
    case |= {"loss": "all", "lr": lr, "batch_size": BATCH, "grad_accum": ACCUMULATE, "warmup_steps": WARMUP, "max_steps": STEPS,
             "weight_decay": DECAY, "max_grad_norm": 1.0, "rank": 4, "alpha": 8}
    case["steps"] = list(train(model, rows, lr, gradients))
    case["after"] = scored(model, rows[5][0])
    print(case["name"], " ".join(f"{s['loss']:.4f}" for s in case["steps"]), flush=True)
    return case


def adapted(name, modules):
    model = get_peft_model(load(name), LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, bias="none", target_modules=PROJECTIONS,
                                                  task_type="CAUSAL_LM", modules_to_save=modules))
    for key, weight in model.named_parameters():
        if "lora_" in key:
            key = peft_name(key)
            bound = weight.shape[1] ** -0.5 if "lora_A" in key else 0.02
            weight.data = torch.from_numpy(hash_uniform(SEED, key, tuple(weight.shape), bound))
    return model


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    cases = []
    for name, lr in FULL:
        model = load(name)
        keep = lambda g, name=name: save_file(g, OUT / f"{name}.gradients.safetensors")
        cases.append(run(model, {"name": name, "model": name}, lr, keep))
    for name, base, modules, lr in SAVED:
        model = adapted(base, modules)
        if name == "saved":
            save_adapter(model, OUT / "init", f"tests/golden/tiny/{base}")
        gradients = lambda g: print(name, len(g), "trainable tensors:", [n for n in g if "lora_" not in n])
        cases.append(run(model, {"name": name, "model": base, "modules_to_save": modules}, lr, gradients))
        save_adapter(model, OUT / name, f"tests/golden/tiny/{base}")
    write_json(OUT / "cases.json", {"versions": versions(), "cases": cases})


if __name__ == "__main__":
    main()
