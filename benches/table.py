"""Turns the JSON lines of `runtime bench --json` into one Markdown table: table.py FILE."""

import json
import sys

rows = [["model", "backend", "work", "tok/s", "of copy bandwidth", "GiB", "s"]]


def add(report, work, speed, share="", memory="", seconds=""):
    model = f'{report["model"]}'
    rows.append([model, report["backend"], work, f"{speed:,.0f}" if speed else "", share, memory, seconds])


for line in open(sys.argv[1]):
    if not line.startswith("{"):
        continue
    report = json.loads(line)
    if "error" in report:
        rows.append([report["error"], "", "", "", "", "", ""])
        continue
    for batch in report["batches"]:
        n = batch["batch"]
        add(report, f'prefill {n} × {report["prompt_tokens"]}', batch["prefill_tok_s"])
        add(report, f"decode, batch {n}", batch["decode_tok_s"], f'{100 * batch["decode_bandwidth_share"]:.0f} %')
    add(report, "start to first token", None, seconds=f'{report["first_token_s"]:.1f}')
    train = report.get("train")
    if train:
        memory = sum(train["memory"].get(k, 0) for k in ("weights", "adapters", "gradients", "moments", "tables", "arena"))
        work = f'LoRA step {train.get("batch", "")} × {train.get("length", "")}' + (", recomputed" if train.get("recompute") else "")
        add(report, work, train["tok_s"], memory=f"{memory / 2**30:.1f}", seconds=f'{train["step_s"]:.4f}')

for i, row in enumerate(rows):
    print("| " + " | ".join(row) + " |")
    if i == 0:
        print("|" + " --- |" * len(row))
