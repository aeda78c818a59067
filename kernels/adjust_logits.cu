// Logits with masks, penalties and biases: Op::AdjustLogits in src/program/op.rs. Two kernels:
//
// 1. adjust_logits copies a row, with IMPOSSIBLE where the row's mask has bit 0.
// 2. adjust_logits_entries changes the tokens that the row's entries name. It reads them from the original logits, so each is
//    changed once; a row has at most one entry a token, so no two threads write to one place.
//
// logits, out f32 [rows, vocab], aligned to 16 bytes; masks u32 [M, words]; mask_of u32 [rows], 0xffffffff for none; entries
// u32 [E, 2]; starts u32 [rows + 1]; repetition f32 [rows]. Row counts: see live_rows in common.cuh.
// Launch: adjust_logits          grid (ceil(vocab / 4096), rows), block 256, no dynamic shared memory
//         adjust_logits_entries  grid rows, block 256, no dynamic shared memory
#include "common.cuh"

#define CHUNK 4096u
#define IMPOSSIBLE __int_as_float(0xff7fffff)

extern "C" __global__ void __launch_bounds__(256)
    adjust_logits(const float* __restrict__ logits, const u32* __restrict__ masks, const u32* __restrict__ mask_of,
                  float* __restrict__ out, const u32* __restrict__ counts, u32 which, u32 rows, u32 vocab, u32 words) {
    begin_dependent();
    u32 row = blockIdx.y;
    if (row >= live_rows(counts, which, rows)) return;
    u64 line = (u64)row * vocab;
    u32 mask = mask_of[row];
    const u32* bits = mask == 0xffffffffu ? nullptr : masks + (u64)mask * words;
    u32 first = blockIdx.x * CHUNK, end = min(first + CHUNK, vocab);
    bool wide = vocab % 4 == 0;
    for (u32 at = first + threadIdx.x * 4; at < end; at += 1024) {
        // Four tokens that begin at a multiple of 4 have their bits in one word.
        u32 keep = bits ? bits[at / 32] >> (at % 32) : 15u;
        if (wide) {
            float4 v = *(const float4*)(logits + line + at);
            if (!(keep & 1)) v.x = IMPOSSIBLE;
            if (!(keep & 2)) v.y = IMPOSSIBLE;
            if (!(keep & 4)) v.z = IMPOSSIBLE;
            if (!(keep & 8)) v.w = IMPOSSIBLE;
            *(float4*)(out + line + at) = v;
        } else {
            for (u32 i = 0; i < 4 && at + i < end; i++) {
                out[line + at + i] = keep >> i & 1 ? logits[line + at + i] : IMPOSSIBLE;
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(256)
    adjust_logits_entries(const float* __restrict__ logits, const uint2* __restrict__ entries,
                          const u32* __restrict__ starts, const float* __restrict__ repetition,
                          const u32* __restrict__ masks, const u32* __restrict__ mask_of, float* __restrict__ out,
                          const u32* __restrict__ counts, u32 which, u32 rows, u32 vocab, u32 words) {
    begin_dependent();
    u32 row = blockIdx.x;
    if (row >= live_rows(counts, which, rows)) return;
    u64 line = (u64)row * vocab;
    u32 mask = mask_of[row], end = starts[row + 1];
    const u32* bits = mask == 0xffffffffu ? nullptr : masks + (u64)mask * words;
    float r = repetition[row];
    for (u32 e = starts[row] + threadIdx.x; e < end; e += blockDim.x) {
        uint2 entry = entries[e];
        u32 token = entry.x & 0x7fffffffu;
        if (bits && !(bits[token / 32] >> (token % 32) & 1)) continue;
        float l = logits[line + token];
        if (entry.x != token) l = l > 0.0f ? l / r : l * r;
        out[line + token] = l + __uint_as_float(entry.y);
    }
}
