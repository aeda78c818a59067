"""llama.cpp on files that `runtime export` wrote, and its rounding to quantised types.

Needs   pip install llama-cpp-python==0.3.36, and the program (cargo build --release).
Writes  tests/golden/gguf/llama_cpp.json       for each export: the file's FNV-1a hash, prompts, and llama.cpp's greedy answers
        tests/golden/quant/encode.safetensors  random numbers, and the bytes that ggml rounds them to
Rerun   python scripts/golden/exports.py     (1 minute)

The exports are those of tests/golden/tiny/chat_wide (K-quants) and chat_llama (rotary divisors, biases), plain, with the adapters of
tests/golden merged, and with one applied as a LoRA file. An answer ends before the first step whose two best logits are nearer than
0.05, or 0.25 with quantised weights: llama.cpp's products of these round the activations to 8 bits, ours do not.
"""

import ctypes
import subprocess
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np
import torch
from safetensors.torch import save_file

from common import GOLDEN, ROOT, arguments, write_json

PROGRAM = ROOT / "target" / "release" / "runtime"
# model, type, adapter merged, adapter applied
CASES = [
    ("chat_wide", "f16", None, None), ("chat_wide", "q8_0", None, None), ("chat_wide", "q4_0", None, None),
    ("chat_wide", "q4_k_m", None, None), ("chat_wide", "q4_k_m", "qlora/init", None),
    ("chat_llama", "f32", None, None), ("chat_llama", "f32", "sft/tiny_chat_llama/init", None),
    ("chat_llama", "f32", None, "sft/tiny_chat_llama/init"), ("chat", "f16", "sft/tiny_chat/init", None),
]
TEXTS = ["Hello, the harbour!", "Where does the ferry go?", "<|im_start|>user\nWho are you?<|im_end|>\n", "12345", "The lighthouse",
         "What is", "blue in the spring", "the town", "ferry", "How can I help you today?", "Port Amber", "assistant", "a b c d", "The door",
         "noon", "You are"]
LENGTH, SHORTEST = 12, 4
GGML_TYPES = {"q4_0": (2, 18, 32), "q5_0": (6, 22, 32), "q8_0": (8, 34, 32), "q4_k": (12, 144, 256), "q6_k": (14, 210, 256)}


def fnv1a64(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def export(model, kind, merged, path, only=False):
    command = [PROGRAM, "export", "-m", GOLDEN / "tiny" / model, "-o", path, "--type", kind]
    command += ["--adapter", GOLDEN / merged] if merged else []
    subprocess.run(command + (["--adapter-only"] if only else []), check=True)


def greedy(llm, ids, least):
    """Arg-max ids until the end, LENGTH, or a step whose two best logits are nearer than `least`."""
    llm.reset()
    llm.eval(ids)
    out = []
    for _ in range(LENGTH):
        logits = np.array(llm.scores[llm.n_tokens - 1], dtype=np.float32)
        second, best = np.argsort(logits)[-2:]
        if logits[best] - logits[second] < least:
            break
        out.append(int(best))
        if best == llm.token_eos():
            break
        llm.eval([int(best)])
    return out


def run(case, folder):
    model, kind, merged, applied = case
    path, lora = folder / "model.gguf", folder / "adapter.gguf"
    export(model, kind, merged, path)
    if applied:
        export(model, "f32", applied, lora, only=True)
    llm = llama_cpp.Llama(str(path), n_ctx=256, logits_all=True, verbose=False, n_threads=2, lora_path=str(lora) if applied else None)
    answers = []
    for text in TEXTS:
        ids = llm.tokenize(text.encode(), add_bos=False, special=True)
        new = greedy(llm, ids, 0.05 if kind in ("f32", "f16") else 0.25)
        if len(new) >= SHORTEST or (new and new[-1] == llm.token_eos()):
            answers.append({"text": text, "ids": ids, "greedy": new, "says": llm.detokenize(new).decode("utf-8", "replace")})
    assert len(answers) >= 2, (case, len(answers))
    print(case, len(answers), "prompts", flush=True)
    return {"model": model, "type": kind, "adapter": merged, "lora": applied, "fnv1a64": fnv1a64(path.read_bytes()),
            "template": llm.metadata.get("tokenizer.chat_template") is not None, "answers": answers}


def rounding():
    ggml = ctypes.CDLL(str(next(Path(llama_cpp.llama_cpp._base_path).glob("libggml-base.so*"))))
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    generator = torch.Generator().manual_seed(20261130)
    x = torch.randn(24 * 256, generator=generator) * 0.02
    x[256:512] = 0
    x[512:768] = x[512:768].abs()
    x[768:1024] *= 10.0 ** torch.linspace(-6, 2, 256)
    numbers, out = x.numpy(), {"numbers": x}
    for name, (code, size, block) in GGML_TYPES.items():
        codes = np.zeros(numbers.size // block * size, dtype=np.uint8)
        made = ggml.ggml_quantize_chunk(code, numbers.ctypes.data, codes.ctypes.data, 0, 1, numbers.size, None)
        assert made == codes.size
        out[name] = torch.from_numpy(codes)
    save_file(out, GOLDEN / "quant" / "encode.safetensors")


def main():
    arguments(__doc__)
    rounding()
    with tempfile.TemporaryDirectory() as folder:
        cases = [run(case, Path(folder)) for case in CASES]
    write_json(GOLDEN / "gguf" / "llama_cpp.json", {"llama_cpp_python": llama_cpp.__version__, "cases": cases})


if __name__ == "__main__":
    main()
