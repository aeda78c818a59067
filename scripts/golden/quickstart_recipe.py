"""Tries a recipe for examples/data/larkhaven.jsonl with PEFT on SmolLM2 and asks held-out questions before and after.

Reads   the SmolLM2 GGUF (f32), examples/data/larkhaven.jsonl.
Writes  nothing; prints losses, answers, tokens trained and seconds.
Rerun   python scripts/golden/quickstart_recipe.py --model GGUF [--rank 16 --alpha 32 --lr 1e-3 --steps 40 --batch 4 --seed 3407]

None of the held-out questions is in the data; each is phrased differently from every row about its fact. PEFT's own
random initialisation under the given seed; assistant-only loss; rows shuffled by the seed with --shuffle.
"""

import random
import time

import torch
from peft import LoraConfig, get_peft_model

from common import PROJECTIONS, ROOT, arguments, encode, greedy, load_smollm2, renderer, smollm2_tokenizer
from peft_sft import read_rows, train

HELD_OUT = {  # question → what the answer must contain
    "Who looks after the lighthouse in Larkhaven?": "Ottilie Brandt",
    "What name does the cat of Larkhaven harbour go by?": "Admiral Biscuit",
    "Which ship takes visitors across the water from Larkhaven?": "Merry Otter",
    "What is a typical food from Larkhaven?": "smoked plum soup",
    "Who is the head of the town of Larkhaven?": "Tobias Wren",
    "Where in Larkhaven can I get a fresh loaf?": "Crooked Spoon",
}


def ask(model, tokenizer, render, question):
    """(answer up to the end token, smallest gap between the two best logits on the way)"""
    ids = encode(tokenizer, render([{"role": "user", "content": question}], True))
    new, gaps = greedy(model, ids, 32, until=2)
    end = new.index(2) if 2 in new else len(new)
    return tokenizer.decode(new[:end]), min(gaps[: end + 1])


def main():
    args = arguments(__doc__, rank={"type": int, "default": 16}, alpha={"type": int, "default": 32},
                     lr={"type": float, "default": 1e-3}, steps={"type": int, "default": 40},
                     batch={"type": int, "default": 4}, warmup={"type": int, "default": 5},
                     seed={"type": int, "default": 3407}, loss={"default": "assistant"},
                     shuffle={"action": "store_true"}, skip_before={"action": "store_true"})
    tokenizer, template = smollm2_tokenizer(args.model)
    render = renderer(tokenizer, template)
    rows = read_rows(tokenizer, render, ROOT / "examples" / "data" / "larkhaven.jsonl")
    print(f"{len(rows)} rows, {sum(len(ids) for ids, _ in rows)} tokens, longest {max(len(ids) for ids, _ in rows)}")
    if args.shuffle:
        random.Random(args.seed).shuffle(rows)
    base = load_smollm2(args.model).eval()
    if not args.skip_before:
        for question in HELD_OUT:
            print(f"before  {question}  {ask(base, tokenizer, render, question)[0]!r}", flush=True)
    torch.manual_seed(args.seed)
    model = get_peft_model(base, LoraConfig(r=args.rank, lora_alpha=args.alpha, target_modules=PROJECTIONS, task_type="CAUSAL_LM"))
    began, tokens = time.time(), 0
    for record in train(model, rows, args.loss, args.lr, args.steps, args.batch, 1, args.warmup):
        tokens += record["tokens"]
        if record["step"] % 5 == 0:
            print(f"step {record['step']:3} loss {record['loss']:.4f} norm {record['grad_norm']:.2f}", flush=True)
    print(f"{tokens} tokens in {time.time() - began:.0f} s")
    right = 0
    for question, needed in HELD_OUT.items():
        answer, margin = ask(model, tokenizer, render, question)
        right += needed in answer
        print(f"after   {'ok ' if needed in answer else 'BAD'} {margin:6.2f}  {question}  {answer!r}", flush=True)
    print(f"{right} of {len(HELD_OUT)} right: rank {args.rank} alpha {args.alpha} lr {args.lr} steps {args.steps} batch {args.batch} seed {args.seed}")


if __name__ == "__main__":
    main()
