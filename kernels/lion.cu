// Lion (https://arxiv.org/abs/2302.06675) with decoupled weight decay over n elements of flat f32 buffers.
// hyper: lr, beta1, beta2, –, weight decay, –, –, clip norm (0: none); norm[0] is the gradient's norm. 256 threads,
// grid = ceil(n / 256). Launched by launch_flat.rs.
#include "common.cuh"

extern "C" __global__ void lion_f32(float* params, const float* grads, float* m, const float* norm, const float* hyper,
                                    u64 n) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float lr = hyper[0], beta1 = hyper[1], beta2 = hyper[2];
    float g = grads[i];
    if (hyper[7] > 0.0f) g *= min(1.0f, hyper[7] / (norm[0] + 1e-6f));
    float step = fmaf(beta1, m[i], (1.0f - beta1) * g);
    float sign = step > 0.0f ? 1.0f : (step < 0.0f ? -1.0f : 0.0f);
    m[i] = fmaf(beta2, m[i], (1.0f - beta2) * g);
    params[i] = params[i] * (1.0f - lr * hyper[4]) - lr * sign;
}
