"""The fields of others' configurations with their defaults: a recipe that holds them must be accepted.

Reads   nothing.
Writes  tests/golden/sft/recipe_fields.json: for each class its fields and defaults: transformers' TrainingArguments, TRL's SFTConfig,
        DPOConfig and ORPOConfig, PEFT's LoraConfig, and Unsloth's `from_pretrained` and `get_peft_model`
Rerun   python scripts/golden/recipe_fields.py     (0 minutes)

Unsloth does not import without a GPU: its signatures are written out, from unsloth/models/loader.py and llama.py of 2026.
Values that are no JSON (objects) are left out.
"""

import dataclasses
import json

from peft import LoraConfig
from transformers import TrainingArguments
from trl import DPOConfig, SFTConfig
from trl.experimental.orpo import ORPOConfig

from common import GOLDEN, write_json

UNSLOTH = {
    "from_pretrained": {
        "model_name": "unsloth/Qwen3-8B", "max_seq_length": 2048, "dtype": None, "load_in_4bit": True, "load_in_8bit": False,
        "load_in_16bit": False, "full_finetuning": False, "token": None, "device_map": "sequential", "rope_scaling": None,
        "fix_tokenizer": True, "trust_remote_code": False, "use_gradient_checkpointing": "unsloth",
        "resize_model_vocab": None, "revision": None, "use_exact_model_name": False, "offload_embedding": False,
        "float32_mixed_precision": None, "fast_inference": False, "gpu_memory_utilization": 0.5, "float8_kv_cache": False,
        "random_state": 3407, "max_lora_rank": 64, "disable_log_stats": True, "qat_scheme": None, "load_in_fp8": False,
        "unsloth_tiled_mlp": False},
    "get_peft_model": {
        "r": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "lora_alpha": 16, "lora_dropout": 0.0, "bias": "none", "layers_to_transform": None, "layers_pattern": None,
        "use_gradient_checkpointing": "unsloth", "random_state": 3407, "max_seq_length": 2048, "use_rslora": False,
        "modules_to_save": None, "init_lora_weights": True, "loftq_config": {},
        "temporary_location": "_unsloth_temporary_saved_buffers", "qat_scheme": None, "ensure_weight_tying": False,
        "target_parameters": None},
}


def defaults(config):
    fields = {}
    for field in dataclasses.fields(config):
        value = field.default
        if value is dataclasses.MISSING:
            value = None if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = getattr(value, "value", value)
        try:
            json.dumps(value)
        except TypeError:
            continue
        fields[field.name] = value
    return fields


def main():
    classes = {c.__name__: defaults(c) for c in [TrainingArguments, SFTConfig, DPOConfig, ORPOConfig, LoraConfig]}
    write_json(GOLDEN / "sft" / "recipe_fields.json", {**classes, **UNSLOTH})
    print({name: len(fields) for name, fields in {**classes, **UNSLOTH}.items()})


if __name__ == "__main__":
    main()
