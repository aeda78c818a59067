// out[c] += scale · Σ_t x[t][c] over the live rows, x T [rows, k], out f32 [k], scale f32 [1] or null (1). Two passes, so that
// the order of the sums is fixed:
//   column_sum_parts_T  parts f32 [grid.y, k]: sums of `chunk` rows each. 256 threads, grid = (ceil(k / 256), parts).
//   column_sum_total    adds the parts up, for other gradients too. 256 threads, grid = ceil(k / 256).
// Launched by launch_weights.rs.
#include "common.cuh"

template <typename T>
DEVICE void column_sum_parts(const T* x, float* parts, u32 rows, u32 k, u32 chunk, const u32* counts, u32 which) {
    u32 c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= k) return;
    u32 live = live_rows(counts, which, rows), first = blockIdx.y * chunk;
    float sum = 0.0f;
    for (u32 t = first; t < min(first + chunk, live); t++) sum += to_float(x[(u64)t * k + c]);
    parts[(u64)blockIdx.y * k + c] = sum;
}

#define KERNEL(name, T)                                                                                               \
    extern "C" __global__ void __launch_bounds__(256)                                                                 \
        name(const T* x, float* parts, u32 rows, u32 k, u32 chunk, const u32* counts, u32 which) {                    \
        column_sum_parts<T>(x, parts, rows, k, chunk, counts, which);                                                 \
    }
INSTANTIATE(KERNEL, column_sum_parts)

extern "C" __global__ void __launch_bounds__(256)
    column_sum_total(const float* parts, u32 count, u32 k, const float* scale, float* out) {
    u32 c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= k) return;
    float sum = 0.0f;
    for (u32 i = 0; i < count; i++) sum += parts[(u64)i * k + c];
    out[c] += (scale ? *scale : 1.0f) * sum;
}
