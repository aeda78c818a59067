// out[i, :] = w[n0 + i, :] for i < count, as dense T [count, k]: a weight of any type, decoded into scratch that a
// large dense product reads next. Rounded once, from f32.
//
// matmul_decode_<W>_<T>: a thread decodes eight elements, a warp writes 512 contiguous bytes (T of 16 bit).
// Limits: k a multiple of 8, out aligned to 16 bytes (k not a multiple of 8, plain types alone: written element by
// element).
// Launch: block 256; grid min(ceil(count * ceil(k / 8) / 1024), 132 * 16); no dynamic shared memory.
// Measured on an H100, 2026-11-23, 12288x4096 to bf16, read + written: q8_0 2.73, nf4 2.55, q4_0 2.29, q4_k 2.25,
// q6_k 2.24 TB/s (copy: 3.02).
#include "decode.cuh"

template <typename W, typename T> DEVICE void decode_rows(const WeightView& view, u32 n0, u32 count, T* out) {
    Weight<W> w = {view};
    u32 octets = (view.k + 7) / 8;
    u32 total = count * octets, step = gridDim.x * blockDim.x;
    // Four independent octets a turn keep enough bytes in flight.
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < total; i += 4 * step) {
        float v[4][8];
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            u32 at = min(i + j * step, total - 1);
            w.load8(n0 + at / octets, at % octets, v[j]);
        }
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            u32 at = i + j * step;
            if (at < total) {
                u32 row = at / octets, c = at % octets * 8;
                T* to = out + (size_t)row * view.k + c;
                if (view.k % 8 == 0) {
                    store8<T>(to, v[j]);
                } else {
#pragma unroll
                    for (u32 e = 0; e < 8; e++) {
                        if (c + e < view.k) to[e] = from_float<T>(v[j][e]);
                    }
                }
            }
        }
    }
}

#define KERNEL(name, W, T)                                                                                            \
    extern "C" __global__ void __launch_bounds__(256) name(WeightView w, u32 n0, u32 count, T* out) {                 \
        decode_rows<W, T>(w, n0, count, out);                                                                         \
    }
INSTANTIATE_PAIRS(KERNEL, matmul_decode)
