"""Tiny random-weight checkpoints of every family, and the logits transformers computes with them.

Reads   nothing (seeds only).
Writes  tests/golden/tiny/NAME/  config.json, generation_config.json, *.safetensors as save_pretrained writes them,
        and expected.safetensors: for every sequence i  ids_i [T] i64  and  logits_i [T, vocab] f32.
        config.v4.json says the same in the keys of transformers 4, which most published checkpoints still use
        (rope_theta, rope_scaling, torch_dtype; no layer_types); the script checks that both give the same logits.
        `chat`, `chat_llama` and `chat_wide` also carry tokenizer.json, tokenizer_config.json, chat_template.jinja (ChatML), and
        tokens.json (strings with ids, and a rendered chat).
Rerun   python scripts/golden/tiny.py     (half a minute; --model is accepted and not used)

Weights are stored in the type the checkpoint names (f32, bf16 or f16) and computed in f32, eager attention. Each
sequence runs through a freshly loaded model, because dynamic rotary scaling remembers the longest sequence it saw.
Weights have a standard deviation of 0.12 to 0.2, norms vary around 1 and biases are not zero, so that a missing bias,
norm, window or scaling shows in the logits; the script measures that for every variant it can switch off.
"""

import copy
import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM,
                          PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)

from common import GOLDEN, arguments, encode, hash_stream, write_json

OUT = GOLDEN / "tiny"
LENGTHS = [41, 7]

BASE = dict(hidden_size=64, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=160, max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=False,
            bos_token_id=1, eos_token_id=2, pad_token_id=0)


def rope(kind, theta=10000.0, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


HALF = 8  # frequencies of a 16-wide head

# name → (config class, model class, settings, dtype on disk, save options)
VARIANTS = {
    "llama2": (LlamaConfig, LlamaForCausalLM, dict(num_key_value_heads=4, num_hidden_layers=3, vocab_size=128), "bfloat16", {}),
    "llama_tied": (LlamaConfig, LlamaForCausalLM, dict(tie_word_embeddings=True, **rope("default", 100000.0)), "bfloat16", {}),
    "llama_bias": (LlamaConfig, LlamaForCausalLM, dict(intermediate_size=72, vocab_size=128, attention_bias=True, mlp_bias=True), "float32", {}),
    "llama_llama3": (LlamaConfig, LlamaForCausalLM, dict(vocab_size=128, **rope("llama3", 500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                     original_max_position_embeddings=32)), "float32", {}),
    "llama_linear": (LlamaConfig, LlamaForCausalLM, rope("linear", factor=4.0), "float16", {}),
    "llama_dynamic": (LlamaConfig, LlamaForCausalLM, dict(max_position_embeddings=16, **rope("dynamic", factor=2.0)), "bfloat16", {}),
    "llama_yarn": (LlamaConfig, LlamaForCausalLM, dict(max_position_embeddings=64, **rope("yarn", factor=4.0,
                   original_max_position_embeddings=16)), "bfloat16", {}),
    "llama_yarn_factors": (LlamaConfig, LlamaForCausalLM, dict(max_position_embeddings=64, **rope("yarn", 1000.0, factor=4.0,
                   original_max_position_embeddings=16, beta_fast=16.0, beta_slow=2.0, attention_factor=1.3)), "bfloat16", {}),
    "llama_longrope": (LlamaConfig, LlamaForCausalLM, dict(max_position_embeddings=64, **rope("longrope", factor=4.0,
                   original_max_position_embeddings=16,
                   short_factor=[1.0 + 0.05 * i for i in range(HALF)],
                   long_factor=[1.0 + 0.7 * i for i in range(HALF)])), "bfloat16", {}),
    "llama_head_dim": (LlamaConfig, LlamaForCausalLM, dict(head_dim=32), "bfloat16", {}),
    "mistral": (MistralConfig, MistralForCausalLM, dict(sliding_window=12), "bfloat16", {}),
    "mistral_full": (MistralConfig, MistralForCausalLM, dict(sliding_window=None, head_dim=24), "float16", {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, dict(tie_word_embeddings=True, rms_norm_eps=1e-6, **rope("default", 1000000.0)),
              "float32", {"max_shard_size": "100KB"}),
    "qwen2_window": (Qwen2Config, Qwen2ForCausalLM, dict(use_sliding_window=True, sliding_window=9, max_window_layers=1,
                     num_hidden_layers=3), "bfloat16", {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, dict(head_dim=32, rms_norm_eps=1e-6, **rope("default", 1000000.0)), "bfloat16",
              {"max_shard_size": "100KB"}),
    "chat": (Qwen3Config, Qwen3ForCausalLM, dict(head_dim=32, vocab_size=320, intermediate_size=96, tie_word_embeddings=True, rms_norm_eps=1e-6,
             max_position_embeddings=512), "bfloat16", {}),
    "chat_llama": (LlamaConfig, LlamaForCausalLM, dict(vocab_size=320, intermediate_size=96, num_hidden_layers=3, max_position_embeddings=512,
                   tie_word_embeddings=True, attention_bias=True, **rope("llama3", 10000.0, factor=4.0, low_freq_factor=1.0,
                   high_freq_factor=4.0, original_max_position_embeddings=64)), "bfloat16", {}),
    # Rows of 256 for K-quants, of 128 for what takes their place, all whole blocks of NF4.
    "chat_wide": (LlamaConfig, LlamaForCausalLM, dict(hidden_size=256, intermediate_size=256, head_dim=32, vocab_size=320,
                  max_position_embeddings=512, tie_word_embeddings=True), "bfloat16", {}),
}

# What to switch off to see that the logits notice it.
TWINS = {
    "llama_llama3": rope("default", 500.0), "llama_linear": rope("default"), "llama_dynamic": rope("default"),
    "llama_yarn": rope("default"), "llama_yarn_factors": rope("default", 1000.0), "llama_longrope": rope("default"),
    "mistral": dict(sliding_window=None), "qwen2_window": dict(use_sliding_window=False),
    "chat_llama": rope("default"),
}

CORPUS = [
    "The quick brown fox jumps over the lazy dog. Who are you? I am a small helpful assistant.",
    "What is the name of the harbour? The harbour is called Port Amber, and the ferry leaves at noon.",
    "user assistant system You are a helpful assistant. Hello! How can I help you today?",
    "The lighthouse keeper of the town paints the door of the lighthouse blue in the spring.",
    "Where does the ferry go? The ferry goes to the island, and the town is on the other side of the harbour.",
]

CHATML = """{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def chat_tokenizer():
    """A byte-level BPE of 320 ids: 0 <|endoftext|>, 1 <|im_start|>, 2 <|im_end|>, 256 bytes, 61 merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    assert tokenizer.get_vocab_size() == 320
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                   clean_up_tokenization_spaces=False)
    fast.chat_template = CHATML
    return fast


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    narrow = (BASE["hidden_size"] / model.config.hidden_size) ** 0.5
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if "norm" in name:
            weight.data = 1.0 + 0.25 * noise
        elif name.endswith("bias"):
            weight.data = 0.3 * noise
        elif "embed_tokens" in name:
            weight.data = (0.35 * narrow if model.config.tie_word_embeddings else 1.0) * noise
        elif "lm_head" in name:
            weight.data = 0.2 * noise
        else:
            weight.data = 0.17 * narrow * noise
    model.tie_weights()


def sequences(name, vocab):
    return [(3 + hash_stream(1, f"{name}#ids{i}", n) % (vocab - 3)).astype("int64").tolist() for i, n in enumerate(LENGTHS)]


@torch.no_grad()
def logits_of(folder, ids):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    return model(input_ids=torch.tensor([ids])).logits[0].contiguous()


@torch.no_grad()
def effect(folder, change, ids, right):
    """Largest change of a logit when the feature is switched off."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = copy.deepcopy(model.config)
    settings = config.to_dict()
    settings.update(change)
    for key in ("layer_types", "dtype", "torch_dtype"):
        settings.pop(key, None)
    twin = type(model)(type(config)(**settings, attn_implementation="eager")).float().eval()
    twin.load_state_dict(model.state_dict())
    return (twin(input_ids=torch.tensor([ids])).logits[0] - right).abs().max().item()


def old_config(folder):
    """config.json in transformers 4's words."""
    config = json.loads((folder / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    config["transformers_version"] = "4.51.0"
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    return config


def check_old_config(folder, config, ids, right):
    with tempfile.TemporaryDirectory() as copy_of:
        copy_of = Path(copy_of)
        for file in folder.glob("model*"):
            shutil.copy(file, copy_of)
        (copy_of / "config.json").write_text(json.dumps(config))
        assert torch.equal(logits_of(copy_of, ids), right), f"{folder.name}: config.v4.json means something else"


def main():
    only = arguments(__doc__, only={"choices": list(VARIANTS), "help": "write one checkpoint"}).only
    if OUT.exists() and not only:
        shutil.rmtree(OUT)
    for seed, (name, (config_class, model_class, settings, dtype, save)) in enumerate(VARIANTS.items()):
        if only and name != only:
            continue
        folder = OUT / name
        config = config_class(**{**BASE, **settings}, attn_implementation="eager")
        model = model_class(config).float()
        randomise(model, 100 + seed)
        model.to(getattr(torch, dtype)).save_pretrained(folder, **save)
        expected, report = {}, []
        for i, ids in enumerate(sequences(name, config.vocab_size)):
            logits = logits_of(folder, ids)
            expected[f"ids_{i}"] = torch.tensor(ids)
            expected[f"logits_{i}"] = logits
            report.append(f"std {logits.std():.2f} max {logits.abs().max():.1f}")
            if name in TWINS:
                report.append(f"off: {effect(folder, TWINS[name], ids, logits):.4f}")
        save_file(expected, folder / "expected.safetensors")
        old = old_config(folder)
        (folder / "config.v4.json").write_text(json.dumps(old, indent=2) + "\n")
        check_old_config(folder, old, expected["ids_0"].tolist(), expected["logits_0"])
        if name.startswith("chat"):
            fast = chat_tokenizer()
            fast.save_pretrained(folder)
            chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where does the ferry go?"}]
            text = fast.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            strings = ["", "Hello, the harbour!", "  two  spaces\n", "ünïcödé 🙂 北京", "12345", text]
            write_json(folder / "tokens.json", {
                "strings": [{"text": s, "ids": encode(fast.backend_tokenizer, s)} for s in strings],
                "chat": {"messages": chat, "add_generation_prompt": True, "text": text}})
        size = sum(f.stat().st_size for f in folder.iterdir())
        weights = sum(f.stat().st_size for f in folder.glob("model*.safetensors"))
        print(f"{name:20} {weights / 1e3:6.0f} kB weights, {size / 1e3:6.0f} kB   {' | '.join(report)}", flush=True)


if __name__ == "__main__":
    main()
