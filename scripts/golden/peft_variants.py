"""PEFT's LoRA fine-tuning, 30 steps each: plain, rsLoRA, LoRA+, label smoothing, Lion, SGD.

Reads   tests/golden/tiny/chat, tests/golden/sft/data.jsonl.
Writes  tests/golden/sft/variants.json             a case each: settings, and losses, norms and rates of 30 steps
        tests/golden/sft/tiny_chat/init_rslora     the initial adapter with use_rslora
Rerun   python scripts/golden/peft_variants.py     (a minute; needs lion-pytorch)

Everything that is not said here is as in peft_sft.py: rank 4, alpha 8, B within 0.02, rows in file order, 2 x 2 rows a
step, only the assistant's tokens. LoRA+ is peft.optimizers.create_loraplus_optimizer; Lion is lion_pytorch's with betas
0.9 and 0.99; SGD is torch's with momentum 0.9; label smoothing is that of torch's cross_entropy, which is transformers'
LabelSmoother.
"""

import math

import torch
from lion_pytorch import Lion
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from transformers import AutoModelForCausalLM, AutoTokenizer, get_linear_schedule_with_warmup

from common import GOLDEN, PROJECTIONS, hash_uniform, renderer, versions, write_json
from peft_sft import ACCUMULATE, BATCH, OUT, SEED, counted, peft_name, read_rows, save_adapter, trainable

STEPS, WARMUP, DECAY = 30, 5, 0.01
RANK, ALPHA, INIT_B = 4, 8, 0.02

CASES = [  # name, lr, settings of ours
    ("lora", 5e-3, {}),
    ("rslora", 5e-3, {"use_rslora": True}),
    ("loraplus", 2e-3, {"loraplus_lr_ratio": 4.0}),
    ("label_smoothing", 5e-3, {"label_smoothing": 0.1}),
    ("lion", 2e-3, {"optim": "lion"}),
    ("sgd", 5e-2, {"optim": "sgd", "momentum": 0.9}),
]


def adapted(**more):
    base = AutoModelForCausalLM.from_pretrained(GOLDEN / "tiny/chat", dtype=torch.float32, attn_implementation="eager")
    model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, bias="none",
                                            target_modules=PROJECTIONS, task_type="CAUSAL_LM", **more))
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            bound = 1.0 / math.sqrt(weight.shape[1]) if "lora_A" in name else INIT_B
            weight.data = torch.from_numpy(hash_uniform(SEED, peft_name(name), tuple(weight.shape), bound))
    return model


def losses(model, rows, smoothing):
    """Sum over the counted tokens."""
    total = 0.0
    for ids, mask in rows:
        row = torch.tensor([ids])
        labels = torch.where(torch.tensor(mask) == 1, row[0], -100)
        logits = model(input_ids=row).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum", label_smoothing=smoothing)
    return total


def optimizer_of(model, lr, settings):
    weights = list(trainable(model).values())
    match settings:
        case {"loraplus_lr_ratio": ratio}:
            return create_loraplus_optimizer(model, torch.optim.AdamW, lr=lr, loraplus_lr_ratio=ratio, weight_decay=DECAY,
                                             loraplus_weight_decay=DECAY)
        case {"optim": "lion"}:
            return Lion(weights, lr=lr, betas=(0.9, 0.99), weight_decay=DECAY)
        case {"optim": "sgd", "momentum": momentum}:
            return torch.optim.SGD(weights, lr=lr, momentum=momentum, weight_decay=DECAY)
    return torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=DECAY)


def run(rows, name, lr, settings):
    model = adapted(use_rslora=settings.get("use_rslora", False))
    if name == "rslora":
        save_adapter(model, OUT / "tiny_chat" / "init_rslora", "tests/golden/tiny/chat")
    model.train()
    optimizer = optimizer_of(model, lr, settings)
    schedule = get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS)
    weights = trainable(model)
    steps = []
    for step in range(1, STEPS + 1):
        first = (step - 1) * BATCH * ACCUMULATE
        chosen = [rows[(first + i) % len(rows)] for i in range(BATCH * ACCUMULATE)]
        total = sum(counted(row, "assistant") for row in chosen)
        optimizer.zero_grad()
        loss = losses(model, chosen, settings.get("label_smoothing", 0.0)) / total
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights.values(), 1.0).item()
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        steps.append({"step": step, "loss": loss.item(), "grad_norm": norm, "lr": rate, "counted": total,
                      "tokens": sum(len(ids) for ids, _ in chosen)})
    print(name, " ".join(f"{s['loss']:.4f}" for s in steps), flush=True)
    return {"name": name, "loss": "assistant", "rank": RANK, "alpha": ALPHA, "lr": lr, "batch_size": BATCH,
            "grad_accum": ACCUMULATE, "warmup_steps": WARMUP, "max_steps": STEPS, "weight_decay": DECAY,
            "max_grad_norm": 1.0, "settings": settings, "steps": steps}


def main():
    fast = AutoTokenizer.from_pretrained(GOLDEN / "tiny/chat")
    rows = read_rows(fast.backend_tokenizer, renderer(fast.backend_tokenizer, fast.chat_template), OUT / "data.jsonl")
    cases = [run(rows, *case) for case in CASES]
    write_json(OUT / "variants.json", {"model": "tests/golden/tiny/chat", "versions": versions(), "cases": cases})


if __name__ == "__main__":
    main()
