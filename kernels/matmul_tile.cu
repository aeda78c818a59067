// out = x · wᵀ (+ bias) (+ residual) for GPUs from sm_80 on, 17 rows and more: x T [rows, k], w T [n, k], bias f32 [n],
// residual T [rows, n] (may be `out`), out T [rows, n], or f32 with the suffix _to_f32. bias and residual may be null.
// T = bf16, f16. See matmul_tile.cuh for the algorithm, grid and shared memory.
//
// matmul_tile_TILE[_to_f32]_TYPE, TILE = BM x BN: threads, dynamic shared memory in bytes
//   64x64, 128x64, 128x128: 128, 49,152     128x128x64 (BK = 64), 128x256: 256, 98,304
// The largest that gives nearly every multiprocessor a block is best.
//
// H100, November 2026, bf16, 2048 × 12288 × 4096: 128x256 398..418 TFLOP/s, 128x128 338..361 (cuBLAS with wgmma:
// 780..799); 512 × 4096 × 4096: 128x128x64 356..369 (cuBLAS 643..696).
#include "matmul_tile.cuh"

#define MATMUL(name, T, Out, threads, ...)                                                                            \
    extern "C" __global__ void __launch_bounds__(threads)                                                             \
        name(const T* x, const T* w, const float* bias, const T* residual, Out* out, const u32* counts, u32 which,    \
             u32 rows, u32 k, u32 n) {                                                                                \
        Product p = {x, w, 0, bias, residual, out, live_rows(counts, which, rows), k, n};                             \
        product<T, Out, __VA_ARGS__, false>(p);                                                                       \
    }
#define TILE(tile, T, type, threads, ...)                                                                             \
    MATMUL(matmul_tile_##tile##_##type, T, T, threads, __VA_ARGS__)                                                   \
    MATMUL(matmul_tile_##tile##_to_f32_##type, T, float, threads, __VA_ARGS__)
// BM, BN, BK, warps along the rows and columns, stages.
#define TILES(T, type)                                                                                                \
    TILE(64x64, T, type, 128, 64, 64, 64, 2, 2, 3)                                                                    \
    TILE(128x64, T, type, 128, 128, 64, 32, 2, 2, 4)                                                                  \
    TILE(128x128, T, type, 128, 128, 128, 32, 2, 2, 3)                                                                \
    TILE(128x128x64, T, type, 256, 128, 128, 64, 2, 4, 3)                                                             \
    TILE(128x256, T, type, 256, 128, 256, 32, 2, 4, 4)
TILES(bf16, bf16)
TILES(f16, f16)
