// dm[c] += scale · Σ_t dy[t, c] · x[t, c] / norms[c]: dy, x T [rows, n], norms and dm f32 [n], scale f32 [1] or absent (0). In
// two passes, so that the order of the sums is fixed:
//
// dora_scale_backward_parts_<T>: `parts` f32 [ceil(rows / 64), n], the sums over 64 rows each. A thread has one column, a
// block 256 neighbours. Block 256; grid (ceil(n / 256), ceil(rows / 64)).
// dora_scale_backward: adds them up. Block 256; grid ceil(n / 256).
// Launched by launch_dora.rs.
#include "common.cuh"

#define PART_ROWS 64

template <typename T>
DEVICE void dora_scale_backward_parts(const T* dy, const T* x, u32 rows, u32 n, float* parts, const u32* counts, u32 which) {
    u32 c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * PART_ROWS;
    if (c >= n) return;
    u32 end = min(first + PART_ROWS, live_rows(counts, which, rows));
    float sum = 0.0f;
#pragma unroll 4
    for (u32 t = first; t < end; t++) {
        size_t at = (size_t)t * n + c;
        sum = fmaf(to_float(dy[at]), to_float(x[at]), sum);
    }
    parts[(size_t)blockIdx.y * n + c] = sum;
}

#define KERNEL(name, T)                                                                                               \
    extern "C" __global__ void __launch_bounds__(256)                                                                 \
        name(const T* dy, const T* x, u32 rows, u32 n, float* parts, const u32* counts, u32 which) {                  \
        dora_scale_backward_parts<T>(dy, x, rows, n, parts, counts, which);                                           \
    }
INSTANTIATE(KERNEL, dora_scale_backward_parts)

extern "C" __global__ void __launch_bounds__(256)
    dora_scale_backward(const float* parts, u32 count, u32 n, const float* norms, const float* scale, float* dm) {
    u32 c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= n) return;
    float sum = 0.0f;
    for (u32 i = 0; i < count; i++) sum += parts[(size_t)i * n + c];
    dm[c] += (scale ? scale[0] : 1.0f) * sum / norms[c];
}
