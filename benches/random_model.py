#!/usr/bin/env python3
"""Writes a Hugging Face folder of one of Qwen3's sizes with random weights, for times that depend on a checkpoint's bytes alone.

    python3 benches/random_model.py qwen3-8b OUT_FOLDER

The weights are bf16, normally distributed with a deviation of 0.02 (norms are 1); the tokenizer and chat template are those of
tests/golden/tiny/chat, whose ids are below any vocabulary's size. Needs nothing but Python.
"""

import json
import math
import pathlib
import random
import shutil
import struct
import sys

# hidden, intermediate, layers, heads, key/value heads, tied embeddings: config.json of Qwen/Qwen3-…
SIZES = {
    "qwen3-0.6b": (1024, 3072, 28, 16, 8, True),
    "qwen3-1.7b": (2048, 6144, 28, 16, 8, True),
    "qwen3-8b": (4096, 12288, 36, 32, 8, False),
}
VOCAB, HEAD = 151936, 128
SHARD = 4 << 30


def tensors(hidden, intermediate, layers, heads, kv_heads, tied):
    yield "model.embed_tokens.weight", [VOCAB, hidden]
    for i in range(layers):
        at = f"model.layers.{i}."
        yield at + "input_layernorm.weight", [hidden]
        yield at + "self_attn.q_proj.weight", [heads * HEAD, hidden]
        yield at + "self_attn.k_proj.weight", [kv_heads * HEAD, hidden]
        yield at + "self_attn.v_proj.weight", [kv_heads * HEAD, hidden]
        yield at + "self_attn.o_proj.weight", [hidden, heads * HEAD]
        yield at + "self_attn.q_norm.weight", [HEAD]
        yield at + "self_attn.k_norm.weight", [HEAD]
        yield at + "post_attention_layernorm.weight", [hidden]
        yield at + "mlp.gate_proj.weight", [intermediate, hidden]
        yield at + "mlp.up_proj.weight", [intermediate, hidden]
        yield at + "mlp.down_proj.weight", [hidden, intermediate]
    yield "model.norm.weight", [hidden]
    if not tied:
        yield "lm_head.weight", [VOCAB, hidden]


def bf16(values):
    return b"".join(struct.pack("<f", x)[2:] for x in values)


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in SIZES:
        sys.exit(__doc__ + "\nsizes: " + ", ".join(SIZES))
    size, folder = SIZES[sys.argv[1]], pathlib.Path(sys.argv[2])
    hidden, intermediate, layers, heads, kv_heads, tied = size
    folder.mkdir(parents=True, exist_ok=True)
    tiny = pathlib.Path(__file__).parent.parent / "tests/golden/tiny/chat"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tiny / name, folder / name)
    tiny_config = json.loads((tiny / "config.json").read_text())
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": VOCAB,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": HEAD,
        "hidden_act": "silu",
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "bos_token_id": tiny_config.get("bos_token_id"),
        "eos_token_id": tiny_config.get("eos_token_id"),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    # A million numbers again and again, from another start each time: files of this kind are neither compressed nor compared.
    generator = random.Random(3407)
    block = bf16(generator.gauss(0, 0.02) for _ in range(1 << 20))
    shards, size = [[]], 0
    for name, shape in tensors(*SIZES[sys.argv[1]]):
        count = 2 * math.prod(shape)
        if size + count > SHARD and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append((name, shape))
        size += count
    index = {}
    for number, shard in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        header, at = {}, 0
        for name, shape in shard:
            end = at + 2 * math.prod(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
            index[name], at = file, end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / file, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for _, shape in shard:
                left = 2 * math.prod(shape)
                if len(shape) == 1:
                    out.write(bf16([1.0]) * shape[0])
                    continue
                start = 2 * generator.randrange(1 << 20)
                while left > 0:
                    piece = block[start : start + left]
                    out.write(piece)
                    left, start = left - len(piece), 0
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


if __name__ == "__main__":
    main()
