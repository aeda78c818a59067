// Parts of the gradient of the norm of the heads: parts[w][i] = Σ back(dout)[i] · x[i] / sqrt(mean(x²) + eps) over the heads of
// the live rows that warp w takes, where back undoes the rotation. x, dout T [rows, heads · d], parts f32 [4 · grid, d], d at
// most 256; column_sum_total (column_sum.cu) adds them up. Four warps a block. Launched by launch_weights.rs.
#include "rotary.cuh"

template <typename T>
DEVICE void qk_norm_dw(const T* x, const T* dout, const u32* positions, const float* rope, u32 rope_rows, u32 rope_dim,
                       float* parts, u32 rows, u32 heads, u32 d, float eps, const u32* counts, u32 which) {
    u32 warp = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 items = live_rows(counts, which, rows) * heads;
    float sums[8] = {};
    for (u32 item = warp; item < items; item += 4 * gridDim.x) {
        const T *head = x + (u64)item * d, *upstream = dout + (u64)item * d;
        const float* angle = rope + (u64)min(positions[item / heads], rope_rows - 1) * rope_dim;
        float squares = 0.0f;
        for (u32 i = lane; i < d; i += 32) {
            float v = to_float(head[i]);
            squares = fmaf(v, v, squares);
        }
        float r = 1.0f / sqrtf(warp_sum(squares) / (float)d + eps);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            u32 i = lane + 32 * j;
            if (i < d) {
                float back = turned_back(upstream, (const float*)nullptr, angle, rope_dim, i);
                sums[j] = fmaf(back, to_float(head[i]) * r, sums[j]);
            }
        }
    }
#pragma unroll
    for (int j = 0; j < 8; j++) {
        u32 i = lane + 32 * j;
        if (i < d) parts[(u64)warp * d + i] = sums[j];
    }
}

#define KERNEL(name, T)                                                                                               \
    extern "C" __global__ void __launch_bounds__(128)                                                                 \
        name(const T* x, const T* dout, const u32* positions, const float* rope, u32 rope_rows, u32 rope_dim,         \
             float* parts, u32 rows, u32 heads, u32 d, float eps, const u32* counts, u32 which) {                     \
        qk_norm_dw<T>(x, dout, positions, rope, rope_rows, rope_dim, parts, rows, heads, d, eps, counts, which);      \
    }
INSTANTIATE(KERNEL, qk_norm_dw)
