// For each row t and head: q and k normalised over the head (where q_norm / k_norm are not null), rotated (rotary.cuh) and
// written; with `slots`, k and v go to row slots[t] of the caches, else k to row t and v stays where it is.
// q, q_out T [rows, heads · d], k, v T [rows, kv · d], k_out, v_out T [·, kv · d], positions u32 [rows]. d is even.
// Heads of 64, 128 and 256 that turn as a whole stay in registers: an element and the one that it turns with are in one lane.
// A warp a head, four a block: grid = ceil(rows · parts / 4), parts = heads + kv (+ kv with slots). Launched by
// launch_attention.rs.
#include "rotary.cuh"

// A head of 32 · N elements, lane l holding elements l, l + 32, …; all loads are under way before the first is used.
template <typename T, int N>
DEVICE void turn_in_registers(const T* head, const float* weight, float eps, const float* angle, T* to, u32 lane) {
    float v[N], w[N], sum = 0.0f;
    float2 pair[N / 2];
#pragma unroll
    for (int j = 0; j < N; j++) v[j] = to_float(head[lane + 32 * j]);
#pragma unroll
    for (int j = 0; j < N; j++) w[j] = weight ? weight[lane + 32 * j] : 1.0f;
#pragma unroll
    for (int j = 0; j < N / 2; j++) pair[j] = *(const float2*)(angle + 2 * (lane + 32 * j));
    float scale = 1.0f;
    if (weight) {
#pragma unroll
        for (int j = 0; j < N; j++) sum = fmaf(v[j], v[j], sum);
        scale = 1.0f / sqrtf(warp_sum(sum) / (float)(32 * N) + eps);
    }
#pragma unroll
    for (int j = 0; j < N / 2; j++) {
        float first = v[j] * scale * w[j], second = v[j + N / 2] * scale * w[j + N / 2];
        to[lane + 32 * j] = from_float<T>(first * pair[j].x - second * pair[j].y);
        to[lane + 32 * (j + N / 2)] = from_float<T>(second * pair[j].x + first * pair[j].y);
    }
}

template <typename T>
DEVICE void qk_norm_rope_kv(const T* q, const T* k, const T* v, const float* q_norm, const float* k_norm, float eps,
                            const u32* positions, const float* rope, u32 rope_rows, u32 rope_dim, const u32* slots,
                            u32 cache_rows, T* q_out, T* k_out, T* v_out, u32 rows, u32 heads, u32 kv, u32 d,
                            const u32* counts, u32 which) {
    begin_dependent();
    u32 parts = heads + kv + (slots ? kv : 0);
    u32 group = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 t = group / parts, h = group % parts;
    if (t >= live_rows(counts, which, rows)) return;
    u64 target = slots ? slots[t] : t;
    if (h >= heads && slots && target >= cache_rows) return;
    if (h >= heads + kv) {
        u32 g = h - heads - kv;
        const T* from = v + ((u64)t * kv + g) * d;
        T* to = v_out + (target * kv + g) * d;
        for (u32 i = lane; i < d; i += 32) to[i] = from[i];
        return;
    }
    bool is_q = h < heads;
    u32 g = is_q ? h : h - heads, width = is_q ? heads : kv;
    const T* head = (is_q ? q : k) + ((u64)t * width + g) * d;
    const float* weight = is_q ? q_norm : k_norm;
    const float* angle = rope + (u64)min(positions[t], rope_rows - 1) * rope_dim;
    T* to = is_q ? q_out + ((u64)t * heads + g) * d : k_out + (target * kv + g) * d;
    if (rope_dim == d && (d == 64 || d == 128 || d == 256)) {
        if (d == 64) turn_in_registers<T, 2>(head, weight, eps, angle, to, lane);
        if (d == 128) turn_in_registers<T, 4>(head, weight, eps, angle, to, lane);
        if (d == 256) turn_in_registers<T, 8>(head, weight, eps, angle, to, lane);
        return;
    }
    float scale = 1.0f;
    if (weight) {
        float sum = 0.0f;
        for (u32 i = lane; i < d; i += 32) {
            float e = to_float(head[i]);
            sum = fmaf(e, e, sum);
        }
        scale = 1.0f / sqrtf(warp_sum(sum) / (float)d + eps);
    }
    for (u32 i = lane; i < d; i += 32) to[i] = from_float<T>(turned(head, weight, scale, angle, rope_dim, i));
}

#define KERNEL(name, T)                                                                                               \
    extern "C" __global__ void __launch_bounds__(128)                                                                 \
        name(const T* q, const T* k, const T* v, const float* q_norm, const float* k_norm, float eps,                 \
             const u32* positions, const float* rope, u32 rope_rows, u32 rope_dim, const u32* slots, u32 cache_rows,  \
             T* q_out, T* k_out, T* v_out, u32 rows, u32 heads, u32 kv, u32 d, const u32* counts, u32 which) {        \
        qk_norm_rope_kv<T>(q, k, v, q_norm, k_norm, eps, positions, rope, rope_rows, rope_dim, slots, cache_rows,     \
                           q_out, k_out, v_out, rows, heads, kv, d, counts, which);                                   \
    }
INSTANTIATE(KERNEL, qk_norm_rope_kv)
