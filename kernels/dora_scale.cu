// out[t] = x[t] · magnitude[slot(t)] / norms[slot(t)] (+ bias) (+ residual[t]): x, residual, out T [rows, n], bias f32 [n],
// magnitude and norms f32 [slots, n]. Without `slots` every row has slot 0; rows whose slot is NO_SLOT are multiplied by 1.
// bias, residual and slots may be absent (0). Grid and block: elementwise.cuh. Launched by launch_dora.rs.
#include "elementwise.cuh"

template <typename T>
DEVICE void dora_scale(const T* x, const float* magnitude, const float* norms, const u32* slots, const float* bias,
                       const T* residual, T* out, u32 rows, u32 n, const u32* counts, u32 which) {
    for_live_elements(rows, n, counts, which, [&](u64 i, int count) {
        float v[8] = {}, more[8] = {};
        load_some(x + i, count, v);
        if (residual) load_some(residual + i, count, more);
        u32 t = (u32)(i / n), c = (u32)(i % n);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            if (j >= count) break;
            u32 slot = slots ? slots[t] : 0;
            size_t at = (size_t)slot * n + c;
            float factor = slot == NO_SLOT ? 1.0f : __ldg(magnitude + at) / __ldg(norms + at);
            v[j] = v[j] * factor + (bias ? __ldg(bias + c) : 0.0f) + more[j];
            if (++c == n) {
                c = 0;
                t++;
            }
        }
        store_some(out + i, count, v);
    });
}

#define KERNEL(name, T)                                                                                               \
    extern "C" __global__ void name(const T* x, const float* magnitude, const float* norms, const u32* slots,         \
                                    const float* bias, const T* residual, T* out, u32 rows, u32 n,                    \
                                    const u32* counts, u32 which) {                                                   \
        dora_scale<T>(x, magnitude, norms, slots, bias, residual, out, rows, n, counts, which);                       \
    }
INSTANTIATE(KERNEL, dora_scale)
