"""Rotary frequencies and attention factors of every scaling kind, from transformers.

    pip install transformers torch
    python scripts/golden/rope.py             # writes tests/golden/rope/cases.json

`tests/rope.rs` reads each case's config.json fields, builds the table and compares.
"""

import json
from pathlib import Path

import transformers
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

BASE = dict(
    hidden_size=256, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=1,
    intermediate_size=64, vocab_size=32, max_position_embeddings=4096,
)
HALF = 32  # frequencies of a head of 64
SHORT = [round(1.0 + 0.01 * i, 4) for i in range(HALF)]
LONG = [round(1.0 + 0.5 * i, 4) for i in range(HALF)]

CASES = {
    "default": {},
    "default_theta": dict(rope_theta=500000.0),
    "new_dict": dict(rope_parameters=dict(rope_type="default", rope_theta=1e6)),
    "linear": dict(rope_scaling=dict(type="linear", factor=4.0)),
    "linear_new": dict(rope_parameters=dict(rope_type="linear", factor=2.5, rope_theta=50000.0)),
    "dynamic_short": dict(rope_scaling=dict(rope_type="dynamic", factor=2.0)),
    "dynamic_long": dict(rope_scaling=dict(rope_type="dynamic", factor=2.0), _seq_len=10000),
    "yarn": dict(rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=1024)),
    "yarn_implied_context": dict(rope_scaling=dict(rope_type="yarn", factor=8.0)),
    "yarn_betas": dict(
        rope_theta=1e6,
        rope_scaling=dict(rope_type="yarn", factor=16.0, beta_fast=16.0, beta_slow=2.0, truncate=False,
                          original_max_position_embeddings=2048),
    ),
    "yarn_attention_factor": dict(
        rope_scaling=dict(rope_type="yarn", factor=4.0, attention_factor=1.25, original_max_position_embeddings=1024)
    ),
    "yarn_mscale": dict(
        rope_scaling=dict(rope_type="yarn", factor=40.0, mscale=0.707, mscale_all_dim=1.0,
                          original_max_position_embeddings=512)
    ),
    "llama3": dict(
        rope_theta=500000.0,
        rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                          original_max_position_embeddings=1024),
    ),
    "llama3_32": dict(
        rope_theta=500000.0,
        max_position_embeddings=131072,
        rope_scaling=dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
                          original_max_position_embeddings=8192),
    ),
    "longrope_short": dict(
        rope_scaling=dict(rope_type="longrope", short_factor=SHORT, long_factor=LONG,
                          original_max_position_embeddings=1024),
        _seq_len=1000,
    ),
    "longrope_long": dict(
        rope_scaling=dict(rope_type="longrope", short_factor=SHORT, long_factor=LONG,
                          original_max_position_embeddings=1024),
        _seq_len=1025,
    ),
    "longrope_factor": dict(
        rope_scaling=dict(rope_type="longrope", short_factor=SHORT, long_factor=LONG, factor=16.0,
                          original_max_position_embeddings=1024),
        _seq_len=100,
    ),
    "longrope_attention_factor": dict(
        rope_scaling=dict(rope_type="longrope", short_factor=SHORT, long_factor=LONG, attention_factor=1.5,
                          original_max_position_embeddings=1024),
        _seq_len=2000,
    ),
}


def main():
    cases = []
    for name, case in CASES.items():
        fields = {k: v for k, v in case.items() if not k.startswith("_")}
        raw = {"model_type": "llama", **BASE, **json.loads(json.dumps(fields))}
        seq_len = case.get("_seq_len", 64)
        config = LlamaConfig(**{**BASE, **json.loads(json.dumps(fields))})
        kind = config.rope_parameters["rope_type"]
        if kind == "default":
            inv_freq, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
        else:
            inv_freq, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=seq_len)
        cases.append(dict(name=name, config=raw, seq_len=seq_len, inv_freq=[float(x) for x in inv_freq],
                          attention_factor=float(factor)))
    path = Path(__file__).parents[2] / "tests/golden/rope/cases.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"transformers": transformers.__version__, "cases": cases}, indent=1) + "\n")
    print(path, len(cases), "cases")


if __name__ == "__main__":
    main()
