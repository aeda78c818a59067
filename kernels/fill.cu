// x[i] = value, f32, n elements. 256 threads, grid = ceil(n / 2048). Launched by launch_flat.rs.
#include "common.cuh"

extern "C" __global__ void fill_f32(float* x, u64 n, float value) {
    u64 start = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    for (u64 i = start; i < min(start + 8, n); i++) x[i] = value;
}
