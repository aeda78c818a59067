// dx (+)= scale · dy · W for every weight type in f32 arithmetic, and for 16-bit activations where no tensor-core kernel
// fits. dy T [rows, n], W [n, k] (decode.cuh), scale f32 [1] or null, dx T [rows, k]. 64×64 tiles, 256 threads of 4×4
// outputs, n in steps of 16. grid = (ceil(k / 64), ceil(rows / 64)). Launched by launch_matmul.rs.
#include "matmul.cuh"

template <typename W, typename T>
DEVICE void matmul_dx(const T* dy, WeightView w, const float* scale, T* dx, u32 accumulate, u32 rows, const u32* counts,
                      u32 which) {
    u32 row0 = blockIdx.y * 64, k0 = blockIdx.x * 64;
    u32 live = live_rows(counts, which, rows);
    if (row0 >= live) return;
    __shared__ alignas(16) Tile ys, ws;
    Weight<W> weight{w};
    float sums[4][4] = {};
    for (u32 n0 = 0; n0 < w.n; n0 += 16) {
        __syncthreads();
        load_rows(ys, dy, row0, live, n0, w.n);
        if (threadIdx.x < 128) {
            u32 n = threadIdx.x / 8, octet = threadIdx.x % 8;
            float v[8] = {};
            if (n0 + n < w.n) weight.load8(n0 + n, k0 / 8 + octet, v);
#pragma unroll
            for (int j = 0; j < 8; j++) ws[n][octet * 8 + j] = v[j];
        }
        __syncthreads();
        multiply(ys, ws, sums);
    }
    float factor = scale ? scale[0] : 1.0f;
    each_output(row0, live, k0, w.k, [&](u32 t, u32 k, int i, int j) {
        T* to = dx + (u64)t * w.k + k;
        float old = accumulate ? to_float(*to) : 0.0f;
        *to = from_float<T>(old + factor * sums[i][j]);
    });
}

#define KERNEL(name, W, T)                                                                                            \
    extern "C" __global__ void __launch_bounds__(256)                                                                 \
        name(const T* dy, WeightView w, const float* scale, T* dx, u32 accumulate, u32 rows, const u32* counts,       \
             u32 which) {                                                                                             \
        matmul_dx<W, T>(dy, w, scale, dx, accumulate, rows, counts, which);                                           \
    }
EACH_WEIGHT(KERNEL, matmul_dx)
