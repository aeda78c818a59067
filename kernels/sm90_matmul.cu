// out[M, N] = x[M, K] · W[N, K]ᵀ + u[M, r] · B[N, r]ᵀ (optional) + bias + residual, W as in nn.Linear; T = bf16 or f16.
// Up to three outputs share a launch (q, k, v; gate, up), each with its own W, u, B, bias, residual and N.
//
// Large M: sm90_matmul_n{BN}c{CLUSTER}_T; the kernel, its tensor maps and its launch stand in sm90_gemm.cuh. Products
// of an output: {x, W, K} and, with a low-rank term, {u, B, r} (r a multiple of 8; its scale is folded into u or B).
//
// Small M (up to 128 rows; more work too): sm90_matmul_t{TOKENS}_T, TOKENS = 16, 32, 64, 128, the least that holds the
// bucket. W is wgmma's M operand, so that few tokens waste nothing; the same arguments and maps, but the a maps (x, u)
// have boxes of {64, min(64, TOKENS)}. K is split over a cluster, whose blocks add their f32 parts through distributed
// shared memory in the order of k: deterministic, no scratch.
//
// Launch: block 288, cluster (S, 1, 1) by attribute with S in 1, 2, 4, 8 splits, S ≤ K blocks of 64 (of both products);
// tiles = Σ_o ceil(N_o / 128); grid (S · tiles, ceil(rows / TOKENS)); dynamic shared memory 197,632 + 16 · stages
// bytes, stages = 10, 9, 8, 6 for 16, 32, 64, 128 tokens. S = 4 while 4 · tiles · grid.y ≤ SMs / 2, 2 while 2 · tiles ·
// grid.y ≤ SMs, else 1: 128 blocks in clusters of 4 do not fit the GPCs at once and were slower. With programmatic
// stream serialization it starts on W and B while the kernel before it ends, which saves up to 2.5 µs.
//
// Gate, up and the activation between them: sm90_matmul_glu{HALF}_t{TOKENS}_T, outputs[0] and [1] the two weights (no
// bias, no residual), act in the arguments; HALF = 64, 96 rows of each in a tile, TOKENS = 32, 64, 128. b maps have boxes
// of {64, HALF}; block 4 · HALF + 32, tiles = ceil(N / HALF), a ring of 196,608 (64) or 204,800 bytes (96), 1,024 + 16 ·
// stages more. 12,288 rows are 128 tiles of 96: one wave.
//
// Compiled twice: with BY_SLOT the second product is of each row's own adapter (sm90_gemm.cuh). Its b maps have boxes of
// {16, 128}, with GLU {16, HALF}.
//
// Measured (H100, 132 SMs, bf16, cold L2, graph replay, 2026-11-23), GB/s plain, with programmatic launch, cuBLAS:
// 32×4096×4096 1959, 2248, 2352; 128×4096×4096 1774, 1944, 2411; 32×12288×4096 2464, 2557, 2521;
// 128×12288×4096 2330, 2411, 2650; 32×4096×12288 2518, 2652, 2520; 128×4096×12288 2225, 2355, 2611;
// 32×151936×4096 2868, 2874, 2812; 128×151936×4096 2716, 2727, 2775.
// µs, 2026-11-24, 32 / 64 / 128 rows: gate and up of 12288×4096 with the activation 73.5 / 75.5 / 78.7 (HALF = 64: 74.9 /
// 77.1 / 86.1; the products alone 74.5 / 76.4 / 83.6; the weights at 3.02 TB/s 66.7), of 3072×1024 7.1 / 8.4 / 11.1.
#include "activation.cuh"
#include "sm90_gemm.cuh"

#ifndef BY_SLOT
#define BY_SLOT 0
#endif

#define KERNEL(name, T, BN, CLUSTER)                                                                                  \
    extern "C" __global__ __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(384, 1)                                   \
        void name(const __grid_constant__ MatmulArgs<3, 2> args) {                                                    \
        matmul_kernel<T, BN, CLUSTER, 0, BY_SLOT>(args);                                                                       \
    }
#define KERNELS(T)                                                                                                    \
    KERNEL(sm90_matmul_n256c2_##T, T, 256, 2)                                                                         \
    KERNEL(sm90_matmul_n192c2_##T, T, 192, 2)                                                                         \
    KERNEL(sm90_matmul_n128c2_##T, T, 128, 2)                                                                         \
    KERNEL(sm90_matmul_n128c1_##T, T, 128, 1)
KERNELS(bf16)
KERNELS(f16)

// ---- small M ----

// A row of a tensor map that it does not have.
#define PAST_END 0x40000000

// Rows of W of one tile: 64 for each of GROUPS multiplying warpgroups. With half of them x would be read twice as often.
// One block an SM with a long ring: two with half of it each were up to a third slower (with 128 tokens half of what a
// ring holds is x).
template <int TOKENS, int GROUPS> struct SmallRing {
    static constexpr int stage_bytes = (64 * GROUPS + TOKENS) * TILE_K * 2;
    static constexpr int bytes = GROUPS == 2 ? 196608 : 204800;
    static constexpr int stages = bytes / stage_bytes;
};

DEVICE void add4(float4& sum, float4 v) { sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w; }
DEVICE float gated(u32 act, float gate, float up) { return (act ? activate<1>(gate) : activate<0>(gate)) * up; }

// With GLU the two outputs are gate and up, and a tile is ROWS / 2 rows of each: out = act(x · gateᵀ) · (x · upᵀ).
template <typename T, int TOKENS, int GROUPS, bool GLU> DEVICE void matmul_small(const MatmulArgs<3, 2>& args) {
    using Ring = SmallRing<TOKENS, GROUPS>;
    constexpr int STAGES = Ring::stages, STAGE_BYTES = Ring::stage_bytes;
    constexpr int ROWS = 64 * GROUPS, FEATURES = GLU ? ROWS / 2 : ROWS, THREADS = 128 * GROUPS;
    constexpr int W_BYTES = ROWS * TILE_K * 2;
    // Words from one token's features to the next one's: the four lanes that hold a row's tokens hit different banks.
    constexpr int PITCH = ROWS + 4;
    extern __shared__ u8 shared[];
    u32 base = (shared_address(shared) + 1023) & ~1023u;
    // [TOKENS, PITCH], over the ring when that is done.
    float* sums = (float*)(shared + (base - shared_address(shared)));
    u32 full = base + Ring::bytes, empty = full + 8 * STAGES;
    u32 splits = cluster_size(), rank = cluster_rank();
    u32 group = __shfl_sync(FULL_WARP, threadIdx.x / 128, 0);

    u32 output = 0, tile = blockIdx.x / splits, token = blockIdx.y * TOKENS;
    // The first tokens are always live; blocks of others must know (the same in all blocks of a cluster).
    if (token > 0) {
        if (!BY_SLOT || !args.ready) launch_wait();
        if (token >= live_rows(args.counts, args.which, args.rows)) return;
    }
#pragma unroll
    for (int o = 0; o < 2; o++) {
        u32 tiles = (args.outputs[o].n + FEATURES - 1) / FEATURES;
        if (!GLU && output == o && o + 1 < args.count && tile >= tiles) output++, tile -= tiles;
    }
    const MatmulOutput<2>& o = args.outputs[output];
    u32 feature = tile * FEATURES;
    u32 blocks = (o.k[0] + TILE_K - 1) / TILE_K, blocks0 = blocks;
    if (!BY_SLOT && o.products > 1) blocks += (o.k[1] + TILE_K - 1) / TILE_K;
    u32 begin = blocks * rank / splits, end = blocks * (rank + 1) / splits;
    // Each row's adapters come last, and are shared out for themselves: W is on its way before anyone knows the slots.
    Slots slots;
    if (BY_SLOT) slots.look<TOKENS>(args.slots, token, args.rows, live_rows(args.counts, args.which, args.rows));

    if (threadIdx.x == THREADS) {
        tma_prefetch_map(&o.b[0]);
        tma_prefetch_map(&o.a[0]);
        if (BY_SLOT && o.products > 1) {
            tma_prefetch_map(&o.b[1]);
            tma_prefetch_map(&o.a[1]);
        }
    }
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            barrier_init(full + 8 * s, 1);
            barrier_init(empty + 8 * s, GROUPS);
        }
        barrier_init_fence();
    }
    __syncthreads();
    launch_next();

    auto load_w = [&](u32 block, u32 stage) {
        u32 p = block >= blocks0, k = (p ? block - blocks0 : block) * TILE_K, bar = full + 8 * stage;
        barrier_arrive_expect(bar, STAGE_BYTES);
        u32 to = base + stage * STAGE_BYTES;
        if constexpr (GLU) {
#pragma unroll
            for (int i = 0; i < 2; i++) tma_load(to + i * W_BYTES / 2, &args.outputs[i].b[p], bar, k, feature);
        } else {
#pragma unroll
            for (int i = 0; i < GROUPS; i++) tma_load(to + i * BOX_BYTES, &o.b[p], bar, k, feature + 64 * i);
        }
    };
    auto load_tokens = [&](const CUtensorMap* x, u32 k, u32 stage) {
#pragma unroll
        for (int i = 0; i < TOKENS; i += 64)
            tma_load(base + stage * STAGE_BYTES + W_BYTES + i * TILE_K * 2, x, full + 8 * stage, k, token + i);
    };
    auto load_x = [&](u32 block, u32 stage) {
        u32 p = block >= blocks0;
        load_tokens(&o.a[p], (p ? block - blocks0 : block) * TILE_K, stage);
    };
    // This block's share of the adapters: blocks of four steps, with GLU those of gate before those of up.
    struct Share {
        Steps steps;
        u32 deep, begin, end;
        DEVICE u32 output(u32 block) const { return block / deep; }
        DEVICE u32 first(u32 block) const { return block % deep * 4; }
        DEVICE u32 count(u32 block) const { return min(steps.count - first(block), 4); }
    };
    auto share = [&]() {
        slots.gather();
        Steps steps(slots, o.products > 1 ? o.k[1] : 0);
        u32 deep = (steps.count + 3) / 4, all = GLU ? 2 * deep : deep;
        return Share{steps, deep, all * rank / splits, all * (rank + 1) / splits};
    };
    auto load_adapters = [&](const Share& s, u32 block, u32 stage) {
        u32 first = s.first(block), count = s.count(block), to = base + stage * STAGE_BYTES, bar = full + 8 * stage;
        const MatmulOutput<2>& bank = args.outputs[GLU ? s.output(block) : output];
        // Where each warpgroup has the rows of one weight, only one of them has anything to add.
        constexpr bool HALVES = GLU && GROUPS == 2;
        barrier_arrive_expect(bar, count * (HALVES ? FEATURES : ROWS) * 32 + TOKENS * TILE_K * 2);
        for (u32 i = 0; i < count; i++, to += ROWS * 32) {
            u32 slot = s.steps.column(first + i) / bank.k[1], k = s.steps.column(first + i) % bank.k[1];
            u32 y = slot * bank.n + feature;
            if constexpr (HALVES) {
                tma_load(to + s.output(block) * FEATURES * 32, &bank.b[1], bar, k, y);
            } else if constexpr (GLU) {
                // The other half of the tile gets zeros, from past the end.
                bool gate = s.output(block) == 0;
                tma_load(to, &bank.b[1], bar, k, gate ? y : PAST_END);
                tma_load(to + FEATURES * 32, &bank.b[1], bar, k, gate ? PAST_END : y);
            } else {
                tma_load(to, &bank.b[1], bar, k, y);
            }
        }
        launch_wait();
        load_tokens(&bank.a[1], s.steps.column(first), stage);
    };
    if (group == GROUPS) {
        bool copies = threadIdx.x == THREADS;
        u32 stage = 0, phase = 0, ahead = min(end - begin, STAGES);
        // W does not depend on the kernel before: it may come while that one ends. So do not ask for live rows first.
        for (u32 i = 0; copies && i < ahead; i++) load_w(begin + i, i);
        if (!BY_SLOT) launch_wait();
        if (copies) {
            if (BY_SLOT) await_operands(args.ready);
            for (u32 i = 0; i < ahead; i++) load_x(begin + i, i);
            for (u32 block = begin + ahead; block < end; block++) {
                barrier_wait(empty + 8 * stage, phase);
                load_w(block, stage);
                load_x(block, stage);
                if (++stage == STAGES) stage = 0, phase ^= 1;
            }
        }
        if (BY_SLOT) {
            Share s = share();
            // The ring may have stages that nothing was in yet.
            u32 used = end - begin;
            if (used < STAGES) stage = used;
            for (u32 block = s.begin; copies && block < s.end; block++, used++) {
                if (used >= STAGES) barrier_wait(empty + 8 * stage, phase);
                load_adapters(s, block, stage);
                if (++stage == STAGES) {
                    stage = 0;
                    if (used >= STAGES) phase ^= 1;
                }
            }
        }
        __syncwarp();
    } else {
        float d[TOKENS / 2];
        u32 stage = 0, phase = 0, previous = 0;
        for (u32 block = begin; block < end; block++) {
            barrier_wait(full + 8 * stage, phase);
            u32 w = base + stage * STAGE_BYTES;
            u64 dw = wgmma_descriptor(w + group * BOX_BYTES, 0), dx = wgmma_descriptor(w + W_BYTES, 0);
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < TILE_K / 16; i++)
                wgmma<T, TOKENS, 0>(d, dw + i * (32 >> 4), dx + i * (32 >> 4), block - begin + i);
            wgmma_commit();
            wgmma_wait<1>();
            if (block > begin && threadIdx.x % 128 == 0) barrier_arrive(empty + 8 * previous);
            previous = stage;
            if (++stage == STAGES) stage = 0, phase ^= 1;
        }
        wgmma_wait<0>();
        if (BY_SLOT) {
            Share s = share();
            if (s.begin < s.end && threadIdx.x % 128 == 0) barrier_arrive(empty + 8 * previous);
            for (u32 block = s.begin; block < s.end; block++) {
                barrier_wait(full + 8 * stage, phase);
                u32 w = base + stage * STAGE_BYTES, count = s.count(block);
                u64 dw = wgmma_descriptor_32(w + group * 64 * 32), dx = wgmma_descriptor(w + W_BYTES, 0);
                // Of three groups the one between has rows of both weights.
                if (!GLU || (s.output(block) == 0 ? group + 1 < GROUPS : group > 0))
                    wgmma_steps<T, TOKENS>(d, dw, ROWS * 32, dx, 32, count);
                if (threadIdx.x % 128 == 0) barrier_arrive(empty + 8 * stage);
                if (++stage == STAGES) stage = 0, phase ^= 1;
            }
        }
        named_barrier(1, THREADS); // all groups have read the ring
        u32 lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
        for (int j = 0; j < TOKENS / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                sums[(8 * j + 2 * (lane % 4) + i % 2) * PITCH + row + 8 * (i / 2)] = d[4 * j + i];
    }
    cluster_sync();
    // Each block adds up its share of the tokens, the parts always in the order of their k.
    if (group < GROUPS) {
        launch_wait();
        u32 live = live_rows(args.counts, args.which, args.rows);
        float scale = o.scale ? *o.scale : 1.0f;
        constexpr u32 BATCH = TOKENS == 128 ? 4 : TOKENS == 64 ? 2 : 1, ROW = FEATURES / 4;
        u32 share = TOKENS / splits, items = share * ROW;
        // BATCH items at once, so that many loads from the other blocks are in flight.
        for (u32 first = threadIdx.x; first < items; first += THREADS * BATCH) {
            float4 sum[BATCH], up[BATCH];
#pragma unroll
            for (int j = 0; j < BATCH; j++) sum[j] = up[j] = make_float4(0, 0, 0, 0);
#pragma unroll 4
            for (u32 s = 0; s < splits; s++) {
                float4 part[BATCH], other[BATCH];
#pragma unroll
                for (int j = 0; j < BATCH; j++) {
                    u32 i = min(first + THREADS * j, items - 1);
                    u32 at = base + ((rank * share + i / ROW) * PITCH + i % ROW * 4) * 4;
                    part[j] = cluster_load(at, s);
                    if (GLU) other[j] = cluster_load(at + FEATURES * 4, s);
                }
#pragma unroll
                for (int j = 0; j < BATCH; j++) {
                    add4(sum[j], part[j]);
                    if (GLU) add4(up[j], other[j]);
                }
            }
#pragma unroll
            for (int j = 0; j < BATCH; j++) {
                u32 i = first + THREADS * j, r = token + rank * share + i / ROW, c = feature + i % ROW * 4;
                if (i >= items || r >= live || c >= o.n) continue;
                float4 v = make_float4(sum[j].x * scale, sum[j].y * scale, sum[j].z * scale, sum[j].w * scale);
                if (o.bias) {
                    float4 b = *(const float4*)(o.bias + c);
                    v.x += b.x, v.y += b.y, v.z += b.z, v.w += b.w;
                }
                if (GLU) {
                    v.x = gated(args.act, v.x, up[j].x), v.y = gated(args.act, v.y, up[j].y);
                    v.z = gated(args.act, v.z, up[j].z), v.w = gated(args.act, v.w, up[j].w);
                }
                u64 at = (u64)r * o.n + c;
                if (o.residual) {
                    uint2 old = *(const uint2*)((const T*)o.residual + at);
                    float2 low = unpack2<T>(old.x), high = unpack2<T>(old.y);
                    v.x += low.x, v.y += low.y, v.z += high.x, v.w += high.y;
                }
                if (args.out_f32) *(float4*)((float*)o.out + at) = v;
                else *(uint2*)((T*)o.out + at) = make_uint2(pack2<T>(v.x, v.y), pack2<T>(v.z, v.w));
            }
        }
    }
    cluster_sync(); // the partners may still read this block's sums
}

#define SMALL_KERNEL(name, T, TOKENS, GROUPS, GLU)                                                                    \
    extern "C" __global__ __launch_bounds__(128 * GROUPS + 32, 1)                                                     \
        void name(const __grid_constant__ MatmulArgs<3, 2> args) {                                                    \
        matmul_small<T, TOKENS, GROUPS, GLU>(args);                                                                   \
    }
#define SMALL_KERNELS(T)                                                                                              \
    SMALL_KERNEL(sm90_matmul_t16_##T, T, 16, 2, false)                                                                \
    SMALL_KERNEL(sm90_matmul_t32_##T, T, 32, 2, false)                                                                \
    SMALL_KERNEL(sm90_matmul_t64_##T, T, 64, 2, false)                                                                \
    SMALL_KERNEL(sm90_matmul_t128_##T, T, 128, 2, false)                                                              \
    SMALL_KERNEL(sm90_matmul_glu64_t32_##T, T, 32, 2, true)                                                           \
    SMALL_KERNEL(sm90_matmul_glu64_t64_##T, T, 64, 2, true)                                                           \
    SMALL_KERNEL(sm90_matmul_glu64_t128_##T, T, 128, 2, true)                                                         \
    SMALL_KERNEL(sm90_matmul_glu96_t32_##T, T, 32, 3, true)                                                           \
    SMALL_KERNEL(sm90_matmul_glu96_t64_##T, T, 64, 3, true)                                                           \
    SMALL_KERNEL(sm90_matmul_glu96_t128_##T, T, 128, 3, true)
SMALL_KERNELS(bf16)
SMALL_KERNELS(f16)
