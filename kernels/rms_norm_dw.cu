// Parts of the gradient of RmsNorm's weight: parts[b][c] = Σ_t dy[t][c] · x[t][c] / sqrt(mean(x[t]²) + eps) over the live rows
// of chunk b. x, dy T [rows, k], parts f32 [grid, k]; column_sum_total (column_sum.cu) adds them up. A block takes `chunk`
// rows, a thread up to eight columns of a panel; block and width as rms_norm. Launched by launch_weights.rs.
#include "common.cuh"

template <typename T>
DEVICE void rms_norm_dw(const T* x, const T* dy, float* parts, u32 rows, u32 k, float eps, u32 chunk, const u32* counts,
                        u32 which) {
    u32 live = live_rows(counts, which, rows), first = blockIdx.x * chunk, end = min(first + chunk, live);
    for (u32 c0 = threadIdx.x; c0 - threadIdx.x < k; c0 += 8 * blockDim.x) {
        float sums[8] = {};
        for (u32 t = first; t < end; t++) {
            const T *row = x + (u64)t * k, *upstream = dy + (u64)t * k;
            float squares = 0.0f;
            for (u32 c = threadIdx.x; c < k; c += blockDim.x) {
                float v = to_float(row[c]);
                squares = fmaf(v, v, squares);
            }
            float r = 1.0f / sqrtf(block_sum(squares) / (float)k + eps);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                u32 c = c0 + j * blockDim.x;
                if (c < k) sums[j] = fmaf(to_float(upstream[c]), to_float(row[c]) * r, sums[j]);
            }
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
            u32 c = c0 + j * blockDim.x;
            if (c < k) parts[(u64)blockIdx.x * k + c] = sums[j];
        }
    }
}

#define KERNEL(name, T)                                                                                               \
    extern "C" __global__ void __launch_bounds__(1024)                                                                \
        name(const T* x, const T* dy, float* parts, u32 rows, u32 k, float eps, u32 chunk, const u32* counts,         \
             u32 which) {                                                                                             \
        rms_norm_dw<T>(x, dy, parts, rows, k, eps, chunk, counts, which);                                             \
    }
INSTANTIATE(KERNEL, rms_norm_dw)
