"""Preference tuning as TRL does it: DPO, DPO with label smoothing (cDPO), its hinge and IPO forms, DPO with the chosen answers' likelihood, and ORPO.

Reads   tests/golden/tiny/chat.
Writes  tests/golden/preference/
          messages.jsonl, texts.jsonl   60 pairs of answers, in the two forms
          init/                         the initial adapter (the hash of peft_sft.py, seed 3407, B within 0.02)
          curves.json                   for each loss 30 optimizer steps: loss, gradient norm, learning rate, rewards
Rerun   python scripts/golden/preference.py     (3 minutes)

All f32, on the CPU: 2 pairs a step in file order, AdamW (weight decay 0.01), linear schedule with 5 warm-up steps of 30,
gradients clipped to 1. The reference is the model with its adapter switched off. TRL's sigmoid loss no longer has a label
smoothing: cDPO (https://ericmitchell.ai/cdpo.pdf, eq. 3) is its trainer with `(1 - e) log s(x) + e log s(-x)` for `log s(x)`.
"""

import json
import math
import shutil
import tempfile

import torch
from datasets import Dataset
from peft import LoraConfig
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.trainer import dpo_trainer

from common import GOLDEN, PROJECTIONS, arguments, hash_uniform, versions, write_json
from peft_sft import SEED, peft_name, save_adapter
from sft_data import ROWS

MODEL = GOLDEN / "tiny" / "chat"
OUT = GOLDEN / "preference"
RANK, ALPHA, STEPS, PAIRS, SMOOTHING = 4, 8, 30, 60, 0.1

# name, file, β, learning rate, settings of the trainer
CASES = [
    ("dpo", "messages", 0.1, 1e-3, dict(loss_type=["sigmoid"])),
    ("cdpo", "messages", 0.1, 1e-3, dict(loss_type=["sigmoid"])),
    ("hinge", "messages", 0.2, 1e-3, dict(loss_type=["hinge"])),
    ("ipo", "messages", 0.3, 1e-3, dict(loss_type=["ipo"])),
    ("rpo", "messages", 0.1, 1e-3, dict(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.5])),
    ("orpo", "texts", 0.25, 1e-3, None),
]


def pairs():
    for k in range(PAIRS):
        question, answer = [t for t in ROWS[k % len(ROWS)] if not t.startswith("S:")][:2]
        other = [t for t in ROWS[(k + 1 + k // len(ROWS)) % len(ROWS)] if not t.startswith("S:")][1]
        yield question, answer, other


def write_data():
    turn = lambda role, text: [{"role": role, "content": text}]
    messages = [{"prompt": turn("user", q), "chosen": turn("assistant", a), "rejected": turn("assistant", b)} for q, a, b in pairs()]
    texts = [{"prompt": f"Q: {q}\nA:", "chosen": " " + a, "rejected": " " + b} for q, a, b in pairs()]
    for name, rows in [("messages", messages), ("texts", texts)]:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (OUT / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"messages": messages, "texts": texts}


class Smoothed:
    """torch.nn.functional with the log-sigmoid of cDPO."""

    def __getattr__(self, name):
        return getattr(torch.nn.functional, name)

    def logsigmoid(self, x):
        plain = torch.nn.functional.logsigmoid
        return (1 - SMOOTHING) * plain(x) + SMOOTHING * plain(-x)


def run(name, rows, beta, lr, settings):
    dpo_trainer.F = Smoothed() if name == "cdpo" else torch.nn.functional
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, bias="none", target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    common = dict(output_dir=tempfile.mkdtemp(), per_device_train_batch_size=2, gradient_accumulation_steps=1, max_steps=STEPS,
                  learning_rate=lr, lr_scheduler_type="linear", warmup_steps=5, weight_decay=0.01, max_grad_norm=1.0,
                  optim="adamw_torch", logging_steps=1, report_to="none", save_strategy="no", use_cpu=True, bf16=False,
                  gradient_checkpointing=False, beta=beta, max_length=512, disable_tqdm=True)
    config, trainer = (ORPOConfig, ORPOTrainer) if settings is None else (DPOConfig, DPOTrainer)
    trainer = trainer(model=model, args=config(**common, **(settings or {})), processing_class=tokenizer,
                      train_dataset=Dataset.from_list(rows), peft_config=lora)
    trainer._get_train_sampler = lambda *_: SequentialSampler(trainer.train_dataset)
    for parameter, weight in trainer.model.named_parameters():
        if weight.requires_grad:
            bound = 1.0 / math.sqrt(weight.shape[1]) if "lora_A" in parameter else 0.02
            weight.data = torch.from_numpy(hash_uniform(SEED, peft_name(parameter), tuple(weight.shape), bound))
    if name == CASES[0][0]:
        save_adapter(trainer.model, OUT / "init", "tests/golden/tiny/chat")
    trainer.train()
    kept = {"loss": "loss", "grad_norm": "grad_norm", "learning_rate": "lr", "rewards/chosen": "rewards_chosen",
            "rewards/rejected": "rewards_rejected", "rewards/accuracies": "accuracy"}
    steps = [{ours: float(entry[theirs]) for theirs, ours in kept.items()} for entry in trainer.state.log_history if "loss" in entry]
    assert len(steps) == STEPS
    print(name, " ".join(f"{s['loss']:.4f}" for s in steps), flush=True)
    return steps


def main():
    arguments(__doc__)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    data = write_data()
    cases = []
    for name, file, beta, lr, settings in CASES:
        steps = run(name, data[file], beta, lr, settings)
        cases.append({"name": name, "data": f"{file}.jsonl", "beta": beta, "lr": lr, "steps": steps})
    import trl
    write_json(OUT / "curves.json", {"versions": {**versions(), "trl": trl.__version__}, "rank": RANK, "alpha": ALPHA, "cases": cases})


if __name__ == "__main__":
    main()
