// norms[o] = max(sqrt(Σ_k (W[o, k] + scale · Σ_r B[o, r] · A[r, k])²), 1e-15): the length of each row of an adapted weight (DoRA). W is a
// weight of any type [n, k], a f32 [rank, k], b f32 [n, rank], scale f32 [1], norms f32 [n]. W + scale · B · A is made eight
// elements at a time, in registers.
//
// dora_norm_<W>_f32: a block has ROWS rows, so that A (from the second cache level) is read n / ROWS times; a thread has
// every 256th octet of them. It runs once for each optimizer step, not for each micro-batch.
// Limits: none on n and k (k that is no multiple of 8 is loaded element by element).
// Launch: block 256; grid ceil(n / ROWS); ROWS · rank · 4 bytes of dynamic shared memory. By launch_dora.rs.
#include "decode.cuh"

#define ROWS 8

template <typename W>
DEVICE void dora_norm(const WeightView& view, const float* a, const float* b, const float* scale, u32 rank, float* norms) {
    extern __shared__ float scaled[]; // [rank, ROWS]: scale · B
    u32 first = blockIdx.x * ROWS;
    for (u32 i = threadIdx.x; i < ROWS * rank; i += blockDim.x) {
        u32 row = first + i % ROWS;
        scaled[i] = row < view.n ? scale[0] * b[(size_t)row * rank + i / ROWS] : 0.0f;
    }
    __syncthreads();
    Weight<W> weight = {view};
    float sums[ROWS] = {};
    for (u32 octet = threadIdx.x; octet * 8 < view.k; octet += blockDim.x) {
        float delta[ROWS][8] = {};
        for (u32 r = 0; r < rank; r++) {
            const float* from = a + (size_t)r * view.k + octet * 8;
            float v[8];
            if (view.k % 8 == 0) {
                load8(from, v);
            } else {
#pragma unroll
                for (u32 j = 0; j < 8; j++) v[j] = octet * 8 + j < view.k ? from[j] : 0.0f;
            }
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
                float s = scaled[r * ROWS + i];
#pragma unroll
                for (int j = 0; j < 8; j++) delta[i][j] = fmaf(s, v[j], delta[i][j]);
            }
        }
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            if (first + i >= view.n) break;
            float v[8];
            weight.load8(first + i, octet, v);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                float sum = v[j] + delta[i][j];
                sums[i] = fmaf(sum, sum, sums[i]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        float sum = block_sum(sums[i]);
        if (threadIdx.x == 0 && first + i < view.n) norms[first + i] = fmaxf(sqrtf(sum), 1e-15f);
    }
}

#define KERNEL(name, W, T)                                                                                            \
    extern "C" __global__ void __launch_bounds__(256)                                                                 \
        name(WeightView weight, const float* a, const float* b, const float* scale, u32 rank, float* norms) {         \
        dora_norm<W>(weight, a, b, scale, rank, norms);                                                               \
    }
INSTANTIATE_WEIGHTS(KERNEL, dora_norm, f32)
