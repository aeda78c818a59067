// attention_decode: paged attention (formulas: attention.cu) of rows that stand alone, one query for many keys.
//
// every_row = 1: all live rows (a small step: decode, or a short piece of a prompt). every_row = 0: only rows that are
// the only ones of their sequence in this step; attention_paged_* with skip_single = 1 computes the others.
// attention_decode_d{64,80,96,128,256}_{bf16,f16}; q, k, v, out aligned to 16 bytes; page = 2^n ≥ 8; scale > 0.
// …_{bf16,f16}_{i8,e4m3}: the same over a cache of 8-bit codes (codes.cuh). The products are of codes: the scale of a key
//     multiplies its score, that of a value its probability.
// attention_decode_fresh_d{64,128}_{bf16,f16}: qk_norm_rope_kv (with slots, rope_dim = D) in front: q, and the k and v of this step
//     in `fresh`, are those of the products; k and v (the caches) are written. every_row = 1 and no two live rows of one sequence.
//     grid (splits, G · ceil(H / G / 8), units), block 128, no dynamic shared memory;
//     units = rows with every_row, else min(rows, sequences of the table); splits in 1..64.
//     partial: units · H · splits · (D + 2) · 4 bytes of scratch, not used with splits = 1.
//     tickets: units · G · ceil(H / G / 8) u32 that are 0 before the very first launch; every launch leaves them 0.
//     -DHEAD_DIM=n compiles the kernels of that width only.
//
// How: a block owns up to 8 query heads of a group and a share of the keys that is settled from the sequence's length:
// at least 64 of them, so a short context uses few of the splits. A warp takes 16 keys at a time straight from global
// memory to registers, in the order that mma.sync wants: Sᵀ = K·Qᵀ (16 keys × 8 heads) and outᵀ += Vᵀ·Pᵀ; P changes
// sides by movmatrix. Warps add up through shared memory, blocks through `partial`: the last one to take a ticket reads
// all shares, in order, so the result does not depend on which one that is.
//
// H100, 2026-11-24, int8 or e4m3 beside bf16: 128 rows of 540 keys 79 beside 115 µs, of 2,000 keys 235 beside 371 µs; 32 rows
// of 8,000 keys 240 beside 363 µs; one row of 30,000 keys 36 beside 55 µs. Three blocks on a multiprocessor, or values not
// ahead, cost up to 10 %.
// H100, 2026-11-23, bf16, D = 128, H/G = 32/8, pages of 16: one row, 128 keys 5.8 µs, 1,000 keys 8.1 µs, 40,000 keys
// 62.6 µs (2.62 TB/s); 1,000 keys each: 32 rows 48 µs (2.71 TB/s), 256 rows 353 µs (2.97 TB/s). A copy reaches 3.0
// TB/s. 2026-11-24, 540 keys each, with qk_norm_rope_kv in front as a launch of its own and in the kernel: one row 7.5, 6.1
// µs; 32 rows 31.9, 30.5; 128 rows 106.7, 103.0 (2.75 TB/s).
#include "codes.cuh"
#include "mma.cuh"

#define LOG2E 1.44269504f
#define MAX_SPLITS 64

DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// tanh with an absolute error near 1e-7, unlike tanh.approx, whose 5e-4 a cap would multiply.
DEVICE float tanh_fast(float x) { return 1.0f - __fdividef(2.0f, exp2_fast(2.0f * LOG2E * x) + 1.0f); }

// Brings the 128 bytes at `p` to L2.
DEVICE void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// Transposes an 8×8 matrix of 16-bit elements that lies across the warp.
DEVICE u32 transpose8(u32 x) {
    u32 y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

template <int N> DEVICE void load_words(u32* to, const void* from) {
    if constexpr (N == 4) {
        uint4 x = *(const uint4*)from;
        to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
    } else if constexpr (N == 2) {
        uint2 x = *(const uint2*)from;
        to[0] = x.x, to[1] = x.y;
    } else {
        to[0] = *(const u32*)from;
    }
}

// This step's keys and values before norm and rotation, and what turns them (qk_norm_rope_kv.cu).
template <typename T> struct Fresh {
    const T *k, *v;
    const float *q_norm, *k_norm;
    float eps;
    const float* rope;
    u32 rope_rows;
    const u32* slots;
    u32 cache_rows;
};

template <typename T, typename C> struct Problem {
    T* out;
    const T* q;
    const C *k, *v;
    const u32 *seqs, *positions, *table, *counts;
    float* partial;
    u32* tickets;
    u32 rows, heads, kv_heads, pages, page;
    float scale;
    u32 window;
    float softcap;
    u32 every_row;
    Fresh<T> fresh;
};

// T: type of activations, C: of the cache.
template <typename T, typename C, int D, bool FRESH = false> struct Decode {
    static const int WARPS = 4, HEADS = 8, STEP = 16;
    static const bool CODES = IsCode<C>::value;
    // Keys are loaded a step ahead where registers suffice, codes of values too.
    static const bool AHEAD = D <= 128 || CODES, VALUES_AHEAD = D <= 128 && CODES;
    // of a row of q or of k, for each thread of the four that share it; of v: for keys 2t and 2t + 1
    static const int WORDS = D / 8;
    static const int KEY_WORDS = CODES ? D / 16 : WORDS, VALUE_WORDS = CODES ? (D + 16) / 32 : D / 16;

    // The words of a row that lane % 4 = t holds: pair i is 16-step i of the product; four words (eight elements; of codes
    // 16) at a time.
    static DEVICE void load_row(u32 (&to)[WORDS], const T* row, u32 t) {
        const int each = CODES ? 16 : 8, whole = D / (4 * each); // elements of a thread; rounds of the four
#pragma unroll
        for (int i = 0; i < whole; i++)
#pragma unroll
            for (int j = 0; j < each / 8; j++)
                load_words<4>(to + (i * each / 8 + j) * 4, row + (i * 4 + t) * each + j * 8);
        const T* rest = row + whole * 4 * each;
        u32* rest_to = to + whole * each / 2;
        if constexpr (D % (4 * each) == 32) load_words<4>(rest_to, rest + t * 8);
        if constexpr (D % (4 * each) == 16) load_words<2>(rest_to, rest + t * 4);
    }
    // The same of a key in the cache.
    static DEVICE void load_key(u32 (&to)[KEY_WORDS], const C* row, u32 t) {
        if constexpr (CODES) {
#pragma unroll
            for (int i = 0; i < D / 64; i++) load_words<4>(to + 4 * i, row + (i * 4 + t) * 16);
            if constexpr (D % 64 == 32) load_words<2>(to + D / 64 * 4, row + D / 64 * 64 + t * 8);
            if constexpr (D % 64 == 16) load_words<1>(to + D / 64 * 4, row + D / 64 * 64 + t * 4);
        } else {
            load_row(to, row, t);
        }
    }
    // Of a row of v, what lane / 4 = g holds: word i is rows g and g + 8 of the i-th 16-row tile of outᵀ; of codes, those of
    // two tiles.
    static DEVICE void load_value(u32 (&to)[VALUE_WORDS], const C* row, u32 g) {
        if constexpr (CODES) {
#pragma unroll
            for (int i = 0; i < D / 128; i++) load_words<4>(to + 4 * i, row + i * 128 + g * 16);
            const C* rest = row + D / 128 * 128;
            if constexpr (D % 128 >= 64) load_words<2>(to + D / 128 * 4, rest + g * 8);
            if constexpr (D % 64 == 32) load_words<1>(to + D / 64 * 2, row + D / 64 * 64 + g * 4);
            if constexpr (D % 64 == 16) to[D / 64 * 2] = *(const u16*)(row + D / 64 * 64 + g * 2);
        } else {
#pragma unroll
            for (int i = 0; i < D / 64; i++) load_words<4>(to + 4 * i, row + i * 64 + g * 8);
            if constexpr (D % 64 == 32) load_words<2>(to + D / 64 * 4, row + D / 64 * 64 + g * 4);
            if constexpr (D % 64 == 16) load_words<1>(to + D / 64 * 4, row + D / 64 * 64 + g * 2);
        }
    }
    static DEVICE void load_values(u32 (&to)[4][VALUE_WORDS], const C* v, uint2 rows, u32 stride, u32 g, u32 t) {
        load_value(to[0], v + (u64)(rows.x + 2 * t) * stride, g);
        load_value(to[1], v + (u64)(rows.x + 2 * t + 1) * stride, g);
        load_value(to[2], v + (u64)(rows.y + 2 * t) * stride, g);
        load_value(to[3], v + (u64)(rows.y + 2 * t + 1) * stride, g);
    }
    // The element of v's row that word i of load_value begins with.
    static DEVICE u32 value_column(int i, u32 g) {
        if (CODES && i < D / 128 * 8) return i / 8 * 128 + g * 16 + i % 8 * 2;
        if (i < D / 64 * 4) return i / 4 * 64 + g * 8 + i % 4 * 2;
        return D / 64 * 64 + (D % 64 == 32 ? g * 4 + i % 4 * 2 : g * 2);
    }

    // Cache rows of keys step · 16 and step · 16 + 8. Past the sequence's last key the first stands for both.
    static DEVICE uint2 cache_rows(const Problem<T, C>& a, const u32* table, u32 shift, u32 step, u32 position) {
        u32 low = step * STEP, high = low + 8 <= position ? low + 8 : low, mask = a.page - 1;
        return make_uint2((table[low >> shift] << shift) + (low & mask),
            (table[high >> shift] << shift) + (high & mask));
    }

    // The scales of this lane's two keys, which are rows g of the 8 from rows.x and rows.y on.
    static DEVICE float2 load_scales(const C* cache, uint2 rows, u32 stride, const Problem<T, C>& a, u32 group, u32 g) {
        if (!CODES) return make_float2(1.0f, 1.0f);
        return make_float2(*scale_at(cache + (u64)(rows.x + g) * stride, a.kv_heads, D, group) * code_unit<T, C>(),
                           *scale_at(cache + (u64)(rows.y + g) * stride, a.kv_heads, D, group) * code_unit<T, C>());
    }

    // sᵀ += 16 keys · 8 queries.
    static DEVICE void scores(float (&s)[4], const u32 (&ks)[2][KEY_WORDS], const u32 (&qs)[WORDS]) {
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
            u32 k16[4];
            if constexpr (CODES) {
                expand4<T, C>(ks[0][i], k16[0], k16[2]);
                expand4<T, C>(ks[1][i], k16[1], k16[3]);
            } else {
                k16[0] = ks[0][2 * i], k16[1] = ks[1][2 * i], k16[2] = ks[0][2 * i + 1], k16[3] = ks[1][2 * i + 1];
            }
            mma16816<T>(s, k16, qs[2 * i], qs[2 * i + 1]);
        }
    }

    // sums = sums · shrink + 16 values · 8 probabilities.
    static DEVICE void values(float (&sums)[D / 16][4], const u32 (&vs)[4][VALUE_WORDS], u32 p0, u32 p1,
                              const float (&shrink)[2]) {
#pragma unroll
        for (int i = 0; i < D / 16; i++)
            sums[i][0] *= shrink[0], sums[i][1] *= shrink[1], sums[i][2] *= shrink[0], sums[i][3] *= shrink[1];
        if constexpr (CODES) {
#pragma unroll
            for (int i = 0; i < D / 16; i++) {
                // Two columns of four keys: those of each pair of keys side by side.
                const u32 columns = i % 2 ? 0x7362 : 0x5140;
                u32 v16[4];
                expand4<T, C>(__byte_perm(vs[0][i / 2], vs[1][i / 2], columns), v16[0], v16[1]);
                expand4<T, C>(__byte_perm(vs[2][i / 2], vs[3][i / 2], columns), v16[2], v16[3]);
                mma16816<T>(sums[i], v16, p0, p1);
            }
        } else {
#pragma unroll
            for (int i = 0; i < D / 16; i++) {
                u32 v16[4] = {__byte_perm(vs[0][i], vs[1][i], 0x5410), __byte_perm(vs[0][i], vs[1][i], 0x7632),
                              __byte_perm(vs[2][i], vs[3][i], 0x5410), __byte_perm(vs[2][i], vs[3][i], 0x7632)};
                mma16816<T>(sums[i], v16, p0, p1);
            }
        }
    }

    // As load_row, after the norm (where there is one) and the rotation: element 32i + 8t + e turns with the one D / 2 further, which is
    // this lane's too. The four lanes of a quad have one head.
    static DEVICE void load_turned(u32 (&to)[WORDS], const T* head, const float* norm, float eps, const float* angle,
                                   u32 t) {
        const int HALF = WORDS / 2;
        u32 raw[WORDS];
        load_row(raw, head, t);
        float scale = 1.0f;
        if (norm) {
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < WORDS; i++) {
                float2 pair = unpack2<T>(raw[i]);
                sum = fmaf(pair.x, pair.x, fmaf(pair.y, pair.y, sum));
            }
            sum += __shfl_xor_sync(FULL_WARP, sum, 1);
            sum += __shfl_xor_sync(FULL_WARP, sum, 2);
            scale = 1.0f / sqrtf(sum / (float)D + eps);
        }
#pragma unroll
        for (int i = 0; i < HALF; i++) {
            const u32 at = i / 4 * 32 + t * 8 + i % 4 * 2; // of the pair's first elements
            float2 first = unpack2<T>(raw[i]), second = unpack2<T>(raw[i + HALF]);
            float4 turn = *(const float4*)(angle + 2 * at);
            if (norm) {
                float2 w = *(const float2*)(norm + at), u = *(const float2*)(norm + at + D / 2);
                first.x *= scale * w.x, first.y *= scale * w.y, second.x *= scale * u.x, second.y *= scale * u.y;
            }
            to[i] = pack2<T>(first.x * turn.x - second.x * turn.y, first.y * turn.z - second.y * turn.w);
            to[i + HALF] = pack2<T>(second.x * turn.x + first.x * turn.y, second.y * turn.z + first.y * turn.w);
        }
    }

    // This row's key and value to the caches, by the block that reads them.
    static DEVICE void write_fresh(const Problem<T, C>& a, u32 row, u32 group, const float* angle) {
        const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, slot = a.fresh.slots[row];
        const u64 from = ((u64)row * a.kv_heads + group) * D, at = ((u64)slot * a.kv_heads + group) * D;
        if (slot >= a.fresh.cache_rows) return;
        if (warp == 0) {
            u32 key[WORDS];
            load_turned(key, a.fresh.k + from, a.fresh.k_norm, a.fresh.eps, angle, lane % 4);
#pragma unroll
            for (int i = 0; i < WORDS; i += 4)
                if (lane < 4)
                    *(uint4*)((T*)a.k + at + i * 8 + lane * 8) = make_uint4(key[i], key[i + 1], key[i + 2], key[i + 3]);
        }
        if (warp == 1 && lane < D / 8) *(uint4*)((T*)a.v + at + lane * 8) = *(const uint4*)(a.fresh.v + from + lane * 8);
    }

    static DEVICE void run(const Problem<T, C>& a) {
        // Positions, tables and older keys are there before the step begins: with FRESH they are read before the wait.
        let_next_start();
        if (!FRESH) wait_for_previous();
        __shared__ u32 found;
        __shared__ alignas(16) float sums_of[WARPS][HEADS][D + 4];
        __shared__ float largest_of[WARPS][HEADS], total_of[WARPS][HEADS];
        __shared__ float weights[HEADS][MAX_SPLITS];
        const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
        const u32 unit = blockIdx.z, split = blockIdx.x, splits = gridDim.x, live = live_rows(a.counts, 0, a.rows);
        const u32 per_group = a.heads / a.kv_heads, chunks = (per_group + HEADS - 1) / HEADS;
        const u32 group = blockIdx.y / chunks, chunk = blockIdx.y % chunks;
        const u32 head = group * per_group + chunk * HEADS, heads = min(per_group - chunk * HEADS, (u32)HEADS);

        u32 row = unit;
        if (!a.every_row) {
            if (threadIdx.x == 0) found = ~0u;
            __syncthreads();
            for (u32 r = threadIdx.x; r < live; r += blockDim.x)
                if (a.seqs[r] == unit && (r == 0 || a.seqs[r - 1] != unit) && (r + 1 == live || a.seqs[r + 1] != unit))
                    found = r;
            __syncthreads();
            row = found;
        }
        if (row >= live) {
            if (FRESH) wait_for_previous();
            return;
        }
        const u32 position = a.positions[row], shift = 31 - __clz(a.page);
        const u32* table = a.table + (u64)a.seqs[row] * a.pages;
        const u32 low = position >= a.window ? position + 1 - a.window : 0;
        const u32 begin = low / STEP, steps = position / STEP + 1 - begin;
        const u32 share = max((steps + splits * WARPS - 1) / (splits * WARPS), 1u) * WARPS; // steps of a split
        const u32 active = (steps + share - 1) / share;
        if (split >= active) {
            if (FRESH) wait_for_previous();
            return;
        }
        const u32 end = begin + min(steps, (split + 1) * share);

        u32 qs[WORDS];
#pragma unroll
        for (int i = 0; i < WORDS; i++) qs[i] = 0;
        if (!FRESH && g < heads) load_row(qs, a.q + ((u64)row * a.heads + head + g) * D, t);
        const u32 stride = CODES ? (u32)code_stride(a.kv_heads, D) : a.kv_heads * D; // fits: a product of widths
        const C *ks_at = a.k + (u64)group * D, *vs_at = a.v + (u64)group * D;
        const float scale2 = a.softcap > 0.0f ? LOG2E : a.scale * LOG2E;

        float sums[D / 16][4], largest[2] = {NEG_INF, NEG_INF}, total[2] = {0.0f, 0.0f};
#pragma unroll
        for (int i = 0; i < D / 16; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) sums[i][j] = 0.0f;

        u32 step = begin + split * share + warp;
        auto newest = [&](u32 s) { return FRESH && s == position / STEP; }; // holds this step's own key
        u32 ks[2][KEY_WORDS];
        u32 vs[4][VALUE_WORDS], next_vs[4][VALUE_WORDS];
        float2 k_scales = make_float2(1.0f, 1.0f), v_scales = k_scales, next_v_scales = k_scales;
        uint2 rows = make_uint2(0, 0), next = rows;
        if (step < end) {
            rows = cache_rows(a, table, shift, step, position);
            if (step + WARPS < end) next = cache_rows(a, table, shift, step + WARPS, position);
            if (AHEAD && !newest(step)) {
                load_key(ks[0], ks_at + (u64)(rows.x + g) * stride, t);
                load_key(ks[1], ks_at + (u64)(rows.y + g) * stride, t);
                k_scales = load_scales(a.k, rows, stride, a, group, g);
            }
            if (VALUES_AHEAD) {
                load_values(vs, vs_at, rows, stride, g, t);
                v_scales = load_scales(a.v, rows, stride, a, group, g);
            }
        }
        if constexpr (FRESH) {
            // The values are wanted right after the wait.
            if (step < end && lane < 16) {
                const T* value = (const T*)vs_at + ((lane < 8 ? rows.x : rows.y) + lane % 8) * stride;
#pragma unroll
                for (int i = 0; i < D; i += 64) prefetch(value + i);
            }
            const float* angle = a.fresh.rope + (u64)min(position, a.fresh.rope_rows - 1) * D;
            wait_for_previous();
            if (split + 1 == active) write_fresh(a, row, group, angle);
            load_turned(qs, a.q + ((u64)row * a.heads + head + min(g, heads - 1)) * D, a.fresh.q_norm, a.fresh.eps, angle,
                        t);
            if (g >= heads) {
#pragma unroll
                for (int i = 0; i < WORDS; i++) qs[i] = 0;
            }
            __syncthreads(); // what write_fresh wrote
            if (step < end && newest(step)) {
                load_row(ks[0], ks_at + (u64)(rows.x + g) * stride, t);
                load_row(ks[1], ks_at + (u64)(rows.y + g) * stride, t);
            }
        }
        for (; step < end; step += WARPS) {
            if (!AHEAD) {
                load_key(ks[0], ks_at + (u64)(rows.x + g) * stride, t);
                load_key(ks[1], ks_at + (u64)(rows.y + g) * stride, t);
            }
            if (AHEAD && !VALUES_AHEAD) load_values(vs, vs_at, rows, stride, g, t);
            if (CODES && !VALUES_AHEAD) v_scales = load_scales(a.v, rows, stride, a, group, g);

            float s[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            scores(s, ks, qs);
            if (CODES) s[0] *= k_scales.x, s[1] *= k_scales.x, s[2] *= k_scales.y, s[3] *= k_scales.y;
            if (!AHEAD) load_values(vs, vs_at, rows, stride, g, t);
            // The next keys are on their way while this step's softmax and second product run.
            rows = next;
            if (AHEAD && step + WARPS < end) {
                load_key(ks[0], ks_at + (u64)(rows.x + g) * stride, t);
                load_key(ks[1], ks_at + (u64)(rows.y + g) * stride, t);
                k_scales = load_scales(a.k, rows, stride, a, group, g);
                if (VALUES_AHEAD) {
                    load_values(next_vs, vs_at, rows, stride, g, t);
                    next_v_scales = load_scales(a.v, rows, stride, a, group, g);
                }
            }
            if (step + 2 * WARPS < end) next = cache_rows(a, table, shift, step + 2 * WARPS, position);

            if (a.softcap > 0.0f) {
#pragma unroll
                for (int i = 0; i < 4; i++) s[i] = a.softcap * tanh_fast(s[i] * (a.scale / a.softcap));
            }
            const u32 first = step * STEP;
            if (first + STEP - 1 > position || first < low) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    u32 key = first + g + i / 2 * 8;
                    if (key > position || key < low) {
                        s[i] = NEG_INF;
                        (i < 2 ? v_scales.x : v_scales.y) = 0.0f;
                    }
                    // What lies there may be NaN, which a probability of 0 would not silence.
                    u32 value = first + 2 * t + i % 2 + i / 2 * 8;
                    if (value > position || value < low) {
#pragma unroll
                        for (int j = 0; j < VALUE_WORDS; j++) vs[i][j] = 0;
                    }
                }
            }
            float shrink[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float top = fmaxf(s[i], s[i + 2]);
                top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 4));
                top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 8));
                top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 16));
                top = fmaxf(top, largest[i]); // finite: every step holds a key that the row sees
                shrink[i] = exp2_fast((largest[i] - top) * scale2);
                largest[i] = top;
                s[i] = exp2_fast((s[i] - top) * scale2);
                s[i + 2] = exp2_fast((s[i + 2] - top) * scale2);
                total[i] = total[i] * shrink[i] + s[i] + s[i + 2];
            }
            if (CODES) s[0] *= v_scales.x, s[1] *= v_scales.x, s[2] *= v_scales.y, s[3] *= v_scales.y;
            u32 p0 = transpose8(pack2<T>(s[0], s[1])), p1 = transpose8(pack2<T>(s[2], s[3]));
            values(sums, vs, p0, p1, shrink);
            if (VALUES_AHEAD) {
                v_scales = next_v_scales;
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int j = 0; j < VALUE_WORDS; j++) vs[i][j] = next_vs[i][j];
            }
        }

#pragma unroll
        for (int i = 0; i < 2; i++) {
            total[i] += __shfl_xor_sync(FULL_WARP, total[i], 4);
            total[i] += __shfl_xor_sync(FULL_WARP, total[i], 8);
            total[i] += __shfl_xor_sync(FULL_WARP, total[i], 16);
            if (g == 0) largest_of[warp][2 * t + i] = largest[i], total_of[warp][2 * t + i] = total[i];
#pragma unroll
            for (int j = 0; j < D / 16; j++)
                *(float2*)&sums_of[warp][2 * t + i][value_column(j, g)] = make_float2(sums[j][i], sums[j][i + 2]);
        }
        __syncthreads();

        // This block's share: a thread owns four columns of a head at a time.
        const u64 stat = ((u64)unit * a.heads + head) * splits; // of the first head's first split
        float* shares = a.partial; // [units, H, splits, D], then (largest, total) of each in stats
        float* stats = a.partial + (u64)gridDim.z * a.heads * splits * D;
        for (u32 at = threadIdx.x; at < heads * (D / 4); at += blockDim.x) {
            u32 h = at / (D / 4), column = at % (D / 4) * 4;
            float top = NEG_INF, all = 0.0f;
            float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
            for (int w = 0; w < WARPS; w++) top = fmaxf(top, largest_of[w][h]);
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                float weight = exp2_fast((largest_of[w][h] - top) * scale2);
                float4 y = *(const float4*)&sums_of[w][h][column];
                all += total_of[w][h] * weight;
                x.x += y.x * weight, x.y += y.y * weight, x.z += y.z * weight, x.w += y.w * weight;
            }
            if (active == 1) {
                store4(a.out + ((u64)row * a.heads + head + h) * D + column, x, 1.0f / all);
            } else {
                *(float4*)(shares + (stat + h * splits + split) * D + column) = x;
                if (column == 0) *(float2*)(stats + (stat + h * splits + split) * 2) = make_float2(top, all);
            }
        }
        if (active == 1) return;

        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            u32* ticket = a.tickets + unit * gridDim.y + blockIdx.y;
            found = atomicAdd(ticket, 1);
            if (found == active - 1) *ticket = 0;
        }
        __syncthreads();
        if (found != active - 1) return;
        __threadfence();
        for (u32 h = warp; h < heads; h += WARPS) {
            const float2* of = (const float2*)stats + stat + h * splits;
            float2 x = lane < active ? __ldcg(of + lane) : make_float2(NEG_INF, 0.0f);
            float2 y = lane + 32 < active ? __ldcg(of + lane + 32) : make_float2(NEG_INF, 0.0f);
            float top = warp_max(fmaxf(x.x, y.x));
            x.x = exp2_fast((x.x - top) * scale2), y.x = exp2_fast((y.x - top) * scale2);
            float share = 1.0f / warp_sum(x.x * x.y + y.x * y.y);
            weights[h][lane] = x.x * share, weights[h][lane + 32] = y.x * share;
        }
        __syncthreads();
        for (u32 at = threadIdx.x; at < heads * (D / 4); at += blockDim.x) {
            u32 h = at / (D / 4), column = at % (D / 4) * 4;
            const float* from = shares + (stat + h * splits) * D + column;
            float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 8
            for (u32 i = 0; i < active; i++) {
                float4 y = __ldcg((const float4*)(from + i * D));
                float weight = weights[h][i];
                x.x += y.x * weight, x.y += y.y * weight, x.z += y.z * weight, x.w += y.w * weight;
            }
            store4(a.out + ((u64)row * a.heads + head + h) * D + column, x, 1.0f);
        }
    }

    static DEVICE void store4(T* to, float4 x, float factor) {
        *(uint2*)to = make_uint2(pack2<T>(x.x * factor, x.y * factor), pack2<T>(x.z * factor, x.w * factor));
    }
};

// Three blocks on a multiprocessor keep enough loads on their way, of codes four; at D = 256 their registers do not fit.
#define DECODE(name, T, C, D)                                                                                          \
    extern "C" __global__ void __launch_bounds__(128, D > 128 ? 2 : IsCode<C>::value ? 4 : 3)                        \
        name(T* out, const T* q, const C* k, const C* v, const u32* seqs, const u32* positions, const u32* table,      \
             const u32* counts, float* partial, u32* tickets, u32 rows, u32 heads, u32 kv_heads, u32 pages, u32 page,  \
             float scale, u32 window, float softcap, u32 every_row) {                                                  \
        Decode<T, C, D>::run(Problem<T, C>{out, q, k, v, seqs, positions, table, counts, partial, tickets, rows, heads,      \
            kv_heads,                                                                                                  \
                                     pages, page, scale, window, softcap, every_row, {}});                              \
    }
#define FRESH(name, T, D)                                                                                              \
    extern "C" __global__ void __launch_bounds__(128, 3)                                                               \
        name(T* out, const T* q, const T* k, const T* v, const u32* seqs, const u32* positions, const u32* table,      \
             const u32* counts, float* partial, u32* tickets, u32 rows, u32 heads, u32 kv_heads, u32 pages, u32 page,  \
             float scale, u32 window, float softcap, u32 every_row, const __grid_constant__ Fresh<T> fresh) {          \
        Decode<T, T, D, true>::run(Problem<T, T>{out, q, k, v, seqs, positions, table, counts, partial, tickets, rows, \
                                                 heads, kv_heads, pages, page, scale, window, softcap, every_row,      \
                                                 fresh});                                                              \
    }
#define WIDTH_FRESH(D)                                                                                                 \
    FRESH(attention_decode_fresh_d##D##_bf16, bf16, D)                                                                 \
    FRESH(attention_decode_fresh_d##D##_f16, f16, D)
#define WIDTH(D)                                                                                                       \
    DECODE(attention_decode_d##D##_bf16, bf16, bf16, D)                                                                \
    DECODE(attention_decode_d##D##_f16, f16, f16, D)                                                                   \
    DECODE(attention_decode_d##D##_bf16_i8, bf16, i8, D)                                                               \
    DECODE(attention_decode_d##D##_f16_i8, f16, i8, D)                                                                 \
    DECODE(attention_decode_d##D##_bf16_e4m3, bf16, e4m3, D)                                                           \
    DECODE(attention_decode_d##D##_f16_e4m3, f16, e4m3, D)
#if !defined(HEAD_DIM) || HEAD_DIM == 64
WIDTH(64)
WIDTH_FRESH(64)
#endif
#if !defined(HEAD_DIM) || HEAD_DIM == 80
WIDTH(80)
#endif
#if !defined(HEAD_DIM) || HEAD_DIM == 96
WIDTH(96)
#endif
#if !defined(HEAD_DIM) || HEAD_DIM == 128
WIDTH(128)
WIDTH_FRESH(128)
#endif
#if !defined(HEAD_DIM) || HEAD_DIM == 256
WIDTH(256)
#endif
