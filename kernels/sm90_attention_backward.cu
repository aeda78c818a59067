// attention_backward on Hopper: the tensor-core kernels of attention_backward.cu (formulas, layouts, arguments and the order of the
// launches there; attention_delta too) with wgmma.
//
// sm90_attention_backward_dq_d{64,128}_{bf16,f16}: grid (H, ceil(rows / 128)), block 384, dynamic shared memory 1536·D + 1024 bytes.
// sm90_attention_backward_dkv_d{64,128}_{bf16,f16}: grid (parts, G, ceil(rows / 128)) with clusters of (parts, 1, 1), block 384,
//     dynamic shared memory 1280·D + 1536 + 1024 bytes; parts = 1, or up to min(H / G, 8): the heads of a group are shared out.
// -DHEAD_DIM=n compiles the kernels of that width only. All tensors are aligned to 16 bytes.
//
// How: a block owns 128 rows of two tensors (dq: q and dout of a head; dkv: k and v of a group), 64 for each of the warpgroups 1
// and 2, and walks over tiles of the other two, which warpgroup 0 copies (cp.async, so that it can leave dead rows 0). Products are
// owned rows × others, so that P and dS are left operands of the second products as they stand in registers.
#include "sm90.cuh"

#define LOG2E 1.44269504f

DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// tanh with an absolute error near 1e-7, unlike tanh.approx, whose 5e-4 a cap would multiply.
DEVICE float tanh_fast(float x) { return 1.0f - __fdividef(2.0f, exp2_fast(2.0f * LOG2E * x) + 1.0f); }

// A float from global to shared memory, 0 where `valid` is false.
DEVICE void copy4_async(u32 shared, const float* global, bool valid) {
    int bytes = valid ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared), "l"(global), "r"(bytes) : "memory");
}

// Whether the phase of this parity has ended.
DEVICE bool barrier_passed(u32 barrier, u32 parity) {
    u32 passed;
    asm volatile("{ .reg .pred done; mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2; selp.u32 %0, 1, 0, done; }"
                 : "=r"(passed)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return passed;
}

// d += a · b over 16 of k: a in registers (as mma16816's), b 16×N MN-major in shared memory. Asynchronous, like wgmma.
#define WGMMA_A(SHAPE, TYPE, D, A, B, ...)                                                                                    \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" SHAPE "k16.f32." TYPE "." TYPE " {" D "}, {" A "}, " B ", 1, 1, 1, 1;"    \
                 : __VA_ARGS__                                                                                                \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define WGMMA_A_SHAPES(TYPE)                                                                                                  \
    if constexpr (N == 64)                                                                                                    \
        WGMMA_A("64", TYPE, WGMMA_DLOW, "%32, %33, %34, %35", "%36", WGMMA_R32(0));                                           \
    else                                                                                                                      \
        WGMMA_A("128", TYPE, WGMMA_D_8, "%64, %65, %66, %67", "%68", WGMMA_R32(0), WGMMA_R32(32))
template <typename T, int N> DEVICE void wgmma_registers(float (&d)[N / 2], const u32 (&a)[4], u64 b) {
    if constexpr (Wgmma16<T>::is_bf16) {
        WGMMA_A_SHAPES("bf16");
    } else {
        WGMMA_A_SHAPES("f16");
    }
}

template <typename T> struct Problem {
    T *dq, *dk, *dv;
    const T *q, *k, *v;
    const u32 *seqs, *bounds;
    const float* lse;
    const T* dout;
    const float* delta;
    const u32* counts;
    u32 rows, heads, kv_heads, head_dim;
    float scale;
    u32 window;
    float softcap;
};

// First position that a row at `position` sees.
DEVICE u32 lowest_key(u32 position, u32 window) { return position >= window ? position + 1 - window : 0; }

// What turns products into probabilities and gradients.
struct Scores {
    float scale, softcap;
    // u: the product q·k, lse2: lse · log2(e). Gives the probability; `slope` becomes ds/du, 1 without a cap.
    DEVICE float probability(float u, float lse2, float& slope) const {
        slope = 1.0f;
        if (softcap == 0.0f) return exp2_fast(u * (scale * LOG2E) - lse2);
        float t = tanh_fast(u * (scale / softcap));
        slope = 1.0f - t * t;
        return exp2_fast(t * (softcap * LOG2E) - lse2);
    }
};

// R: rows of a streamed tile.
template <typename T, int D, int R, int STAGES> struct Hopper {
    static const int M = 128, UNITS = D / 8;
    static const u32 OWN_BYTES = 64 * D * 2, TILE_BYTES = R * D * 2; // of one tensor: a warpgroup's rows; a stage
    static const u32 TILES_AT = 4 * OWN_BYTES;                       // after two warpgroups' rows of two tensors

    // Where 16-byte unit `unit` of row `row` lies in a tile of `rows` rows: 64 columns after 64 columns, swizzled.
    static DEVICE u32 unit_at(u32 row, u32 unit, u32 rows) {
        return (unit / 8) * rows * 128 + row * 128 + (unit % 8 ^ row % 8) * 16;
    }

    // Starts loading ROWS rows of two tensors of one shape by 128 threads; rows from `end` on become 0. Eight threads a row.
    template <int ROWS>
    static DEVICE void load(u32 to, u32 second, const T* x, const T* y, u64 stride, u32 column, u32 first, u32 end) {
        const u32 thread = threadIdx.x % 128;
#pragma unroll 2 // the copying warpgroup has few registers
        for (int i = 0; i < ROWS / 16; i++) {
            u32 r = thread / 8 + i * 16;
            bool valid = first + r < end;
            u64 from = valid ? (first + r) * stride + column : 0;
#pragma unroll
            for (int j = 0; j < UNITS; j += 8) {
                u32 unit = j + thread % 8, at = to + unit_at(r, unit, ROWS);
                copy16_async(at, x + from + unit * 8, valid);
                copy16_async(at + second, y + from + unit * 8, valid);
            }
        }
    }

    struct Shared {
        u64 full[STAGES], empty[STAGES];
    };
    static DEVICE void init(Shared& s) {
        if (threadIdx.x == 0) {
            for (int i = 0; i < STAGES; i++) {
                barrier_init(shared_address(&s.full[i]), 128);
                barrier_init(shared_address(&s.empty[i]), 8); // a lane of each consumer warp
            }
            barrier_init_fence();
        }
        __syncthreads();
    }

    // Loads `steps` tiles by load_tile(step, stage). One is handed over when the next is under way, or earlier if that has to wait.
    template <typename F> static DEVICE void produce(Shared& s, u32 steps, F load_tile) {
        const u32 full = shared_address(s.full), empty = shared_address(s.empty);
        u32 before = 0;
        for (u32 step = 0; step < steps; step++) {
            const u32 stage = step % STAGES, parity = (step / STAGES + 1) % 2;
            if (!barrier_passed(empty + stage * 8, parity)) {
                if (before) hand_over<0>(before);
                before = 0;
                barrier_wait(empty + stage * 8, parity);
            }
            load_tile(step, stage);
            copy_commit();
            if (before) hand_over<1>(before);
            before = full + stage * 8;
        }
        if (before) hand_over<0>(before);
    }
    template <int NEWER> static DEVICE void hand_over(u32 barrier) {
        copy_wait<NEWER>();
        fence_async_proxy();
        barrier_arrive(barrier);
    }

    // s = own · tileᵀ over D; own: the warpgroup's 64 rows.
    static DEVICE void products(float (&s)[R / 2], u32 own, u32 tile) {
        wgmma_fence();
#pragma unroll
        for (int d = 0; d < D / 16; d++)
            wgmma<T, R, 0>(s, wgmma_descriptor(own + d / 4 * 64 * 128 + d % 4 * 32, 0),
                           wgmma_descriptor(tile + d / 4 * R * 128 + d % 4 * 32, 0), d > 0);
        wgmma_commit();
    }
    // sums += p · tile.
    static DEVICE void accumulate(float (&sums)[D / 2], const u32 (&p)[R / 16][4], u32 tile) {
        wgmma_fence();
#pragma unroll
        for (int n = 0; n < R / 16; n++) wgmma_registers<T, D>(sums, p[n], wgmma_descriptor(tile + n * 2048, R * 128));
        wgmma_commit();
    }
    static DEVICE void pack(u32 (&p)[R / 16][4], const float (&s)[R / 2]) {
#pragma unroll
        for (int n = 0; n < R / 16; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) p[n][i] = pack2<T>(s[8 * n + 2 * i], s[8 * n + 2 * i + 1]);
    }
};

// A block owns 128 rows of one head and walks over the keys that they see.
template <typename T, int D> struct Dq : Hopper<T, D, 128, 2> {
    using Base = Hopper<T, D, 128, 2>;
    static const int R = 128, M = Base::M;

    static DEVICE void consume(const Problem<T>& a, typename Base::Shared& shared, u32 first, u32 live, u32 low, u32 memory,
                               char* memory_of) {
        const u32 head = blockIdx.x, me = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
        const u32 full = shared_address(shared.full), empty = shared_address(shared.empty);
        const u32 own = memory + me * 2 * Base::OWN_BYTES, group_row = first + me * 64, warp_row = group_row + warp * 16;
        const u64 row_stride = (u64)a.heads * D;
        Base::template load<64>(own, Base::OWN_BYTES, a.q, a.dout, row_stride, head * D, group_row, live);
        copy_commit();

        u32 lows[2];
        float lse2[2], delta[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const u32 t = warp_row + r * 8 + lane / 4;
            lows[r] = ~0u, lse2[r] = delta[r] = 0.0f;
            if (t < live) {
                const u32 start = a.bounds[a.seqs[t]];
                lows[r] = start + lowest_key(t - start, a.window);
                lse2[r] = a.lse[(u64)t * a.heads + head] * LOG2E;
                delta[r] = a.delta[(u64)t * a.heads + head];
            }
        }
        // First key of the warpgroup's first row and its last row's place; first key of the warp's last row.
        const u32 group_low = __shfl_sync(FULL_WARP, lows[0], 0), high = __shfl_sync(FULL_WARP, lows[1], 31);
        const u32 end = min(first + M, live), group_end = min(group_row + 64, live);
        copy_wait<0>();
        fence_async_proxy();
        __shared__ u32 lowest[2];
        if (warp == 0 && lane == 0) lowest[me] = group_low;
        named_barrier(1 + me, 128);
        const u32 group_lowest = lowest[me];

        float sums[D / 2];
        u32 ds[R / 16][4];
#pragma unroll
        for (int i = 0; i < D / 2; i++) sums[i] = 0.0f;
        const Scores scores = {a.scale, a.softcap};
        u32 step = 0;
        for (u32 key = low / R * R; key < end; key += R, step++) {
            const u32 stage = step % 2, tile = memory + Base::TILES_AT + stage * 2 * Base::TILE_BYTES;
            barrier_wait(full + stage * 8, step / 2 % 2);
            if (key >= group_end || key + R <= group_lowest) {
                if (lane == 0) barrier_arrive(empty + stage * 8);
                continue;
            }
            float s[R / 2], dp[R / 2];
            Base::products(s, own, tile);
            Base::products(dp, own + Base::OWN_BYTES, tile + Base::TILE_BYTES);
            wgmma_wait<1>();
            const bool whole = key + R - 1 <= warp_row && warp_row + 16 <= live && key >= high;
#pragma unroll
            for (int i = 0; i < R / 2; i++) {
                float slope, x = scores.probability(s[i], lse2[i / 2 % 2], slope);
                if (!whole) {
                    const u32 j = key + i / 4 * 8 + lane % 4 * 2 + i % 2, t = warp_row + i / 2 % 2 * 8 + lane / 4;
                    if (j > t || j < lows[i / 2 % 2]) x = 0.0f;
                }
                s[i] = x * slope;
            }
            wgmma_wait<0>();
#pragma unroll
            for (int i = 0; i < R / 2; i++) s[i] *= dp[i] - delta[i / 2 % 2];
            Base::pack(ds, s);
            Base::accumulate(sums, ds, tile);
            wgmma_wait<0>();
            if (lane == 0) barrier_arrive(empty + stage * 8);
        }

        // Through the warpgroup's own part of the queries' memory, so that global stores are of 16 bytes.
        named_barrier(1 + me, 128);
        char* staging = memory_of + me * 2 * Base::OWN_BYTES;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const u32 row = warp * 16 + r * 8 + lane / 4;
#pragma unroll
            for (int n = 0; n < D / 8; n++)
                *(u32*)(staging + row * D * 2 + (n ^ row % 8) * 16 + lane % 4 * 4) =
                    pack2<T>(sums[4 * n + 2 * r] * a.scale, sums[4 * n + 2 * r + 1] * a.scale);
        }
        __syncwarp();
        for (u32 at = lane; at < 16 * Base::UNITS; at += 32) {
            const u32 row = warp * 16 + at / Base::UNITS, unit = at % Base::UNITS;
            if (group_row + row < live)
                *(uint4*)(a.dq + (group_row + row) * row_stride + head * D + unit * 8) =
                    *(const uint4*)(staging + row * D * 2 + (unit ^ row % 8) * 16);
        }
    }

    static DEVICE void run(const Problem<T>& a) {
        extern __shared__ uint4 shared_memory[];
        __shared__ typename Base::Shared shared;
        const u32 first = (gridDim.y - 1 - blockIdx.y) * M, live = live_rows(a.counts, 0, a.rows); // most keys first
        if (first >= live) return;
        const u32 skew = (1024 - shared_address(shared_memory) % 1024) % 1024, memory = shared_address(shared_memory) + skew;
        const u32 start = a.bounds[a.seqs[first]], low = start + lowest_key(first - start, a.window);
        Base::init(shared);
        if (threadIdx.x < 128) {
            registers_decrease<24>();
            const u32 end = min(first + M, live), steps = (end - low / R * R + R - 1) / R;
            const u32 column = blockIdx.x / (a.heads / a.kv_heads) * D;
            Base::produce(shared, steps, [&](u32 step, u32 stage) {
                Base::template load<R>(memory + Base::TILES_AT + stage * 2 * Base::TILE_BYTES, Base::TILE_BYTES, a.k, a.v,
                                       (u64)a.kv_heads * D, column, low / R * R + step * R, end);
            });
        } else {
            registers_increase<240>();
            consume(a, shared, first, live, low, memory, (char*)shared_memory + skew);
        }
    }
};

// A block owns 128 keys of a group and walks over the rows that see them, head by head.
template <typename T, int D> struct Dkv : Hopper<T, D, 64, 3> {
    using Base = Hopper<T, D, 64, 3>;
    static const int R = 64, N = Base::M, STAGES = 3;
    static const int SUM_STRIDE = D + 4;
    static const u32 STATS_AT = Base::TILES_AT + STAGES * 2 * Base::TILE_BYTES; // of each stage: R of lse, R of delta
    static_assert(2 * N * SUM_STRIDE * 4 <= STATS_AT, "at the end the sums take the tiles' place");

    // End of the rows that see a key.
    static DEVICE u32 last_row(const Problem<T>& a, u32 row) {
        u32 end = a.bounds[a.seqs[row] + 1];
        return end - row > a.window ? row + a.window : end;
    }

    static DEVICE void consume(const Problem<T>& a, typename Base::Shared& shared, u32 first, u32 live, u32 tiles, u32 steps,
                               u32 memory, char* memory_of) {
        const u32 me = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, t2 = lane % 4 * 2;
        const u32 full = shared_address(shared.full), empty = shared_address(shared.empty);
        const u32 own = memory + me * 2 * Base::OWN_BYTES, group_key = first + me * 64, warp_key = group_key + warp * 16;
        Base::template load<64>(own, Base::OWN_BYTES, a.k, a.v, (u64)a.kv_heads * D, blockIdx.y * D, group_key, live);
        copy_commit();

        // Where the rows end that see this thread's keys (0: a dead key), the warp's first key, any of the warpgroup's.
        u32 lasts[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const u32 key = warp_key + 8 * r + lane / 4;
            lasts[r] = key < live ? last_row(a, key) : 0;
        }
        const u32 warp_first_end = warp_key + 15 < live ? last_row(a, warp_key) : 0;
        const u32 group_end = group_key < live ? last_row(a, min(group_key + 63, live - 1)) : 0;
        copy_wait<0>();
        fence_async_proxy();
        named_barrier(1 + me, 128);

        float dk[D / 2], dv[D / 2];
        u32 p[R / 16][4]; // P, then dS
#pragma unroll
        for (int i = 0; i < D / 2; i++) dk[i] = dv[i] = 0.0f;
        const Scores scores = {a.scale, a.softcap};
        u32 pending = 0; // the barrier of the stage whose last products are under way
        for (u32 step = 0; step < steps; step++) {
            const u32 stage = step % STAGES, tile = memory + Base::TILES_AT + stage * 2 * Base::TILE_BYTES;
            const u32 row = first + step % tiles * R;
            barrier_wait(full + stage * 8, step / STAGES % 2);
            if (row + R <= group_key || row >= group_end) {
                wgmma_wait<0>();
                if (lane == 0 && pending) barrier_arrive(pending);
                if (lane == 0) barrier_arrive(empty + stage * 8);
                pending = 0;
                continue;
            }
            float s[R / 2], dp[R / 2];
            Base::products(s, own, tile);
            Base::products(dp, own + Base::OWN_BYTES, tile + Base::TILE_BYTES);
            wgmma_wait<1>();
            if (lane == 0 && pending) barrier_arrive(pending);
            const float* lse = (const float*)(memory_of + STATS_AT) + stage * 2 * R;
            const bool whole = row >= warp_key + 15 && row + R <= warp_first_end;
#pragma unroll
            for (int n = 0; n < R / 8; n++) {
                const float2 of = *(const float2*)(lse + n * 8 + t2);
                float slope[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float x = scores.probability(s[4 * n + i], (i % 2 ? of.y : of.x) * LOG2E, slope[i]);
                    if (!whole) {
                        const u32 t = row + n * 8 + t2 + i % 2;
                        if (t < warp_key + i / 2 * 8 + lane / 4 || t >= lasts[i / 2]) x = 0.0f;
                    }
                    s[4 * n + i] = x;
                }
                p[n / 2][n % 2 * 2] = pack2<T>(s[4 * n], s[4 * n + 1]);
                p[n / 2][n % 2 * 2 + 1] = pack2<T>(s[4 * n + 2], s[4 * n + 3]);
#pragma unroll
                for (int i = 0; i < 4; i++) s[4 * n + i] *= slope[i];
            }
            Base::accumulate(dv, p, tile + Base::TILE_BYTES);
            wgmma_wait<0>();
#pragma unroll
            for (int n = 0; n < R / 8; n++) {
                const float2 delta = *(const float2*)(lse + R + n * 8 + t2);
#pragma unroll
                for (int i = 0; i < 4; i++) s[4 * n + i] *= dp[4 * n + i] - (i % 2 ? delta.y : delta.x);
            }
            Base::pack(p, s);
            Base::accumulate(dk, p, tile);
            pending = empty + stage * 8;
        }
        wgmma_wait<0>();

        named_barrier(3, 256); // nobody reads tiles any more
        float* sums = (float*)memory_of;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const u32 at = (me * 64 + warp * 16 + 8 * r + lane / 4) * SUM_STRIDE + n * 8 + t2, i = 4 * n + 2 * r;
                *(float2*)(sums + at) = make_float2(dk[i] * a.scale, dk[i + 1] * a.scale);
                *(float2*)(sums + N * SUM_STRIDE + at) = make_float2(dv[i], dv[i + 1]);
            }
    }

    // The sums of all parts, in order: dk, then dv, N rows each. All parts have written theirs.
    static DEVICE void write(const Problem<T>& a, u32 first, u32 live, u32 memory, const char* memory_of) {
        const u32 parts = gridDim.x, part = blockIdx.x;
        const float* sums = (const float*)memory_of;
        for (u32 at = part * 384 + threadIdx.x; at < 2 * N * (D / 4); at += parts * 384) {
            const u32 row = at / (D / 4), c = at % (D / 4) * 4, key = first + row % N;
            float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (parts == 1) x = *(const float4*)(sums + row * SUM_STRIDE + c);
            for (u32 rank = 0; parts > 1 && rank < parts; rank++) {
                float4 y = cluster_load(memory + (row * SUM_STRIDE + c) * 4, rank);
                x.x += y.x, x.y += y.y, x.z += y.z, x.w += y.w;
            }
            if (key < live)
                *(uint2*)((row < N ? a.dk : a.dv) + ((u64)key * a.kv_heads + blockIdx.y) * D + c) =
                    make_uint2(pack2<T>(x.x, x.y), pack2<T>(x.z, x.w));
        }
    }

    static DEVICE void run(const Problem<T>& a) {
        extern __shared__ uint4 shared_memory[];
        __shared__ typename Base::Shared shared;
        const u32 parts = gridDim.x, part = blockIdx.x, per_group = a.heads / a.kv_heads;
        const u32 first = blockIdx.z * N, live = live_rows(a.counts, 0, a.rows);
        if (first >= live) return; // so does the whole cluster
        const u32 skew = (1024 - shared_address(shared_memory) % 1024) % 1024, memory = shared_address(shared_memory) + skew;
        char* memory_of = (char*)shared_memory + skew;
        const u32 end = last_row(a, min(first + N, live) - 1), tiles = (end - first + R - 1) / R;
        const u32 steps = (per_group - part + parts - 1) / parts * tiles;
        Base::init(shared);
        if (threadIdx.x < 128) {
            registers_decrease<24>();
            Base::produce(shared, steps, [&](u32 step, u32 stage) {
                const u32 head = blockIdx.y * per_group + part + step / tiles * parts, row = first + step % tiles * R;
                Base::template load<R>(memory + Base::TILES_AT + stage * 2 * Base::TILE_BYTES, Base::TILE_BYTES, a.q, a.dout,
                                       (u64)a.heads * D, head * D, row, end);
                const u32 t = row + threadIdx.x % R;
                const u64 from = t < end ? (u64)t * a.heads + head : 0;
                copy4_async(memory + STATS_AT + (stage * 2 * R + threadIdx.x) * 4, (threadIdx.x < R ? a.lse : a.delta) + from, t < end);
            });
        } else {
            registers_increase<240>();
            consume(a, shared, first, live, tiles, steps, memory, memory_of);
        }
        if (parts > 1)
            cluster_sync();
        else
            __syncthreads();
        write(a, first, live, memory, memory_of);
        if (parts > 1) cluster_sync(); // the others read this block's memory
    }
};

#define PARAMETERS(T)                                                                                                         \
    T *dq, T *dk, T *dv, const T *q, const T *k, const T *v, const u32 *seqs, const u32 *bounds, const float *lse,             \
        const T *dout, const float *delta, const u32 *counts, u32 rows, u32 heads, u32 kv_heads, u32 head_dim, float scale,    \
        u32 window, float softcap
#define PROBLEM(T)                                                                                                            \
    Problem<T> { dq, dk, dv, q, k, v, seqs, bounds, lse, dout, delta, counts, rows, heads, kv_heads, head_dim, scale, window,  \
                 softcap }
#define HOPPER(name, KIND, T, D)                                                                                              \
    extern "C" __global__ void __launch_bounds__(384, 1) name(PARAMETERS(T)) { KIND<T, D>::run(PROBLEM(T)); }
#define WIDTH(D)                                                                                                              \
    HOPPER(sm90_attention_backward_dq_d##D##_bf16, Dq, bf16, D)                                                               \
    HOPPER(sm90_attention_backward_dq_d##D##_f16, Dq, f16, D)                                                                 \
    HOPPER(sm90_attention_backward_dkv_d##D##_bf16, Dkv, bf16, D)                                                             \
    HOPPER(sm90_attention_backward_dkv_d##D##_f16, Dkv, f16, D)
#if !defined(HEAD_DIM) || HEAD_DIM == 64
WIDTH(64)
#endif
#if !defined(HEAD_DIM) || HEAD_DIM == 128
WIDTH(128)
#endif
