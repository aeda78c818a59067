// The f32 tile of matmul.cu and matmul_dx.cu: 64×64 outputs, 16 deep, 256 threads of 4×4.
#pragma once
#include "decode.cuh"

// [depth][row or column]; the padding spreads the rows over the banks.
typedef float Tile[16][68];

// Sixteen columns from `c0` of 64 rows of x [rows, cols]; zeros outside.
template <typename T> DEVICE void load_rows(Tile& tile, const T* x, u32 row0, u32 rows, u32 c0, u32 cols) {
    u32 row = threadIdx.x / 4, c = threadIdx.x % 4 * 4;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        bool inside = row0 + row < rows && c0 + c + j < cols;
        tile[c + j][row] = inside ? to_float(x[(u64)(row0 + row) * cols + c0 + c + j]) : 0.0f;
    }
}

DEVICE void multiply(const Tile& a, const Tile& b, float (&sums)[4][4]) {
    u32 i0 = threadIdx.x / 16 * 4, j0 = threadIdx.x % 16 * 4;
#pragma unroll
    for (int d = 0; d < 16; d++) {
        float4 av = *(const float4*)&a[d][i0], bv = *(const float4*)&b[d][j0];
        float as[4] = {av.x, av.y, av.z, av.w}, bs[4] = {bv.x, bv.y, bv.z, bv.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) sums[i][j] = fmaf(as[i], bs[j], sums[i][j]);
        }
    }
}

// Calls f(row, column, i, j) for this thread's outputs that lie inside [rows, cols].
template <typename F> DEVICE void each_output(u32 row0, u32 rows, u32 c0, u32 cols, F f) {
    u32 i0 = threadIdx.x / 16 * 4, j0 = threadIdx.x % 16 * 4;
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (row0 + i0 + i < rows && c0 + j0 + j < cols) f(row0 + i0 + i, c0 + j0 + j, i, j);
        }
    }
}

// f32 activations with every weight type; 16-bit ones with the plain types (quantised rows are whole groups of 32, for
// which tensor-core kernels exist).
#define EACH_WEIGHT(KERNEL, name)                                                                                     \
    KERNEL(name##_f32_f32, float, float)                                                                              \
    KERNEL(name##_f16_f32, f16, float)                                                                                \
    KERNEL(name##_bf16_f32, bf16, float)                                                                              \
    KERNEL(name##_q4_0_f32, q4_0, float)                                                                              \
    KERNEL(name##_q4_1_f32, q4_1, float)                                                                              \
    KERNEL(name##_q5_0_f32, q5_0, float)                                                                              \
    KERNEL(name##_q5_1_f32, q5_1, float)                                                                              \
    KERNEL(name##_q8_0_f32, q8_0, float)                                                                              \
    KERNEL(name##_q4_k_f32, q4_k, float)                                                                              \
    KERNEL(name##_q5_k_f32, q5_k, float)                                                                              \
    KERNEL(name##_q6_k_f32, q6_k, float)                                                                              \
    KERNEL(name##_nf4_f32, nf4, float)                                                                                \
    KERNEL(name##_f32_bf16, float, bf16)                                                                              \
    KERNEL(name##_f16_bf16, f16, bf16)                                                                                \
    KERNEL(name##_bf16_bf16, bf16, bf16)                                                                              \
    KERNEL(name##_f32_f16, float, f16)                                                                                \
    KERNEL(name##_f16_f16, f16, f16)                                                                                  \
    KERNEL(name##_bf16_f16, bf16, f16)
