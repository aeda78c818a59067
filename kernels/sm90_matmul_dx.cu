// dx[M, K] (+)= scale · (dy[M, N] · W[N, K] + du[M, r] · A[r, K] + …), W and A row-major as forward, T = bf16 or f16:
// wgmma takes them MN-major. Up to six products add up in one launch: q, k and v with their low-rank terms. The kernel,
// its tensor maps and its launch stand in sm90_gemm.cuh: a = dy, b = W, k = N of each product, `n` = K, residual = dx
// to accumulate.
#include "sm90_gemm.cuh"

#define KERNEL(name, T, BN, CLUSTER)                                                                                  \
    extern "C" __global__ __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(384, 1)                                   \
        void name(const __grid_constant__ MatmulArgs<1, 6> args) {                                                    \
        matmul_kernel<T, BN, CLUSTER, 1>(args);                                                                       \
    }
#define KERNELS(T)                                                                                                    \
    KERNEL(sm90_matmul_dx_n256c2_##T, T, 256, 2)                                                                      \
    KERNEL(sm90_matmul_dx_n192c2_##T, T, 192, 2)                                                                      \
    KERNEL(sm90_matmul_dx_n128c2_##T, T, 128, 2)                                                                      \
    KERNEL(sm90_matmul_dx_n128c1_##T, T, 128, 1)
KERNELS(bf16)
KERNELS(f16)
