"""Writes a Hugging Face folder with the shape of Qwen3-0.6B and random bf16 weights, for timings only.

    python3 benches/random_model.py FOLDER

Speed does not depend on what the weights say. Needs torch, safetensors and tokenizers.
"""
import json, sys
import torch
from safetensors.torch import save_file

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB = 1024, 28, 16, 8, 128, 3072, 151936

folder = sys.argv[1]
generator = torch.Generator().manual_seed(0)


def weight(*shape):
    return (torch.randn(shape, generator=generator) * 0.02).to(torch.bfloat16)


def ones(n):
    return torch.ones(n, dtype=torch.bfloat16)


tensors = {"model.embed_tokens.weight": weight(VOCAB, HIDDEN), "model.norm.weight": ones(HIDDEN)}
for i in range(LAYERS):
    p = f"model.layers.{i}."
    tensors |= {
        p + "input_layernorm.weight": ones(HIDDEN), p + "post_attention_layernorm.weight": ones(HIDDEN),
        p + "self_attn.q_proj.weight": weight(HEADS * HEAD_DIM, HIDDEN),
        p + "self_attn.k_proj.weight": weight(KV_HEADS * HEAD_DIM, HIDDEN),
        p + "self_attn.v_proj.weight": weight(KV_HEADS * HEAD_DIM, HIDDEN),
        p + "self_attn.o_proj.weight": weight(HIDDEN, HEADS * HEAD_DIM),
        p + "self_attn.q_norm.weight": ones(HEAD_DIM), p + "self_attn.k_norm.weight": ones(HEAD_DIM),
        p + "mlp.gate_proj.weight": weight(FFN, HIDDEN), p + "mlp.up_proj.weight": weight(FFN, HIDDEN),
        p + "mlp.down_proj.weight": weight(HIDDEN, FFN),
    }
save_file(tensors, f"{folder}/model.safetensors", metadata={"format": "pt"})
config = dict(
    architectures=["Qwen3ForCausalLM"], model_type="qwen3", hidden_size=HIDDEN, num_hidden_layers=LAYERS,
    num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM, intermediate_size=FFN,
    vocab_size=VOCAB, tie_word_embeddings=True, rope_theta=1e6, rms_norm_eps=1e-6, max_position_embeddings=40960,
    hidden_act="silu", attention_bias=False, use_sliding_window=False, bos_token_id=0, eos_token_id=1,
    torch_dtype="bfloat16",
)
with open(f"{folder}/config.json", "w") as file:
    json.dump(config, file)
