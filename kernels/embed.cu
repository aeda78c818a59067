// out[t, :] = table[ids[t], :]: the table is a weight of any type [n, k], out T [rows, k]. An id past the table gives
// zeros.
//
// embed_<W>_<T>: a thread decodes eight elements.
// Limits: k a multiple of 8 and out aligned to 16 bytes; other k (plain types alone) are written element by element.
// Launch: block 128; grid (rows, ceil(ceil(k / 8) / 128)); no dynamic shared memory.
#include "decode.cuh"

template <typename W, typename T>
DEVICE void embed(const WeightView& view, const u32* ids, const u32* counts, u32 which, u32 rows, T* out) {
    u32 t = blockIdx.x, octet = blockIdx.y * blockDim.x + threadIdx.x;
    if (t >= live_rows(counts, which, rows) || octet * 8 >= view.k) return;
    Weight<W> w = {view};
    u32 id = ids[t];
    float v[8] = {};
    if (id < view.n) w.load8(id, octet, v);
    T* to = out + (size_t)t * view.k + octet * 8;
    if (view.k % 8 == 0) {
        store8<T>(to, v);
    } else {
#pragma unroll
        for (u32 e = 0; e < 8; e++) {
            if (octet * 8 + e < view.k) to[e] = from_float<T>(v[e]);
        }
    }
}

#define KERNEL(name, W, T)                                                                                            \
    extern "C" __global__ void __launch_bounds__(128)                                                                 \
        name(WeightView table, const u32* ids, const u32* counts, u32 which, u32 rows, T* out) {                      \
        embed<W, T>(table, ids, counts, which, rows, out);                                                            \
    }
INSTANTIATE_PAIRS(KERNEL, embed)
