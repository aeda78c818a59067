// out[i] = x[which[i]]: x T [x_rows, k], picked u32 [rows], out T [rows, k]. 256 threads a block, grid = rows; rows that x
// lacks become row x_rows − 1 (the host never asks for one). Launched by launch_rows.rs.
#include "common.cuh"

template <typename T>
DEVICE void gather_rows(const T* x, const u32* picked, T* out, u32 rows, u32 k, u32 x_rows, const u32* counts,
                        u32 which) {
    begin_dependent();
    u32 i = blockIdx.x;
    if (i >= live_rows(counts, which, rows)) return;
    const T* from = x + (u64)min(picked[i], x_rows - 1) * k;
    T* to = out + (u64)i * k;
    for (u32 c = threadIdx.x; c < k; c += blockDim.x) to[c] = from[c];
}

#define KERNEL(name, T)                                                                                               \
    extern "C" __global__ void name(const T* x, const u32* picked, T* out, u32 rows, u32 k, u32 x_rows,               \
                                    const u32* counts, u32 which) {                                                   \
        gather_rows<T>(x, picked, out, rows, k, x_rows, counts, which);                                               \
    }
INSTANTIATE(KERNEL, gather_rows)
