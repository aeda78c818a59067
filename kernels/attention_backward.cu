// attention_backward: gradients of packed causal attention (attention.cu has the forward formulas), plain and on
// tensor cores.
//
// With u = scale · q·k, s = u or softcap · tanh(u / softcap), p = exp(s − lse), for each row t, head and key j it sees:
//     delta[t] = Σ out·dout,  ds = p · (dout·v_j − delta[t]) · (1 − (s / softcap)²)
//     dv_j = Σ p · dout_t,  dk_j = scale · Σ ds · q_t,  dq_t = scale · Σ ds · k_j
// where dk and dv add up over all heads of the group.
// q, out, dout, dq [rows, H·D]; k, v, dk, dv [rows, G·D]; lse, delta f32 [rows, H]; bounds u32 [sequences + 1].
// Three launches: attention_delta, then attention_backward_dkv and attention_backward_dq in either order. There are two
// kernels because a single one would add up dq with atomics, whose order changes from run to run.
//
// attention_delta_{f32,bf16,f16}: any D. grid ceil(rows · H / 4), block 128.
// attention_backward_dq_plain_*:  any D, f32 arithmetic. grid (rows, H), block 128, dynamic shared memory 24·D bytes.
// attention_backward_dkv_plain_*: any D, f32 arithmetic. grid (rows, G), block 128, dynamic shared memory 40·D bytes.
//
// attention_backward_dq_d{64,80,96,128,256}_{bf16,f16}: mma.sync with f32 sums; all tensors aligned to 16 bytes.
//     M = 128 rows (D = 256: 64), N = 32 keys (16 with -DSMALL_SHARED, for chips that have 100 KiB).
//     grid (H, ceil(rows / M)), block 128, dynamic shared memory 4·(M + 2·N)·(D + 8) bytes.
// attention_backward_dkv_d{64,80,96,128,256}_{bf16,f16}: likewise; N = 64 keys, M = 64 rows (D = 256: 32; with
//     SMALL_SHARED 32, and none of D = 256). C = 2 for D = 256, else 1: each block owns D / C columns of dk and dv.
//     grid (parts, G · C, ceil(rows / N)), block 128, dynamic shared memory 4·(N + 2·M)·(D + 8) + 16·M bytes. parts =
//     1; from sm_90 on also more, at most min(H / G, 8), with clusters of (parts, 1, 1): the heads of a group are
//     shared out among them.
//     -DHEAD_DIM=n compiles the tensor kernels of that width only.
// Rows of a tile may belong to several sequences: a tile of keys meets all rows from its first one to the end of its
// last sequence, a tile of rows all keys from its first sequence's start, and what does not belong together is masked.
//
// H100, 2026-11-23, bf16, D = 128, H/G = 32/8, delta + dkv + dq, FLOP counted as 2.5 forwards: 2 × 1,024 rows 277 µs,
// 155 TFLOP/s (parts = 4); 2 × 4,096 rows 3,173 µs, 217 TFLOP/s (parts = 1).
#include "mma.cuh"
#if __CUDA_ARCH__ >= 900
#include "sm90.cuh"
#endif

#define LOG2E 1.44269504f

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

// One warp for each row and head.
template <typename T>
DEVICE void delta_of_rows(float* delta, const T* out, const T* dout, const u32* counts, u32 rows, u32 heads,
    u32 head_dim) {
    u64 at = (u64)blockIdx.x * 4 + threadIdx.x / 32;
    if (at >= (u64)live_rows(counts, 0, rows) * heads) return;
    float sum = 0.0f;
    if (head_dim % 8 == 0) {
        for (u32 d = threadIdx.x % 32 * 8; d < head_dim; d += 256) {
            float a[8], b[8];
            load8(out + at * head_dim + d, a);
            load8(dout + at * head_dim + d, b);
#pragma unroll
            for (int i = 0; i < 8; i++) sum += a[i] * b[i];
        }
    } else {
        for (u32 d = threadIdx.x % 32; d < head_dim; d += 32)
            sum += to_float(out[at * head_dim + d]) * to_float(dout[at * head_dim + d]);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) delta[at] = sum;
}

// Probability and gradient of the scaled product u, from u and dP, in f32.
template <typename T> DEVICE float2 plain_gradient(const Problem<T>& a, float u, float dp, float lse, float delta) {
    float t = a.softcap > 0.0f ? tanhf(u / a.softcap) : 0.0f;
    float p = expf((a.softcap > 0.0f ? a.softcap * t : u) - lse);
    return make_float2(p, p * (dp - delta) * (1.0f - t * t));
}

// One block for each row and head. Each warp takes every fourth key; lane l owns columns l, l + 32, … of its sums.
template <typename T> DEVICE void plain_dq(const Problem<T>& a) {
    extern __shared__ float shared[];
    const int WARPS = 4;
    u32 t = blockIdx.x, head = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32, width = a.head_dim;
    if (t >= live_rows(a.counts, 0, a.rows)) return;
    float *q = shared, *dout = shared + width, *sums = shared + width * (2 + warp);
    u64 at = ((u64)t * a.heads + head) * width;
    for (u32 d = threadIdx.x; d < width; d += blockDim.x)
        q[d] = to_float(a.q[at + d]), dout[d] = to_float(a.dout[at + d]);
    for (u32 d = lane; d < width; d += 32) sums[d] = 0.0f;
    __syncthreads();
    u32 start = a.bounds[a.seqs[t]];
    float lse = a.lse[(u64)t * a.heads + head], delta = a.delta[(u64)t * a.heads + head];
    for (u32 row = start + lowest_key(t - start, a.window) + warp; row <= t; row += WARPS) {
        u64 from = ((u64)row * a.kv_heads + head / (a.heads / a.kv_heads)) * width;
        float u = 0.0f, dp = 0.0f;
        for (u32 d = lane; d < width; d += 32)
            u += q[d] * to_float(a.k[from + d]), dp += dout[d] * to_float(a.v[from + d]);
        float2 g = plain_gradient(a, warp_sum(u) * a.scale, warp_sum(dp), lse, delta);
        for (u32 d = lane; d < width; d += 32) sums[d] += g.y * to_float(a.k[from + d]);
    }
    __syncthreads();
    for (u32 d = threadIdx.x; d < width; d += blockDim.x) {
        float x = 0.0f;
        for (int w = 0; w < WARPS; w++) x += shared[width * (2 + w) + d];
        a.dq[at + d] = from_float<T>(x * a.scale);
    }
}

// One block for each row of k and v and each group. Each warp takes every fourth pair of a row that sees it and a head.
template <typename T> DEVICE void plain_dkv(const Problem<T>& a) {
    extern __shared__ float shared[];
    const int WARPS = 4;
    u32 row = blockIdx.x, group = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32, width = a.head_dim;
    if (row >= live_rows(a.counts, 0, a.rows)) return;
    float *k = shared, *v = shared + width, *dk = shared + width * (2 + 2 * warp), *dv = dk + width;
    u64 at = ((u64)row * a.kv_heads + group) * width;
    for (u32 d = threadIdx.x; d < width; d += blockDim.x) k[d] = to_float(a.k[at + d]), v[d] = to_float(a.v[at + d]);
    for (u32 d = lane; d < width; d += 32) dk[d] = dv[d] = 0.0f;
    __syncthreads();
    u32 per_group = a.heads / a.kv_heads, end = a.bounds[a.seqs[row] + 1];
    if (end - row > a.window) end = row + a.window;
    for (u32 i = warp; i < (end - row) * per_group; i += WARPS) {
        u64 stat = (u64)(row + i / per_group) * a.heads + group * per_group + i % per_group, from = stat * width;
        float u = 0.0f, dp = 0.0f;
        for (u32 d = lane; d < width; d += 32)
            u += k[d] * to_float(a.q[from + d]), dp += v[d] * to_float(a.dout[from + d]);
        float2 g = plain_gradient(a, warp_sum(u) * a.scale, warp_sum(dp), a.lse[stat], a.delta[stat]);
        for (u32 d = lane; d < width; d += 32) {
            dk[d] += g.y * to_float(a.q[from + d]);
            dv[d] += g.x * to_float(a.dout[from + d]);
        }
    }
    __syncthreads();
    for (u32 d = threadIdx.x; d < width; d += blockDim.x) {
        float x = 0.0f, y = 0.0f;
        for (int w = 0; w < WARPS; w++) x += shared[width * (2 + 2 * w) + d], y += shared[width * (3 + 2 * w) + d];
        a.dk[at + d] = from_float<T>(x * a.scale);
        a.dv[at + d] = from_float<T>(y);
    }
}

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

template <typename T, int D> struct Tensor {
    static const int WARPS = 4, THREADS = 32 * WARPS;
    static const int STRIDE = D + 8; // an odd number of 16-byte units: ldmatrix meets no bank twice
    static const int UNITS = D / 8;  // 16-byte units of a row

    // Starts loading ROWS rows of two tensors of one shape, from row `first`; rows from `end` on become 0. Eight
    // threads a row.
    template <int ROWS>
    static DEVICE void load(u32 to, const T* x, const T* y, u64 stride, u32 column, u32 first, u32 end) {
#pragma unroll
        for (int i = 0; i < (ROWS * 8 + THREADS - 1) / THREADS; i++) {
            u32 r = threadIdx.x / 8 + i * (THREADS / 8);
            bool valid = first + r < end;
            u64 from = valid ? (first + r) * stride + column : 0;
#pragma unroll
            for (int j = 0; j < UNITS; j += 8) {
                u32 unit = j + threadIdx.x % 8, at = to + (r * STRIDE + unit * 8) * 2;
                if (j + 8 <= UNITS || unit < UNITS) {
                    copy16_async(at, x + from + unit * 8, valid);
                    copy16_async(at + ROWS * STRIDE * 2, y + from + unit * 8, valid);
                }
            }
        }
    }

    // d[m] += a · bᵀ over D: 16·TILES rows of a, COUNT rows of b, both row-major; the addresses are this lane's.
    template <int TILES, int COUNT>
    static DEVICE void products(float (&d)[TILES][COUNT / 8][4], u32 a, u32 b) {
#pragma unroll
        for (int m = 0; m < TILES; m++)
#pragma unroll
            for (int n = 0; n < COUNT / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) d[m][n][i] = 0.0f;
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            u32 as[TILES][4];
#pragma unroll
            for (int m = 0; m < TILES; m++) ldmatrix4(as[m], a + (m * 16 * STRIDE + k * 16) * 2);
#pragma unroll
            for (int n = 0; n < COUNT / 16; n++) {
                u32 bs[4];
                ldmatrix4(bs, b + (n * 16 * STRIDE + k * 16) * 2);
#pragma unroll
                for (int m = 0; m < TILES; m++) {
                    mma16816<T>(d[m][2 * n], as[m], bs[0], bs[1]);
                    mma16816<T>(d[m][2 * n + 1], as[m], bs[2], bs[3]);
                }
            }
        }
    }

    // d[m] += p · b: p a product's result of COUNT columns, b COUNT rows of COLUMNS.
    template <int TILES, int COUNT, int COLUMNS>
    static DEVICE void accumulate(float (&d)[TILES][COLUMNS / 8][4], const float (&p)[TILES][COUNT / 8][4], u32 b) {
#pragma unroll
        for (int n = 0; n < COUNT / 16; n++) {
            u32 ps[TILES][4];
#pragma unroll
            for (int m = 0; m < TILES; m++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    ps[m][i] = pack2<T>(p[m][2 * n + i / 2][i % 2 * 2], p[m][2 * n + i / 2][i % 2 * 2 + 1]);
#pragma unroll
            for (int c = 0; c < COLUMNS / 16; c++) {
                u32 bs[4];
                ldmatrix4_transposed(bs, b + (n * 16 * STRIDE + c * 16) * 2);
#pragma unroll
                for (int m = 0; m < TILES; m++) {
                    mma16816<T>(d[m][2 * c], ps[m], bs[0], bs[1]);
                    mma16816<T>(d[m][2 * c + 1], ps[m], bs[2], bs[3]);
                }
            }
        }
    }

    // This lane's offsets in a tile (see ldmatrix in mma.cuh): as left operand or transposed right one, and as right
    // operand.
    static DEVICE u32 left_lane(u32 lane) { return (lane % 16 * STRIDE + lane / 16 * 8) * 2; }
    static DEVICE u32 right_lane(u32 lane) { return ((lane % 8 + lane / 16 * 8) * STRIDE + lane / 8 % 2 * 8) * 2; }
};

// A block owns M rows of one head and walks over the keys that they see.
template <typename T, int D> struct Dq : Tensor<T, D> {
    using Base = Tensor<T, D>;
    // 16-row tiles of a warp: two share each fragment of k and v, if registers suffice
    static const int TILES = D <= 128 ? 2 : 1;
    static const int M = Base::WARPS * TILES * 16;
#ifdef SMALL_SHARED
    static const int N = 16;
#else
    static const int N = 32;
#endif
    static const u32 ROW_BYTES = Base::STRIDE * 2, KEY_BYTES = 2 * N * ROW_BYTES;

    static DEVICE void run(const Problem<T>& a) {
        extern __shared__ uint4 shared_memory[];
        const u32 head = blockIdx.x, group = head / (a.heads / a.kv_heads);
        const u32 first = (gridDim.y - 1 - blockIdx.y) * M, live = live_rows(a.counts, 0, a.rows); // most keys first
        if (first >= live) return;
        const u32 end = min(first + M, live), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const u32 queries = shared_address(shared_memory), keys = queries + 2 * M * ROW_BYTES;
        const u64 row_stride = (u64)a.heads * D, key_stride = (u64)a.kv_heads * D;
        const u32 warp_row = first + warp * TILES * 16;

        // The rows of this thread: their first key, lse and delta.
        u32 lows[TILES][2];
        float lse2[TILES][2], delta[TILES][2];
#pragma unroll
        for (int m = 0; m < TILES; m++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                u32 t = warp_row + m * 16 + r * 8 + lane / 4;
                lows[m][r] = ~0u, lse2[m][r] = delta[m][r] = 0.0f;
                if (t < live) {
                    u32 start = a.bounds[a.seqs[t]];
                    lows[m][r] = start + lowest_key(t - start, a.window);
                    lse2[m][r] = a.lse[(u64)t * a.heads + head] * LOG2E;
                    delta[m][r] = a.delta[(u64)t * a.heads + head];
                }
            }
        const u32 last_row = min(warp_row + TILES * 16, live) - 1; // the warp's; it may lie before the warp's first
        u32 start = a.bounds[a.seqs[first]], low = start + lowest_key(first - start, a.window);
        u32 warp_low = ~0u, warp_high = 0; // first keys of the warp's first and last rows
        if (warp_row < live) {
            start = a.bounds[a.seqs[warp_row]], warp_low = start + lowest_key(warp_row - start, a.window);
            start = a.bounds[a.seqs[last_row]], warp_high = start + lowest_key(last_row - start, a.window);
        }

        Base::template load<M>(queries, a.q, a.dout, row_stride, head * D, first, end);
        u32 key = low / N * N;
        Base::template load<N>(keys, a.k, a.v, key_stride, group * D, key, end);
        copy_commit();

        float sums[TILES][D / 8][4];
#pragma unroll
        for (int m = 0; m < TILES; m++)
#pragma unroll
            for (int n = 0; n < D / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) sums[m][n][i] = 0.0f;
        const Scores scores = {a.scale, a.softcap};
        const u32 query_at = queries + warp * TILES * 16 * ROW_BYTES + Base::left_lane(lane);
        const u32 right = Base::right_lane(lane), left = Base::left_lane(lane);

        for (u32 stage = 0; key < end; key += N, stage ^= 1) {
            copy_wait<0>();
            __syncthreads(); // this tile is there for all, and all are done with the one before
            if (key + N < end)
                Base::template load<N>(keys + (stage ^ 1) * KEY_BYTES, a.k, a.v, key_stride, group * D, key + N, end);
            copy_commit();
            if (warp_row >= live || key > last_row || key + N <= warp_low) continue;
            const u32 tile = keys + stage * KEY_BYTES;
            float p[TILES][N / 8][4], dp[TILES][N / 8][4];
            Base::template products<TILES, N>(p, query_at, tile + right);
            Base::template products<TILES, N>(dp, query_at + M * ROW_BYTES, tile + N * ROW_BYTES + right);
            bool whole = key + N - 1 <= warp_row && key >= warp_high && warp_row + TILES * 16 <= live;
#pragma unroll
            for (int m = 0; m < TILES; m++)
#pragma unroll
                for (int n = 0; n < N / 8; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        float slope, x = scores.probability(p[m][n][i], lse2[m][i / 2], slope);
                        if (!whole) {
                            u32 j = key + n * 8 + lane % 4 * 2 + i % 2, t = warp_row + m * 16 + i / 2 * 8 + lane / 4;
                            if (j > t || j < lows[m][i / 2]) x = 0.0f;
                        }
                        p[m][n][i] = x * (dp[m][n][i] - delta[m][i / 2]) * slope;
                    }
            Base::template accumulate<TILES, N, D>(sums, p, tile + left);
        }

        // Through the warp's own part of the queries' memory, so that global stores are of 16 bytes.
#pragma unroll
        for (int m = 0; m < TILES; m++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                u32 row = warp * TILES * 16 + m * 16 + r * 8 + lane / 4;
                u32* to = (u32*)((T*)shared_memory + row * Base::STRIDE) + lane % 4;
#pragma unroll
                for (int n = 0; n < D / 8; n++)
                    to[n * 4] = pack2<T>(sums[m][n][2 * r] * a.scale, sums[m][n][2 * r + 1] * a.scale);
            }
        __syncwarp();
        for (u32 at = lane; at < TILES * 16 * Base::UNITS; at += 32) {
            u32 row = warp * TILES * 16 + at / Base::UNITS, unit = at % Base::UNITS;
            if (first + row < live)
                *(uint4*)(a.dq + (first + row) * row_stride + head * D + unit * 8) =
                    *(const uint4*)((const T*)shared_memory + row * Base::STRIDE + unit * 8);
        }
    }
};

// A block owns N keys of a group, a warp 16 of them, and walks over the rows that see them, head by head. Products are
// transposed (keys × rows), so that P and dS are left operands of the second products as they stand in registers.
template <typename T, int D> struct Dkv : Tensor<T, D> {
    using Base = Tensor<T, D>;
    static const int N = Base::WARPS * 16;
#ifdef SMALL_SHARED
    static const int M = 32;
#else
    static const int M = D <= 128 ? 64 : 32;
#endif
    static const int COLUMNS = D <= 128 ? D : D / 2; // of dk and dv in a block: registers hold no more
    static const int SUM_STRIDE = COLUMNS + 4;
    static const u32 ROW_BYTES = Base::STRIDE * 2, STAGE_BYTES = 2 * M * ROW_BYTES;
    static_assert(2 * N * SUM_STRIDE * 4 <= 2 * N * ROW_BYTES + 2 * STAGE_BYTES,
        "at the end the sums take the tiles' place");

    static DEVICE u32 last_row(const Problem<T>& a, u32 row) {
        u32 end = a.bounds[a.seqs[row] + 1];
        return end - row > a.window ? row + a.window : end;
    }

    static DEVICE void load_rows(const Problem<T>& a, u32 to, u32 stats, u32 head, u32 row, u32 end) {
        Base::template load<M>(to, a.q, a.dout, (u64)a.heads * D, head * D, row, end);
        if (threadIdx.x < 2 * M) {
            bool valid = row + threadIdx.x % M < end;
            u64 from = valid ? (u64)(row + threadIdx.x % M) * a.heads + head : 0;
            copy4_async(stats + threadIdx.x * 4, (threadIdx.x < M ? a.lse : a.delta) + from, valid);
        }
    }

    static DEVICE void run(const Problem<T>& a) {
        extern __shared__ uint4 shared_memory[];
        const u32 parts = gridDim.x, part = blockIdx.x, per_group = a.heads / a.kv_heads;
        const u32 group = blockIdx.y / (D / COLUMNS), column = blockIdx.y % (D / COLUMNS) * COLUMNS;
        const u32 first = blockIdx.z * N, live = live_rows(a.counts, 0, a.rows);
        if (first >= live) return; // so does the whole cluster
        const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t2 = lane % 4 * 2;
        const u32 keys = shared_address(shared_memory), rows = keys + 2 * N * ROW_BYTES, stats = rows + 2 * STAGE_BYTES;
        const float* stats_of = (const float*)((const char*)shared_memory + 2 * N * ROW_BYTES + 2 * STAGE_BYTES);
        const u64 key_stride = (u64)a.kv_heads * D;
        const u32 key_end = min(first + N, live), end = last_row(a, key_end - 1);
        const u32 tiles = (end - first + M - 1) / M, heads = (per_group - part + parts - 1) / parts;

        // The warp's first key and this thread's two, and where the rows that see them end (0: a dead key).
        const u32 warp_key = first + warp * 16;
        u32 lasts[2];
#pragma unroll
        for (int r = 0; r < 2; r++) lasts[r] = warp_key + 8 * r + g < live ? last_row(a, warp_key + 8 * r + g) : 0;
        const u32 warp_first_end = warp_key + 15 < live ? last_row(a, warp_key) : 0;
        const u32 warp_end = warp_key < live ? last_row(a, min(warp_key + 15, live - 1)) : 0;

        float dk[1][COLUMNS / 8][4], dv[1][COLUMNS / 8][4];
#pragma unroll
        for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) dk[0][n][i] = dv[0][n][i] = 0.0f;
        const Scores scores = {a.scale, a.softcap};
        const u32 right = Base::right_lane(lane), left = Base::left_lane(lane);
        const u32 key_at = keys + warp * 16 * ROW_BYTES + left;

        Base::template load<N>(keys, a.k, a.v, key_stride, group * D, first, key_end);
        load_rows(a, rows, stats, group * per_group + part, first, end);
        copy_commit();
        u32 stage = 0;
        for (u32 step = 0; step < heads * tiles; step++, stage ^= 1) {
            copy_wait<0>();
            __syncthreads(); // this tile is there for all, and all are done with the one before
            const u32 next = step + 1;
            if (next < heads * tiles)
                load_rows(a, rows + (stage ^ 1) * STAGE_BYTES, stats + (stage ^ 1) * 8 * M,
                          group * per_group + part + next / tiles * parts, first + next % tiles * M, end);
            copy_commit();
            const u32 row = first + step % tiles * M, tile = rows + stage * STAGE_BYTES;
            if (row + M <= warp_key || row >= warp_end) continue;
            float p[1][M / 8][4], dp[1][M / 8][4];
            Base::template products<1, M>(p, key_at, tile + right);
            const float* lse = stats_of + stage * 2 * M;
            const bool whole = row >= warp_key + 15 && row + M <= warp_first_end;
            float slopes[M / 8][4];
#pragma unroll
            for (int n = 0; n < M / 8; n++) {
                float2 of = *(const float2*)(lse + n * 8 + t2);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float x = scores.probability(p[0][n][i], (i % 2 ? of.y : of.x) * LOG2E, slopes[n][i]);
                    if (!whole) {
                        u32 t = row + n * 8 + t2 + i % 2;
                        if (t < warp_key + i / 2 * 8 + g || t >= lasts[i / 2]) x = 0.0f;
                    }
                    p[0][n][i] = x;
                }
            }
            Base::template accumulate<1, M, COLUMNS>(dv, p, tile + M * ROW_BYTES + left + column * 2);
            if (a.softcap > 0.0f) {
#pragma unroll
                for (int n = 0; n < M / 8; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) p[0][n][i] *= slopes[n][i];
            }
            Base::template products<1, M>(dp, key_at + N * ROW_BYTES, tile + M * ROW_BYTES + right);
#pragma unroll
            for (int n = 0; n < M / 8; n++) {
                float2 delta = *(const float2*)(lse + M + n * 8 + t2);
#pragma unroll
                for (int i = 0; i < 4; i++) p[0][n][i] *= dp[0][n][i] - (i % 2 ? delta.y : delta.x);
            }
            Base::template accumulate<1, M, COLUMNS>(dk, p, tile + left + column * 2);
        }

        // The sums of all parts, in order, through shared memory: dk, then dv, N rows each.
        copy_wait<0>();
        __syncthreads();
        float* sums = (float*)shared_memory;
#pragma unroll
        for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                u32 at = (warp * 16 + 8 * r + g) * SUM_STRIDE + n * 8 + t2;
                *(float2*)(sums + at) = make_float2(dk[0][n][2 * r] * a.scale, dk[0][n][2 * r + 1] * a.scale);
                *(float2*)(sums + N * SUM_STRIDE + at) = make_float2(dv[0][n][2 * r], dv[0][n][2 * r + 1]);
            }
        if (parts == 1) __syncthreads();
#if __CUDA_ARCH__ >= 900
        if (parts > 1) cluster_sync();
#endif
        for (u32 at = part * Base::THREADS + threadIdx.x; at < 2 * N * (COLUMNS / 4); at += parts * Base::THREADS) {
            u32 row = at / (COLUMNS / 4), c = at % (COLUMNS / 4) * 4, key = first + row % N;
            float4 x;
            if (parts == 1) {
                x = *(const float4*)(sums + row * SUM_STRIDE + c);
            } else {
                x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#if __CUDA_ARCH__ >= 900
                for (u32 rank = 0; rank < parts; rank++) {
                    float4 y = cluster_load(keys + (row * SUM_STRIDE + c) * 4, rank);
                    x.x += y.x, x.y += y.y, x.z += y.z, x.w += y.w;
                }
#endif
            }
            if (key < live)
                *(uint2*)((row < N ? a.dk : a.dv) + key * key_stride + group * D + column + c) =
                    make_uint2(pack2<T>(x.x, x.y), pack2<T>(x.z, x.w));
        }
#if __CUDA_ARCH__ >= 900
        if (parts > 1) cluster_sync(); // the others read this block's memory
#endif
    }
};

#define DELTA(name, T)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(128) name(float* delta, const T* out, const T* dout,                  \
        const u32* counts,                                                                                             \
                                                           u32 rows, u32 heads, u32 head_dim) {                        \
        delta_of_rows(delta, out, dout, counts, rows, heads, head_dim);                                                \
    }
INSTANTIATE(DELTA, attention_delta)

#define PARAMETERS(T)                                                                                                  \
    T *dq, T *dk, T *dv, const T *q, const T *k, const T *v, const u32 *seqs, const u32 *bounds, const float *lse,     \
        const T *dout, const float *delta, const u32 *counts, u32 rows, u32 heads, u32 kv_heads, u32 head_dim,         \
            float scale,                                                                                               \
        u32 window, float softcap
#define PROBLEM(T)                                                                                                     \
    Problem<T> { dq, dk, dv, q, k, v, seqs, bounds, lse, dout, delta, counts, rows, heads, kv_heads, head_dim, scale,  \
        window,                                                                                                        \
                 softcap }
#define PLAIN_DQ(name, T)                                                                                              \
    extern "C" __global__ void __launch_bounds__(128) name(PARAMETERS(T)) { plain_dq(PROBLEM(T)); }
#define PLAIN_DKV(name, T)                                                                                             \
    extern "C" __global__ void __launch_bounds__(128) name(PARAMETERS(T)) { plain_dkv(PROBLEM(T)); }
INSTANTIATE(PLAIN_DQ, attention_backward_dq_plain)
INSTANTIATE(PLAIN_DKV, attention_backward_dkv_plain)

// Two blocks on a multiprocessor: while one waits or computes exponentials the other feeds the tensor cores.
#define TENSOR(name, KIND, T, D)                                                                                       \
    extern "C" __global__ void __launch_bounds__(128, 2) name(PARAMETERS(T)) { KIND<T, D>::run(PROBLEM(T)); }
#define WIDTH(D)                                                                                                       \
    TENSOR(attention_backward_dq_d##D##_bf16, Dq, bf16, D)                                                             \
    TENSOR(attention_backward_dq_d##D##_f16, Dq, f16, D)                                                               \
    TENSOR(attention_backward_dkv_d##D##_bf16, Dkv, bf16, D)                                                           \
    TENSOR(attention_backward_dkv_d##D##_f16, Dkv, f16, D)
#if !defined(HEAD_DIM) || HEAD_DIM == 64
WIDTH(64)
#endif
#if !defined(HEAD_DIM) || HEAD_DIM == 80
WIDTH(80)
#endif
#if !defined(HEAD_DIM) || HEAD_DIM == 96
WIDTH(96)
#endif
#if !defined(HEAD_DIM) || HEAD_DIM == 128
WIDTH(128)
#endif
#if !defined(HEAD_DIM) || HEAD_DIM == 256
WIDTH(256)
#endif
