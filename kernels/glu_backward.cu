// dgate = dout · up · activation'(gate), dup = dout · activation(gate), all T [rows, k]. Grid and block: elementwise.cuh.
// Launched by launch_rows.rs.
#include "activation.cuh"
#include "elementwise.cuh"

template <typename T, int ACT>
DEVICE void glu_backward(const T* gate, const T* up, const T* dout, T* dgate, T* dup, u32 rows, u32 k,
                         const u32* counts, u32 which) {
    for_live_elements(rows, k, counts, which, [&](u64 i, int count) {
        float g[8] = {}, u[8] = {}, d[8] = {};
        load_some(gate + i, count, g);
        load_some(up + i, count, u);
        load_some(dout + i, count, d);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            u[j] = d[j] * u[j] * activate_slope<ACT>(g[j]);
            d[j] = d[j] * activate<ACT>(g[j]);
        }
        store_some(dgate + i, count, u);
        store_some(dup + i, count, d);
    });
}

#define KERNEL(name, T)                                                                                               \
    extern "C" __global__ void name##_silu(const T* gate, const T* up, const T* dout, T* dgate, T* dup, u32 rows,     \
                                           u32 k, const u32* counts, u32 which) {                                     \
        glu_backward<T, 0>(gate, up, dout, dgate, dup, rows, k, counts, which);                                       \
    }                                                                                                                 \
    extern "C" __global__ void name##_gelu(const T* gate, const T* up, const T* dout, T* dgate, T* dup, u32 rows,     \
                                           u32 k, const u32* counts, u32 which) {                                     \
        glu_backward<T, 1>(gate, up, dout, dgate, dup, rows, k, counts, which);                                       \
    }
INSTANTIATE(KERNEL, glu_backward)
