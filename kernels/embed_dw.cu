// dw[ids[t]] += scale · dy[t] over the live rows but those whose id is `skip`: dy T [rows, k], dw f32 [n, k], scale f32 [1] or
// null (1). The block of a token's first row adds up all of its rows, in order, so that a sum is the same in every run and no
// two blocks write to one place. 256 threads, a column each; grid = (rows, ceil(k / 256)). Launched by launch_weights.rs.
#include "common.cuh"

template <typename T>
DEVICE void embed_dw(const u32* ids, const T* dy, const float* scale, float* dw, u32 rows, u32 k, u32 n, u32 skip,
                     const u32* counts, u32 which) {
    u32 t = blockIdx.x, live = live_rows(counts, which, rows);
    if (t >= live) return;
    u32 id = ids[t];
    if (id == skip || id >= n) return;
    bool seen = false;
    for (u32 s = threadIdx.x; s < t; s += blockDim.x) seen |= ids[s] == id;
    if (__syncthreads_or(seen)) return;
    u32 c = blockIdx.y * blockDim.x + threadIdx.x;
    if (c >= k) return;
    float sum = 0.0f;
    for (u32 s = t; s < live; s++) {
        if (ids[s] == id) sum += to_float(dy[(u64)s * k + c]);
    }
    dw[(u64)id * k + c] += (scale ? *scale : 1.0f) * sum;
}

#define KERNEL(name, T)                                                                                               \
    extern "C" __global__ void __launch_bounds__(256)                                                                 \
        name(const u32* ids, const T* dy, const float* scale, float* dw, u32 rows, u32 k, u32 n, u32 skip,            \
             const u32* counts, u32 which) {                                                                          \
        embed_dw<T>(ids, dy, scale, dw, rows, k, n, skip, counts, which);                                             \
    }
INSTANTIATE(KERNEL, embed_dw)
