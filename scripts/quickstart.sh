#!/usr/bin/env bash
# Builds the program, fetches a small model, teaches it facts about a town that does not exist, serves it, and shows what
# it answers before and after. Needs Rust and Python with pip; takes about 10 minutes on 2 cores the first time.
set -euo pipefail
cd "$(dirname "$0")/.."

QUESTION=${1:-"Who looks after the lighthouse in Larkhaven?"}
DATA=examples/data/larkhaven.jsonl
WORK=.cache/quickstart
ADAPTER=$WORK/larkhaven
began=$SECONDS

say() { printf '\n== %s\n' "$*"; }
need() { command -v "$1" >/dev/null || { echo "error: $1 is missing: $2" >&2; exit 1; }; }
need cargo "install Rust from https://rustup.rs"
need python3 "install Python 3 with pip"
need cc "install a C compiler (Debian, Ubuntu: apt-get install gcc libc6-dev)"

say "Building (the first time takes minutes)"
cargo build --release --locked --bin runtime
runtime=${CARGO_TARGET_DIR:-target}/release/runtime

say "Fetching SmolLM2-135M-Instruct (98 MB)"
model=$(scripts/fetch_model.sh)

say "Asking the model as it is: $QUESTION"
"$runtime" generate -m "$model" --chat -p "$QUESTION" -n 48

say "Fine-tuning on $DATA ($(wc -l <"$DATA") lines)"
rm -rf "$ADAPTER"
mkdir -p "$WORK"
"$runtime" train -m "$model" --data "$DATA" -o "$ADAPTER" --log "$WORK/train.jsonl" \
    --rank 16 --alpha 32 --lr 1e-3 --warmup-steps 5 --max-steps 40 --batch-size 4 --grad-accum 1 \
    --shuffle false --seed 3407

say "Serving the model and the adapter from one copy of the weights"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$runtime" serve "$model" --port "$port" --served-model-name smollm2 --adapter larkhaven="$ADAPTER" 2>"$WORK/serve.log" &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true' EXIT

python3 - "http://127.0.0.1:$port" "$QUESTION" "$server" <<'PYTHON' || { cat "$WORK/serve.log" >&2; exit 1; }
"""Waits for the server, asks both models over HTTP, prints the answers side by side."""
import json, os, sys, textwrap, time, urllib.request

base, question, server = sys.argv[1], sys.argv[2], int(sys.argv[3])


def ask(model):
    body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 48, "temperature": 0}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(base + "/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as reply:
        return json.load(reply)["choices"][0]["message"]["content"].strip()


for _ in range(600):
    try:
        urllib.request.urlopen(base + "/health", timeout=5).close()
        break
    except OSError:
        try:
            os.kill(server, 0)
        except ProcessLookupError:
            sys.exit("error: the server ended early")
        time.sleep(0.1)
else:
    sys.exit("error: the server does not answer")

answers = [ask("smollm2"), ask("larkhaven")]
width = 44
columns = [textwrap.wrap(answer, width) or [""] for answer in answers]
print(f"\n{question}\n")
print(f"  {'smollm2, as downloaded':<{width}}  |  larkhaven, fine-tuned")
print(f"  {'-' * width}  |  {'-' * width}")
for i in range(max(map(len, columns))):
    left, right = (column[i] if i < len(column) else "" for column in columns)
    print(f"  {left:<{width}}  |  {right}".rstrip())
PYTHON

say "Done in $((SECONDS - began)) s. Go on with:"
echo "  $runtime chat -m $model --adapter $ADAPTER"
echo "  $runtime serve $model --adapter larkhaven=$ADAPTER"
