// The next token of each row of logits [rows, vocab] (f32), without a sort. Op::Sample in src/program/op.rs says
// which tokens are kept and how one is drawn: sampling [rows, 4] holds temperature, top-k, top-p, min-p; uniforms
// [rows] a number of [0, 1); tokens [rows] is the result. Two kernels, so that a small batch uses the whole GPU and
// the logits come from memory once, or twice where top-k, top-p or min-p are on:
//
// 1. sample_chunks, one block a chunk of 4096 logits: the largest, the first token that has it, and the sum of
//    exp((l - largest) / temperature). All that greedy decoding needs, and the weight of each chunk for plain
//    sampling.
// 2. sample, one block a row: combines the chunks. A filter first gathers the tokens with at least e^-10 of the best
//    one's probability into a list in shared memory. A threshold on the logit (of top-k: its count, of top-p: its
//    weight) is the largest key whose "how much lies at or above me" reaches a target; so is the drawn token, with the
//    id counted from the end as key. All are found by find(), which measures eight keys at a time: three bits a pass
//    over the list. Where the list is too short (it holds 256 tokens a warp) or not enough, find() goes over the row
//    instead: right, and several times slower.
//
// The key of a logit is its bits ordered as unsigned numbers. Every sum has a fixed order: the same input gives the
// same token.
//
// Limits: vocab at most 262,144 (64 chunks); logits aligned to 16 bytes; rows are loaded 16 bytes wide where vocab is a
// multiple of 4. scratch: 16 bytes a chunk, rows * ceil(vocab / 4096) * 16 in all. Row counts: see live_rows in common.cuh.
// Launch: sample_chunks  grid (ceil(vocab / 4096), rows), block 256, no dynamic shared memory
//         sample         grid rows, block 1024, dynamic shared memory 65,536 bytes (ask for it with
//                        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)
#include "common.cuh"

#define CHUNK 4096u
#define MAX_CHUNKS 64
// Tokens that the list holds for each warp: the list of all 32 warps is 64 KiB, which every GPU since sm_80 has.
#define WARP_LIST 256u
// log2(e), and the logarithm of the weight from which tokens go to the list.
#define LOG2E 1.4426950408889634f
#define NEAR 10.0f

struct alignas(16) Chunk {
    float top;
    float sum;
    u32 id;
    u32 unused;
};

struct Near {
    float logit;
    u32 id;
};

// Four consecutive elements of a row; past its end NEG_INF.
DEVICE float4 load4(const float* row, u32 at, u32 vocab, bool wide) {
    if (wide && at < vocab) return *(const float4*)(row + at);
    float4 v;
    v.x = at < vocab ? row[at] : NEG_INF;
    v.y = at + 1 < vocab ? row[at + 1] : NEG_INF;
    v.z = at + 2 < vocab ? row[at + 2] : NEG_INF;
    v.w = at + 3 < vocab ? row[at + 3] : NEG_INF;
    return v;
}

// 2^x in one instruction, 2 ulp; x <= 0 here, and results below 2^-126 are 0.
DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

DEVICE u32 key_of(float logit) {
    u32 bits = __float_as_uint(logit);
    // Zeros of both signs are equal.
    return bits > 0x80000000u ? ~bits : bits | 0x80000000u;
}

extern "C" __global__ void __launch_bounds__(256) sample_chunks(const float* __restrict__ logits, // [rows, vocab]
                                                                const float* __restrict__ sampling, // [rows, 4]
                                                                Chunk* __restrict__ chunks, // [rows, gridDim.x]
                                                                const u32* __restrict__ counts, u32 which, u32 rows,
                                                                u32 vocab) {
    begin_dependent();
    u32 row = blockIdx.y;
    if (row >= live_rows(counts, which, rows)) return;
    __shared__ u32 first_id;
    const float* line = logits + (u64)row * vocab;
    bool wide = vocab % 4 == 0;
    u32 base = blockIdx.x * CHUNK + threadIdx.x * 4;
    float4 v[4];
    float top = NEG_INF;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        v[i] = load4(line, base + i * 1024, vocab, wide);
        top = fmaxf(top, fmaxf(fmaxf(v[i].x, v[i].y), fmaxf(v[i].z, v[i].w)));
    }
    if (threadIdx.x == 0) first_id = 0xffffffffu;
    top = block_max(top);
    u32 id = 0xffffffffu;
#pragma unroll
    for (int i = 3; i >= 0; i--) {
        u32 at = base + i * 1024;
        if (v[i].w == top) id = at + 3;
        if (v[i].z == top) id = at + 2;
        if (v[i].y == top) id = at + 1;
        if (v[i].x == top) id = at;
    }
    // The smallest id does not depend on the order of the atomics.
    if (id < vocab) atomicMin(&first_id, id);
    float sum = 0.0f;
    float temperature = sampling[row * 4];
    if (temperature > 0.0f && top > NEG_INF) {
        float scale = LOG2E / temperature;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sum += exp2_fast((v[i].x - top) * scale) + exp2_fast((v[i].y - top) * scale) +
                   exp2_fast((v[i].z - top) * scale) + exp2_fast((v[i].w - top) * scale);
        }
        sum = block_sum(sum);
    } else {
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        // NaN alone has no first token.
        Chunk chunk = {top, sum, first_id == 0xffffffffu ? blockIdx.x * CHUNK : first_id, 0};
        chunks[(u64)row * gridDim.x + blockIdx.x] = chunk;
    }
}

enum Mode { COUNT, MASS, DRAW };

// What all passes over a row share.
struct Row {
    const float* line;
    const Near* list; // this warp's part
    u32 listed;       // tokens in it
    bool wide;
    u32 vocab;
    float top, scale; // the largest logit, log2(e) / temperature
    u32 floor;        // kept are tokens with at least this key
    float least;      // and this weight
};

struct Eight {
    float v[8];
};

// Adds one token to the sums of the keys lo, lo + step, ... that it lies at or above.
template <Mode MODE> DEVICE void add(const Row& row, float logit, u32 id, u32 lo, u32 step, float (&sums)[8]) {
    u32 key = key_of(logit);
    if (key < row.floor) return;
    float w = 1.0f;
    if (MODE != COUNT) w = exp2_fast((logit - row.top) * row.scale);
    if (MODE == DRAW) {
        if (w < row.least) return;
        key = row.vocab - 1 - id;
    }
#pragma unroll
    for (int j = 0; j < 8; j++) sums[j] += key >= lo + j * step ? w : 0.0f;
}

// How much of the list (LIST) or of elements [first, end) of the row (first % 4 == 0) lies at or above eight keys:
// tokens at or above the floor (COUNT) or their weight (MASS) by the key of the logit; the weight of kept tokens by
// vocab - 1 - id (DRAW).
template <Mode MODE, bool LIST>
DEVICE Eight measure(const Row& row, u32 first, u32 end, u32 lo, u32 step) {
    __shared__ float parts[32][8];
    float sums[8] = {};
    u32 lane = threadIdx.x % 32;
    if (LIST) {
        for (u32 i = lane; i < row.listed; i += 32) {
            Near near = row.list[i];
            add<MODE>(row, near.logit, near.id, lo, step, sums);
        }
    } else {
        for (u32 at = first + threadIdx.x * 4; at < end; at += blockDim.x * 4) {
            float4 v = load4(row.line, at, row.vocab, row.wide);
            add<MODE>(row, v.x, at, lo, step, sums);
            if (at + 1 < end) add<MODE>(row, v.y, at + 1, lo, step, sums);
            if (at + 2 < end) add<MODE>(row, v.z, at + 2, lo, step, sums);
            if (at + 3 < end) add<MODE>(row, v.w, at + 3, lo, step, sums);
        }
    }
#pragma unroll
    for (int j = 0; j < 8; j++) sums[j] = warp_sum(sums[j]);
    __syncthreads(); // the reads of an earlier call
    if (lane == 0) {
#pragma unroll
        for (int j = 0; j < 8; j++) parts[threadIdx.x / 32][j] = sums[j];
    }
    __syncthreads();
    Eight all;
#pragma unroll
    for (int j = 0; j < 8; j++) all.v[j] = warp_sum(parts[lane][j]);
    return all;
}

// The largest key of [lo, hi] at which the measure reaches the target: >= it, or > it for DRAW. Where it is not
// reached at lo the search goes on below; 0 where it is reached nowhere. A target below 0 is minus a share of the
// measure at lo.
template <Mode MODE, bool LIST>
DEVICE u32 find(const Row& row, u32 first, u32 end, u32 lo, u32 hi, float target) {
    bool begun = false;
    while (lo < hi || !begun) {
        u32 step = (hi - lo) / 8 + 1;
        Eight all = measure<MODE, LIST>(row, first, end, lo, step);
        if (target < 0.0f) target = -target * all.v[0];
        // Sums in another order may have ended a little higher: some token must be left.
        if (MODE == DRAW && !begun) target = fminf(target, all.v[0] * 0.9999999f);
        begun = true;
        u32 reached = 0;
#pragma unroll
        for (int j = 0; j < 8; j++) reached += MODE == DRAW ? all.v[j] > target : all.v[j] >= target;
        if (reached > 0) {
            lo += (reached - 1) * step;
            hi = min(hi, lo + step - 1);
        } else if (lo == 0) {
            return 0;
        } else {
            hi = lo - 1;
            lo = 0;
        }
    }
    return lo;
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    sample(const float* __restrict__ logits,   // [rows, vocab]
           const float* __restrict__ sampling, // [rows, 4]
           const float* __restrict__ uniforms, // [rows]
           const Chunk* __restrict__ chunks,   // [rows, ceil(vocab / 4096)]
           u32* __restrict__ tokens,           // [rows]
           const u32* __restrict__ counts, u32 which, u32 rows, u32 vocab) {
    begin_dependent();
    u32 r = blockIdx.x;
    if (r >= live_rows(counts, which, rows)) return;
    extern __shared__ Near lists[]; // [32, WARP_LIST]
    __shared__ Chunk chunk[MAX_CHUNKS];
    u32 n = (vocab + CHUNK - 1) / CHUNK, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (threadIdx.x < n) chunk[threadIdx.x] = chunks[(u64)r * n + threadIdx.x];
    __syncthreads();
    u32 best = 0;
    for (u32 c = 1; c < n; c++) {
        if (chunk[c].top > chunk[best].top) best = c;
    }
    float4 how = *(const float4*)(sampling + r * 4);
    float temperature = how.x, top_k = how.y, top_p = how.z, min_p = how.w, top = chunk[best].top;
    if (temperature == 0.0f || !(fabsf(top) < __int_as_float(0x7f800000))) {
        if (threadIdx.x == 0) tokens[r] = chunk[best].id;
        return;
    }
    Near* own = lists + warp * WARP_LIST;
    Row row = {logits + (u64)r * vocab, own, 0, vocab % 4 == 0, vocab, top, LOG2E / temperature, 0, min_p};
    bool cut = top_k >= 1.0f && top_k < (float)vocab, nucleus = top_p < 1.0f;
    float total = 0.0f;
    for (u32 c = 0; c < n; c++) total += chunk[c].sum * exp2_fast((chunk[c].top - top) * row.scale);

    if (!cut && !nucleus && min_p <= 0.0f) {
        float target = uniforms[r] * total;
        u32 last = best;
        bool found = false;
        for (u32 c = 0; c < n && !found; c++) {
            float w = chunk[c].sum * exp2_fast((chunk[c].top - top) * row.scale);
            if (w > 0.0f) {
                last = c;
                found = w > target;
                if (!found) target -= w;
            }
        }
        // Past the last chunk by rounding: its last token.
        target = found ? fmaxf(target, 0.0f) : 3.0e38f;
        u32 first = last * CHUNK, end = min(first + CHUNK, vocab);
        u32 key = find<DRAW, false>(row, first, end, vocab - end, vocab - 1 - first, target);
        if (threadIdx.x == 0) tokens[r] = vocab - 1 - key;
        return;
    }

    // Gathers the list. A warp takes 128 consecutive elements at a time, so that the likely tokens, which have low
    // ids, are spread over the warps; its part is in order of id.
    float near = top - NEAR * temperature, listed_weight = 0.0f;
    bool overflow = false;
    for (u32 start = warp * 128; start < vocab; start += 4096) {
        // A chunk of 4096 elements is one turn of all warps.
        if (chunk[start / CHUNK].top < near) continue;
        u32 at = start + lane * 4;
        float4 v = load4(row.line, at, vocab, row.wide);
        float l[4] = {v.x, v.y, v.z, v.w};
        u32 mine = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) mine += l[i] >= near;
        u32 before = mine;
#pragma unroll
        for (int step = 1; step < 32; step <<= 1) {
            u32 other = __shfl_up_sync(FULL_WARP, before, step);
            if (lane >= step) before += other;
        }
        u32 all = __shfl_sync(FULL_WARP, before, 31);
        if (row.listed + all > WARP_LIST) {
            overflow = true;
            break;
        }
        u32 place = row.listed + before - mine;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (l[i] >= near) {
                own[place++] = {l[i], at + i};
                listed_weight += exp2_fast((l[i] - top) * row.scale);
            }
        }
        row.listed += all;
    }
    __syncwarp();
    float list_count = block_sum(lane == 0 ? (float)row.listed : 0.0f);
    listed_weight = block_sum(listed_weight);
    bool usable = !__syncthreads_or(overflow);

    u32 near_key = key_of(near), top_key = key_of(top);
    if (cut) {
        float k = floorf(top_k);
        row.floor = usable && list_count >= k ? find<COUNT, true>(row, 0, vocab, near_key, top_key, k)
                                              : find<COUNT, false>(row, 0, vocab, near_key, top_key, k);
    }
    if (nucleus) {
        bool inside = usable && row.floor >= near_key; // what top-k kept is in the list
        if (cut) {
            row.floor = inside ? find<MASS, true>(row, 0, vocab, row.floor, top_key, -top_p)
                               : find<MASS, false>(row, 0, vocab, row.floor, top_key, -top_p);
        } else {
            float mass = top_p * total;
            row.floor = usable && listed_weight >= mass ? find<MASS, true>(row, 0, vocab, near_key, top_key, mass)
                                                        : find<MASS, false>(row, 0, vocab, near_key, top_key, mass);
        }
    }
    // e^-10: the list has every token of at least this weight, give or take the rounding of its logit.
    bool inside = usable && (row.floor >= near_key || min_p > 4.6e-5f);
    // The share u of the weight of what is left.
    Eight left = inside ? measure<DRAW, true>(row, 0, vocab, 0, 0) : measure<DRAW, false>(row, 0, vocab, 0, 0);
    float target = left.v[0] * uniforms[r];
    u32 key = inside ? find<DRAW, true>(row, 0, vocab, 0, vocab - 1, target)
                     : find<DRAW, false>(row, 0, vocab, 0, vocab - 1, target);
    if (threadIdx.x == 0) tokens[r] = vocab - 1 - key;
}
