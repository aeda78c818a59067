// to[place] = scale * from[matrix] for a list of matrices, zeros where the place is larger: an adapter's way from the trainer's
// buffer to its place among those that are served. table [M, 8]: first element, rows, columns in `from`; first element, rows,
// columns in `to`; scale as bits; unused. Grid (8, M), 256 threads. Launched by launch_flat.rs.
#include "common.cuh"

template <typename T> DEVICE void place_adapter(const float* from, const u32* table, T* to) {
    const u32* matrix = table + 8 * (u64)blockIdx.y;
    u32 own_rows = matrix[1], own_cols = matrix[2], rows = matrix[4], cols = matrix[5];
    float scale = __uint_as_float(matrix[6]);
    from += matrix[0];
    to += matrix[3];
    for (u64 i = blockIdx.x * 256 + threadIdx.x; i < (u64)rows * cols; i += gridDim.x * 256) {
        u32 row = (u32)(i / cols), col = (u32)(i % cols);
        bool own = row < own_rows && col < own_cols;
        to[i] = from_float<T>(own ? scale * from[(u64)row * own_cols + col] : 0.0f);
    }
}

#define KERNEL(name, T)                                                                                               \
    extern "C" __global__ void name(const float* from, const u32* table, T* to) { place_adapter<T>(from, table, to); }
KERNEL(place_adapter_f32, float)
KERNEL(place_adapter_bf16, bf16)
KERNEL(place_adapter_f16, f16)
