// The gate's activation and its derivative. ACT 0: SiLU, 1: GELU by its tanh approximation.
#pragma once
#include "common.cuh"

DEVICE float sigmoid(float v) { return 1.0f / (1.0f + expf(-v)); }

template <int ACT> DEVICE float activate(float v) {
    if (ACT == 0) return v * sigmoid(v);
    return 0.5f * v * (1.0f + tanhf(0.7978845608028654f * (v + 0.044715f * v * v * v)));
}

template <int ACT> DEVICE float activate_slope(float v) {
    if (ACT == 0) {
        float s = sigmoid(v);
        return s * (1.0f + v * (1.0f - s));
    }
    float t = tanhf(0.7978845608028654f * (v + 0.044715f * v * v * v));
    return 0.5f * (1.0f + t) + 0.5f * v * (1.0f - t * t) * 0.7978845608028654f * (1.0f + 0.134145f * v * v);
}
