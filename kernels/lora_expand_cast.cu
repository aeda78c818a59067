// The adapters' matrices in the activations' type, for the products that accumulate their low-rank terms: one launch for all
// of them, at the start of a step. to[i] = from[i] · scale (1 where `scale` is null), from f32, to T [n] of each segment.
// 256 threads, grid = (blocks, segments): a block takes 2,048 elements a turn. Launched by record.rs.
#include "common.cuh"

struct Segment {
    const float* from;
    void* to;
    const float* scale;
    u64 n;
};

template <typename T> DEVICE void cast(const Segment* segments) {
    Segment s = segments[blockIdx.y];
    float scale = s.scale ? *s.scale : 1.0f;
    T* to = (T*)s.to;
    for (u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * 8; i < s.n; i += (u64)gridDim.x * blockDim.x * 8) {
        if (i + 8 <= s.n) {
            float v[8];
            load8(s.from + i, v);
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] *= scale;
            store8(to + i, v);
        } else {
            for (u64 j = i; j < s.n; j++) to[j] = from_float<T>(s.from[j] * scale);
        }
    }
}

extern "C" __global__ void lora_expand_cast_bf16(const Segment* segments) { cast<bf16>(segments); }
extern "C" __global__ void lora_expand_cast_f16(const Segment* segments) { cast<f16>(segments); }
