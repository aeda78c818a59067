#!/usr/bin/env bash
# On a GPU host, after scripts/gpu_pack.sh: every op and whole models over Vulkan against the CPU and transformers, then
# speed at the shape of Qwen3-0.6B with random weights (needs Python with torch and safetensors).
# Writes its output to the folder given as $1 (default benches/results/new).
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benches/results/new}
mkdir -p "$out"
built_in=$(cat .carry/built_in)
[ -e "$built_in" ] || { mkdir -p "$(dirname "$built_in")" && ln -s "$PWD" "$built_in"; }
{
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    .carry/runtime devices
    echo "== ops over wgpu against the CPU"
    .carry/ops --test-threads 1 2>&1 | tail -30
    echo "== tiny models of every family against transformers"
    .carry/models families 2>&1 | tail -15
    echo "== training over wgpu against PEFT"
    .carry/train_tiny wgpu 2>&1 | tail -15
    echo "== speed: Qwen3-0.6B's shape, random bf16 weights"
    model=$(mktemp -d)
    python3 benches/random_model.py "$model"
    for dtype in f32 f16; do
        for prompt in 512 4096; do
            echo "$dtype"
            timeout 120 .carry/runtime bench -m "$model" --backend wgpu --dtype "$dtype" -p "$prompt" -n 64 --json
        done
    done
    timeout 100 .carry/runtime bench -m "$model" --backend cpu -p 128 -n 16 --json
    rm -rf "$model"
} 2>&1 | tee "$out/gpu_check.txt"
