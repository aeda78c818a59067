// Lion (lion.cu) over n elements of flat buffers with its moment in 8 bits: map[code] · max of its block of 256 elements, as in
// adamw_8bit.cu. params, grads f32 [n]; m one byte an element; m_max f32 [ceil(n / 256)]; hyper f32 [264]: lr, beta1, beta2, –,
// weight decay, –, –, clip norm (0: none), the map of m (256 ascending numbers); norm[0] is the gradient's norm.
//
// Limits: n a multiple of 4; buffers aligned to 32 bytes. 256 threads, grid = ceil(n / 2048), no dynamic shared memory: a warp
// has one block of 256 elements, a lane eight of them. Launched by launch_flat.rs.
#include "codes_moment.cuh"

extern "C" __global__ void __launch_bounds__(256)
    lion_8bit_f32(float* params, const float* grads, u32* m, float* m_max, const float* norm, const float* hyper, u64 n) {
    __shared__ float map[256];
    map[threadIdx.x] = hyper[8 + threadIdx.x];
    __syncthreads();
    u64 block = (u64)blockIdx.x * 8 + threadIdx.x / 32;
    if (block * 256 >= n) return;
    u64 start = block * 256 + threadIdx.x % 32 * 8;
    // n is a multiple of 4: a lane has eight elements, four or none.
    int count = start + 8 <= n ? 8 : start < n ? 4 : 0;
    float lr = hyper[0], beta1 = hyper[1], beta2 = hyper[2];
    float clip = hyper[7] > 0.0f ? min(1.0f, hyper[7] / (norm[0] + 1e-6f)) : 1.0f;
    float old = m_max[block];
    float p[8] = {}, g[8] = {}, moment[8] = {};
    alignas(8) u32 codes[2] = {};
    if (count == 8) {
        load8(params + start, p);
        load8(grads + start, g);
        *(uint2*)codes = *(const uint2*)(m + start / 4);
    } else if (count == 4) {
#pragma unroll
        for (int j = 0; j < 4; j++) p[j] = params[start + j], g[j] = grads[start + j];
        codes[0] = m[start / 4];
    }
    float top = 0.0f;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        if (j >= count) continue;
        float x = g[j] * clip;
        float before = map[codes[j / 4] >> (8 * (j % 4)) & 255u] * old;
        float step = fmaf(beta1, before, (1.0f - beta1) * x);
        float sign = step > 0.0f ? 1.0f : step < 0.0f ? -1.0f : 0.0f;
        p[j] = p[j] * (1.0f - lr * hyper[4]) - lr * sign;
        moment[j] = fmaf(beta2, before, (1.0f - beta2) * x);
        top = fmaxf(top, fabsf(moment[j]));
    }
    top = warp_max(top);
    alignas(8) u32 next[2] = {};
#pragma unroll
    for (int j = 0; j < 8; j++) {
        // A block of zeros has a maximum of 0.
        next[j / 4] |= signed_code_of(map, top > 0.0f ? moment[j] / top : 0.0f) << (8 * (j % 4));
    }
    if (count == 8) {
        store8(params + start, p);
        *(uint2*)(m + start / 4) = *(const uint2*)next;
    } else if (count == 4) {
#pragma unroll
        for (int j = 0; j < 4; j++) params[start + j] = p[j];
        m[start / 4] = next[0];
    }
    if (threadIdx.x % 32 == 0) m_max[block] = top;
}
