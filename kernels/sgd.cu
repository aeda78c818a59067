// SGD with momentum, as torch.optim.SGD: the decay is added to the gradient. n elements of flat f32 buffers.
// hyper: lr, momentum, –, –, weight decay, –, –, clip norm (0: none); norm[0] is the gradient's norm. 256 threads,
// grid = ceil(n / 256). Launched by launch_flat.rs.
#include "common.cuh"

extern "C" __global__ void sgd_f32(float* params, const float* grads, float* m, const float* norm, const float* hyper,
                                   u64 n) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float g = grads[i];
    if (hyper[7] > 0.0f) g *= min(1.0f, hyper[7] / (norm[0] + 1e-6f));
    float w = params[i];
    float m1 = fmaf(hyper[1], m[i], fmaf(hyper[4], w, g));
    m[i] = m1;
    params[i] = w - hyper[0] * m1;
}
