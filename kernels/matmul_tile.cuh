// The product of matmul_tile.cu and matmul_dx_tile.cu: out = scale · a · b (+ bias) (+ residual) by mma.sync, from
// sm_80 on. a T [rows, inner] is row-major; b is T [n, inner] (a weight as it lies), or with TRANSPOSED T [inner, n];
// bias f32 [n]; residual T [rows, n], may be `out`; out T or f32 [rows, n]; null pointers are left out (scale: 1).
// `inner` and `n` are multiples of 8, pointers 16-byte aligned.
//
// A block of 32 · WM · WN threads makes a BM × BN tile: cp.async brings STAGES tiles of BK inputs to shared memory,
// each warp multiplies BM / WM rows by BN / WN columns, with the fragments of the next 16 inputs in registers while it
// does. grid = (ceil(rows / BM), ceil(n / BN)): the blocks of one wave cover a square of the result, so L2 serves them.
// Dynamic shared memory: STAGES · (BM + BN) · BK · 2 bytes.
#pragma once
#include "mma.cuh"

struct Product {
    const void* a;
    const void* b;
    const float* scale;
    const float* bias;
    const void* residual;
    void* out;
    u32 live, inner, n;
};

// The byte of a 16-byte chunk in a tile whose rows have `CHUNKS` of them: the chunks of a row are permuted so that the
// eight rows of an 8×8 matrix lie in different banks.
template <int CHUNKS> DEVICE u32 chunk_at(u32 row, u32 chunk) {
    u32 turn = CHUNKS == 4 ? row / 2 % 4 : row % 8;
    return (row * CHUNKS + (chunk ^ turn)) * 16;
}

template <typename T, typename Out, int BM, int BN, int BK, int WM, int WN, int STAGES, bool TRANSPOSED>
DEVICE void product(const Product& p) {
    constexpr int THREADS = 32 * WM * WN, ROWS = BM / WM, COLUMNS = BN / WN, STEPS = BK / 16;
    constexpr int MT = ROWS / 16, NT = COLUMNS / 8; // fragments of a warp
    constexpr int A_BYTES = BM * BK * 2, STAGE_BYTES = (BM + BN) * BK * 2;
    constexpr int B_ROWS = TRANSPOSED ? BK : BN, B_CHUNKS = (TRANSPOSED ? BN : BK) / 8, A_CHUNKS = BK / 8;
    static_assert(NT % 2 == 0 && STEPS % 2 == 0, "fragments come in pairs, steps alternate");
    static_assert(BM * A_CHUNKS % THREADS == 0 && B_ROWS * B_CHUNKS % THREADS == 0, "all threads copy alike");
    extern __shared__ __align__(128) unsigned char tiles[];

    u32 first_row = blockIdx.x * BM, first_column = blockIdx.y * BN;
    if (first_row >= p.live) return;
    int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    int warp_row = warp % WM * ROWS, warp_column = warp / WM * COLUMNS;
    u32 base = shared_address(tiles);

    u32 a_row = first_row + thread / A_CHUNKS, a_chunk = thread % A_CHUNKS;
    u32 b_row = thread / B_CHUNKS, b_chunk = thread % B_CHUNKS;
    const T* a = (const T*)p.a + (u64)a_row * p.inner + a_chunk * 8;
    const T* b = (const T*)p.b + (TRANSPOSED ? (u64)b_row * p.n + first_column + b_chunk * 8
                                             : (u64)(first_column + b_row) * p.inner + b_chunk * 8);
    auto fetch = [&](u32 tile) {
        u32 stage = base + tile % STAGES * STAGE_BYTES, k = tile * BK;
#pragma unroll
        for (int i = 0; i < BM * A_CHUNKS / THREADS; i++) {
            constexpr int STEP = THREADS / A_CHUNKS;
            bool there = a_row + i * STEP < p.live && k + a_chunk * 8 < p.inner;
            copy16_async(stage + chunk_at<A_CHUNKS>(thread / A_CHUNKS + i * STEP, a_chunk),
                         a + (u64)i * STEP * p.inner + k, there);
        }
#pragma unroll
        for (int i = 0; i < B_ROWS * B_CHUNKS / THREADS; i++) {
            constexpr int STEP = THREADS / B_CHUNKS;
            u32 row = b_row + i * STEP;
            bool there = TRANSPOSED ? k + row < p.inner && first_column + b_chunk * 8 < p.n
                                    : first_column + row < p.n && k + b_chunk * 8 < p.inner;
            const T* from = TRANSPOSED ? b + (u64)(k + i * STEP) * p.n : b + (u64)i * STEP * p.inner + k;
            copy16_async(stage + A_BYTES + chunk_at<B_CHUNKS>(row, b_chunk), from, there);
        }
    };

    u32 fa[2][MT][4], fb[2][NT / 2][4];
    auto load = [&](int buffer, u32 tile, int step) {
        u32 stage = base + tile % STAGES * STAGE_BYTES;
#pragma unroll
        for (int i = 0; i < MT; i++) {
            ldmatrix4(fa[buffer][i], stage + chunk_at<A_CHUNKS>(warp_row + i * 16 + lane % 16, step * 2 + lane / 16));
        }
#pragma unroll
        for (int j = 0; j < NT / 2; j++) {
            u32 column = warp_column + j * 16, at = stage + A_BYTES;
            if (TRANSPOSED) {
                ldmatrix4_transposed(fb[buffer][j],
                                     at + chunk_at<B_CHUNKS>(step * 16 + lane % 16, column / 8 + lane / 16));
            } else {
                u32 row = column + lane / 16 * 8 + lane % 8;
                ldmatrix4(fb[buffer][j], at + chunk_at<B_CHUNKS>(row, step * 2 + lane / 8 % 2));
            }
        }
    };

    float sums[MT][NT][4] = {};
    u32 count = (p.inner + BK - 1) / BK;
#pragma unroll
    for (int tile = 0; tile < STAGES - 1; tile++) {
        if (tile < count) fetch(tile);
        copy_commit();
    }
    copy_wait<STAGES - 2>();
    __syncthreads();
    load(0, 0, 0);
    for (u32 tile = 0; tile < count; tile++) {
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            if (step == STEPS - 1) {
                // All warps have taken what they need of this tile, and the next one has come.
                copy_wait<STAGES - 2>();
                __syncthreads();
                load(0, tile + 1, 0);
            } else {
                load((step + 1) % 2, tile, step + 1);
            }
            if (step == 0) {
                if (tile + STAGES - 1 < count) fetch(tile + STAGES - 1);
                copy_commit();
            }
#pragma unroll
            for (int i = 0; i < MT; i++) {
#pragma unroll
                for (int j = 0; j < NT; j++) {
                    const u32(&pair)[4] = fb[step % 2][j / 2];
                    mma16816<T>(sums[i][j], fa[step % 2][i], pair[j % 2 * 2], pair[j % 2 * 2 + 1]);
                }
            }
        }
    }

    float scale = p.scale ? *p.scale : 1;
#pragma unroll
    for (int j = 0; j < NT; j++) {
        u32 column = first_column + warp_column + j * 8 + lane % 4 * 2;
        if (column >= p.n) break;
        float2 bias = p.bias ? *(const float2*)(p.bias + column) : make_float2(0, 0);
#pragma unroll
        for (int i = 0; i < 2 * MT; i++) {
            u32 row = first_row + warp_row + i * 8 + lane / 4;
            if (row >= p.live) break;
            u64 at = (u64)row * p.n + column;
            const float(&sum)[4] = sums[i / 2][j];
            float low = scale * sum[i % 2 * 2] + bias.x, high = scale * sum[i % 2 * 2 + 1] + bias.y;
            if (p.residual) {
                float2 old = unpack2<T>(*(const u32*)((const T*)p.residual + at));
                low += old.x, high += old.y;
            }
            if constexpr (sizeof(Out) == 4) {
                *(float2*)((float*)p.out + at) = make_float2(low, high);
            } else {
                *(u32*)((T*)p.out + at) = pack2<T>(low, high);
            }
        }
    }
}
