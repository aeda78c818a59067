// For each row t and head: q and k normalised over the head (where q_norm / k_norm are not null), rotated (rotary.cuh) and
// written; with `slots`, k and v go to row slots[t] of the caches, else k to row t and v stays where it is.
// q, q_out T [rows, heads · d], k, v T [rows, kv · d], k_out, v_out T [·, kv · d], positions u32 [rows]. d is even.
// kind ≠ 0: k_out and v_out are caches of 8-bit codes (codes.cuh), written from the unrounded f32s.
// Heads of 64, 128 and 256 that turn as a whole stay in registers: an element and the one that it turns with are in one lane.
// A warp a head, four a block: grid = ceil(rows · parts / 4), parts = heads + kv (+ kv with slots). Launched by
// launch_attention.rs.
#include "codes.cuh"
#include "rotary.cuh"

// A head of a cache of codes; `kind` 0: of another one.
struct CodeHead {
    u8* codes;
    float* scale;
    u32 kind;
};
DEVICE CodeHead code_head(void* cache, u64 row, u32 kv, u32 d, u32 head, u32 kind) {
    u8* start = (u8*)cache + row * code_stride(kv, d);
    return {start + (u64)head * d, (float*)(start + (u64)kv * d) + head, kind};
}
// `value(i)` for each element i of a head of d, by its warp.
template <typename F> DEVICE void write_codes(const CodeHead& to, u32 d, u32 lane, F value) {
    float top = 0.0f;
    for (u32 i = lane; i < d; i += 32) top = fmaxf(top, fabsf(value(i)));
    top = warp_max(top);
    const float factor = code_factor(top, to.kind);
    for (u32 i = lane; i < d; i += 32) to.codes[i] = encode(value(i) * factor, to.kind);
    if (lane == 0) *to.scale = top / largest_code(to.kind);
}

// The same of a head of 32 · N elements in registers, lane l holding elements l, l + 32, ….
template <int N> DEVICE void write_codes(const CodeHead& to, const float (&v)[N], u32 lane) {
    float top = 0.0f;
#pragma unroll
    for (int j = 0; j < N; j++) top = fmaxf(top, fabsf(v[j]));
    top = warp_max(top);
    const float factor = code_factor(top, to.kind);
#pragma unroll
    for (int j = 0; j < N; j++) to.codes[lane + 32 * j] = encode(v[j] * factor, to.kind);
    if (lane == 0) *to.scale = top / largest_code(to.kind);
}
template <typename T, int N> DEVICE void write_codes(const CodeHead& to, const T* from, u32 lane) {
    float v[N];
#pragma unroll
    for (int j = 0; j < N; j++) v[j] = to_float(from[lane + 32 * j]);
    write_codes(to, v, lane);
}

// A head of 32 · N elements, lane l holding elements l, l + 32, …; all loads are under way before the first is used.
template <typename T, int N>
DEVICE void turn_in_registers(const T* head, const float* weight, float eps, const float* angle, T* to,
                              const CodeHead& coded, u32 lane) {
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
        v[j] = first * pair[j].x - second * pair[j].y;
        v[j + N / 2] = second * pair[j].x + first * pair[j].y;
    }
    if (coded.kind) {
        write_codes(coded, v, lane);
        return;
    }
#pragma unroll
    for (int j = 0; j < N; j++) to[lane + 32 * j] = from_float<T>(v[j]);
}

template <typename T>
DEVICE void qk_norm_rope_kv(const T* q, const T* k, const T* v, const float* q_norm, const float* k_norm, float eps,
                            const u32* positions, const float* rope, u32 rope_rows, u32 rope_dim, const u32* slots,
                            u32 cache_rows, T* q_out, T* k_out, T* v_out, u32 rows, u32 heads, u32 kv, u32 d,
                            u32 kind, const u32* counts, u32 which) {
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
        if (kind) {
            const CodeHead coded = code_head(v_out, target, kv, d, g, kind);
            if (d == 64) write_codes<T, 2>(coded, from, lane);
            else if (d == 128) write_codes<T, 4>(coded, from, lane);
            else if (d == 256) write_codes<T, 8>(coded, from, lane);
            else write_codes(coded, d, lane, [&](u32 i) { return to_float(from[i]); });
            return;
        }
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
    const CodeHead coded = code_head(k_out, target, kv, d, g, is_q ? 0 : kind);
    if (rope_dim == d && (d == 64 || d == 128 || d == 256)) {
        if (d == 64) turn_in_registers<T, 2>(head, weight, eps, angle, to, coded, lane);
        if (d == 128) turn_in_registers<T, 4>(head, weight, eps, angle, to, coded, lane);
        if (d == 256) turn_in_registers<T, 8>(head, weight, eps, angle, to, coded, lane);
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
    if (coded.kind) {
        write_codes(coded, d, lane, [&](u32 i) { return turned(head, weight, scale, angle, rope_dim, i); });
        return;
    }
    for (u32 i = lane; i < d; i += 32) to[i] = from_float<T>(turned(head, weight, scale, angle, rope_dim, i));
}

#define KERNEL(name, T)                                                                                               \
    extern "C" __global__ void __launch_bounds__(128)                                                                 \
        name(const T* q, const T* k, const T* v, const float* q_norm, const float* k_norm, float eps,                 \
             const u32* positions, const float* rope, u32 rope_rows, u32 rope_dim, const u32* slots, u32 cache_rows,  \
             T* q_out, T* k_out, T* v_out, u32 rows, u32 heads, u32 kv, u32 d, u32 kind, const u32* counts,           \
             u32 which) {                                                                                             \
        qk_norm_rope_kv<T>(q, k, v, q_norm, k_norm, eps, positions, rope, rope_rows, rope_dim, slots, cache_rows,     \
                           q_out, k_out, v_out, rows, heads, kv, d, kind, counts, which);                             \
    }
INSTANTIATE(KERNEL, qk_norm_rope_kv)
