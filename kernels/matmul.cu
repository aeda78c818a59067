// out = x · Wᵀ (+ bias) (+ residual) for every weight type in f32 arithmetic, and for 16-bit activations where no tensor-core
// kernel fits (rows that are no multiple of 16 bytes). x T [rows, k], W [n, k] (decode.cuh), bias f32 [n], residual T
// [rows, n], out T or, where `to_f32`, float. 64×64 tiles, 256 threads of 4×4 outputs, k in steps of 16.
// grid = (ceil(n / 64), ceil(rows / 64)). Launched by launch_matmul.rs.
#include "matmul.cuh"

template <typename W, typename T>
DEVICE void matmul(const T* x, WeightView w, const float* bias, const T* residual, void* out, u32 to_f32, u32 rows,
                   const u32* counts, u32 which) {
    u32 row0 = blockIdx.y * 64, n0 = blockIdx.x * 64;
    u32 live = live_rows(counts, which, rows);
    if (row0 >= live) return;
    __shared__ alignas(16) Tile xs, ws;
    Weight<W> weight{w};
    float sums[4][4] = {};
    for (u32 k0 = 0; k0 < w.k; k0 += 16) {
        __syncthreads();
        load_rows(xs, x, row0, live, k0, w.k);
        if (threadIdx.x < 128) {
            u32 n = threadIdx.x / 2, octet = threadIdx.x % 2;
            float v[8] = {};
            if (n0 + n < w.n) weight.load8(n0 + n, k0 / 8 + octet, v);
#pragma unroll
            for (int j = 0; j < 8; j++) ws[octet * 8 + j][n] = v[j];
        }
        __syncthreads();
        multiply(xs, ws, sums);
    }
    each_output(row0, live, n0, w.n, [&](u32 t, u32 n, int i, int j) {
        float v = sums[i][j];
        if (bias) v += bias[n];
        if (residual) v += to_float(residual[(u64)t * w.n + n]);
        if (to_f32) {
            ((float*)out)[(u64)t * w.n + n] = v;
        } else {
            ((T*)out)[(u64)t * w.n + n] = from_float<T>(v);
        }
    });
}

#define KERNEL(name, W, T)                                                                                            \
    extern "C" __global__ void __launch_bounds__(256)                                                                 \
        name(const T* x, WeightView w, const float* bias, const T* residual, void* out, u32 to_f32, u32 rows,         \
             const u32* counts, u32 which) {                                                                          \
        matmul<W, T>(x, w, bias, residual, out, to_f32, rows, counts, which);                                         \
    }
EACH_WEIGHT(KERNEL, matmul)
