// y += x, T [rows, k]. Grid and block: elementwise.cuh. Launched by launch_rows.rs.
#include "elementwise.cuh"

template <typename T> DEVICE void accumulate(const T* x, T* y, u32 rows, u32 k, const u32* counts, u32 which) {
    for_live_elements(rows, k, counts, which, [&](u64 i, int count) {
        float a[8] = {}, b[8] = {};
        load_some(x + i, count, a);
        load_some(y + i, count, b);
#pragma unroll
        for (int j = 0; j < 8; j++) a[j] += b[j];
        store_some(y + i, count, a);
    });
}

#define KERNEL(name, T)                                                                                               \
    extern "C" __global__ void name(const T* x, T* y, u32 rows, u32 k, const u32* counts, u32 which) {                \
        accumulate<T>(x, y, rows, k, counts, which);                                                                  \
    }
INSTANTIATE(KERNEL, accumulate)
