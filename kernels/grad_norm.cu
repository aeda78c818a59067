// out[0] = sqrt(Σ x²), f32, n elements, in two passes so that the order of the sums is fixed: grad_norm_parts
// (1,024 threads, grid = 512) writes `parts` f32 [512], grad_norm (512 threads, one block) adds them. Launched by
// launch_flat.rs.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(1024) grad_norm_parts(const float* x, u64 n, float* parts) {
    float sum = 0.0f;
    u64 stride = (u64)gridDim.x * blockDim.x * 4;
    for (u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * 4; i < n; i += stride) {
        if (i + 4 <= n) {
            float4 v = *(const float4*)(x + i);
            sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
        } else {
            for (u64 j = i; j < n; j++) sum += x[j] * x[j];
        }
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(1024) grad_norm(const float* parts, float* out) {
    float sum = block_sum(parts[threadIdx.x]);
    if (threadIdx.x == 0) out[0] = sqrtf(sum);
}
