// Products with a narrow result, for LoRA: the wide operand is read once, the adapter's f32 parameters are rounded to
// T on their way to the tensor cores. Compiled twice: with ADAPTER_16 the adapter is T, as serving stores it, and only
// lora_shrink is there.
//
//   lora_shrink   out_i[t, :] = x[t, :] · A_i[slot(t)]ᵀ
//                 x T [rows, k], A_i f32 or T [slots · rank, k], out_i T [rows, rank]
//   lora_du       du[t, :] = scale · dy[t, :] · B
//                 dy T [rows, n], B f32 [n, rank], scale f32 [1], du T [rows, rank]; n is called k below
//
// lora_shrink takes up to three A that share x (q, k, v; gate, up): all have the same rank; unused pointers are null.
// `slots` may be null (slot 0 for each row); slot 0xffffffff makes the row 0. lora_du's `scale` may be null (1).
//
// Tensor-core kernels (bf16, f16), k a multiple of 8, pointers 16-byte aligned, `rank` any of 1..256:
//   lora_shrink_TILE_TYPE, lora_du_TILE_TYPE: TILE rows × ranks of a block, threads
//     few 16 × 16, 128 (up to 256 rows)    r16 128 × 16, 256    r32 64 × 32, 256    r64 64 × 64, 256
//   grid = (ceil(rows / tile rows), splits, ceil(groups · rank / tile ranks)), no dynamic shared memory.
//   splits: blocks that share the sum over k, 1 .. ceil(k / 128); best 2 · SMs / (grid.x · grid.z).
//   partials: f32 [grid.x · grid.z · splits · tile rows · tile ranks], counters: u32 [grid.x · grid.z], zero before
//   the first launch, left zero; both may be null where splits = 1. The sum over the splits has a fixed order.
// A warp's fragments come straight from global memory: the order of k within a product is free, so lane (g, t) takes
// eight neighbours of k at a time as its part of two m16n8k16 products.
//
// lora_shrink_one_TYPE (f32, bf16, f16; k a multiple of 8, pointers 16-byte aligned): a block an element, no scratch,
// the adapter is not rounded; for up to 32 rows and for f32. grid = (rank, rows, groups), 256 threads. With `norm` (f32 [k])
// x is x / sqrt(mean(x²) + eps) · norm. ready, clear: flags (common.cuh), or null: one is raised when the kernels ahead have ended, so
// that the product, which starts early, works on x meanwhile; the other is the next such launch's, and lowered: nobody waits
// for it any more. No other kernel takes norm and flags.
//
// Plain kernels (f32, bf16, f16; any k): lora_shrink_plain_TYPE, lora_du_plain_TYPE, grid = (rows, groups), 256
// threads.
//
// H100, November 2026, bf16, rank 16, share of a copy's 3.0 TB/s: 2048 × 4096 13.1 µs (43 %: 5 µs of it are latencies,
// most of them of the sum over the splits), 2048 × 12288 27.7 µs (61 %), 8192 × 4096 32.7 µs (68 %); rank 64: 17.6,
// 38.1, 45.9 µs. lora_du is like it at rank 16; at rank 64 22.8, 50.1, 70.8 µs. lora_shrink_one with three adapters of
// rank 16, k = 4096: 2.2 µs for one row, 6.8 µs for 32.
#include "mma.cuh"

#ifndef ADAPTER_16
#define ADAPTER_16 0
#endif
#if ADAPTER_16
#define ADAPTER(T) T
#else
#define ADAPTER(T) float
#endif

// The smallest slot of `rows` rows from `from` on, NO_SLOT if there is none. The same in every warp.
DEVICE u32 next_slot(const u32* slots, u32 rows, u32 from) {
    if (!slots) return from == 0 ? 0 : NO_SLOT;
    u32 slot = NO_SLOT;
    for (u32 i = threadIdx.x % 32; i < rows; i += 32) {
        u32 other = slots[i];
        if (other >= from) slot = min(slot, other);
    }
    return __reduce_min_sync(FULL_WARP, slot);
}

template <typename A> struct Shrink {
    const void* x;
    const A* a[3];
    void* out[3];
    const u32* slots;
    const float* scale;
    float* partials;
    u32* counters;
    u32 live, k, rank, groups;
    const float* norm;
    float eps;
    u32 *ready, *clear;
};

// WM × WK warps: WM of 16 rows each, WK that share the inputs of a chunk. NT tiles of eight ranks. TRANSPOSED: the
// adapter is [k, rank]. A chunk is KC inputs, staged in shared memory in the order in which lanes take it; two chunks
// are there at a time, the rows of the next one and its part of the adapter are on their way to registers.
template <typename T, int WM, int WK, int NT, int KC, bool TRANSPOSED> DEVICE void shrink(const Shrink<ADAPTER(T)>& p) {
    typedef ADAPTER(T) A;
    constexpr int THREADS = 32 * WM * WK, ROWS = 16 * WM, RANKS = 8 * NT;
    constexpr int STEPS = KC / 32 / WK; // of 32 inputs, for a warp in a chunk
    constexpr int UNITS = KC * RANKS / 8 / THREADS;
    static_assert(UNITS * 8 * THREADS == KC * RANKS && STEPS * 32 * WK == KC, "whole units and steps");
    __shared__ uint4 staged[2][KC / 32 * NT * 32];

    int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
    int warp_row = warp % WM, warp_k = warp / WM;
    u32 first_row = blockIdx.x * ROWS, first_rank = blockIdx.z * RANKS;
    if (first_row >= p.live) return;

    u32 chunks = (p.k + KC - 1) / KC;
    u32 begin = chunks * blockIdx.y / gridDim.y * KC, end = min(p.k, chunks * (blockIdx.y + 1) / gridDim.y * KC);

    const u32* slots = p.slots ? p.slots + first_row : 0;
    u32 slot_rows = min((u32)ROWS, p.live - first_row);
    u32 slot_of[2];
    const T* rows[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        u32 row = warp_row * 16 + g + 8 * h;
        slot_of[h] = row >= slot_rows ? NO_SLOT : slots ? slots[row] : 0;
        rows[h] = (const T*)p.x + (u64)(first_row + row) * p.k;
    }
    // Rows of other slots are zeros: each row's sum gets its own slot's product alone.
    uint4 x[STEPS][2];
    auto load_x = [&](u32 slot, u32 chunk, int step) {
        u32 k = chunk + (step * WK + warp_k) * 32 + t * 8;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            x[step][h] = slot_of[h] == slot && k < end ? *(const uint4*)(rows[h] + k) : make_uint4(0, 0, 0, 0);
        }
    };

    // A unit is eight values: of one rank and eight inputs, or (TRANSPOSED) of four ranks and two inputs. Which unit a
    // thread has keeps the stores to shared memory free of bank conflicts and reads whole sectors.
    auto unit_rank = [&](int u) {
        int index = u * THREADS + thread;
        return TRANSPOSED ? (index / 32 % (RANKS / 8) * 2 + index / 16 % 2) * 4
                          : index / 8 / (KC / 32) * 2 + index / 4 % 2;
    };
    auto unit_k = [&](int u) {
        int index = u * THREADS + thread;
        return TRANSPOSED ? (index / 32 / (RANKS / 8) * 16 + index % 16) * 2
                          : (index / 8 % (KC / 32) * 4 + index % 4) * 8;
    };
    const A* source[UNITS];
    float unit[UNITS][8];
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        u32 rank = first_rank + unit_rank(u), group = rank / p.rank;
        const A* a = group == 0 ? p.a[0] : group == 1 ? p.a[1] : p.a[2];
        source[u] = group < p.groups ? a + (u64)(rank % p.rank) * p.k : 0;
    }
    auto load_a = [&](u32 slot, u32 chunk) {
#pragma unroll
        for (int u = 0; u < UNITS; u++) {
            float(&v)[8] = unit[u];
#pragma unroll
            for (int i = 0; i < 8; i++) v[i] = 0;
            u32 k = chunk + unit_k(u), rank = first_rank + unit_rank(u);
            if (k >= end) continue;
            if constexpr (TRANSPOSED) {
                if (rank >= p.rank) continue;
                const A* a = p.a[0] + (k * p.rank + rank);
                const A* b = a + p.rank;
                if (p.rank % 4 == 0) {
                    float4 low = *(const float4*)a, high = *(const float4*)b;
                    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
                    v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
                } else {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        if (rank + i < p.rank) v[i] = to_float(a[i]), v[4 + i] = to_float(b[i]);
                    }
                }
            } else if (source[u]) {
                load8(source[u] + (u64)slot * p.rank * p.k + k, v);
            }
        }
    };
    auto store_a = [&](int buffer) {
#pragma unroll
        for (int u = 0; u < UNITS; u++) {
            int k = unit_k(u), rank = unit_rank(u);
            const float(&v)[8] = unit[u];
            uint4* place = &staged[buffer][(k / 32 * NT + rank / 8) * 32 + rank % 8 * 4 + k % 32 / 8];
            if (TRANSPOSED) {
                u32 words[4] = {pack2<T>(v[0], v[4]), pack2<T>(v[1], v[5]), pack2<T>(v[2], v[6]), pack2<T>(v[3], v[7])};
                bool odd = thread / 16 % 2; // half of the lanes starts with the odd ranks: these are 16 banks away
#pragma unroll
                for (int i = 0; i < 4; i++) ((u32*)(place + 4 * (i ^ odd)))[k % 8 / 2] = odd ? words[i ^ 1] : words[i];
            } else {
                store8((T*)place, v);
            }
        }
    };

    float sums[NT][4] = {};
    u32 slot = next_slot(slots, slot_rows, 0), chunk = begin;
    load_a(slot == NO_SLOT ? 0 : slot, chunk);
    wait_for_previous();
#pragma unroll
    for (int step = 0; step < STEPS; step++) load_x(slot, chunk, step);
    for (int buffer = 0; slot != NO_SLOT; buffer ^= 1) {
        store_a(buffer);
        __syncthreads();
        chunk += KC;
        if (chunk >= end) chunk = begin, slot = next_slot(slots, slot_rows, slot + 1);
        if (slot != NO_SLOT) load_a(slot, chunk);
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            uint4 top = x[step][0], bottom = x[step][1];
            u32 first[4] = {top.x, bottom.x, top.y, bottom.y}, second[4] = {top.z, bottom.z, top.w, bottom.w};
            if (slot != NO_SLOT) load_x(slot, chunk, step);
#pragma unroll
            for (int n = 0; n < NT; n++) {
                uint4 b = staged[buffer][((step * WK + warp_k) * NT + n) * 32 + lane];
                mma16816<T>(sums[n], first, b.x, b.y);
                mma16816<T>(sums[n], second, b.z, b.w);
            }
        }
    }

    // Warps that share rows: the upper half hands its sums to the lower, until one is left.
    float4* shared = (float4*)staged;
    if (WK > 1) __syncthreads();
    static_assert(WK == 1 || WK / 2 * WM * NT * 32 * 16 <= (int)sizeof(staged), "sums fit");
#pragma unroll
    for (int half = WK / 2; half > 0; half /= 2) {
        int place = ((warp_k % half) * WM + warp_row) * NT * 32 + lane;
        if (warp_k >= half && warp_k < 2 * half) {
#pragma unroll
            for (int n = 0; n < NT; n++) {
                shared[place + n * 32] = make_float4(sums[n][0], sums[n][1], sums[n][2], sums[n][3]);
            }
        }
        __syncthreads();
        if (warp_k < half) {
#pragma unroll
            for (int n = 0; n < NT; n++) {
                float4 v = shared[place + n * 32];
                sums[n][0] += v.x, sums[n][1] += v.y, sums[n][2] += v.z, sums[n][3] += v.w;
            }
        }
        __syncthreads();
    }

    if (gridDim.y > 1) {
        u32 tile = blockIdx.z * gridDim.x + blockIdx.x;
        float4* mine = (float4*)p.partials + (u64)tile * gridDim.y * WM * NT * 32 + warp_row * NT * 32 + lane;
        if (warp_k == 0) {
#pragma unroll
            for (int n = 0; n < NT; n++) {
                const float(&v)[4] = sums[n];
                mine[(u64)blockIdx.y * WM * NT * 32 + n * 32] = make_float4(v[0], v[1], v[2], v[3]);
            }
        }
        if (!last_block(p.counters + tile, gridDim.y)) return;
        if (warp_k == 0) {
#pragma unroll
            for (int n = 0; n < NT; n++) sums[n][0] = sums[n][1] = sums[n][2] = sums[n][3] = 0;
#pragma unroll(16 / NT)
            for (u32 split = 0; split < gridDim.y; split++) {
#pragma unroll
                for (int n = 0; n < NT; n++) {
                    float4 v = load_fresh(mine + (u64)split * WM * NT * 32 + n * 32);
                    sums[n][0] += v.x, sums[n][1] += v.y, sums[n][2] += v.z, sums[n][3] += v.w;
                }
            }
        }
    }
    if (warp_k > 0) return;
    float scale = p.scale ? *p.scale : 1;
#pragma unroll
    for (int n = 0; n < NT; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 row = first_row + warp_row * 16 + g + i / 2 * 8, rank = first_rank + n * 8 + 2 * t + i % 2;
            u32 group = rank / p.rank;
            if (row < p.live && group < p.groups) {
                T* out = (T*)(group == 0 ? p.out[0] : group == 1 ? p.out[1] : p.out[2]);
                out[(u64)row * p.rank + rank % p.rank] = from_float<T>(scale * sums[n][i]);
            }
        }
    }
}

// A block computes one element, with the adapter as it lies.
template <typename T> DEVICE void shrink_one(const Shrink<ADAPTER(T)>& p) {
    wait_for_previous();
    u32 rank = blockIdx.x, row = blockIdx.y, group = blockIdx.z;
    if (rank + row + group + threadIdx.x == 0) {
        if (p.ready) raise_flag(p.ready);
        if (p.clear) *p.clear = 0;
    }
    u32 slot = p.slots ? p.slots[row] : 0; // before live rows are known: the buffer has the bucket's rows
    if (row >= p.live) return;
    const ADAPTER(T)* a = group == 0 ? p.a[0] : group == 1 ? p.a[1] : p.a[2];
    float sum = 0, squares = 0;
    if (slot != NO_SLOT) {
        const T* x = (const T*)p.x + (u64)row * p.k;
        a += ((u64)slot * p.rank + rank) * p.k;
#pragma unroll 4
        for (u32 k = threadIdx.x * 8; k < p.k; k += 256 * 8) {
            float v[8], w[8];
            load8(x + k, v);
            load8(a + k, w);
            if (p.norm) {
                float n[8];
                load8(p.norm + k, n);
#pragma unroll
                for (int i = 0; i < 8; i++) squares += v[i] * v[i], v[i] *= n[i];
            }
#pragma unroll
            for (int i = 0; i < 8; i++) sum += v[i] * w[i];
        }
    }
    sum = block_sum(sum);
    if (p.norm) sum *= 1.0f / sqrtf(block_sum(squares) / (float)p.k + p.eps);
    T* out = (T*)(group == 0 ? p.out[0] : group == 1 ? p.out[1] : p.out[2]);
    if (threadIdx.x == 0) out[(u64)row * p.rank + rank] = from_float<T>(sum);
}

// A block computes a row: each warp one rank after the other.
template <typename T, bool TRANSPOSED> DEVICE void shrink_plain(const Shrink<ADAPTER(T)>& p) {
    wait_for_previous();
    u32 row = blockIdx.x, group = blockIdx.y;
    if (row >= p.live) return;
    u32 slot = p.slots ? p.slots[row] : 0;
    const T* x = (const T*)p.x + (u64)row * p.k;
    const ADAPTER(T)* a = group == 0 ? p.a[0] : group == 1 ? p.a[1] : p.a[2];
    T* out = (T*)(group == 0 ? p.out[0] : group == 1 ? p.out[1] : p.out[2]) + (u64)row * p.rank;
    float scale = p.scale ? *p.scale : 1;
    for (u32 rank = threadIdx.x / 32; rank < p.rank; rank += blockDim.x / 32) {
        float sum = 0;
        if (slot != NO_SLOT) {
            const ADAPTER(T)* from = TRANSPOSED ? a + rank : a + ((u64)slot * p.rank + rank) * p.k;
            u64 stride = TRANSPOSED ? p.rank : 1;
            for (u32 k = threadIdx.x % 32; k < p.k; k += 32) sum += to_float(x[k]) * to_float(from[k * stride]);
        }
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) out[rank] = from_float<T>(scale * sum);
    }
}

// Two blocks of 256 threads, or as many of 128 as have that many threads, share a multiprocessor.
#define SHRINK(name, T, threads, body)                                                                                \
    extern "C" __global__ void __launch_bounds__(threads, 512 / (threads)) lora_shrink_##name(                        \
        const T* x, const ADAPTER(T)* a0, const ADAPTER(T)* a1, const ADAPTER(T)* a2, T* out0, T* out1, T* out2,      \
        const u32* slots, float* partials, u32* counters, const u32* counts, u32 which, u32 rows, u32 k, u32 rank,    \
        u32 groups, const float* norm, float eps, u32* ready, u32* clear) {                                           \
        let_next_start();                                                                                             \
        u32 live = live_rows(counts, which, rows);                                                                    \
        Shrink<ADAPTER(T)> p = {x,    {a0, a1, a2}, {out0, out1, out2}, slots,  0,      partials, counters,           \
                                live, k, rank, groups, norm, eps, ready, clear};                                      \
        body(p);                                                                                                      \
    }
#if ADAPTER_16
#define DU(name, T, threads, body)
#else
#define DU(name, T, threads, body)                                                                                    \
    extern "C" __global__ void __launch_bounds__(threads, 512 / (threads)) lora_du_##name(                            \
        const T* dy, const float* b, const float* scale, T* du, float* partials, u32* counters, const u32* counts,    \
        u32 which, u32 rows, u32 n, u32 rank) {                                                                       \
        u32 live = live_rows(counts, which, rows);                                                                    \
        Shrink<float> p = {dy, {b, 0, 0}, {du, 0, 0}, 0, scale, partials, counters, live, n, rank, 1, 0, 0, 0, 0};    \
        body(p);                                                                                                      \
    }
#endif
#define TILE(name, T, type, ...)                                                                                      \
    SHRINK(name##_##type, T, THREADS(__VA_ARGS__), (shrink<T, __VA_ARGS__, false>))                                   \
    DU(name##_##type, T, THREADS(__VA_ARGS__), (shrink<T, __VA_ARGS__, true>))
#define THREADS(WM, WK, NT, KC) 32 * WM * WK
#define TILES(T, type)                                                                                                \
    TILE(few, T, type, 1, 4, 2, 128)                                                                                  \
    TILE(r16, T, type, 8, 1, 2, 128)                                                                                  \
    TILE(r32, T, type, 4, 2, 4, 128)                                                                                  \
    TILE(r64, T, type, 4, 2, 8, 64)
TILES(bf16, bf16)
TILES(f16, f16)

#define PLAIN(T, type)                                                                                                \
    SHRINK(plain_##type, T, 256, (shrink_plain<T, false>))                                                            \
    DU(plain_##type, T, 256, (shrink_plain<T, true>))                                                                 \
    SHRINK(one_##type, T, 256, (shrink_one<T>))
#if !ADAPTER_16
PLAIN(float, f32)
#endif
PLAIN(bf16, bf16)
PLAIN(f16, f16)
