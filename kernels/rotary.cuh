// Norm of a head and rotary embedding, one warp a head. Element i of the first rope_dim / 2 turns with element
// i + rope_dim / 2 (half-split order), the rest passes through; rope f32 [positions, rope_dim] holds (cos, sin) pairs.
#pragma once
#include "common.cuh"

// Element i of a head after norm and rotation; `weight` is null where there is no norm.
template <typename T>
DEVICE float turned(const T* head, const float* weight, float scale, const float* rope, u32 rope_dim, u32 i) {
    u32 half = rope_dim / 2;
    float own = to_float(head[i]) * scale * (weight ? weight[i] : 1.0f);
    if (i >= rope_dim) return own;
    bool first = i < half;
    u32 j = first ? i + half : i - half;
    float other = to_float(head[j]) * scale * (weight ? weight[j] : 1.0f);
    const float* pair = rope + 2 * (first ? i : j);
    return own * pair[0] + (first ? -other : other) * pair[1];
}

// Its transpose: element i of the gradient before the rotation, times the norm's weight.
template <typename T>
DEVICE float turned_back(const T* upstream, const float* weight, const float* rope, u32 rope_dim, u32 i) {
    u32 half = rope_dim / 2;
    float v = to_float(upstream[i]);
    if (i < rope_dim) {
        bool first = i < half;
        u32 j = first ? i + half : i - half;
        float other = to_float(upstream[j]);
        const float* pair = rope + 2 * (first ? i : j);
        v = v * pair[0] + (first ? other : -other) * pair[1];
    }
    return weight ? v * weight[i] : v;
}
