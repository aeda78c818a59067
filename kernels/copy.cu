// out = x, T [rows, k]; one of the two may lie in pinned host memory. Grid and block: elementwise.cuh. Launched by launch_rows.rs.
#include "elementwise.cuh"

template <typename T> DEVICE void copy_rows(const T* x, T* out, u32 rows, u32 k, const u32* counts, u32 which) {
    for_live_elements(rows, k, counts, which, [&](u64 i, int count) {
        float a[8] = {};
        load_some(x + i, count, a);
        store_some(out + i, count, a);
    });
}

#define KERNEL(name, T)                                                                                               \
    extern "C" __global__ void name(const T* x, T* out, u32 rows, u32 k, const u32* counts, u32 which) {              \
        copy_rows<T>(x, out, rows, k, counts, which);                                                                 \
    }
INSTANTIATE(KERNEL, copy)
