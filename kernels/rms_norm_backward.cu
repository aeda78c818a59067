// With s = 1 / sqrt(mean(x²) + eps): dx (+)= s · weight · dy − x · s³ · mean(x · weight · dy). x, dy, dx T [rows, k],
// weight f32 [k]; dx is added to where `accumulate`. One block a row, as rms_norm. Launched by launch_rows.rs.
#include "common.cuh"

template <typename T>
DEVICE void rms_norm_backward(const T* x, const float* weight, const T* dy, T* dx, u32 rows, u32 k, float eps,
                              u32 accumulate, const u32* counts, u32 which) {
    u32 t = blockIdx.x;
    if (t >= live_rows(counts, which, rows)) return;
    u64 start = (u64)t * k;
    x += start;
    dy += start;
    dx += start;
    float squares = 0.0f, product = 0.0f;
    if (k % 8 == 0) {
        for (u32 i = threadIdx.x * 8; i < k; i += blockDim.x * 8) {
            float v[8], d[8], w[8];
            load8(x + i, v);
            load8(dy + i, d);
            load8(weight + i, w);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                squares = fmaf(v[j], v[j], squares);
                product = fmaf(v[j], w[j] * d[j], product);
            }
        }
    } else {
        for (u32 i = threadIdx.x; i < k; i += blockDim.x) {
            float v = to_float(x[i]);
            squares = fmaf(v, v, squares);
            product = fmaf(v, weight[i] * to_float(dy[i]), product);
        }
    }
    squares = block_sum(squares);
    product = block_sum(product);
    float s = 1.0f / sqrtf(squares / (float)k + eps);
    float back = product * s * s * s / (float)k;
    if (k % 8 == 0) {
        for (u32 i = threadIdx.x * 8; i < k; i += blockDim.x * 8) {
            float v[8], d[8], w[8], old[8] = {};
            load8(x + i, v);
            load8(dy + i, d);
            load8(weight + i, w);
            if (accumulate) load8(dx + i, old);
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] = old[j] + (s * w[j] * d[j] - v[j] * back);
            store8(dx + i, v);
        }
    } else {
        for (u32 i = threadIdx.x; i < k; i += blockDim.x) {
            float old = accumulate ? to_float(dx[i]) : 0.0f;
            dx[i] = from_float<T>(old + (s * weight[i] * to_float(dy[i]) - to_float(x[i]) * back));
        }
    }
}

#define KERNEL(name, T)                                                                                               \
    extern "C" __global__ void __launch_bounds__(1024)                                                                \
        name(const T* x, const float* weight, const T* dy, T* dx, u32 rows, u32 k, float eps, u32 accumulate,         \
             const u32* counts, u32 which) {                                                                          \
        rms_norm_backward<T>(x, weight, dy, dx, rows, k, eps, accumulate, counts, which);                             \
    }
INSTANTIATE(KERNEL, rms_norm_backward)
