// AdamW (adamw.cu) over n elements of flat buffers, all adapters in one launch, with moments of 8 bits
// (https://arxiv.org/abs/2110.02861): a moment is map[code] · max of its block of 256 elements. params, grads f32 [n];
// m, v one byte an element; m_max, v_max f32 [ceil(n / 256)]; hyper f32 [520]: lr, beta1, beta2, eps, weight decay, 1
// − beta1ᵗ, 1 − beta2ᵗ, clip norm (0: none), the map of m (256 ascending numbers), the map of v; norm[0] is the
// gradient's norm. The step uses the moments before they are rounded to the nearest code of moment / max; a negative m
// that would round to 0 takes the code before 0's. 16 bytes an element are moved: it is bound by memory.
//
// Limits: n a multiple of 4; buffers aligned to 32 bytes. 256 threads, grid = ceil(n / 2048), no dynamic shared
// memory: a warp has one block of 256 elements, a lane eight of them. Launched by launch_flat.rs.
#include "codes_moment.cuh"

extern "C" __global__ void __launch_bounds__(256)
    adamw_8bit_f32(float* params, const float* grads, u32* m, u32* v, float* m_max, float* v_max, const float* norm,
                   const float* hyper, u64 n) {
    __shared__ float map_m[256], map_v[256];
    map_m[threadIdx.x] = hyper[8 + threadIdx.x];
    map_v[threadIdx.x] = hyper[264 + threadIdx.x];
    __syncthreads();
    u64 block = (u64)blockIdx.x * 8 + threadIdx.x / 32;
    if (block * 256 >= n) return;
    u64 start = block * 256 + threadIdx.x % 32 * 8;
    // n is a multiple of 4: a lane has eight elements, four or none.
    int count = start + 8 <= n ? 8 : start < n ? 4 : 0;
    float lr = hyper[0], beta1 = hyper[1], beta2 = hyper[2];
    float clip = hyper[7] > 0.0f ? min(1.0f, hyper[7] / (norm[0] + 1e-6f)) : 1.0f;
    float old_m = m_max[block], old_v = v_max[block];
    float p[8] = {}, g[8] = {}, first[8] = {}, second[8] = {};
    alignas(8) u32 codes_m[2] = {}, codes_v[2] = {};
    if (count == 8) {
        load8(params + start, p);
        load8(grads + start, g);
        *(uint2*)codes_m = *(const uint2*)(m + start / 4);
        *(uint2*)codes_v = *(const uint2*)(v + start / 4);
    } else if (count == 4) {
#pragma unroll
        for (int j = 0; j < 4; j++) p[j] = params[start + j], g[j] = grads[start + j];
        codes_m[0] = m[start / 4];
        codes_v[0] = v[start / 4];
    }
    float top_m = 0.0f, top_v = 0.0f;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        if (j >= count) continue;
        float x = g[j] * clip;
        float m0 = map_m[codes_m[j / 4] >> (8 * (j % 4)) & 255u] * old_m;
        float v0 = map_v[codes_v[j / 4] >> (8 * (j % 4)) & 255u] * old_v;
        first[j] = fmaf(beta1, m0, (1.0f - beta1) * x);
        second[j] = fmaf(beta2, v0, (1.0f - beta2) * x * x);
        float denominator = sqrtf(second[j]) / sqrtf(hyper[6]) + hyper[3];
        p[j] = p[j] * (1.0f - lr * hyper[4]) - lr / hyper[5] * first[j] / denominator;
        top_m = fmaxf(top_m, fabsf(first[j]));
        top_v = fmaxf(top_v, second[j]);
    }
    top_m = warp_max(top_m);
    top_v = warp_max(top_v);
    alignas(8) u32 new_m[2] = {}, new_v[2] = {};
#pragma unroll
    for (int j = 0; j < 8; j++) {
        // A block of zeros has a maximum of 0.
        u32 code = signed_code_of(map_m, top_m > 0.0f ? first[j] / top_m : 0.0f);
        new_m[j / 4] |= code << (8 * (j % 4));
        new_v[j / 4] |= code_of(map_v, top_v > 0.0f ? second[j] / top_v : 0.0f) << (8 * (j % 4));
    }
    if (count == 8) {
        store8(params + start, p);
        *(uint2*)(m + start / 4) = *(const uint2*)new_m;
        *(uint2*)(v + start / 4) = *(const uint2*)new_v;
    } else if (count == 4) {
#pragma unroll
        for (int j = 0; j < 4; j++) params[start + j] = p[j];
        m[start / 4] = new_m[0];
        v[start / 4] = new_v[0];
    }
    if (threadIdx.x % 32 == 0) {
        m_max[block] = top_m;
        v_max[block] = top_v;
    }
}
