// out = activation(gate) · up, all T [rows, k]. Grid and block: elementwise.cuh. Launched by launch_rows.rs.
#include "activation.cuh"
#include "elementwise.cuh"

template <typename T, int ACT>
DEVICE void glu(const T* gate, const T* up, T* out, u32 rows, u32 k, const u32* counts, u32 which) {
    for_live_elements(rows, k, counts, which, [&](u64 i, int count) {
        float g[8] = {}, u[8] = {};
        load_some(gate + i, count, g);
        load_some(up + i, count, u);
#pragma unroll
        for (int j = 0; j < 8; j++) g[j] = activate<ACT>(g[j]) * u[j];
        store_some(out + i, count, g);
    });
}

#define KERNEL(name, T)                                                                                               \
    extern "C" __global__ void name##_silu(const T* gate, const T* up, T* out, u32 rows, u32 k, const u32* counts,    \
                                           u32 which) {                                                               \
        glu<T, 0>(gate, up, out, rows, k, counts, which);                                                             \
    }                                                                                                                 \
    extern "C" __global__ void name##_gelu(const T* gate, const T* up, T* out, u32 rows, u32 k, const u32* counts,    \
                                           u32 which) {                                                               \
        glu<T, 1>(gate, up, out, rows, k, counts, which);                                                             \
    }
INSTANTIATE(KERNEL, glu)
