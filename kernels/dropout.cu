// out (+)= x · keep(t, c) / (1 − p), T [rows, k]; keep is `program::dropout_keeps` bit for bit, with the step's seed in
// counts[3]. With `complement` the factor is 1 minus that. Grid and block: elementwise.cuh. Launched by launch_rows.rs.
#include "elementwise.cuh"

DEVICE bool keeps(u32 seed, u32 salt, u32 index, float p) {
    u32 h = (index * 0x9E3779B1u) ^ seed ^ (salt * 0x85EBCA77u);
    h = (h ^ (h >> 16)) * 0x85EBCA6Bu;
    h = (h ^ (h >> 13)) * 0xC2B2AE35u;
    h ^= h >> 16;
    return (float)(h >> 8) * (1.0f / 16777216.0f) >= p;
}

template <typename T>
DEVICE void dropout(const T* x, T* out, u32 rows, u32 k, float p, u32 salt, u32 complement, u32 accumulate,
                    const u32* counts, u32 which) {
    u32 seed = counts[3];
    float factor = 1.0f / (1.0f - p);
    float kept = complement ? 1.0f - factor : factor, dropped = complement ? 1.0f : 0.0f;
    for_live_elements(rows, k, counts, which, [&](u64 i, int count) {
        float v[8] = {}, old[8] = {};
        load_some(x + i, count, v);
        if (accumulate) load_some(out + i, count, old);
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = old[j] + v[j] * (keeps(seed, salt, (u32)i + j, p) ? kept : dropped);
        store_some(out + i, count, v);
    });
}

#define KERNEL(name, T)                                                                                               \
    extern "C" __global__ void name(const T* x, T* out, u32 rows, u32 k, float p, u32 salt, u32 complement,           \
                                    u32 accumulate, const u32* counts, u32 which) {                                   \
        dropout<T>(x, out, rows, k, p, salt, complement, accumulate, counts, which);                                  \
    }
INSTANTIATE(KERNEL, dropout)
