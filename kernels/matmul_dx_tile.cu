// dx (+)= scale · dy · w for GPUs from sm_80 on, 17 rows and more: dy T [rows, n], w T [n, k], dx T [rows, k], scale
// f32 [1] or null (1); dx is added to where accumulate is not 0. T = bf16, f16. See matmul_tile.cuh for the algorithm,
// grid (of k columns) and shared memory.
//
// matmul_dx_tile_TILE_TYPE, TILE = BM x BN: threads, dynamic shared memory in bytes
//   64x64, 128x64, 128x128: 128, 49,152     128x128x64 (BK = 64), 256x128: 256, 98,304
// The largest that gives nearly every multiprocessor a block is best.
//
// H100, November 2026, bf16, 2048 × 12288 × 4096: 256x128 402..451 TFLOP/s, 128x128 355..368 (cuBLAS with wgmma:
// 791..808); 512 × 4096 × 4096: 128x128x64 353..360 (cuBLAS 683..696).
#include "matmul_tile.cuh"

#define TILE(tile, T, type, threads, ...)                                                                             \
    extern "C" __global__ void __launch_bounds__(threads)                                                             \
        matmul_dx_tile_##tile##_##type(const T* dy, const T* w, const float* scale, T* dx, const u32* counts,         \
                                       u32 which, u32 rows, u32 n, u32 k, u32 accumulate) {                           \
        Product p = {dy, w, scale, 0, accumulate ? dx : 0, dx, live_rows(counts, which, rows), n, k};                 \
        product<T, T, __VA_ARGS__, true>(p);                                                                          \
    }
// BM, BN, BK, warps along the rows and columns, stages.
#define TILES(T, type)                                                                                                \
    TILE(64x64, T, type, 128, 64, 64, 64, 2, 2, 3)                                                                    \
    TILE(128x64, T, type, 128, 128, 64, 32, 2, 2, 4)                                                                  \
    TILE(128x128, T, type, 128, 128, 128, 32, 2, 2, 3)                                                                \
    TILE(128x128x64, T, type, 256, 128, 128, 64, 2, 4, 3)                                                             \
    TILE(256x128, T, type, 256, 256, 128, 32, 4, 2, 4)
TILES(bf16, bf16)
TILES(f16, f16)
