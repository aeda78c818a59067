// Gradients through rotation and norm of each head: the gradient is rotated back (the transpose of the rotation), then the
// backward of the norm as in rms_norm_backward.cu. q, dq_out, dq T [rows, heads · d]; k, dk_out, dk T [rows, kv · d].
// A warp a head, four a block: grid = ceil(rows · (heads + kv) / 4). Launched by launch_attention.rs.
#include "rotary.cuh"

template <typename T>
DEVICE void qk_norm_rope_backward(const T* q, const T* k, const float* q_norm, const float* k_norm, float eps,
                                  const u32* positions, const float* rope, u32 rope_rows, u32 rope_dim, const T* dq_out,
                                  const T* dk_out, T* dq, T* dk, u32 rows, u32 heads, u32 kv, u32 d, const u32* counts,
                                  u32 which) {
    u32 group = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 t = group / (heads + kv), h = group % (heads + kv);
    if (t >= live_rows(counts, which, rows)) return;
    bool is_q = h < heads;
    u64 start = is_q ? ((u64)t * heads + h) * d : ((u64)t * kv + h - heads) * d;
    const T* head = (is_q ? q : k) + start;
    const T* upstream = (is_q ? dq_out : dk_out) + start;
    T* to = (is_q ? dq : dk) + start;
    const float* weight = is_q ? q_norm : k_norm;
    const float* angle = rope + (u64)min(positions[t], rope_rows - 1) * rope_dim;
    float s = 1.0f, back = 0.0f;
    if (weight) {
        float squares = 0.0f, product = 0.0f;
        for (u32 i = lane; i < d; i += 32) {
            float v = to_float(head[i]);
            squares = fmaf(v, v, squares);
            product = fmaf(v, turned_back(upstream, weight, angle, rope_dim, i), product);
        }
        s = 1.0f / sqrtf(warp_sum(squares) / (float)d + eps);
        back = warp_sum(product) * s * s * s / (float)d;
    }
    for (u32 i = lane; i < d; i += 32) {
        float v = s * turned_back(upstream, weight, angle, rope_dim, i) - back * to_float(head[i]);
        to[i] = from_float<T>(v);
    }
}

#define KERNEL(name, T)                                                                                               \
    extern "C" __global__ void __launch_bounds__(128)                                                                 \
        name(const T* q, const T* k, const float* q_norm, const float* k_norm, float eps, const u32* positions,       \
             const float* rope, u32 rope_rows, u32 rope_dim, const T* dq_out, const T* dk_out, T* dq, T* dk,          \
             u32 rows, u32 heads, u32 kv, u32 d, const u32* counts, u32 which) {                                      \
        qk_norm_rope_backward<T>(q, k, q_norm, k_norm, eps, positions, rope, rope_rows, rope_dim, dq_out, dk_out, dq, \
                                 dk, rows, heads, kv, d, counts, which);                                              \
    }
INSTANTIATE(KERNEL, qk_norm_rope_backward)
