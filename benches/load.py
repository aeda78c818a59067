"""Many streaming clients against `runtime serve`, a third of which vanish mid-stream: load.py [--seconds 300] [--clients 200].

Starts `target/release/runtime serve` with SmolLM2 on the CPU (or what --model and --backend say), keeps all clients busy with
conversations of random length, and watches the server's memory. Prints one JSON object; the exit status is 1 when a client got
an error, or when the resident memory of the last fifth of the run is more than 2 % above that of the second fifth (the first
one fills the caches). Linux only: it reads /proc. Needs httpx, which comes with the `openai` package.
"""

import argparse
import asyncio
import json
import random
import re
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
WORDS = "the sea was calm and a small boat went out to look for fish while birds slept on the warm stones of the old pier".split()


class Run:
    def __init__(self, url, until):
        self.url, self.until = url, until
        self.finished = self.vanished = self.tokens = 0
        self.errors, self.first, self.memory = [], [], []

    async def client(self, number):
        rng = random.Random(number)
        async with httpx.AsyncClient(timeout=600) as http:
            while time.monotonic() < self.until:
                try:
                    await self.talk(http, rng)
                except Exception as error:
                    self.errors.append(f"{type(error).__name__}: {error}")
                    await asyncio.sleep(1)

    async def talk(self, http, rng):
        words = " ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 120)))
        limit = rng.randint(4, 96)
        # A third of the clients leave before their answer ends.
        leaves_after = rng.randint(0, limit - 1) if rng.random() < 1 / 3 else None
        body = {
            "model": "smol", "messages": [{"role": "user", "content": words}], "max_tokens": limit,
            "temperature": rng.choice([0, 0.7]), "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True,
        }
        began, pieces, usage = time.monotonic(), 0, None
        async with http.stream("POST", self.url + "/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                raise RuntimeError(f"status {answer.status_code}: {(await answer.aread())[:200]!r}")
            done = False
            async for line in answer.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    done = True
                    break
                event = json.loads(line[6:])
                if "error" in event:
                    raise RuntimeError(line)
                usage = event.get("usage") or usage
                if pieces == 0:
                    self.first.append(time.monotonic() - began)
                pieces += 1
                if leaves_after is not None and pieces > leaves_after:
                    self.vanished += 1
                    return
            if not done or not usage or usage["completion_tokens"] != limit:
                raise RuntimeError(f"an answer of {limit} tokens ended early: done {done}, usage {usage}")
        self.finished += 1
        self.tokens += usage["completion_tokens"]

    async def watch(self, pid):
        while time.monotonic() < self.until:
            status = Path(f"/proc/{pid}/status").read_text()
            self.memory.append(int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024)
            await asyncio.sleep(1)


def metric(text, name):
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith((name + " ", name + "{")))


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--model", default=ROOT / ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--program", default=ROOT / "target/release/runtime")
    given = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [given.program, "serve", given.model, "--backend", given.backend, "--port", str(port), "--served-model-name", "smol",
               "--max-model-len", "1024", "--max-num-seqs", "32"]
    server = subprocess.Popen([str(part) for part in command])
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(timeout=600) as http:
            for _ in range(600):
                try:
                    if (await http.get(url + "/health")).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.1)
            run = Run(url, time.monotonic() + given.seconds)
            await asyncio.gather(run.watch(server.pid), *(run.client(number) for number in range(given.clients)))
            # All clients are gone: so must be their requests and pages.
            await asyncio.sleep(3)
            metrics = (await http.get(url + "/metrics")).text
    finally:
        server.terminate()
        code = server.wait(60)
    fifth = max(1, len(run.memory) // 5)
    early, late = statistics.median(run.memory[fifth : 2 * fifth]), statistics.median(run.memory[-fifth:])
    left = {name: metric(metrics, "vllm:" + name) for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")}
    report = {
        "clients": given.clients, "seconds": given.seconds, "finished": run.finished, "vanished": run.vanished,
        "errors": len(run.errors), "first_errors": run.errors[:3], "tokens_of_finished": run.tokens,
        "median_first_token_s": round(statistics.median(run.first), 3), "memory_mib_early": round(early, 1),
        "memory_mib_late": round(late, 1), "memory_growth": round(late / early - 1, 4), "left_over": left, "exit_status": code,
    }
    print(json.dumps(report, indent=1))
    return 1 if run.errors or late > 1.02 * early or any(left.values()) or code else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
