// Products with a narrow inner dimension, for LoRA: the wide result is read and written once, the adapter's f32
// parameters are rounded to T on their way to the tensor cores. Compiled twice: with ADAPTER_16 the adapter is T, as
// serving stores it, and only lora_expand is there.
//
// A small term beside a large y: y must not have been rounded to T before, or the sum is rounded back to where it was
// (bf16: all that is below 1/512 of y; in training from B = 0 that is everything). Hence *_from_f32.
//
//   lora_expand   y_i[t, :] += scales_i[slot(t)] · u_i[t, :] · B_i[slot(t)]ᵀ
//                 u_i T [rows, rank], B_i f32 or T [slots · n_i, rank], scales_i f32 [slots], y_i T [rows, n_i]
//   lora_expand_from_f32   y[t, :] = base[t, :] + the same: one product, base f32 [rows, n], y T
//   lora_dx       dx[t, :] (+)= Σ_i scale_i · du_i[t, :] · A_i
//                 du_i T [rows, rank], A_i f32 [rank, k], scale_i f32 [1], dx T [rows, k]
//
// lora_expand takes up to three independent products of one rank (q, k, v; gate, up), lora_dx the sum of up to three;
// unused pointers are null. `slots` may be null (slot 0 for each row); rows of slot 0xffffffff get no term. scale_i
// of lora_dx may be null (1). lora_dx overwrites dx where accumulate = 0.
//
// Tensor-core kernels (bf16, f16), n_i and k multiples of 8, pointers 16-byte aligned, `rank` any of 1..256, for
// lora_dx also groups · ceil(rank / 16) <= 16:
//   lora_expand_few_TYPE, lora_expand_few_from_f32_TYPE, lora_dx_few_TYPE: tiles of 16 rows × 64 columns, 64 threads,
//   for up to 4 rows
//   lora_expand_TYPE, lora_expand_from_f32_TYPE, lora_dx_TYPE: tiles of 128 rows (from f32: 64) × 64 columns, 256
//   threads
//   grid = (ceil(max n_i / 64), blocks, groups; lora_dx: 1), no dynamic shared memory, no scratch.
//   blocks: they share the tiles of a column, 1 .. ceil(rows / tile rows); best 2 (few: 7) · SMs / (grid.x · grid.z).
// The order of the columns within a product is free: lane (g, t) takes eight neighbours, so y moves 16 bytes at a time.
// The scale goes into the adapter before it is rounded.
//
// Plain kernels (f32, bf16, f16; any n): lora_expand_plain_TYPE grid = (ceil(max n_i / 256), rows, groups),
// lora_expand_plain_from_f32_TYPE the same, lora_dx_plain_TYPE grid = (ceil(k / 256), rows), 256 threads.
//
// H100, November 2026, bf16, rank 16, share of a copy's 3.0 TB/s: lora_expand 2048 × 4096 14.8 µs (76 %), 2048 × 12288
// 41.1 µs (82 %), 8192 × 4096 51.4 µs (87 %), lora_dx with accumulate the same; rank 64: 17.8, 54.1, 68.8 µs.
#include "mma.cuh"

#ifndef ADAPTER_16
#define ADAPTER_16 0
#endif
#if ADAPTER_16
#define ADAPTER(T) T
#else
#define ADAPTER(T) float
#endif

// Eight neighbours of what is added to, as they lie in memory: T, or f32 (twice the words).
template <typename Base> struct Octet {
    static const int WORDS = 4 * sizeof(Base);
    u32 words[WORDS];
    DEVICE void load(const Base* p, bool there) {
#pragma unroll
        for (int i = 0; i < WORDS / 4; i++) {
            uint4 q = there ? ((const uint4*)p)[i] : make_uint4(0, 0, 0, 0);
            words[4 * i] = q.x, words[4 * i + 1] = q.y, words[4 * i + 2] = q.z, words[4 * i + 3] = q.w;
        }
    }
    DEVICE float2 pair(int i) const {
        if constexpr (sizeof(Base) == 4) {
            return make_float2(__uint_as_float(words[2 * i]), __uint_as_float(words[2 * i + 1]));
        } else {
            return unpack2<Base>(words[i]);
        }
    }
};

// The smallest slot of `rows` rows from `from` on, NO_SLOT if there is none. The same in every lane.
DEVICE u32 next_slot(const u32* slots, u32 rows, u32 from) {
    u32 slot = NO_SLOT;
    for (u32 i = threadIdx.x % 32; i < rows; i += 32) {
        u32 other = slots[i];
        if (other >= from) slot = min(slot, other);
    }
    return __reduce_min_sync(FULL_WARP, slot);
}

// Four neighbours of an adapter's row.
template <typename B> DEVICE float4 load4(const B* p) {
    if constexpr (sizeof(B) == 4) {
        return *(const float4*)p;
    } else {
        uint2 words = *(const uint2*)p;
        float2 low = unpack2<B>(words.x), high = unpack2<B>(words.y);
        return make_float4(low.x, low.y, high.x, high.y);
    }
}

// The terms first .. first + terms are added to y.
template <typename B> struct Expand {
    const void* u[3];
    const B* b[3];
    const float* scales[3];
    const void* base; // what is added to: y itself, or f32 [rows, n]
    void* y;
    const u32* slots;
    u32 live, n, rank, first, terms;
    bool accumulate;
};

// WM × WN warps: WM of 16 rows, WN of COLS × 32 columns. TRANSPOSED: the adapter is [rank, n]. Shared memory holds the
// adapters of a few entries (the terms of lora_dx; adapters' slots), while the block goes over its tiles; a tile's y
// and its first u are fetched while the tile before is computed.
template <typename T, typename Base, int WM, int WN, int COLS, bool TRANSPOSED>
DEVICE void expand(const Expand<ADAPTER(T)>& p) {
    typedef ADAPTER(T) B;
    constexpr int THREADS = 32 * WM * WN, ROWS = 16 * WM, COLUMNS = 32 * WN * COLS, STEPS = 16; // of 16 ranks
    // [32 columns][16 ranks][pair of the four 8-column tiles][lane]: the two registers of each of the two tiles.
    __shared__ uint4 staged[COLUMNS / 32 * STEPS * 2 * 32];
    __shared__ u32 entries[STEPS], entries_used;

    int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
    int warp_row = warp % WM * 16, warp_column = warp / WM * COLS;
    u32 first_column = blockIdx.x * COLUMNS, first_row = blockIdx.y * ROWS;
    if (first_row >= p.live || first_column >= p.n) return;
    u32 steps = (p.rank + 15) / 16, column = first_column + warp_column * 32 + t * 8;

    auto stage = [&](u32 count) {
        if constexpr (TRANSPOSED) {
            // Four ranks × four columns at a time.
            for (u32 i = thread; i < count * steps * 4 * (COLUMNS / 4); i += THREADS) {
                u32 at = i % (COLUMNS / 4) * 4, quad = i / (COLUMNS / 4), term = quad / (steps * 4);
                u32 rank = quad % (steps * 4) * 4, step = quad / 4;
                const B* from = term == 0 ? p.b[0] : term == 1 ? p.b[1] : p.b[2];
                from += (u64)rank * p.n + first_column + at;
                const float* scales = term == 0 ? p.scales[0] : term == 1 ? p.scales[1] : p.scales[2];
                float scale = scales ? *scales : 1;
                float4 v[4];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    bool there = rank + j < p.rank && first_column + at < p.n;
                    v[j] = there ? *(const float4*)(from + (u64)j * p.n) : make_float4(0, 0, 0, 0);
                }
                float columns[4][4] = {{v[0].x, v[1].x, v[2].x, v[3].x},
                                       {v[0].y, v[1].y, v[2].y, v[3].y},
                                       {v[0].z, v[1].z, v[2].z, v[3].z},
                                       {v[0].w, v[1].w, v[2].w, v[3].w}};
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    u32 n = at + c, tile = n % 8 / 2, l = (n % 32 / 8 * 2 + n % 2) * 4 + quad % 4;
                    const float(&w)[4] = columns[c];
                    ((uint2*)&staged[((n / 32 * STEPS + step) * 2 + tile / 2) * 32 + l])[tile % 2] =
                        make_uint2(pack2<T>(scale * w[0], scale * w[1]), pack2<T>(scale * w[2], scale * w[3]));
                }
            }
        } else {
            // Four ranks of one column at a time, BATCH such loads on their way.
            constexpr int BATCH = COLS > 1 ? 2 : 4;
            const B* b = p.first == 0 ? p.b[0] : p.first == 1 ? p.b[1] : p.b[2];
            const float* scales = p.first == 0 ? p.scales[0] : p.first == 1 ? p.scales[1] : p.scales[2];
            u32 quads = steps * 4, units = count * COLUMNS * quads;
            for (u32 first = thread; first < units; first += BATCH * THREADS) {
                float4 w[BATCH];
                float scale[BATCH];
#pragma unroll
                for (int j = 0; j < BATCH; j++) {
                    u32 i = first + j * THREADS, rank = i % quads * 4, n = first_column + i / quads % COLUMNS;
                    w[j] = make_float4(0, 0, 0, 0), scale[j] = 1;
                    if (i < units && n < p.n && rank < p.rank) {
                        u32 slot = p.slots ? entries[i / quads / COLUMNS] : 0, left = p.rank - rank;
                        const B* from = b + ((u64)slot * p.n + n) * p.rank + rank;
                        if (scales) scale[j] = scales[slot];
                        if (p.rank % 4 == 0) {
                            w[j] = load4(from);
                        } else {
                            w[j].x = to_float(from[0]);
                            if (left > 1) w[j].y = to_float(from[1]);
                            if (left > 2) w[j].z = to_float(from[2]);
                            if (left > 3) w[j].w = to_float(from[3]);
                        }
                    }
                }
#pragma unroll
                for (int j = 0; j < BATCH; j++) {
                    u32 i = first + j * THREADS, quad = i % quads, n = i / quads % COLUMNS, entry = i / quads / COLUMNS;
                    u32 tile = n % 8 / 2, l = (n % 32 / 8 * 2 + n % 2) * 4 + quad % 4, step = entry * steps + quad / 4;
                    if (i < units) {
                        u32 low = pack2<T>(scale[j] * w[j].x, scale[j] * w[j].y);
                        u32 high = pack2<T>(scale[j] * w[j].z, scale[j] * w[j].w);
                        ((uint2*)&staged[((n / 32 * STEPS + step) * 2 + tile / 2) * 32 + l])[tile % 2] =
                            make_uint2(low, high);
                    }
                }
            }
        }
    };

    auto load_u = [&](u32 term, u32 row, u32 step, uint2(&u)[2]) {
        u32 rank = step * 16 + t * 4, left = p.rank - rank;
        const T* from = (const T*)(term == 0 ? p.u[0] : term == 1 ? p.u[1] : p.u[2]);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            u32 at = row + warp_row + g + 8 * h;
            const T* q = from + (u64)at * p.rank + rank;
            u[h] = make_uint2(0, 0);
            if (at < p.live && rank < p.rank) {
                if (p.rank % 4 == 0) {
                    u[h] = *(const uint2*)q;
                } else {
                    u[h].x = q[0].bits | (left > 1 ? (u32)q[1].bits << 16 : 0);
                    u[h].y = (left > 2 ? (u32)q[2].bits : 0) | (left > 3 ? (u32)q[3].bits << 16 : 0);
                }
            }
        }
    };
    auto load_y = [&](u32 row, Octet<Base>(&y)[COLS][2]) {
#pragma unroll
        for (int i = 0; i < 2 * COLS; i++) {
            u32 at = row + warp_row + g + 8 * (i % 2), n = column + i / 2 * 32;
            bool there = p.accumulate && at < p.live && n < p.n;
            y[i / 2][i % 2].load((const Base*)p.base + (u64)at * p.n + n, there);
        }
    };

    Octet<Base> y[COLS][2], next_y[COLS][2];
    uint2 first_u[2];
    load_y(first_row, y);
    load_u(p.first, first_row, 0, first_u);
    u32 one = NO_SLOT; // the slot of which alone the adapter is staged
    if (!p.slots) {
        stage(p.terms);
        __syncthreads();
    }
    for (; first_row < p.live; first_row += gridDim.y * ROWS) {
        u32 next_row = first_row + gridDim.y * ROWS;
        uint2 u[2] = {first_u[0], first_u[1]};
        load_y(next_row, next_y);
        load_u(p.first, next_row, 0, first_u);
        u32 slot_of[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            u32 row = first_row + warp_row + g + 8 * h;
            slot_of[h] = row >= p.live ? NO_SLOT : p.slots ? p.slots[row] : 0;
        }

        float sums[COLS][4][4] = {};
        auto multiply = [&](u32 entry, u32 step, bool (&wanted)[2]) {
            u32 a[4] = {wanted[0] ? u[0].x : 0, wanted[1] ? u[1].x : 0, wanted[0] ? u[0].y : 0, wanted[1] ? u[1].y : 0};
#pragma unroll
            for (int c = 0; c < COLS; c++) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    uint4 q = staged[(((warp_column + c) * STEPS + entry * steps + step) * 2 + half) * 32 + lane];
                    mma16816<T>(sums[c][2 * half], a, q.x, q.y);
                    mma16816<T>(sums[c][2 * half + 1], a, q.z, q.w);
                }
            }
        };
        if (p.slots) {
            u32 capacity = STEPS / steps, from = 0, count;
            do {
                __syncthreads(); // what was staged before has been read
                if (warp == 0) {
                    u32 used = 0, slot;
                    u32 rows = min((u32)ROWS, p.live - first_row);
                    while (used < capacity && (slot = next_slot(p.slots + first_row, rows, from)) != NO_SLOT) {
                        if (lane == 0) entries[used] = slot;
                        used++, from = slot + 1;
                    }
                    if (lane == 0) entries_used = used;
                }
                __syncthreads();
                count = entries_used;
                if (count == 0) break;
                from = entries[count - 1] + 1;
                if (count > 1 || entries[0] != one) {
                    stage(count);
                    one = count == 1 ? entries[0] : NO_SLOT;
                    __syncthreads();
                }
                // Rows of other slots are zeros: each row's sum gets its own slot's product alone.
                for (u32 step = 0; step < steps; step++) {
                    if (steps > 1) load_u(p.first, first_row, step, u);
                    for (u32 entry = 0; entry < count; entry++) {
                        bool wanted[2] = {slot_of[0] == entries[entry], slot_of[1] == entries[entry]};
                        multiply(entry, step, wanted);
                    }
                }
            } while (count == capacity);
        } else {
            bool wanted[2] = {true, true};
            u32 total = p.terms * steps;
            for (u32 i = 0; i < total; i++) {
                uint2 next_u[2] = {};
                u32 term = (i + 1) / steps;
                if (i + 1 < total) load_u(p.first + term, first_row, i + 1 - term * steps, next_u);
                multiply(0, i, wanted);
                u[0] = next_u[0], u[1] = next_u[1];
            }
        }

#pragma unroll
        for (int h = 0; h < 2; h++) {
#pragma unroll
            for (int c = 0; c < COLS; c++) {
                u32 words[4], n = column + c * 32;
#pragma unroll
                for (int tile = 0; tile < 4; tile++) {
                    float2 old = y[c][h].pair(tile);
                    words[tile] = pack2<T>(old.x + sums[c][tile][2 * h], old.y + sums[c][tile][2 * h + 1]);
                }
                u32 row = first_row + warp_row + g + 8 * h;
                // In place, rows without an adapter stay as they are; else all are rounded.
                bool wanted = sizeof(Base) == 4 ? row < p.live : slot_of[h] != NO_SLOT;
                if (wanted && n < p.n) {
                    *(uint4*)((T*)p.y + (u64)row * p.n + n) = make_uint4(words[0], words[1], words[2], words[3]);
                }
                y[c][h] = next_y[c][h];
            }
        }
    }
}

// A thread computes an element.
template <typename T, typename Base, bool TRANSPOSED> DEVICE void expand_plain(const Expand<ADAPTER(T)>& p) {
    u32 row = blockIdx.y, column = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= p.live || column >= p.n) return;
    u32 slot = p.slots ? p.slots[row] : 0;
    u64 at = (u64)row * p.n + column;
    float total = p.accumulate ? to_float(((const Base*)p.base)[at]) : 0;
    for (u32 term = p.first; slot != NO_SLOT && term < p.first + p.terms; term++) {
        const ADAPTER(T)* b = term == 0 ? p.b[0] : term == 1 ? p.b[1] : p.b[2];
        const T* u = (const T*)(term == 0 ? p.u[0] : term == 1 ? p.u[1] : p.u[2]) + (u64)row * p.rank;
        const float* scales = term == 0 ? p.scales[0] : term == 1 ? p.scales[1] : p.scales[2];
        b += TRANSPOSED ? column : ((u64)slot * p.n + column) * p.rank;
        u64 stride = TRANSPOSED ? p.n : 1;
        float sum = 0;
        for (u32 rank = 0; rank < p.rank; rank++) sum += to_float(u[rank]) * to_float(b[rank * stride]);
        total += (scales ? scales[slot] : 1) * sum;
    }
    ((T*)p.y)[at] = from_float<T>(total);
}

#define EXPAND(name, T, threads, body)                                                                                \
    extern "C" __global__ void __launch_bounds__(threads, 512 / (threads)) lora_expand_##name(                         \
        const T* u0, const T* u1, const T* u2, const ADAPTER(T)* b0, const ADAPTER(T)* b1, const ADAPTER(T)* b2,      \
        const float* scales0, const float* scales1, const float* scales2, T* y0, T* y1, T* y2, const u32* slots,      \
        const u32* counts, u32 which, u32 rows, u32 n0, u32 n1, u32 n2, u32 rank) {                                   \
        begin_dependent();                                                                                            \
        u32 live = live_rows(counts, which, rows), term = blockIdx.z;                                                 \
        T* y = term == 0 ? y0 : term == 1 ? y1 : y2;                                                                  \
        u32 n = term == 0 ? n0 : term == 1 ? n1 : n2;                                                                 \
        Expand<ADAPTER(T)> p = {{u0, u1, u2}, {b0, b1, b2}, {scales0, scales1, scales2}, y,    y, slots,              \
                                live,         n,            rank,                        term, 1, true};             \
        body(p);                                                                                                      \
    }
#if ADAPTER_16
#define FROM_F32(name, T, threads, body)
#define DX(name, T, threads, body)
#else
#define FROM_F32(name, T, threads, body)                                                                              \
    extern "C" __global__ void __launch_bounds__(threads, 512 / (threads)) lora_expand_##name(                         \
        const T* u, const float* b, const float* scales, const float* base, T* y, const u32* slots,                   \
        const u32* counts, u32 which, u32 rows, u32 n, u32 rank) {                                                    \
        Expand<float> p = {{u, 0, 0}, {b, 0, 0}, {scales, 0, 0}, base, y, slots, live_rows(counts, which, rows), n,   \
                           rank, 0, 1, true};                                                                                       \
        body(p);                                                                                                      \
    }
#define DX(name, T, threads, body)                                                                                    \
    extern "C" __global__ void __launch_bounds__(threads, 512 / (threads)) lora_dx_##name(                             \
        const T* du0, const T* du1, const T* du2, const float* a0, const float* a1, const float* a2,                  \
        const float* scale0, const float* scale1, const float* scale2, T* dx, const u32* counts, u32 which, u32 rows, \
        u32 k, u32 rank, u32 groups, u32 accumulate) {                                                                \
        u32 live = live_rows(counts, which, rows);                                                                    \
        Expand<float> p = {{du0, du1, du2}, {a0, a1, a2}, {scale0, scale1, scale2}, dx, dx, 0, live, k, rank, 0,      \
                           groups, accumulate != 0};                                                                                 \
        body(p);                                                                                                      \
    }
#endif
// A tile of f32 is half as high: its y takes twice the registers.
#define TILE(size, T, WM, WN, COLS, F32_WM, F32_WN, F32_COLS)                                                         \
    EXPAND(size##T, T, 32 * WM * WN, (expand<T, T, WM, WN, COLS, false>))                                             \
    FROM_F32(size##from_f32_##T, T, 32 * WM * WN, (expand<T, float, F32_WM, F32_WN, F32_COLS, false>))                \
    DX(size##T, T, 32 * WM * WN, (expand<T, T, WM, WN, COLS, true>))
TILE(few_, bf16, 1, 2, 1, 1, 2, 1)
TILE(few_, f16, 1, 2, 1, 1, 2, 1)
TILE(, bf16, 8, 1, 2, 4, 2, 1)
TILE(, f16, 8, 1, 2, 4, 2, 1)

#define PLAIN(T, type)                                                                                                \
    EXPAND(plain_##type, T, 256, (expand_plain<T, T, false>))                                                         \
    DX(plain_##type, T, 256, (expand_plain<T, T, true>))
#if !ADAPTER_16
PLAIN(float, f32)
#endif
PLAIN(bf16, bf16)
PLAIN(f16, f16)
FROM_F32(plain_from_f32_bf16, bf16, 256, (expand_plain<bf16, float, false>))
FROM_F32(plain_from_f32_f16, f16, 256, (expand_plain<f16, float, false>))
