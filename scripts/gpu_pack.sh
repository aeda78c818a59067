#!/usr/bin/env bash
# Builds what a GPU host needs into .carry/, so that the host needs neither Rust nor a compiler: the program with its CUDA
# kernels compiled (NVRTC is taken from .venv, or from where RUNTIME_NVRTC says), and the tests that have a GPU half.
# Then, on the host, in a copy of this repository with .carry/ in it: scripts/gpu_check.sh OUT_FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf .carry && mkdir -p .carry
cargo build --release --locked
pack() { strip -o ".carry/$2" "$1"; }
pack target/release/runtime runtime
for name in ops models train_tiny train_smollm2 full_finetuning publish; do
    exe=$(cargo test --release --locked --no-run --test "$name" 2>&1 | sed -n 's/.*Executable.*(\(.*\))/\1/p')
    pack "$exe" "$name"
done
cp "$(ls -t target/release/libruntime.so target/release/deps/libruntime.so 2>/dev/null | head -1)" .carry/
strip --strip-unneeded .carry/libruntime.so
cc -std=c99 -O2 -Iinclude examples/c/frame_loop.c -o .carry/frame_loop -L.carry -lruntime -Wl,-rpath,'$ORIGIN'
pwd >.carry/built_in # the tests look for tests/golden where they were built
du -sh .carry
