// out[t] = x[t] / sqrt(mean(x[t]²) + eps) · weight: x, out T [rows, k], weight f32 [k].
// One block a row of min(1024, k / 8 rounded up to warps) threads, grid = rows; rows of whole 16 bytes are read as such.
// Launched by launch_rows.rs.
#include "common.cuh"

template <typename T>
DEVICE void rms_norm(const T* x, const float* weight, T* out, u32 rows, u32 k, float eps, const u32* counts, u32 which) {
    begin_dependent();
    u32 t = blockIdx.x;
    if (t >= live_rows(counts, which, rows)) return;
    x += (u64)t * k;
    out += (u64)t * k;
    float sum = 0.0f;
    if (k % 8 == 0) {
        for (u32 i = threadIdx.x * 8; i < k; i += blockDim.x * 8) {
            float v[8];
            load8(x + i, v);
#pragma unroll
            for (int j = 0; j < 8; j++) sum = fmaf(v[j], v[j], sum);
        }
    } else {
        for (u32 i = threadIdx.x; i < k; i += blockDim.x) {
            float v = to_float(x[i]);
            sum = fmaf(v, v, sum);
        }
    }
    float scale = 1.0f / sqrtf(block_sum(sum) / (float)k + eps);
    if (k % 8 == 0) {
        for (u32 i = threadIdx.x * 8; i < k; i += blockDim.x * 8) {
            float v[8], w[8];
            load8(x + i, v);
            load8(weight + i, w);
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] = v[j] * scale * w[j];
            store8(out + i, v);
        }
    } else {
        for (u32 i = threadIdx.x; i < k; i += blockDim.x) out[i] = from_float<T>(to_float(x[i]) * scale * weight[i]);
    }
}

#define KERNEL(name, T)                                                                                               \
    extern "C" __global__ void __launch_bounds__(1024) name(const T* x, const float* weight, T* out, u32 rows, u32 k, \
                                                            float eps, const u32* counts, u32 which) {                \
        rms_norm<T>(x, weight, out, rows, k, eps, counts, which);                                                     \
    }
INSTANTIATE(KERNEL, rms_norm)
