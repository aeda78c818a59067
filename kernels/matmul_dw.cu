// Gradient of a weight: dw += scale · dyᵀ · x, with dy T [rows, n], x T [rows, k], dw f32 [n, k]. The sum runs over the
// live rows.
//
// Tensor-core kernels (bf16, f16) for LoRA, where one of the operands is narrow (the rank); the wide one is read once:
//   matmul_dw_a_TILE_TYPE   dw_i[rank, width] += scale_i · narrow_iᵀ · wide    dA: narrow = du, wide = x
//   matmul_dw_b_TILE_TYPE   dw[width, rank] += scale · wideᵀ · narrow          dB: narrow = u, wide = dy
// narrow_i T [rows, rank], wide T [rows, width], rank even, width a multiple of 8, pointers 16-byte aligned. dA takes
// up to three narrow operands of one rank that share the wide one (q, k, v; gate, up), dB one; unused pointers are
// null, the scales may be null (1). TILE = r16, r32, r48, r64: the ranks (of all groups) that a block makes.
//   grid = (ceil(width / 64), splits, ceil(groups · rank / tile)), 256 threads, no dynamic shared memory.
//   splits: blocks that share the rows, 1 .. ceil(rows / 128); best SMs / (grid.x · grid.z).
//   partials: f32 [grid.x · grid.z · splits · 64 · tile], counters: u32 [grid.x · grid.z], zero before the first
//   launch, left zero; both may be null where splits = 1. The order of every sum is fixed.
// Fragments come straight from global memory: the order of ranks and columns within a product is free, so a lane takes
// eight columns of four rows and pairs the rows in registers.
//
// Plain kernels for everything else (f32, bf16, f16): matmul_dw_plain_TYPE, grid = (ceil(k / 64), ceil(n / 64)), 256
// threads; rows of dy are `pitch` elements apart, and the sum runs over the live ones of a chunk of `rows` rows from `row0` on.
// Whole weights in 16 bits: matmul_dw_tile.cu.
//
// H100, November 2026, bf16, rank 16, share of a copy's 3.0 TB/s: rows × width 2048 × 4096 12.6 µs (45 %, mostly
// latency), 2048 × 12288 24.5 µs (68 %), 8192 × 4096 31.0 µs (72 %); rank 64: 18.6, 52.7, 45.9 µs.
#include "mma.cuh"

struct Dw {
    const void* narrow[3];
    const void* wide;
    const float* scales[3];
    float* dw[3];
    float* partials;
    u32* counters;
    u32 live, width, rank, groups;
};

// {low halves of a and b}, {high halves of a and b}.
DEVICE u32 low_halves(u32 a, u32 b) { return __byte_perm(a, b, 0x5410); }
DEVICE u32 high_halves(u32 a, u32 b) { return __byte_perm(a, b, 0x7632); }

// RT tiles of 16 ranks × 64 columns. The eight warps take 16 rows each, in turn. Within a product of 16 ranks, 8
// columns and 16 rows, lane (g, t) has rows 2t, 2t + 1, 2t + 8, 2t + 9, rank number 2 (RT g + tile) and its successor,
// and column 8 g + tile.
template <typename T, int RT, bool SWAPPED> DEVICE void dw(const Dw& p) {
    constexpr int RANKS = 16 * RT, PITCH = 65;
    constexpr int DEPTH = RT == 1 ? 3 : 1; // steps of 16 rows that a warp has on their way
    // Holds the fragments of 16 ranks of all warps, later the tile [rank][64 columns].
    __shared__ float4 shared[8 * 8 * 32];
    static_assert(RANKS * PITCH * 4 <= (int)sizeof(shared), "a tile fits");

    int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
    u32 first_column = blockIdx.x * 64, first_rank = blockIdx.z * RANKS;
    u32 steps = (p.live + 127) / 128;
    u32 begin = steps * blockIdx.y / gridDim.y * 128, end = min(p.live, steps * (blockIdx.y + 1) / gridDim.y * 128);

    const T* narrow[RT];
#pragma unroll
    for (int i = 0; i < RT; i++) {
        u32 rank = first_rank + 2 * (RT * g + i), group = rank / p.rank;
        const T* base = (const T*)(group == 0 ? p.narrow[0] : group == 1 ? p.narrow[1] : p.narrow[2]);
        narrow[i] = group < p.groups ? base + rank % p.rank : 0;
    }
    const T* wide = (const T*)p.wide + first_column + 8 * g;
    bool there = first_column + 8 * g < p.width;

    uint4 w[DEPTH][4];
    u32 pairs[DEPTH][RT][4];
    auto load = [&](int d, u32 first) {
        u32 top = first + 2 * t;
        const T* from = wide + (u64)top * p.width;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            u32 down = j % 2 + j / 2 * 8;
            bool live = top + down < end;
            w[d][j] = there && live ? *(const uint4*)(from + down * p.width) : make_uint4(0, 0, 0, 0);
#pragma unroll
            for (int i = 0; i < RT; i++) {
                pairs[d][i][j] = narrow[i] && live ? *(const u32*)(narrow[i] + (top + down) * p.rank) : 0;
            }
        }
    };

    float sums[RT][8][4] = {};
    u32 first = begin + warp * 16;
#pragma unroll
    for (int d = 0; d < DEPTH; d++) load(d, first + d * 128);
    for (; first < end; first += DEPTH * 128) {
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            u32 a[RT][4], b[8][2];
#pragma unroll
            for (int i = 0; i < RT; i++) {
                const u32(&q)[4] = pairs[d][i];
                a[i][0] = low_halves(q[0], q[1]), a[i][1] = high_halves(q[0], q[1]);
                a[i][2] = low_halves(q[2], q[3]), a[i][3] = high_halves(q[2], q[3]);
            }
#pragma unroll
            for (int h = 0; h < 2; h++) {
                uint4 v = w[d][2 * h], q = w[d][2 * h + 1];
                u32 even[4] = {v.x, v.y, v.z, v.w}, odd[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    b[2 * i][h] = low_halves(even[i], odd[i]), b[2 * i + 1][h] = high_halves(even[i], odd[i]);
                }
            }
            load(d, first + (DEPTH + d) * 128);
#pragma unroll
            for (int i = 0; i < RT; i++) {
#pragma unroll
                for (int n = 0; n < 8; n++) mma16816<T>(sums[i][n], a[i], b[n][0], b[n][1]);
            }
        }
    }

    // Each thread adds up one fragment of four elements of each 16 ranks, over the warps in their order.
    float4 own[RT];
#pragma unroll
    for (int i = 0; i < RT; i++) {
        if (i > 0) __syncthreads();
#pragma unroll
        for (int n = 0; n < 8; n++) {
            const float(&v)[4] = sums[i][n];
            shared[(warp * 8 + n) * 32 + lane] = make_float4(v[0], v[1], v[2], v[3]);
        }
        __syncthreads();
        own[i] = shared[thread];
#pragma unroll
        for (int other = 1; other < 8; other++) {
            float4 v = shared[other * 256 + thread];
            own[i].x += v.x, own[i].y += v.y, own[i].z += v.z, own[i].w += v.w;
        }
    }
    if (gridDim.y > 1) {
        u32 number = blockIdx.z * gridDim.x + blockIdx.x;
        float4* partials = (float4*)p.partials + (u64)number * gridDim.y * RT * 256 + thread;
#pragma unroll
        for (int i = 0; i < RT; i++) partials[(blockIdx.y * RT + i) * 256] = own[i];
        if (!last_block(p.counters + number, gridDim.y)) return;
#pragma unroll
        for (int i = 0; i < RT; i++) own[i] = make_float4(0, 0, 0, 0);
#pragma unroll(8 / RT)
        for (u32 split = 0; split < gridDim.y; split++) {
#pragma unroll
            for (int i = 0; i < RT; i++) {
                float4 v = load_fresh(partials + (split * RT + i) * 256);
                own[i].x += v.x, own[i].y += v.y, own[i].z += v.z, own[i].w += v.w;
            }
        }
    }
    __syncthreads();
    float* tile = (float*)shared;
#pragma unroll
    for (int i = 0; i < RT; i++) {
        float* at = tile + 2 * (RT * g + i) * PITCH + 2 * t * 8 + warp; // this thread's fragment is column tile `warp`
        at[0] = own[i].x, at[8] = own[i].y, at[PITCH] = own[i].z, at[PITCH + 8] = own[i].w;
    }
    __syncthreads();
    for (int i = thread; i < RANKS * 64; i += 256) {
        u32 rank = first_rank + (SWAPPED ? i % RANKS : i / 64), column = SWAPPED ? i / RANKS : i % 64;
        u32 group = rank / p.rank;
        if (group >= p.groups || first_column + column >= p.width) continue;
        float* out = group == 0 ? p.dw[0] : group == 1 ? p.dw[1] : p.dw[2];
        const float* scale = group == 0 ? p.scales[0] : group == 1 ? p.scales[1] : p.scales[2];
        u32 j = rank % p.rank;
        u64 at = SWAPPED ? (u64)(first_column + column) * p.rank + j : (u64)j * p.width + first_column + column;
        out[at] += (scale ? *scale : 1) * tile[(rank - first_rank) * PITCH + column];
    }
}

// A block makes 64 × 64 elements, a thread 4 × 4 of them, 16 rows at a time.
template <typename T>
DEVICE void dw_plain(const T* dy, u32 pitch, const T* x, const float* scale, float* dw, u32 live, u32 n, u32 k) {
    __shared__ float left[16][64], right[16][64];
    u32 first_n = blockIdx.y * 64, first_k = blockIdx.x * 64;
    int down = threadIdx.x / 16 * 4, across = threadIdx.x % 16 * 4;
    float sums[4][4] = {};
    for (u32 first = 0; first < live; first += 16) {
        for (int i = threadIdx.x; i < 16 * 64; i += 256) {
            u32 row = first + i / 64, column = i % 64;
            u32 across_n = first_n + column, across_k = first_k + column;
            left[i / 64][column] = row < live && across_n < n ? to_float(dy[(u64)row * pitch + across_n]) : 0;
            right[i / 64][column] = row < live && across_k < k ? to_float(x[(u64)row * k + across_k]) : 0;
        }
        __syncthreads();
#pragma unroll
        for (int row = 0; row < 16; row++) {
            float4 a = *(const float4*)&left[row][down], b = *(const float4*)&right[row][across];
            float as[4] = {a.x, a.y, a.z, a.w}, bs[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
            for (int i = 0; i < 16; i++) sums[i / 4][i % 4] += as[i / 4] * bs[i % 4];
        }
        __syncthreads();
    }
    float factor = scale ? *scale : 1;
#pragma unroll
    for (int i = 0; i < 16; i++) {
        u32 row = first_n + down + i / 4, column = first_k + across + i % 4;
        if (row < n && column < k) dw[(u64)row * k + column] += factor * sums[i / 4][i % 4];
    }
}

// Two blocks share a multiprocessor as long as their sums leave registers for that.
#define DW_A(name, T, RT)                                                                                             \
    extern "C" __global__ void __launch_bounds__(256, RT > 2 ? 1 : 2) name(                                           \
        const T* narrow0, const T* narrow1, const T* narrow2, const T* wide, const float* scale0, const float* scale1,\
        const float* scale2, float* dw0, float* dw1, float* dw2, float* partials, u32* counters, const u32* counts,   \
        u32 which, u32 rows, u32 width, u32 rank, u32 groups) {                                                       \
        u32 live = live_rows(counts, which, rows);                                                                    \
        Dw p = {{narrow0, narrow1, narrow2}, wide,     {scale0, scale1, scale2}, {dw0, dw1, dw2}, partials,           \
                counters,                    live,     width,                    rank,            groups};            \
        dw<T, RT, false>(p);                                                                                          \
    }
#define DW_B(name, T, RT)                                                                                             \
    extern "C" __global__ void __launch_bounds__(256, RT > 2 ? 1 : 2) name(                                           \
        const T* narrow, const T* wide, const float* scale, float* out, float* partials, u32* counters,               \
        const u32* counts, u32 which, u32 rows, u32 width, u32 rank) {                                                \
        u32 live = live_rows(counts, which, rows);                                                                    \
        Dw p = {{narrow, 0, 0}, wide, {scale, 0, 0}, {out, 0, 0}, partials, counters, live, width, rank, 1};          \
        dw<T, RT, true>(p);                                                                                           \
    }
#define TILES(T, type)                                                                                                \
    DW_A(matmul_dw_a_r16_##type, T, 1)                                                                                \
    DW_A(matmul_dw_a_r32_##type, T, 2)                                                                                \
    DW_A(matmul_dw_a_r48_##type, T, 3)                                                                                \
    DW_A(matmul_dw_a_r64_##type, T, 4)                                                                                \
    DW_B(matmul_dw_b_r16_##type, T, 1)                                                                                \
    DW_B(matmul_dw_b_r32_##type, T, 2)                                                                                \
    DW_B(matmul_dw_b_r48_##type, T, 3)                                                                                \
    DW_B(matmul_dw_b_r64_##type, T, 4)
TILES(bf16, bf16)
TILES(f16, f16)

#define PLAIN(name, T)                                                                                                \
    extern "C" __global__ void __launch_bounds__(256)                                                                 \
        name(const T* dy, u32 pitch, const T* x, const float* scale, float* dw, const u32* counts, u32 which,         \
             u32 row0, u32 rows, u32 n, u32 k) {                                                                      \
        u32 end = live_rows(counts, which, row0 + rows);                                                              \
        dw_plain<T>(dy, pitch, x, scale, dw, end > row0 ? end - row0 : 0, n, k);                                      \
    }
INSTANTIATE(PLAIN, matmul_dw_plain)
