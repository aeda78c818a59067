// Gradient of a whole weight for GPUs from sm_80 on: dw += scale · dyᵀ · x by mma.sync, with dy T [rows, pitch] of which n
// columns count, x T [rows, k], dw f32 [n, k], scale f32 [1] or null (1). n, k and pitch are multiples of 8, pointers 16-byte
// aligned, T = bf16, f16. The sum runs over the rows of a chunk that are live: `row0` is the chunk's first row among all,
// `rows` how many it has. A number of the result belongs to one thread, so its order of terms is fixed.
//
// A block of 32 · WM · WN threads makes a BM × BN tile (BM of the n columns of dy): cp.async brings STAGES tiles of BK rows
// to shared memory, both operands are transposed on the way to registers (as b is in matmul_tile.cuh).
// grid = (ceil(n / BM), ceil(k / BN)). Dynamic shared memory: STAGES · (BM + BN) · BK · 2 bytes.
//
// matmul_dw_tile_TILE_TYPE, TILE = BM x BN: 64x64: 128 threads, 24,576 bytes; 128x128: 256 threads, 49,152 bytes.
// Launched by launch_lora.rs (weights) and launch_matmul.rs (the head). Not timed yet.
#include "matmul_tile.cuh"

template <typename T, int BM, int BN, int BK, int WM, int WN, int STAGES>
DEVICE void dw_tile(const T* dy, u32 pitch, const T* x, const float* scale, float* dw, u32 live, u32 n, u32 k) {
    constexpr int THREADS = 32 * WM * WN, ROWS = BM / WM, COLUMNS = BN / WN, STEPS = BK / 16;
    constexpr int MT = ROWS / 16, NT = COLUMNS / 8; // fragments of a warp
    constexpr int A_CHUNKS = BM / 8, B_CHUNKS = BN / 8, A_BYTES = BM * BK * 2, STAGE_BYTES = (BM + BN) * BK * 2;
    static_assert(NT % 2 == 0, "columns come in pairs of fragments");
    static_assert(BK * A_CHUNKS % THREADS == 0 && BK * B_CHUNKS % THREADS == 0, "all threads copy alike");
    extern __shared__ __align__(128) unsigned char tiles[];

    u32 first_row = blockIdx.x * BM, first_column = blockIdx.y * BN;
    int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    int warp_row = warp % WM * ROWS, warp_column = warp / WM * COLUMNS;
    u32 base = shared_address(tiles);

    auto fetch = [&](u32 tile) {
        u32 stage = base + tile % STAGES * STAGE_BYTES;
#pragma unroll
        for (int i = 0; i < BK * A_CHUNKS / THREADS; i++) {
            u32 row = (thread + i * THREADS) / A_CHUNKS, chunk = (thread + i * THREADS) % A_CHUNKS;
            u32 t = tile * BK + row, column = first_row + chunk * 8;
            bool there = t < live && column < n;
            copy16_async(stage + chunk_at<A_CHUNKS>(row, chunk), there ? dy + (u64)t * pitch + column : dy, there);
        }
#pragma unroll
        for (int i = 0; i < BK * B_CHUNKS / THREADS; i++) {
            u32 row = (thread + i * THREADS) / B_CHUNKS, chunk = (thread + i * THREADS) % B_CHUNKS;
            u32 t = tile * BK + row, column = first_column + chunk * 8;
            bool there = t < live && column < k;
            copy16_async(stage + A_BYTES + chunk_at<B_CHUNKS>(row, chunk), there ? x + (u64)t * k + column : x, there);
        }
    };

    float sums[MT][NT][4] = {};
    u32 count = (live + BK - 1) / BK;
#pragma unroll
    for (int tile = 0; tile < STAGES - 1; tile++) {
        if (tile < count) fetch(tile);
        copy_commit();
    }
    for (u32 tile = 0; tile < count; tile++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        if (tile + STAGES - 1 < count) fetch(tile + STAGES - 1);
        copy_commit();
        u32 stage = base + tile % STAGES * STAGE_BYTES, right = stage + A_BYTES;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            u32 fa[MT][4], fb[NT / 2][4];
#pragma unroll
            for (int i = 0; i < MT; i++) {
                // Matrices 0 to 3: inner 0..8 with rows 0..8 and 8..16 of the fragment, then inner 8..16.
                u32 row = step * 16 + lane / 16 * 8 + lane % 8, chunk = warp_row / 8 + i * 2 + lane / 8 % 2;
                ldmatrix4_transposed(fa[i], stage + chunk_at<A_CHUNKS>(row, chunk));
            }
#pragma unroll
            for (int j = 0; j < NT / 2; j++) {
                u32 row = step * 16 + lane % 16, chunk = warp_column / 8 + j * 2 + lane / 16;
                ldmatrix4_transposed(fb[j], right + chunk_at<B_CHUNKS>(row, chunk));
            }
#pragma unroll
            for (int i = 0; i < MT; i++) {
#pragma unroll
                for (int j = 0; j < NT; j++) mma16816<T>(sums[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
            }
        }
    }

    float factor = scale ? *scale : 1.0f;
#pragma unroll
    for (int j = 0; j < NT; j++) {
        u32 column = first_column + warp_column + j * 8 + lane % 4 * 2;
        if (column >= k) break;
#pragma unroll
        for (int i = 0; i < 2 * MT; i++) {
            u32 row = first_row + warp_row + i * 8 + lane / 4;
            if (row >= n) break;
            float2* at = (float2*)(dw + (u64)row * k + column);
            float2 old = *at;
            const float(&sum)[4] = sums[i / 2][j];
            *at = make_float2(old.x + factor * sum[i % 2 * 2], old.y + factor * sum[i % 2 * 2 + 1]);
        }
    }
}

#define TILE(tile, T, type, threads, ...)                                                                             \
    extern "C" __global__ void __launch_bounds__(threads) matmul_dw_tile_##tile##_##type(                             \
        const T* dy, u32 pitch, const T* x, const float* scale, float* dw, const u32* counts, u32 which, u32 row0,    \
        u32 rows, u32 n, u32 k) {                                                                                     \
        u32 end = live_rows(counts, which, row0 + rows);                                                              \
        dw_tile<T, __VA_ARGS__>(dy, pitch, x, scale, dw, end > row0 ? end - row0 : 0, n, k);                          \
    }
// BM, BN, BK, warps along the rows and columns, stages.
#define TILES(T, type)                                                                                                \
    TILE(64x64, T, type, 128, 64, 64, 32, 2, 2, 3)                                                                    \
    TILE(128x128, T, type, 256, 128, 128, 32, 2, 4, 3)
TILES(bf16, bf16)
TILES(f16, f16)
