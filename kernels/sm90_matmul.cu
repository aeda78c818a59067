// out[M, N] = x[M, K] · W[N, K]ᵀ + u[M, r] · B[N, r]ᵀ (optional) + bias + residual, W as in nn.Linear; T = bf16 or f16.
// Up to three outputs share a launch (q, k, v; gate, up), each with its own W, u, B, bias, residual and N.
//
// Large M: sm90_matmul_n{BN}c{CLUSTER}_T; the kernel, its tensor maps and its launch stand in sm90_gemm.cuh. Products
// of an output: {x, W, K} and, with a low-rank term, {u, B, r} (r a multiple of 8; its scale is folded into u or B).
//
// Small M (up to 128 rows; more work too): sm90_matmul_t{TOKENS}_T, TOKENS = 16, 32, 64, 128, the least that holds the
// bucket. W is wgmma's M operand, so that few tokens waste nothing; the same arguments and maps, but the a maps (x, u)
// have boxes of {64, min(64, TOKENS)}. K is split over a cluster, whose blocks add their f32 parts through distributed
// shared memory in the order of k: deterministic, no scratch. Launch: block 288, cluster (S, 1, 1) by attribute with S
// in 1, 2, 4, 8 splits, S ≤ K blocks of 64 (of both products); grid (S · Σ_o ceil(N_o / 128), ceil(rows / TOKENS));
// dynamic shared memory 1,024 + ring + 16 · floor(ring / ((128 + TOKENS) · 128)) bytes, ring = 110,592 for 16 and 32,
// 196,608 for 64 and 128 tokens. It may be launched with programmatic stream serialization: it starts on W and B while
// the kernel before it ends.
#include "sm90_gemm.cuh"

#define KERNEL(name, T, BN, CLUSTER)                                                                                  \
    extern "C" __global__ __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(384, 1)                                   \
        void name(const __grid_constant__ MatmulArgs<3, 2> args) {                                                    \
        matmul_kernel<T, BN, CLUSTER, 0>(args);                                                                       \
    }
#define KERNELS(T)                                                                                                    \
    KERNEL(sm90_matmul_n256c2_##T, T, 256, 2)                                                                         \
    KERNEL(sm90_matmul_n192c2_##T, T, 192, 2)                                                                         \
    KERNEL(sm90_matmul_n128c2_##T, T, 128, 2)                                                                         \
    KERNEL(sm90_matmul_n128c1_##T, T, 128, 1)
KERNELS(bf16)
KERNELS(f16)

// ---- small M ----

// Rows of W of one tile, 64 for each multiplying warpgroup: with half of them x would be read twice as often.
#define FEATURES 128

// BLOCKS of them share an SM's 227 KB: with few tokens one copies while the other starts or ends; with many the ring of
// one must be long, since half of what it holds is x.
template <int TOKENS, int BLOCKS> struct SmallRing {
    static constexpr int stage_bytes = (FEATURES + TOKENS) * TILE_K * 2;
    static constexpr int bytes = BLOCKS == 2 ? 110592 : 196608;
    static constexpr int stages = bytes / stage_bytes;
};

template <typename T, int TOKENS, int BLOCKS> DEVICE void matmul_small(const MatmulArgs<3, 2>& args) {
    using Ring = SmallRing<TOKENS, BLOCKS>;
    constexpr int STAGES = Ring::stages, STAGE_BYTES = Ring::stage_bytes;
    constexpr int W_BYTES = FEATURES * TILE_K * 2;
    // Words from one token's features to the next one's: the four lanes that hold a row's tokens hit different banks.
    constexpr int PITCH = FEATURES + 4;
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
        launch_wait();
        if (token >= live_rows(args.counts, args.which, args.rows)) return;
    }
#pragma unroll
    for (int o = 0; o < 2; o++) {
        u32 tiles = (args.outputs[o].n + FEATURES - 1) / FEATURES;
        if (output == o && o + 1 < args.count && tile >= tiles) output++, tile -= tiles;
    }
    const MatmulOutput<2>& o = args.outputs[output];
    u32 feature = tile * FEATURES;
    u32 blocks0 = (o.k[0] + TILE_K - 1) / TILE_K, blocks = blocks0;
    if (o.products > 1) blocks += (o.k[1] + TILE_K - 1) / TILE_K;
    u32 begin = blocks * rank / splits, end = blocks * (rank + 1) / splits;

    if (threadIdx.x == 256) {
        tma_prefetch_map(&o.b[0]);
        tma_prefetch_map(&o.a[0]);
    }
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            barrier_init(full + 8 * s, 1);
            barrier_init(empty + 8 * s, 2);
        }
        barrier_init_fence();
    }
    __syncthreads();
    launch_next();

    auto load_w = [&](u32 block, u32 stage) {
        u32 p = block >= blocks0, k = (p ? block - blocks0 : block) * TILE_K, bar = full + 8 * stage;
        barrier_arrive_expect(bar, STAGE_BYTES);
#pragma unroll
        for (int i = 0; i < FEATURES / 64; i++)
            tma_load(base + stage * STAGE_BYTES + i * BOX_BYTES, &o.b[p], bar, k, feature + 64 * i);
    };
    auto load_x = [&](u32 block, u32 stage) {
        u32 p = block >= blocks0, k = (p ? block - blocks0 : block) * TILE_K, bar = full + 8 * stage;
#pragma unroll
        for (int i = 0; i < TOKENS; i += 64)
            tma_load(base + stage * STAGE_BYTES + W_BYTES + i * TILE_K * 2, &o.a[p], bar, k, token + i);
    };
    if (group == 2) {
        if (threadIdx.x == 256) {
            // W does not depend on the kernel before: it may come while that one ends. So do not ask for live rows
            // first.
            u32 ahead = min(end - begin, STAGES);
            for (u32 i = 0; i < ahead; i++) load_w(begin + i, i);
            launch_wait();
            for (u32 i = 0; i < ahead; i++) load_x(begin + i, i);
            u32 stage = 0, phase = 0;
            for (u32 block = begin + ahead; block < end; block++) {
                barrier_wait(empty + 8 * stage, phase);
                load_w(block, stage);
                load_x(block, stage);
                if (++stage == STAGES) stage = 0, phase ^= 1;
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
        named_barrier(1, 256); // both groups have read the ring
        u32 lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
        for (int j = 0; j < TOKENS / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                sums[(8 * j + 2 * (lane % 4) + i % 2) * PITCH + row + 8 * (i / 2)] = d[4 * j + i];
    }
    cluster_sync();
    // Each block adds up its share of the tokens, the parts always in the order of their k.
    if (group < 2) {
        launch_wait();
        u32 live = live_rows(args.counts, args.which, args.rows);
        float scale = o.scale ? *o.scale : 1.0f;
        constexpr u32 ROW = FEATURES / 4, BATCH = TOKENS == 128 ? 4 : TOKENS == 64 ? 2 : 1;
        u32 share = TOKENS / splits, items = share * ROW;
        // BATCH items at once, so that many loads from the other blocks are in flight.
        for (u32 first = threadIdx.x; first < items; first += 256 * BATCH) {
            float4 sum[BATCH];
#pragma unroll
            for (int j = 0; j < BATCH; j++) sum[j] = make_float4(0, 0, 0, 0);
#pragma unroll 4
            for (u32 s = 0; s < splits; s++) {
                float4 part[BATCH];
#pragma unroll
                for (int j = 0; j < BATCH; j++) {
                    u32 i = min(first + 256 * j, items - 1);
                    part[j] = cluster_load(base + ((rank * share + i / ROW) * PITCH + i % ROW * 4) * 4, s);
                }
#pragma unroll
                for (int j = 0; j < BATCH; j++)
                    sum[j].x += part[j].x, sum[j].y += part[j].y, sum[j].z += part[j].z, sum[j].w += part[j].w;
            }
#pragma unroll
            for (int j = 0; j < BATCH; j++) {
                u32 i = first + 256 * j, r = token + rank * share + i / ROW, c = feature + i % ROW * 4;
                if (i >= items || r >= live || c >= o.n) continue;
                float4 v = make_float4(sum[j].x * scale, sum[j].y * scale, sum[j].z * scale, sum[j].w * scale);
                if (o.bias) {
                    float4 b = *(const float4*)(o.bias + c);
                    v.x += b.x, v.y += b.y, v.z += b.z, v.w += b.w;
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

#define SMALL_KERNEL(name, T, TOKENS, BLOCKS)                                                                         \
    extern "C" __global__ __launch_bounds__(288, BLOCKS) void name(const __grid_constant__ MatmulArgs<3, 2> args) {   \
        matmul_small<T, TOKENS, BLOCKS>(args);                                                                        \
    }
#define SMALL_KERNELS(T)                                                                                              \
    SMALL_KERNEL(sm90_matmul_t16_##T, T, 16, 2)                                                                       \
    SMALL_KERNEL(sm90_matmul_t32_##T, T, 32, 2)                                                                       \
    SMALL_KERNEL(sm90_matmul_t64_##T, T, 64, 1)                                                                       \
    SMALL_KERNEL(sm90_matmul_t128_##T, T, 128, 1)
SMALL_KERNELS(bf16)
SMALL_KERNELS(f16)
