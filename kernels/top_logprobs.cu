// Log-probabilities of a chosen token and of the n likeliest ones of each row: Op::TopLogprobs in src/program/op.rs. Two kernels:
//
// 1. top_logprobs_chunks, one block a chunk of 4096 logits: the largest, the sum of exp(l - largest), and the n best tokens. A
//    token is a 64-bit key: its logit's bits ordered as unsigned numbers, then its id counted from the end, so that one
//    maximum finds the best token, of equals the one with the smaller id. Each of n rounds looks for the largest key below
//    the one before; the chunk stays in registers.
// 2. top_logprobs, one block a row: the same over the chunks' tokens, and the sum of the chunks' sums.
//
// logits f32 [rows, vocab], aligned to 16 bytes; tokens, labels u32 [rows]; logprobs f32 [rows, 1 + n]; top u32 [rows, n];
// records: 8 bytes each, [rows, ceil(vocab / 4096), 1 + n], (largest, sum) first, then keys, 0 for none. n is at most vocab.
// Row counts: see live_rows in common.cuh.
// Launch: top_logprobs_chunks  grid (ceil(vocab / 4096), rows), block 256, no dynamic shared memory
//         top_logprobs         grid rows, block 256, no dynamic shared memory
#include "common.cuh"

#define CHUNK 4096u

DEVICE u64 key_of(float logit, u32 id) {
    u32 bits = __float_as_uint(logit);
    // Zeros of both signs are equal.
    bits = bits > 0x80000000u ? ~bits : bits | 0x80000000u;
    return (u64)bits << 32 | ~id;
}
DEVICE float logit_of(u64 key) {
    u32 bits = (u32)(key >> 32);
    return __uint_as_float(bits >> 31 ? bits ^ 0x80000000u : ~bits);
}

// Over a block of 256 threads, to all of them.
DEVICE u64 block_max_key(u64 key) {
    __shared__ u64 parts[8];
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) {
        u64 other = __shfl_xor_sync(FULL_WARP, key, step);
        key = other > key ? other : key;
    }
    __syncthreads(); // an earlier use of `parts`
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = key;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 8; i++) key = parts[i] > key ? parts[i] : key;
    return key;
}

extern "C" __global__ void __launch_bounds__(256)
    top_logprobs_chunks(const float* __restrict__ logits, u64* __restrict__ records, const u32* __restrict__ counts,
                        u32 which, u32 rows, u32 vocab, u32 n) {
    begin_dependent();
    u32 row = blockIdx.y;
    if (row >= live_rows(counts, which, rows)) return;
    const float* line = logits + (u64)row * vocab;
    u64* record = records + ((u64)row * gridDim.x + blockIdx.x) * (1 + n);
    u32 first = blockIdx.x * CHUNK + threadIdx.x;
    float v[16];
    float largest = NEG_INF;
#pragma unroll
    for (u32 i = 0; i < 16; i++) {
        u32 at = first + i * 256;
        v[i] = at < vocab ? line[at] : NEG_INF;
        largest = fmaxf(largest, v[i]);
    }
    largest = block_max(largest);
    float sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < 16; i++) sum += expf(v[i] - largest);
    sum = block_sum(sum);
    if (threadIdx.x == 0) *(float2*)record = make_float2(largest, sum);
    u64 last = ~0ull;
    for (u32 round = 0; round < n; round++) {
        u64 best = 0;
#pragma unroll
        for (u32 i = 0; i < 16; i++) {
            u32 at = first + i * 256;
            u64 key = at < vocab ? key_of(v[i], at) : 0;
            if (key < last && key > best) best = key;
        }
        last = block_max_key(best);
        if (threadIdx.x == 0) record[1 + round] = last;
    }
}

extern "C" __global__ void __launch_bounds__(256)
    top_logprobs(const float* __restrict__ logits, const u32* __restrict__ tokens, const u32* __restrict__ labels,
                 const u64* __restrict__ records, float* __restrict__ logprobs, u32* __restrict__ top,
                 const u32* __restrict__ counts, u32 which, u32 rows, u32 vocab, u32 n) {
    begin_dependent();
    u32 row = blockIdx.x;
    if (row >= live_rows(counts, which, rows)) return;
    u32 chunks = (vocab + CHUNK - 1) / CHUNK;
    const u64* own = records + (u64)row * chunks * (1 + n);
    float largest = NEG_INF, sum = 0.0f;
    for (u32 c = threadIdx.x; c < chunks; c += 256) largest = fmaxf(largest, ((const float2*)own)[c * (1 + n)].x);
    largest = block_max(largest);
    for (u32 c = threadIdx.x; c < chunks; c += 256) {
        float2 part = ((const float2*)own)[c * (1 + n)];
        sum += part.y * expf(part.x - largest);
    }
    float shift = largest + logf(block_sum(sum));
    float* out = logprobs + (u64)row * (1 + n);
    if (threadIdx.x == 0) {
        u32 token = labels[row] == 0xffffffffu ? tokens[row] : labels[row];
        out[0] = logits[(u64)row * vocab + min(token, vocab - 1)] - shift;
    }
    u64 last = ~0ull;
    for (u32 round = 0; round < n; round++) {
        u64 best = 0;
        for (u32 c = threadIdx.x; c < chunks * (1 + n); c += 256) {
            // The first of a record is no key.
            u64 key = c % (1 + n) == 0 ? 0 : own[c];
            if (key < last && key > best) best = key;
        }
        last = block_max_key(best);
        if (threadIdx.x == 0) {
            out[1 + round] = logit_of(last) - shift;
            top[(u64)row * n + round] = ~(u32)last;
        }
    }
}
