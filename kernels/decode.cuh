// Weights of every type, eight consecutive elements of a row at a time, as f32. The layout (planes of groups of 32
// elements) is made by src/backend/planes.rs; the formulas are those of shaders/decode.wgsl. NF4 is bitsandbytes'
// type: plane 0 as Q4_0's, plane 1 one f32 (the largest magnitude) for two groups, value = table[code] * that.
#pragma once
#include "common.cuh"

// One weight [n, k], passed to kernels by value. Rows of quantised types are whole groups of 32.
struct WeightView {
    const u32* data; // plane 0, aligned to 16 bytes
    u32 w1, w2, w3;  // where planes 1..3 start, in words from `data`; 0 where absent
    u32 n, k;        // rows, elements of a row
    u32 stride;      // elements from row to row; quantised: 32 * groups of a row = k
};

// Names of the types: plain ones are f32, bf16 and f16, the rest are tags.
typedef float f32;
struct q4_0 {};
struct q4_1 {};
struct q5_0 {};
struct q5_1 {};
struct q8_0 {};
struct q4_k {};
struct q5_k {};
struct q6_k {};
struct nf4 {};

static __device__ const float NF4_TABLE[16] = {-1.0f,
                                               -0.6961928009986877f,
                                               -0.5250730514526367f,
                                               -0.39491748809814453f,
                                               -0.28444138169288635f,
                                               -0.18477343022823334f,
                                               -0.09105003625154495f,
                                               0.0f,
                                               0.07958029955625534f,
                                               0.16093020141124725f,
                                               0.24611230194568634f,
                                               0.33791524171829224f,
                                               0.44070982933044434f,
                                               0.5626170039176941f,
                                               0.7229568362236023f,
                                               1.0f};

template <typename W> struct WeightTraits {
    static const bool quantised = true;
};
template <> struct WeightTraits<float> {
    static const bool quantised = false;
};
template <> struct WeightTraits<bf16> {
    static const bool quantised = false;
};
template <> struct WeightTraits<f16> {
    static const bool quantised = false;
};

DEVICE u32 weight_half(const WeightView& v, u32 base, u32 i) {
    return (u32)__ldg((const u16*)(v.data + base) + i);
}
DEVICE float weight_f16(const WeightView& v, u32 base, u32 i) {
    f16 h;
    h.bits = (u16)weight_half(v, base, i);
    return to_float(h);
}
DEVICE float2 weight_f16_pair(const WeightView& v, u32 base, u32 i) {
    return unpack2<f16>(__ldg(v.data + base + i));
}

// (d, m) of value = q * d + m for group g; `part` is the octet within the group (Q6_K has a scale for each 16
// elements). ggml's (q - 8) * d is q * d + (-8 d) exactly: the fused multiply-add rounds once and -8 d is exact.
template <typename W> DEVICE float2 weight_scale(const WeightView& v, u32 g, u32 part);
template <> DEVICE float2 weight_scale<q4_0>(const WeightView& v, u32 g, u32) {
    float d = weight_f16(v, v.w1, g);
    return make_float2(d, -8.0f * d);
}
template <> DEVICE float2 weight_scale<q4_1>(const WeightView& v, u32 g, u32) { return weight_f16_pair(v, v.w1, g); }
template <> DEVICE float2 weight_scale<q5_0>(const WeightView& v, u32 g, u32) {
    float d = weight_f16(v, v.w2, g);
    return make_float2(d, -16.0f * d);
}
template <> DEVICE float2 weight_scale<q5_1>(const WeightView& v, u32 g, u32) { return weight_f16_pair(v, v.w2, g); }
DEVICE float2 k_scale(const WeightView& v, u32 scales, u32 supers, u32 g) {
    u32 s = weight_half(v, scales, g);
    float2 d = weight_f16_pair(v, supers, g / 8);
    return make_float2(d.x * (float)(s & 255u), d.y * -(float)(s >> 8));
}
template <> DEVICE float2 weight_scale<q4_k>(const WeightView& v, u32 g, u32) { return k_scale(v, v.w1, v.w2, g); }
template <> DEVICE float2 weight_scale<q5_k>(const WeightView& v, u32 g, u32) { return k_scale(v, v.w2, v.w3, g); }
template <> DEVICE float2 weight_scale<q6_k>(const WeightView& v, u32 g, u32 part) {
    u32 s = weight_half(v, v.w2, g);
    float d = weight_f16(v, v.w3, g / 8) * (float)(i8)(part >= 2 ? s >> 8 : s);
    return make_float2(d, -32.0f * d);
}

// The bits above the fourth of an octet's elements: element j's at bit 4 (and 5) of the result's place j.
template <typename W> DEVICE u32 weight_above(const WeightView&, u32, u32, u32) { return 0; }
DEVICE u32 fifth_bit(const WeightView& v, u32 g, u32 part, u32 j) {
    return (__ldg(v.data + v.w1 + g) >> (part * 8 + j) & 1u) << 4;
}
template <> DEVICE u32 weight_above<q5_0>(const WeightView& v, u32 g, u32 part, u32 j) {
    return fifth_bit(v, g, part, j);
}
template <> DEVICE u32 weight_above<q5_1>(const WeightView& v, u32 g, u32 part, u32 j) {
    return fifth_bit(v, g, part, j);
}
template <> DEVICE u32 weight_above<q5_k>(const WeightView& v, u32 g, u32 part, u32 j) {
    return fifth_bit(v, g, part, j);
}
template <> DEVICE u32 weight_above<q6_k>(const WeightView& v, u32 g, u32 part, u32 j) {
    return (__ldg(v.data + v.w1 + g * 2 + part / 2) >> ((part & 1) * 16 + 2 * j) & 3u) << 4;
}

// Element k of a row of a plain type; 0 past its end.
template <typename W> DEVICE float weight_at(const WeightView& v, u32 row, u32 k) {
    return k < v.k ? to_float(((const W*)v.data)[(size_t)row * v.stride + k]) : 0.0f;
}

// Elements 8 * octet .. 8 * octet + 8 of `row`; 0 past the row's end (only plain types may end within an octet).
template <typename W> struct Weight {
    WeightView v;
    DEVICE void load8(u32 row, u32 octet, float (&out)[8]) const {
        u32 g = row * (v.stride / 32) + octet / 4, part = octet % 4;
        if (octet * 8 >= v.k) {
#pragma unroll
            for (int j = 0; j < 8; j++) out[j] = 0.0f;
            return;
        }
        float2 s = weight_scale<W>(v, g, part);
        u32 q = __ldg(v.data + (size_t)g * 4 + part);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            out[j] = fmaf((float)((q >> (4 * j) & 15u) | weight_above<W>(v, g, part, j)), s.x, s.y);
        }
    }
};

template <> DEVICE void Weight<q8_0>::load8(u32 row, u32 octet, float (&out)[8]) const {
    u32 g = row * (v.stride / 32) + octet / 4;
    bool inside = octet * 8 < v.k;
    float d = inside ? weight_f16(v, v.w1, g) : 0.0f;
    uint2 q = inside ? __ldg((const uint2*)(v.data + (size_t)g * 8 + octet % 4 * 2)) : make_uint2(0, 0);
#pragma unroll
    for (int j = 0; j < 8; j++) out[j] = (float)(i8)((j < 4 ? q.x : q.y) >> (8 * (j % 4))) * d;
}

template <> DEVICE void Weight<nf4>::load8(u32 row, u32 octet, float (&out)[8]) const {
    u32 g = row * (v.stride / 32) + octet / 4;
    bool inside = octet * 8 < v.k;
    float d = inside ? __uint_as_float(__ldg(v.data + v.w1 + g / 2)) : 0.0f;
    u32 q = inside ? __ldg(v.data + (size_t)g * 4 + octet % 4) : 0;
#pragma unroll
    for (int j = 0; j < 8; j++) out[j] = __ldg(NF4_TABLE + (q >> (4 * j) & 15u)) * d;
}

// Plain types: one or two 16-byte loads where the octet is whole and aligned, else element by element.
template <typename W> DEVICE void plain_load8(const WeightView& v, u32 row, u32 octet, float (&out)[8]) {
    u32 k = octet * 8;
    if (k + 8 <= v.k && v.stride % 8 == 0) {
        ::load8<W>((const W*)v.data + (size_t)row * v.stride + k, out);
    } else {
#pragma unroll
        for (int j = 0; j < 8; j++) out[j] = weight_at<W>(v, row, k + j);
    }
}
template <> DEVICE void Weight<float>::load8(u32 row, u32 octet, float (&out)[8]) const {
    plain_load8<float>(v, row, octet, out);
}
template <> DEVICE void Weight<bf16>::load8(u32 row, u32 octet, float (&out)[8]) const {
    plain_load8<bf16>(v, row, octet, out);
}
template <> DEVICE void Weight<f16>::load8(u32 row, u32 octet, float (&out)[8]) const {
    plain_load8<f16>(v, row, octet, out);
}

// INSTANTIATE_WEIGHTS(KERNEL, name, T) makes KERNEL(name_<weight>_<T>, weight, T) for every type of weight and one
// type of activations, INSTANTIATE_PAIRS(KERNEL, name) for all three of those. The compiler options -DWEIGHT_ONLY=q4_k
// and -DACT_ONLY=bf16 (or any other of the names) leave one of each, so that a program compiles only what it uses.
#define WEIGHT_PAIR_(KERNEL, name, W, T) KERNEL(name##_##W##_##T, W, T)
#define WEIGHT_PAIR(KERNEL, name, W, T) WEIGHT_PAIR_(KERNEL, name, W, T)
#ifdef WEIGHT_ONLY
#define INSTANTIATE_WEIGHTS(KERNEL, name, T) WEIGHT_PAIR(KERNEL, name, WEIGHT_ONLY, T)
#else
#define INSTANTIATE_WEIGHTS(KERNEL, name, T)                                                                          \
    WEIGHT_PAIR(KERNEL, name, f32, T)                                                                                 \
    WEIGHT_PAIR(KERNEL, name, bf16, T)                                                                                \
    WEIGHT_PAIR(KERNEL, name, f16, T)                                                                                 \
    WEIGHT_PAIR(KERNEL, name, q4_0, T)                                                                                \
    WEIGHT_PAIR(KERNEL, name, q4_1, T)                                                                                \
    WEIGHT_PAIR(KERNEL, name, q5_0, T)                                                                                \
    WEIGHT_PAIR(KERNEL, name, q5_1, T)                                                                                \
    WEIGHT_PAIR(KERNEL, name, q8_0, T)                                                                                \
    WEIGHT_PAIR(KERNEL, name, q4_k, T)                                                                                \
    WEIGHT_PAIR(KERNEL, name, q5_k, T)                                                                                \
    WEIGHT_PAIR(KERNEL, name, q6_k, T)                                                                                \
    WEIGHT_PAIR(KERNEL, name, nf4, T)
#endif
#ifdef ACT_ONLY
#define INSTANTIATE_PAIRS(KERNEL, name) INSTANTIATE_WEIGHTS(KERNEL, name, ACT_ONLY)
#else
#define INSTANTIATE_PAIRS(KERNEL, name)                                                                               \
    INSTANTIATE_WEIGHTS(KERNEL, name, f32)                                                                            \
    INSTANTIATE_WEIGHTS(KERNEL, name, bf16)                                                                           \
    INSTANTIATE_WEIGHTS(KERNEL, name, f16)
#endif
