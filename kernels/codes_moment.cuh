// Codes of 8-bit moments (adamw_8bit.cu, lion_8bit.cu).
#pragma once
#include "common.cuh"

// The code nearest to x: how many means of neighbours in the map are below it.
DEVICE u32 code_of(const float* map, float x) {
    u32 code = 0;
#pragma unroll
    for (u32 step = 128; step > 0; step >>= 1) {
        u32 i = code + step;
        if ((map[i - 1] + map[i]) * 0.5f < x) code = i;
    }
    return code;
}

// The same for moments of both signs: a negative one that would round to 0 takes the code before 0's.
DEVICE u32 signed_code_of(const float* map, float x) {
    u32 code = code_of(map, x);
    return x < 0.0f && map[code] == 0.0f ? code - 1 : code;
}
