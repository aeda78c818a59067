"""PEFT's own LoRA fine-tuning, step by step: losses, gradient norms and gradients to hold our trainer against.

Reads   the SmolLM2 GGUF (dequantised to f32), tests/golden/tiny/{chat,chat_llama}, tests/golden/sft/data.jsonl.
Writes  in tests/golden/sft/
          smollm2_rows.json, tiny_rows.json     every row's token ids and its assistant mask (0/1 a token)
          smollm2.json                          four cases: settings, 12 steps, log-probabilities before and after
          smollm2_CASE.gradients.safetensors    step 1's gradient of every LoRA tensor as 261 numbers (below)
          MODEL.json                            two cases (all, assistant) for each tiny model
          MODEL/init                            the initial adapter, PEFT's format
          MODEL/final_LOSS                      the adapter after 12 steps
          MODEL/gradients_LOSS.safetensors      step 1's full gradients
Rerun   python scripts/golden/sft_data.py && python scripts/golden/peft_sft.py --model GGUF   (4 minutes on 2 cores)

Recipe (all f32, dropout 0, LoRA on all seven projections, no rslora): rows in file order, 2 rows a micro-batch, 2
micro-batches an optimizer step, 12 steps, so each of the 48 rows is used once. Rows of a micro-batch are padded on
the right and masked. AdamW (betas 0.9 / 0.999, eps 1e-8, decoupled weight decay 0.01 on every LoRA tensor), linear
schedule with 5 warm-up steps of 12 (step 1 has lr 0), gradients clipped to a global norm of 1.0 with
clip_grad_norm_ (factor min(1, 1 / (norm + 1e-6))).

Loss of an optimizer step: the sum of the cross-entropies of its counted tokens, divided by how many they are, over
all micro-batches together. A token is predicted from the tokens before it in its row, so a row's first token never
counts.
  all         every token but the row's first
  assistant   for every assistant message i: the tokens whose first character lies in
              [len(render(messages[..i], generation prompt on)), len(render(messages[..=i], generation prompt off)))
              of the rendered row. That is the answer, its end-of-turn token, and the template's newline after it.
In a step: loss, grad_norm (before clipping), lr (the one this step used), counted (tokens in the loss), tokens (all
tokens of the rows, padding excluded).

The initial adapter comes from a hash, so that both sides can make it without a file of 20 MB:
  fnv1a64(text)     the 64-bit FNV-1a hash of its UTF-8 bytes
  mix(x)            SplitMix64: z = x + 0x9E3779B97F4A7C15; z = (z ^ z>>30) * 0xBF58476D1CE4E5B9;
                    z = (z ^ z>>27) * 0x94D049BB133111EB; z ^ z>>31          (all modulo 2^64)
  word(text, i)     mix(mix(seed ^ fnv1a64(text)) + i), seed 3407
  value(text, i)    ((word(text, i) >> 40) as f32 * 2^-23 - 1) * bound as f32        in [-bound, bound)
text is the tensor's name in adapter_model.safetensors, for example
"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"; i counts row-major; A is [rank, in] with
bound = 1/sqrt(in) (computed in f64, rounded to f32), B is [out, rank] with bound 0.02, or all zero ("init_b").
To check an implementation: fnv1a64("a") = 0xaf63dc4c8601ec8c, mix(0) = 0xe220a8397b1dcdaf, and for the name above
words 0..2 are 0xfc449ef54f744045, 0xcb9adf05b19ca41b, 0x22bdf5481563519d, which with in = 576 give the values
0.04045184, 0.02461099, -0.03035742.

A gradient summary is f32[261]: its Frobenius norm; four projections sum_i s_j(i)·g(i), j = 0..3, with
s_j(i) = -1 where the top bit of word(name + "#sign" + j, i) is set, else +1; and 256 elements
g(word(name + "#sample", k) mod len), k = 0..255. Gradients are those of the step's loss before clipping. Where B is
zero the gradients of A are zero and left out.
"""

import json
import math
import shutil
import time

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, get_linear_schedule_with_warmup

from common import (GOLDEN, PROJECTIONS, arguments, hash_indices, hash_signs, hash_uniform, load_smollm2, renderer,
                    smollm2_tokenizer, teacher_forced, versions, write_json)

SEED = 3407
STEPS, BATCH, ACCUMULATE = 12, 2, 2
OUT = GOLDEN / "sft"


def tokenised(tokenizer, render, messages):
    """(ids, assistant mask) of a chat row."""
    text = render(messages, False)
    encoding = tokenizer.encode(text, add_special_tokens=False)
    mask = [0] * len(encoding.ids)
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, whole = render(messages[:i], True), render(messages[: i + 1], False)
        assert text.startswith(whole) and whole.startswith(prompt)
        for t, (first, last) in enumerate(encoding.offsets):
            assert not first < len(prompt) < last, "a token lies across the start of an answer"
            mask[t] |= int(len(prompt) <= first < len(whole))
    return encoding.ids, mask


def read_rows(tokenizer, render, path):
    lines = path.read_text(encoding="utf-8").splitlines()
    return [tokenised(tokenizer, render, json.loads(line)["messages"]) for line in lines]


def peft_name(name):
    return name.replace(".default.", ".")


def with_adapter(base, rank, alpha, init_b):
    model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none",
                                            target_modules=PROJECTIONS, task_type="CAUSAL_LM"))
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        name = peft_name(name)
        if "lora_A" in name:
            value = hash_uniform(SEED, name, tuple(weight.shape), 1.0 / math.sqrt(weight.shape[1]))
        elif init_b:
            value = hash_uniform(SEED, name, tuple(weight.shape), init_b)
        else:
            value = np.zeros(weight.shape, dtype=np.float32)
        weight.data = torch.from_numpy(value)
    return model


def trainable(model):
    return {peft_name(n): p for n, p in model.named_parameters() if p.requires_grad}


def micro_batch_loss(model, rows, loss_on):
    """Sum of the cross-entropies of the counted tokens."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    seen = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for r, (row, mask) in enumerate(rows):
        row, mask = torch.tensor(row), torch.tensor(mask)
        ids[r, : len(row)], seen[r, : len(row)] = row, 1
        labels[r, : len(row)] = row if loss_on == "all" else torch.where(mask == 1, row, -100)
    logits = model(input_ids=ids, attention_mask=seen).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


def counted(row, loss_on):
    ids, mask = row
    return len(ids) - 1 if loss_on == "all" else sum(mask[1:])


def train(model, rows, loss_on, lr, steps=STEPS, batch=BATCH, accumulate=ACCUMULATE, warmup=5, on_gradients=None):
    """The recipe in the docstring; yields one record a step."""
    model.train()
    weights = trainable(model)
    optimizer = torch.optim.AdamW(weights.values(), lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, steps)
    per_step = batch * accumulate
    for step in range(1, steps + 1):
        chosen = [rows[((step - 1) * per_step + i) % len(rows)] for i in range(per_step)]
        total = sum(counted(row, loss_on) for row in chosen)
        optimizer.zero_grad()
        loss = 0.0
        for first in range(0, per_step, batch):
            part = micro_batch_loss(model, chosen[first : first + batch], loss_on) / total
            part.backward()
            loss += part.item()
        if step == 1 and on_gradients:
            on_gradients({n: p.grad.clone() for n, p in weights.items()})
        norm = torch.nn.utils.clip_grad_norm_(weights.values(), 1.0).item()
        used = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        yield {"step": step, "loss": loss, "grad_norm": norm, "lr": used, "counted": total,
               "tokens": sum(len(ids) for ids, _ in chosen)}
    model.eval()


def summary(name, gradient):
    flat = gradient.flatten().double().numpy()
    numbers = [np.linalg.norm(flat)] + [float(hash_signs(SEED, name, j, flat.size) @ flat) for j in range(4)]
    return torch.tensor(np.concatenate([numbers, flat[hash_indices(SEED, name, 256, flat.size)]]), dtype=torch.float32)


def scored(model, ids):
    logprobs, top5 = teacher_forced(model, ids)
    return {"ids": ids, "logprobs": [round(v, 7) for v in logprobs], "next_top5": [[i, round(v, 7)] for i, v in top5]}


def run_case(base, rows, name, loss_on, rank, alpha, lr, init_b, gradients):
    """`base` is used up: PEFT changes it in place."""
    began = time.time()
    model = with_adapter(base, rank, alpha, init_b).eval()
    case = {"name": name, "loss": loss_on, "rank": rank, "alpha": alpha, "lr": lr, "init_b": init_b, "seed": SEED,
            "batch_size": BATCH, "grad_accum": ACCUMULATE, "warmup_steps": 5, "max_steps": STEPS, "weight_decay": 0.01,
            "max_grad_norm": 1.0, "before": scored(model, rows[5][0])}
    case["steps"] = list(train(model, rows, loss_on, lr, on_gradients=gradients))
    case["after"] = scored(model, rows[5][0])
    losses = " ".join(f"{s['loss']:.4f}" for s in case["steps"])
    print(f"{name}: {losses}   norm {case['steps'][0]['grad_norm']:.3f}..{case['steps'][-1]['grad_norm']:.3f}"
          f"   {time.time() - began:.0f} s", flush=True)
    return model, case


def save_rows(path, rows):
    write_json(path, [{"ids": ids, "assistant": mask} for ids, mask in rows])
    lengths = [len(ids) for ids, _ in rows]
    print(f"{path.name}: {len(rows)} rows of {min(lengths)} to {max(lengths)} tokens, {sum(lengths)} in all", flush=True)


def save_adapter(model, folder, base):
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)


def tiny_models():
    for name in ("chat", "chat_llama"):
        folder = GOLDEN / "tiny" / name
        fast = AutoTokenizer.from_pretrained(folder)
        render = renderer(fast.backend_tokenizer, fast.chat_template)
        rows = read_rows(fast.backend_tokenizer, render, OUT / "data.jsonl")
        save_rows(OUT / "tiny_rows.json", rows)
        out = OUT / f"tiny_{name}"
        shutil.rmtree(out, ignore_errors=True)
        cases = []
        for loss_on in ("all", "assistant"):
            load = lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
            base = f"tests/golden/tiny/{name}"
            if loss_on == "all":
                save_adapter(with_adapter(load(), 4, 8, 0.02), out / "init", base)
            keep = lambda g: save_file({n: v.contiguous() for n, v in g.items()}, out / f"gradients_{loss_on}.safetensors")
            model, case = run_case(load(), rows, f"tiny_{name} {loss_on}", loss_on, 4, 8, 5e-3, 0.02, keep)
            save_adapter(model, out / f"final_{loss_on}", base)
            cases.append(case)
        write_json(OUT / f"tiny_{name}.json", {"model": f"tests/golden/tiny/{name}", "versions": versions(), "cases": cases})


SMOLLM2_CASES = [  # name, loss, alpha, lr, bound of B
    ("all", "all", 16, 2e-4, 0.0),
    ("assistant", "assistant", 16, 2e-4, 0.0),
    ("all_random_b", "all", 32, 1e-3, 0.02),
    ("assistant_random_b", "assistant", 32, 1e-3, 0.02),
]


def smollm2(path):
    tokenizer, template = smollm2_tokenizer(path)
    rows = read_rows(tokenizer, renderer(tokenizer, template), OUT / "data.jsonl")
    save_rows(OUT / "smollm2_rows.json", rows)
    cases = []
    for name, loss_on, alpha, lr, init_b in SMOLLM2_CASES:
        def keep(gradients):
            save_file({n: summary(n, g) for n, g in gradients.items() if init_b or "lora_B" in n},
                      OUT / f"smollm2_{name}.gradients.safetensors")
        cases.append(run_case(load_smollm2(path), rows, name, loss_on, 16, alpha, lr, init_b, keep)[1])
    write_json(OUT / "smollm2.json", {"versions": versions(), "cases": cases})


def main():
    args = arguments(__doc__, only={"choices": ["tiny", "smollm2"], "help": "write one half"})
    if args.only != "smollm2":
        tiny_models()
    if args.only != "tiny":
        smollm2(args.model)


if __name__ == "__main__":
    main()
