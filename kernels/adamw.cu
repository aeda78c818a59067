// AdamW with decoupled weight decay (https://arxiv.org/abs/1711.05101) over n elements of flat f32 buffers, all adapters in
// one launch. hyper: lr, beta1, beta2, eps, weight decay, 1 − beta1ᵗ, 1 − beta2ᵗ, clip norm (0: none); norm[0] is the
// gradient's norm. 256 threads, grid = ceil(n / 256). Launched by launch_flat.rs.
#include "common.cuh"

extern "C" __global__ void adamw_f32(float* params, const float* grads, float* m, float* v, const float* norm,
                                     const float* hyper, u64 n) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float lr = hyper[0], beta1 = hyper[1], beta2 = hyper[2];
    float g = grads[i];
    if (hyper[7] > 0.0f) g *= min(1.0f, hyper[7] / (norm[0] + 1e-6f));
    float m1 = fmaf(beta1, m[i], (1.0f - beta1) * g);
    float v1 = fmaf(beta2, v[i], (1.0f - beta2) * g * g);
    m[i] = m1;
    v[i] = v1;
    float w = params[i] * (1.0f - lr * hyper[4]);
    params[i] = w - lr / hyper[5] * m1 / (sqrtf(v1) / sqrtf(hyper[6]) + hyper[3]);
}
