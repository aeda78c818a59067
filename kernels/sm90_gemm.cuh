// The tiled product behind sm90_matmul.cu and sm90_matmul_dx.cu (large M). For every output o of a launch
//
//     out_o[M, N_o] = scale_o · Σ_p A_op[M, K_op] · B_op + bias_o[N_o] + residual_o[M, N_o]
//
// with B_op = [N_o, K_op] (K-major: nn.Linear's weight) or [K_op, N_o] (MN-major: the same weight in the backward
// pass). A low-rank term is one more product p: all products of an output accumulate in the same f32 registers. A, B,
// residual and out are T (bf16 or f16), out may be f32; every sum is f32, rounded once.
//
// A block makes tiles of 128 × BN: one warpgroup copies (one thread, TMA), two multiply (64 rows each, wgmma 64×BN×16).
// Blocks are persistent, tiles are walked so that the 16 m-tiles of one n-tile run together: W comes from memory once.
// What limits a block alone is the way from L2 to the SM (about 65 GB/s each: 128 × 128 tiles reach 560 TFLOP/s alone,
// 690 in pairs). So a cluster of two makes two neighbouring m-tiles and shares B by multicast. (Clusters of 2 × 2 were
// slower: they do not fill 132 SMs.)
//
// Tensor maps, all by one rule: a row-major 16-bit matrix [rows, cols] is encoded by cuTensorMapEncodeTiled with rank
// 2, dims {cols, rows}, strides {row bytes}, box {64, 64}, element strides {1, 1}, no interleave, swizzle 128B, L2
// promotion 128B, fill with zeros. Base and row bytes are multiples of 16: every N and K is a multiple of 8. A map: x,
// dy, u or du with the bucket's rows; b map: W [N, K] (the same map forward and backward), B [N, r], A [r, K]. Ragged
// edges are zeros on the way in and guarded on the way out; tiles that start at or past the live rows are skipped.
//
// With SLOTS (serving many adapters) the second product of an output is of each row's own adapter: A is [rows, slots · r],
// a row's r numbers in the columns of its slot and zeros in all others, B [slots · N, r] as the bank holds it, r = k[1] a
// multiple of 16. A tile goes over the slots between the least and the greatest that its rows have (rows sorted by slot have
// few), four steps of 16 columns in a stage. The b map of this product has boxes of {16, BN} and swizzle 32B, so that a box
// is one step's operand.
//
// Launch: block 384; cluster (CLUSTER, 1, 1), compiled in; with tiles = ceil(rows / (128 · CLUSTER)) · Σ_o ceil(N_o /
// BN) the grid is CLUSTER · min(tiles, SMs / CLUSTER); dynamic shared memory 1,024 + stages · (128 + BN) · 128 + 16 ·
// stages bytes, stages = 4, 5, 6 for BN = 256, 192, 128. The variant of least ceil(tiles / (SMs / CLUSTER)) · w is the
// fastest: w = 0.70 (n256c2), 0.55 (n192c2), 0.40 (n128c2), 0.49 (n128c1; 0.36 where its tiles ≤ SMs / 2: the L2 has
// few readers), the microseconds of one K block of a tile.
//
// Measured (H100, 132 SMs, bf16, cold L2, graph replay, 2026-11-23): TFLOP/s beside cuBLAS (CUDA 13) in the same run,
// M × N × K: forward 2048×12288×4096 767 / 795, 2048×4096×12288 798 / 814, 2048×4096×4096 703 / 746, 8192×4096×4096
// 740 / 780, 512×12288×4096 706 / 685, 512×4096×4096 643 / 700, 256×4096×4096 366 / 487; dx 2048×12288×4096 786 / 794,
// 8192×12288×4096 691 / 696, 512×12288×4096 730 / 763, 512×4096×4096 653 / 703, 256×4096×4096 378 / 460,
// 128×4096×4096 194 / 295.
#pragma once
#include "sm90.cuh"

// One output and its P products at most. A product is a pair of tensor maps and its K.
template <int P> struct alignas(64) MatmulOutput {
    CUtensorMap a[P];
    CUtensorMap b[P];
    void* out;            // [rows, n] T, or f32 with out_f32
    const float* scale;   // one f32, or null for 1
    const float* bias;    // f32 [n], or null
    const void* residual; // [rows, n] T, or null; may be `out` itself
    u32 n;
    u32 products; // 1..P
    u32 k[P];
};
template <int O, int P> struct MatmulArgs {
    MatmulOutput<P> outputs[O];
    const u32* counts;
    u32 which;
    u32 rows;    // of the bucket
    u32 count;   // outputs used, 1..O
    u32 out_f32; // 1: out is f32
    u32 act;     // matmul_small's gated pair: 0 SiLU, 1 GELU
    const u32* slots; // with SLOTS: the adapter of each row, NO_SLOT for none
    // With SLOTS, where not null: the kernel ahead computes no more than the second products' a, and raises this flag when
    // all that the first ones read is there.
    const u32* ready;
};

#define TILE_M 128
#define TILE_K 64
#define BOX_BYTES 8192 // 64 × 64 elements: the box of every tensor map

// Slots that rows have: from `first` on, up to `end`; none: both 0.
struct Slots {
    u32 first = NO_SLOT, end = 0;
    // This lane's part of ROWS rows from `row` on, of a list of `rows`. Nothing waits for it before `gather`.
    template <u32 ROWS> DEVICE void look(const u32* slots, u32 row, u32 rows, u32 live) {
        u32 seen[(ROWS + 31) / 32];
#pragma unroll
        for (u32 i = 0; i < (ROWS + 31) / 32; i++) {
            u32 at = i * 32 + threadIdx.x % 32;
            seen[i] = at < ROWS && row + at < rows ? slots[row + at] : NO_SLOT;
        }
#pragma unroll
        for (u32 i = 0; i < (ROWS + 31) / 32; i++) {
            bool has = seen[i] != NO_SLOT && row + i * 32 + threadIdx.x % 32 < live;
            if (has) first = min(first, seen[i]), end = max(end, seen[i] + 1);
        }
    }
    // What all lanes of the warp saw.
    DEVICE void gather() {
        end = __reduce_max_sync(FULL_WARP, end);
        first = min(__reduce_min_sync(FULL_WARP, first), end);
    }
};

// Steps of 16 columns through the adapters of some slots, of `rank` columns each.
struct Steps {
    u32 first, count;
    DEVICE Steps(const Slots& slots, u32 rank) : first(slots.first * rank), count((slots.end - slots.first) * (rank / 16)) {}
    DEVICE u32 column(u32 step) const { return first + 16 * step; }
};

// Before the copy engine reads what kernels ahead of the one that raises `ready` wrote; without a flag, what any wrote.
DEVICE void await_operands(const u32* ready) {
    if (ready) {
        await_flag(ready);
        fence_async_proxy_global();
    } else {
        launch_wait();
    }
}

// Up to four steps of 16 of the inner dimension, whose operands lie so many bytes apart.
template <typename T, int N>
DEVICE void wgmma_steps(float (&d)[N / 2], u64 da, u32 a_pitch, u64 db, u32 b_pitch, u32 count) {
    if (count == 4) {
        wgmma_fence();
#pragma unroll
        for (u32 i = 0; i < 4; i++) wgmma<T, N, 0>(d, da + i * (a_pitch >> 4), db + i * (b_pitch >> 4), 1);
        wgmma_commit();
        wgmma_wait<0>();
        return;
    }
#pragma unroll 1
    for (u32 i = 0; i < count; i++) {
        wgmma_fence();
        wgmma<T, N, 0>(d, da + i * (a_pitch >> 4), db + i * (b_pitch >> 4), 1);
        wgmma_commit();
        wgmma_wait<0>();
    }
}

struct MatmulTile {
    u32 output, row, column;
};

// The rows and columns of tile `index`, of `m_tiles` by all outputs' n-tiles; tiles of a whole cluster, BM × BN.
template <int BM, int BN, int O, int P>
DEVICE MatmulTile matmul_tile(const MatmulArgs<O, P>& args, u32 index, u32 m_tiles, u32 n_tiles) {
    const u32 band = 2048 / BM;
    u32 first = index / (band * n_tiles) * band;
    u32 height = min(m_tiles - first, band);
    u32 within = index - first * n_tiles;
    u32 n = within / height;
    MatmulTile tile = {0, (first + within % height) * BM, n};
    if constexpr (O > 1) {
#pragma unroll
        for (int o = 0; o + 1 < O; o++) {
            u32 tiles = (args.outputs[o].n + BN - 1) / BN;
            if (tile.output == o && tile.column >= tiles) tile.output++, tile.column -= tiles;
        }
    }
    tile.column *= BN;
    return tile;
}

// Lane t of each four holds in r[j] its word of block j (8 elements, 4 words); after, word i of block t in r[i]. Its
// own inverse.
DEVICE void quad_transpose(u32 (&r)[4]) {
    bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        u32 got = __shfl_xor_sync(FULL_WARP, odd ? r[i] : r[i + 1], 1);
        if (odd) r[i] = got;
        else r[i + 1] = got;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        u32 got = __shfl_xor_sync(FULL_WARP, high ? r[i] : r[i + 2], 2);
        if (high) r[i] = got;
        else r[i + 2] = got;
    }
}

// The 64 × BN accumulators of a warpgroup to global memory, 16 bytes a lane, so that each four lanes fill two sectors.
// `row` is this lane's first (the other is 8 on). Straight-line code where nothing is added: this time is not hidden.
template <typename T, int BN, int P>
DEVICE void matmul_store(float (&d)[BN / 2], const MatmulOutput<P>& o, bool out_f32, u32 row, u32 column, u32 live) {
    u32 t = threadIdx.x % 4, n = o.n;
    const float* bias = o.bias;
    const T* residual = (const T*)o.residual;
    if (!bias && !residual && !o.scale && !out_f32) {
        T* to = (T*)o.out + (u64)row * n + column + 8 * t;
#pragma unroll
        for (int i = 0; i < BN / 16; i++) {
            u32 words[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int at = 4 * (4 * (i / 2) + j) + 2 * (i % 2);
                words[j] = pack2<T>(d[at], d[at + 1]);
            }
            quad_transpose(words);
            if (row + 8 * (i % 2) < live && column + 32 * (i / 2) + 8 * t < n)
                *(uint4*)(to + 8 * (i % 2) * n + 32 * (i / 2)) = make_uint4(words[0], words[1], words[2], words[3]);
        }
        return;
    }
    float scale = o.scale ? *o.scale : 1.0f;
    // Two 32-column strips at a time: their four residual loads are in flight together.
#pragma unroll
    for (int strip = 0; strip < BN / 32; strip += 2) {
        uint4 old[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 r = row + 8 * (i % 2), c = column + 32 * (strip + i / 2) + 8 * t;
            bool read = residual && r < live && c < n;
            old[i] = read ? *(const uint4*)(residual + (u64)r * n + c) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 r = row + 8 * (i % 2), first = column + 32 * (strip + i / 2);
            u32 words[4] = {old[i].x, old[i].y, old[i].z, old[i].w};
            quad_transpose(words);
            float v[8];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                u32 c = first + 8 * j + 2 * t;
                int at = 4 * (4 * (strip + i / 2) + j) + 2 * (i % 2);
                float2 add = unpack2<T>(words[j]);
                if (bias && c < n) {
                    float2 b = *(const float2*)(bias + c);
                    add.x += b.x, add.y += b.y;
                }
                v[2 * j] = d[at] * scale + add.x;
                v[2 * j + 1] = d[at + 1] * scale + add.y;
                if (out_f32 && r < live && c < n)
                    *(float2*)((float*)o.out + (u64)r * n + c) = make_float2(v[2 * j], v[2 * j + 1]);
                words[j] = pack2<T>(v[2 * j], v[2 * j + 1]);
            }
            if (out_f32) continue;
            quad_transpose(words);
            u32 c = first + 8 * t;
            if (r < live && c < n)
                *(uint4*)((T*)o.out + (u64)r * n + c) = make_uint4(words[0], words[1], words[2], words[3]);
        }
    }
}

// Stages of the ring: what 227 KB hold.
template <int BN> struct MatmulRing {
    static constexpr int stage_bytes = (TILE_M + BN) * TILE_K * 2;
    static constexpr int stages = BN == 256 ? 4 : BN == 192 ? 5 : 6;
};

template <typename T, int BN, int CLUSTER, int TRANSPOSE_B, bool SLOTS = false, int O, int P>
DEVICE void matmul_kernel(const MatmulArgs<O, P>& args) {
    constexpr int STAGES = MatmulRing<BN>::stages, STAGE_BYTES = MatmulRing<BN>::stage_bytes;
    constexpr int A_BYTES = TILE_M * TILE_K * 2;
    extern __shared__ u8 shared[];
    u32 ring = (shared_address(shared) + 1023) & ~1023u;
    u32 full = ring + STAGES * STAGE_BYTES, empty = full + 8 * STAGES;
    // One value a warp, known to the compiler: descriptors stay in uniform registers.
    u32 group = __shfl_sync(FULL_WARP, threadIdx.x / 128, 0);
    u32 rank = CLUSTER > 1 ? cluster_rank() : 0;

    u32 live = live_rows(args.counts, args.which, args.rows);
    u32 m_tiles = (live + TILE_M * CLUSTER - 1) / (TILE_M * CLUSTER), n_tiles = 0;
#pragma unroll
    for (int o = 0; o < O; o++)
        if (o < args.count) n_tiles += (args.outputs[o].n + BN - 1) / BN;
    u32 tiles = m_tiles * n_tiles, first = blockIdx.x / CLUSTER, step = gridDim.x / CLUSTER;
    if (first >= tiles) return; // the same in all blocks of a cluster

    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            barrier_init(full + 8 * s, 1);
            barrier_init(empty + 8 * s, 2 * CLUSTER);
        }
        barrier_init_fence();
    }
    if (CLUSTER > 1) cluster_sync();
    else __syncthreads();

    if (group == 0) {
        // Of a thread's 168; together they must not ask for more than the block has.
        registers_decrease<SLOTS ? 48 : 40>();
        // With SLOTS the whole warp looks at the rows' slots; one lane copies.
        if (threadIdx.x < (SLOTS ? 32 : 1)) {
            bool copies = threadIdx.x == 0;
            u32 stage = 0, phase = 0;
            for (u32 index = first; index < tiles; index += step) {
                MatmulTile tile = matmul_tile<TILE_M * CLUSTER, BN>(args, index, m_tiles, n_tiles);
                const MatmulOutput<P>& o = args.outputs[tile.output];
                u32 row = tile.row + rank * TILE_M;
                auto load = [&](u32 p, u32 k) {
                    barrier_wait(empty + 8 * stage, phase ^ 1);
                    u32 bar = full + 8 * stage, a = ring + stage * STAGE_BYTES, b = a + A_BYTES;
                    barrier_arrive_expect(bar, STAGE_BYTES);
                    tma_load(a, &o.a[p], bar, k, row);
                    tma_load(a + BOX_BYTES, &o.a[p], bar, k, row + 64);
#pragma unroll
                    for (u32 i = 0; i < BN / 64; i++) {
                        u32 n = tile.column + 64 * i, to = b + i * BOX_BYTES;
                        u32 x = TRANSPOSE_B ? n : k, y = TRANSPOSE_B ? k : n;
                        if (CLUSTER == 1) tma_load(to, &o.b[p], bar, x, y);
                        // With an odd number of boxes the odd one alternates.
                        else if ((i + k / TILE_K * (BN / 64)) % 2 == rank)
                            tma_load_multicast(to, &o.b[p], bar, x, y, 3);
                    }
                    if (++stage == STAGES) stage = 0, phase ^= 1;
                };
                Slots slots;
                if (SLOTS) slots.look<TILE_M * CLUSTER>(args.slots, tile.row, args.rows, live);
                if (copies) {
                    if (SLOTS && index == first) await_operands(args.ready);
                    for (u32 p = 0; p < (SLOTS ? 1 : o.products); p++)
                        for (u32 k = 0; k < o.k[p]; k += TILE_K) load(p, k);
                }
                if (SLOTS && o.products > 1) {
                    launch_wait();
                    slots.gather();
                    Steps steps(slots, o.k[1]);
                    for (u32 step = 0; copies && step < steps.count; step += 4) {
                        u32 some = min(steps.count - step, 4);
                        barrier_wait(empty + 8 * stage, phase ^ 1);
                        u32 bar = full + 8 * stage, a = ring + stage * STAGE_BYTES, b = a + A_BYTES;
                        barrier_arrive_expect(bar, A_BYTES + some * BN * 32);
                        tma_load(a, &o.a[1], bar, steps.column(step), row);
                        tma_load(a + BOX_BYTES, &o.a[1], bar, steps.column(step), row + 64);
                        for (u32 i = 0; i < some; i++) {
                            u32 slot = steps.column(step + i) / o.k[1], k = steps.column(step + i) % o.k[1];
                            u32 to = b + i * BN * 32, y = slot * o.n + tile.column;
                            if (CLUSTER == 1) tma_load(to, &o.b[1], bar, k, y);
                            else if (i % 2 == rank) tma_load_multicast(to, &o.b[1], bar, k, y, 3);
                        }
                        if (++stage == STAGES) stage = 0, phase ^= 1;
                    }
                }
            }
        }
        // The other lanes must not wait in the cluster's barrier below: they would take the issuing lane's turns.
        __syncwarp();
    } else {
        registers_increase<SLOTS ? 224 : 232>();
        u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
        // The first threads of a group tell both blocks, which copy to this one, that a stage is free.
        u32 told = threadIdx.x % 128;
        bool tells = told < CLUSTER;
        u32 stage = 0, phase = 0;
        for (u32 index = first; index < tiles; index += step) {
            MatmulTile tile = matmul_tile<TILE_M * CLUSTER, BN>(args, index, m_tiles, n_tiles);
            const MatmulOutput<P>& o = args.outputs[tile.output];
            u32 blocks = 0;
            for (u32 p = 0; p < (SLOTS ? 1 : o.products); p++) blocks += (o.k[p] + TILE_K - 1) / TILE_K;
            Slots slots;
            if (SLOTS) slots.look<TILE_M * CLUSTER>(args.slots, tile.row, args.rows, live);
            float d[BN / 2];
            u32 previous = 0;
            auto leave = [&](u32 read) {
                if (!tells) return;
                if (CLUSTER > 1) barrier_arrive_cluster(empty + 8 * read, told);
                else barrier_arrive(empty + 8 * read);
            };
            for (u32 k = 0; k < blocks; k++) {
                barrier_wait(full + 8 * stage, phase);
                u32 a = ring + stage * STAGE_BYTES + (group - 1) * BOX_BYTES, b = ring + stage * STAGE_BYTES + A_BYTES;
                u64 da = wgmma_descriptor(a, 0), db = wgmma_descriptor(b, BOX_BYTES);
                wgmma_fence();
#pragma unroll
                for (int i = 0; i < TILE_K / 16; i++)
                    wgmma<T, BN, TRANSPOSE_B>(d, da + i * (32 >> 4), db + i * ((TRANSPOSE_B ? 2048 : 32) >> 4), k + i);
                wgmma_commit();
                // This block runs on; the one before it has been read, so its stage is free.
                wgmma_wait<1>();
                if (k > 0) leave(previous);
                previous = stage;
                if (++stage == STAGES) stage = 0, phase ^= 1;
            }
            wgmma_wait<0>();
            leave(previous);
            if (SLOTS && o.products > 1) {
                slots.gather();
                Steps steps(slots, o.k[1]);
                for (u32 step = 0; step < steps.count; step += 4) {
                    u32 a = ring + stage * STAGE_BYTES + (group - 1) * BOX_BYTES, b = ring + stage * STAGE_BYTES + A_BYTES;
                    u64 da = wgmma_descriptor(a, 0), db = wgmma_descriptor_32(b);
                    barrier_wait(full + 8 * stage, phase);
                    wgmma_steps<T, BN>(d, da, 32, db, BN * 32, min(steps.count - step, 4));
                    leave(stage);
                    if (++stage == STAGES) stage = 0, phase ^= 1;
                }
            }
            if (SLOTS) launch_wait();
            u32 row = tile.row + rank * TILE_M + (group - 1) * 64 + warp * 16 + lane / 4;
            matmul_store<T, BN>(d, o, args.out_f32, row, tile.column, live);
        }
    }
    // A block must outlive its partner's copies and arrivals.
    if (CLUSTER > 1) cluster_sync();
}
