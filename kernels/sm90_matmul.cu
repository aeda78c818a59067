#include "sm90_gemm.cuh"

#define KERNEL(name, T, BN, CM, CN) \
    extern "C" __global__ __cluster_dims__(CM * CN, 1, 1) __launch_bounds__(384, 1) \
        void name(const __grid_constant__ MatmulArgs<3, 2> args) { \
        matmul_kernel<T, BN, CM, CN, 0>(args); \
    }
KERNEL(sm90_matmul_n256c21_bf16, bf16, 256, 2, 1)
KERNEL(sm90_matmul_n256c11_bf16, bf16, 256, 1, 1)
KERNEL(sm90_matmul_n192c21_bf16, bf16, 192, 2, 1)
KERNEL(sm90_matmul_n192c11_bf16, bf16, 192, 1, 1)
KERNEL(sm90_matmul_n128c21_bf16, bf16, 128, 2, 1)
KERNEL(sm90_matmul_n128c11_bf16, bf16, 128, 1, 1)
KERNEL(sm90_matmul_n128c22_bf16, bf16, 128, 2, 2)
KERNEL(sm90_matmul_n128c12_bf16, bf16, 128, 1, 2)
KERNEL(sm90_matmul_n192c22_bf16, bf16, 192, 2, 2)
KERNEL(sm90_matmul_n256c12_bf16, bf16, 256, 1, 2)
KERNEL(sm90_matmul_n256c21_f16, f16, 256, 2, 1)
KERNEL(sm90_matmul_n128c11_f16, f16, 128, 1, 1)
