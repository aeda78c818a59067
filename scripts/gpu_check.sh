#!/usr/bin/env bash
# On a GPU host, in a copy of this repository with what scripts/gpu_pack.sh made: checks and times both GPU backends.
#
#     scripts/gpu_check.sh OUT_FOLDER [checks] [sanitizer] [speed] [traffic] [vulkan] [frames]        (default: all six)
#
# checks     every op, whole models and training on CUDA, against the CPU backend, transformers and PEFT
# sanitizer  the table of ops under compute-sanitizer: memcheck, initcheck, racecheck
# speed      prefill, decode and training steps of Qwen3's shapes with random weights on CUDA
# traffic    1,000 requests at once, without adapters and spread over 16
# vulkan     the same checks and speeds through wgpu
# frames     60 frames a second with 2 ms of each for two answers and a training job, on CUDA and through wgpu: SmolLM2
#
# RUNTIME_SMOLLM2 names SmolLM2-135M-Instruct.Q4_1.gguf where it is not in .cache/models. Writes NAME.txt for each part
# and speed.md, a table of all that was timed.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$1
shift
parts=${*:-checks sanitizer speed traffic vulkan frames}
mkdir -p "$out"
built_in=$(cat .carry/built_in)
[ -e "$built_in" ] || { mkdir -p "$(dirname "$built_in")" && ln -s "$PWD" "$built_in"; }

brief() { grep -E '^test |panicked| off by |loss of |norm of |gpu |step 12|result|nat$|cuda' "$1" | cut -c1-240; }
has() { case " $parts " in *" $1 "*) return 0 ;; *) return 1 ;; esac }

if has checks; then
    {
        nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
        .carry/runtime devices
        export RUNTIME_CUDA=1 RUNTIME_NO_WGPU=1
        for name in "ops" "models cuda" "train_tiny cuda" "train_smollm2 cuda" "full_finetuning cuda" "publish cuda"; do
            echo "== $name"
            # shellcheck disable=SC2086
            timeout 240 .carry/${name%% *} ${name#"${name%% *}"} --test-threads 1 --nocapture >"$out/log" 2>&1 || true
            brief "$out/log"
        done
        echo "== ops, cuBLASLt wherever it can"
        RUNTIME_CUBLASLT=always timeout 240 .carry/ops --test-threads 1 --nocapture >"$out/log" 2>&1 || true
        brief "$out/log"
    } 2>&1 | tee "$out/checks.txt"
fi

# racecheck follows an mbarrier from the threads that arrive at it. Where lane 0 arrives for its warp after __syncwarp(), it
# reports the other lanes' accesses, which the memory model orders all the same (scripts/racecheck.cu shows it on 40 lines).
# The kernels that do so are counted and left out; what is reported of any other is real.
elected='matmul_rows|sm90_attention'
without_elected() {
    awk -v elected="$elected" '
        /Race reported/ { skip = $0 ~ elected; skipped += skip }
        /^========= *$/ && skip { skip = 0; next }
        !skip { print }
        END { if (skipped) print "left out: " skipped " reports of kernels that arrive by lane 0 (" elected ")" }'
}

if has sanitizer; then
    for tool in memcheck initcheck racecheck; do
        echo "== compute-sanitizer --tool $tool"
        RUNTIME_CUDA=1 RUNTIME_NO_WGPU=1 timeout "${SANITIZER_S:-280}" compute-sanitizer --tool "$tool" \
            .carry/ops --test-threads 1 --skip every_shape --skip long_attention 2>&1 | without_elected |
            grep -vE '^test .* ok$' | tail -12
    done 2>&1 | tee "$out/sanitizer.txt"
fi

bench() { # bench BACKEND ARGUMENTS…
    local backend=$1
    shift
    timeout 200 .carry/runtime bench --backend "$backend" --json "$@" || echo "{\"error\": \"$backend $*: exit status $?\"}"
}

if has speed; then
    {
        bench cuda --random-weights qwen3-0.6b -p 512 -n 128 --batch 1,8,32,128
        bench cuda --random-weights qwen3-0.6b -p 4096 -n 16 --max-num-batched-tokens 4096 --train --optim adamw_8bit
        bench cuda --random-weights qwen3-0.6b -p 64 -n 8 --train --train-batch 8 --optim adamw_8bit
        bench cuda --random-weights qwen3-8b -p 512 -n 64 --batch 1,8,32,128
        bench cuda --random-weights qwen3-8b -p 4096 -n 16 --max-num-batched-tokens 4096 --train --optim adamw_8bit
        bench cuda --random-weights qwen3-8b -p 64 -n 8 --train --recompute --optim adamw_8bit
        bench cuda --random-weights qwen3-8b --weight-type q4_k -p 512 -n 64 --batch 1,8
    } 2>&1 | tee "$out/speed.jsonl"
    python3 benches/table.py "$out/speed.jsonl" >"$out/speed.md"
fi

if has traffic; then
    python3 benches/traffic.py >"$out/requests.jsonl"
    for model in qwen3-0.6b qwen3-8b; do
        for adapters in 0 16; do
            bench cuda --random-weights $model --traffic "$out/requests.jsonl" --adapters $adapters
        done
    done 2>&1 | tee "$out/traffic.jsonl"
fi

if has vulkan; then
    {
        .carry/runtime devices
        for name in "ops" "models wgpu" "train_tiny wgpu" "publish wgpu"; do
            echo "== $name"
            # shellcheck disable=SC2086
            timeout 240 .carry/${name%% *} ${name#"${name%% *}"} --test-threads 1 --nocapture >"$out/log" 2>&1 || true
            brief "$out/log"
        done
    } 2>&1 | tee "$out/vulkan.txt"
    {
        bench wgpu --random-weights qwen3-0.6b -p 512 -n 64 --train --runs 2
        bench wgpu --random-weights qwen3-8b -p 512 -n 32 --runs 2
        bench wgpu --random-weights qwen3-8b --weight-type q4_k -p 512 -n 32 --runs 2
    } 2>&1 | tee "$out/vulkan.jsonl"
    python3 benches/table.py "$out/vulkan.jsonl" >"$out/vulkan.md"
fi

if has frames; then
    smollm2=${RUNTIME_SMOLLM2:-.cache/models/SmolLM2-135M-Instruct.Q4_1.gguf}
    for backend in cuda wgpu; do
        timeout 200 .carry/frame_loop "$smollm2" 1200 $backend 2000 | tail -4
    done 2>&1 | tee "$out/frames.txt"
fi
rm -f "$out/log"
