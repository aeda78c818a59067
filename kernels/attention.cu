// attention: causal softmax attention of variable length, plain and with tensor cores (see attention_decode.cu for
// single rows).
//
// Row t of this step stands at position p of sequence seqs[t] and sees keys j with p − window < j ≤ p:
//     s_j = scale · q·k_j,  with softcap > 0: s_j = softcap · tanh(s_j / softcap)
//     out = Σ softmax(s)_j v_j,  lse = ln Σ exp(s_j)
// q, out [rows, H·D]; lse f32 [rows, H] or null; query head h reads group h / (H / G) of k and v, rows of G·D.
//     paged:  p = positions[t]; key j of sequence s is row map[s·pages + j/page]·page + j%page of the caches;
//             page = 2^n ≥ 8
//     packed: p = t − map[seqs[t]]; key j of sequence s is row map[s] + j (map holds the bounds; positions is not read)
// Rows of one sequence are consecutive, their positions too. window: 0xffffffff for none; softcap: 0 for none;
// scale > 0. kind ≠ 0 (paged only): k and v are caches of 8-bit codes (codes.cuh). skip_single ≠ 0 leaves out rows that are the only ones of their sequence: attention_decode computes them.
//
// attention_{paged,packed}_plain_{f32,bf16,f16}: any D, f32 arithmetic, skip_single not supported.
//     grid (rows, H), block 128, dynamic shared memory 20·D + 32 bytes.
// attention_{paged,packed}_d{64,80,96,128,256}_{bf16,f16}: mma.sync with f32 sums; q, k, v, out aligned to 16 bytes.
//     M = 128 query rows (D = 256: 64), N = 64 keys (D = 256: 32), with -DSMALL_SHARED half as many (for chips that
//     have 100 KiB).
//     grid (H, ceil(rows / M)), block 128, dynamic shared memory 2·(M + 4·N)·(D + 8) bytes.
//     -DHEAD_DIM=n compiles the kernels of that width only.
//
// How: a block owns M consecutive rows of one head, a warp 32 (16) of them. Rows of several sequences in one tile are
// served run by run, each against its own keys, the other rows masked. Keys and values come in tiles of N, the next one
// on its way while this one is used. Tiles with most keys start first.
//
// H100, 2026-11-23, bf16, H/G = 32/8, packed (paged with pages of 16): D = 128: 2 × 1,024 rows 213 (211) TFLOP/s, 2 ×
// 4,096 rows 319 (314); D = 64: 175 (169), 265 (249). sm90_attention.cu is faster there.
#include "codes.cuh"
#include "mma.cuh"

#define LOG2E 1.44269504f

DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// tanh with an absolute error near 1e-7, unlike tanh.approx, whose 5e-4 a cap would multiply.
DEVICE float tanh_fast(float x) { return 1.0f - __fdividef(2.0f, exp2_fast(2.0f * LOG2E * x) + 1.0f); }

template <typename T> struct Problem {
    T* out;
    float* lse;
    const T *q, *k, *v;
    const u32 *seqs, *positions, *map, *counts;
    u32 rows, heads, kv_heads, head_dim, pages, page;
    float scale;
    u32 window;
    float softcap;
    u32 skip_single, kind;
};

// First position that a row at `position` sees.
DEVICE u32 lowest_key(u32 position, u32 window) { return position >= window ? position + 1 - window : 0; }

// Row of k and v that holds a sequence's key.
template <bool PAGED, typename T> DEVICE u32 key_row(const Problem<T>& a, u32 shift, u32 seq, u32 key) {
    if (PAGED) return (a.map[seq * a.pages + (key >> shift)] << shift) + (key & (a.page - 1));
    return a.map[seq] + key;
}

// One block for each row and head. Each warp takes every fourth key; lane l owns columns l, l + 32, … of its sums.
template <typename T, bool PAGED> DEVICE void attention_plain(const Problem<T>& a) {
    extern __shared__ uint4 shared_memory[];
    const int WARPS = 4;
    u32 t = blockIdx.x, head = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32, width = a.head_dim;
    if (t >= live_rows(a.counts, 0, a.rows)) return;
    float *shared = (float*)shared_memory, *query = shared, *sums = shared + width * (1 + warp),
        *stats = shared + width * (1 + WARPS);
    u64 at = ((u64)t * a.heads + head) * width;
    for (u32 d = threadIdx.x; d < width; d += blockDim.x) query[d] = to_float(a.q[at + d]);
    for (u32 d = lane; d < width; d += 32) sums[d] = 0.0f;
    __syncthreads();
    u32 seq = a.seqs[t], position = PAGED ? a.positions[t] : t - a.map[seq], shift = 31 - __clz(a.page);
    float largest = NEG_INF, total = 0.0f;
    for (u32 key = lowest_key(position, a.window) + warp; key <= position; key += WARPS) {
        u64 row = key_row<PAGED>(a, shift, seq, key);
        u32 group = head / (a.heads / a.kv_heads);
        u64 from = (row * a.kv_heads + group) * width;
        const u8 *k8 = 0, *v8 = 0;
        float k_scale = 1.0f, v_scale = 1.0f;
        if (PAGED && a.kind) {
            row *= code_stride(a.kv_heads, width);
            k_scale = *scale_at((const u8*)a.k + row, a.kv_heads, width, group);
            v_scale = *scale_at((const u8*)a.v + row, a.kv_heads, width, group);
            k8 = (const u8*)a.k + row + group * width, v8 = (const u8*)a.v + row + group * width;
        }
        float s = 0.0f;
        for (u32 d = lane; d < width; d += 32)
            s += query[d] * (k8 ? code_value(k8[d], a.kind) * k_scale : to_float(a.k[from + d]));
        s = warp_sum(s) * a.scale;
        if (a.softcap > 0.0f) s = a.softcap * tanhf(s / a.softcap);
        float before = largest;
        largest = fmaxf(largest, s);
        float shrink = expf(before - largest), p = expf(s - largest);
        total = total * shrink + p;
        for (u32 d = lane; d < width; d += 32)
            sums[d] = sums[d] * shrink + p * (v8 ? code_value(v8[d], a.kind) * v_scale : to_float(a.v[from + d]));
    }
    if (lane == 0) stats[warp] = largest, stats[WARPS + warp] = total;
    __syncthreads();
    float top = NEG_INF, all = 0.0f;
    for (int w = 0; w < WARPS; w++) top = fmaxf(top, stats[w]);
    for (int w = 0; w < WARPS; w++) all += stats[WARPS + w] * expf(stats[w] - top);
    for (u32 d = threadIdx.x; d < width; d += blockDim.x) {
        float x = 0.0f;
        for (int w = 0; w < WARPS; w++) x += shared[width * (1 + w) + d] * expf(stats[w] - top);
        a.out[at + d] = from_float<T>(x / all);
    }
    if (a.lse && threadIdx.x == 0) a.lse[(u64)t * a.heads + head] = top + logf(all);
}

// Where a block stands: a run of its rows that belong to one sequence, and a tile of that sequence's keys.
struct Walk {
    u32 row, row_end;   // within the block's rows; row = row_end: nothing is left
    u32 seq, position;  // of the run; position of its first row
    u32 key, key_end;   // this tile's first key; end of the run's keys
};

template <typename T, int D, bool PAGED> struct Tensor {
    static const int WARPS = 4, THREADS = 32 * WARPS;
    // 16-row tiles of a warp: two share each fragment of k and v, if registers suffice
    static const int TILES = D <= 128 ? 2 : 1;
    static const int M = WARPS * TILES * 16;
#ifdef SMALL_SHARED
    static const int N = D <= 128 ? 32 : 16;
#else
    static const int N = D <= 128 ? 64 : 32;
#endif
    static const int STRIDE = D + 8;                   // an odd number of 16-byte units: ldmatrix meets no bank twice
    static const int TILE_BYTES = N * STRIDE * 2;      // of keys or values
    static const int UNITS = D / 8;                    // 16-byte units of a row
    static const u32 Q_BYTES = M * STRIDE * 2;

    // Starts loading the keys and values of `next`; keys that no row of the run sees become 0 (they may hold NaN).
    static DEVICE void load(const Problem<T>& a, const Walk& next, u32 group, u32 keys) {
        u32 shift = 31 - __clz(a.page), low = lowest_key(next.position, a.window);
        if (PAGED && a.kind) {
            // Codes are turned into T on the way, a row at a time.
#pragma unroll 2
            for (int i = 0; i < N * 8 / THREADS; i++) {
                u32 r = threadIdx.x / 8 + i * (THREADS / 8), key = next.key + r;
                bool valid = key < next.key_end && key >= low;
                u64 row = valid ? key_row<PAGED>(a, shift, next.seq, key) * code_stride(a.kv_heads, D) : 0;
#pragma unroll
                for (int j = 0; j < UNITS; j += 8) {
                    u32 unit = j + threadIdx.x % 8, to = keys + (r * STRIDE + unit * 8) * 2;
                    if (j + 8 <= UNITS || unit < UNITS) {
                        load8_codes<T>(to, (const u8*)a.k + row, a.kv_heads, D, group, unit, valid, a.kind);
                        load8_codes<T>(to + TILE_BYTES, (const u8*)a.v + row, a.kv_heads, D, group, unit, valid, a.kind);
                    }
                }
            }
            return;
        }
        // Eight threads a row, so that a thread looks up few rows.
#pragma unroll
        for (int i = 0; i < N * 8 / THREADS; i++) {
            u32 r = threadIdx.x / 8 + i * (THREADS / 8), key = next.key + r;
            bool valid = key < next.key_end && key >= low;
            u64 from = valid ? ((u64)key_row<PAGED>(a, shift, next.seq, key) * a.kv_heads + group) * D : 0;
#pragma unroll
            for (int j = 0; j < UNITS; j += 8) {
                u32 unit = j + threadIdx.x % 8, to = keys + (r * STRIDE + unit * 8) * 2;
                if (j + 8 <= UNITS || unit < UNITS) {
                    copy16_async(to, a.k + from + unit * 8, valid);
                    copy16_async(to + TILE_BYTES, a.v + from + unit * 8, valid);
                }
            }
        }
    }

    // Steps to the run's next tile, or to the next run. Bit r of `starts`: row r begins a run; of `skipped`: is left
    // out.
    static DEVICE void advance(const Problem<T>& a, Walk& walk, u32 first, u32 rows, const u32* starts,
        const u32* skipped) {
        walk.key += N;
        if (walk.key < walk.key_end) return;
        // Rows that are left out may be many: past 32 of them at a time.
        walk.row = walk.row_end;
        while (walk.row < rows) {
            u32 bits = ~skipped[walk.row / 32] >> (walk.row % 32);
            if (bits) {
                walk.row += __ffs(bits) - 1;
                break;
            }
            walk.row = (walk.row / 32 + 1) * 32;
        }
        if (walk.row >= rows) return;
        u32 next = walk.row + 1;
        while (next < rows) {
            u32 bits = starts[next / 32] >> (next % 32);
            if (bits) {
                next += __ffs(bits) - 1;
                break;
            }
            next = (next / 32 + 1) * 32;
        }
        walk.row_end = min(next, rows);
        u32 t = first + walk.row;
        walk.seq = a.seqs[t];
        walk.position = PAGED ? a.positions[t] : t - a.map[walk.seq];
        walk.key_end = walk.position + (walk.row_end - walk.row);
        walk.key = lowest_key(walk.position, a.window) / N * N;
    }

    static DEVICE void run(const Problem<T>& a) {
        extern __shared__ uint4 shared_memory[];
        __shared__ u32 starts[M / 32], skipped[M / 32];
        __shared__ Walk tiles[2]; // what each stage holds; in registers only the newest is kept, they are scarce
        const u32 head = blockIdx.x, group = head / (a.heads / a.kv_heads);
        const u32 first = (gridDim.y - 1 - blockIdx.y) * M, live = live_rows(a.counts, 0, a.rows);
        if (first >= live) return;
        const u32 rows = min(live - first, (u32)M), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const u32 queries = shared_address(shared_memory), keys = queries + Q_BYTES;
        const u64 row_stride = (u64)a.heads * D;

        if (threadIdx.x < M) {
            u32 r = threadIdx.x, t = first + r;
            u32 seq = r < rows ? a.seqs[t] : 0;
            bool begins = r < rows && (t == 0 || a.seqs[t - 1] != seq);
            bool single = begins && a.skip_single && (t + 1 == live || a.seqs[t + 1] != seq);
            u32 start_bits = __ballot_sync(FULL_WARP, begins), skip_bits = __ballot_sync(FULL_WARP, single);
            if (lane == 0) starts[warp] = start_bits, skipped[warp] = skip_bits;
        }
        __syncthreads();
        Walk next = {0, 0, 0, 0, 0, 0};
        advance(a, next, first, rows, starts, skipped);
        if (next.row >= rows) return;
#pragma unroll
        for (int i = 0; i < M * UNITS / THREADS; i++) {
            u32 at = threadIdx.x + i * THREADS, r = at / UNITS, unit = at % UNITS;
            const T* from = a.q + (u64)(r < rows ? first + r : first) * row_stride + head * D + unit * 8;
            copy16_async(queries + (r * STRIDE + unit * 8) * 2, from, r < rows);
        }
        load(a, next, group, keys);
        copy_commit();
        if (threadIdx.x == 0) tiles[0] = next;

        float sums[TILES][D / 8][4], largest[TILES][2], total[TILES][2];
#pragma unroll
        for (int m = 0; m < TILES; m++) {
            largest[m][0] = largest[m][1] = NEG_INF;
            total[m][0] = total[m][1] = 0.0f;
#pragma unroll
            for (int n = 0; n < D / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) sums[m][n][i] = 0.0f;
        }
        const u32 warp_row = warp * TILES * 16;
        // Fragment addresses of this lane (see ldmatrix in mma.cuh).
        const u32 query_at = queries + ((warp_row + lane % 16) * STRIDE + lane / 16 * 8) * 2;
        const u32 key_lane = ((lane % 8 + lane / 16 * 8) * STRIDE + lane / 8 % 2 * 8) * 2;
        const u32 value_lane = (lane % 16 * STRIDE + lane / 16 * 8) * 2 + TILE_BYTES;
        const float scale2 = a.softcap > 0.0f ? LOG2E : a.scale * LOG2E;

        u32 stage = 0;
        for (bool more = true; more; stage ^= 1) {
            copy_wait<0>();
            __syncthreads(); // this tile is there for all, and all are done with the one before
            advance(a, next, first, rows, starts, skipped);
            more = next.row < rows;
            if (more) load(a, next, group, keys + (stage ^ 1) * 2 * TILE_BYTES);
            if (more && threadIdx.x == 0) tiles[stage ^ 1] = next;
            copy_commit();
            const Walk& walk = tiles[stage];

            // The warp's rows that belong to the run, and their positions.
            const u32 begin = max(warp_row, walk.row), end = min(warp_row + TILES * 16, walk.row_end);
            const u32 low_position = walk.position + begin - walk.row,
                high_position = walk.position + end - 1 - walk.row;
            const u32 tile = keys + stage * 2 * TILE_BYTES;
            if (begin < end && walk.key <= high_position && walk.key + N > lowest_key(low_position, a.window)) {
                float s[TILES][N / 8][4];
#pragma unroll
                for (int m = 0; m < TILES; m++)
#pragma unroll
                    for (int n = 0; n < N / 8; n++)
#pragma unroll
                        for (int i = 0; i < 4; i++) s[m][n][i] = 0.0f;
#pragma unroll
                for (int d = 0; d < D / 16; d++) {
                    u32 qs[TILES][4];
#pragma unroll
                    for (int m = 0; m < TILES; m++) ldmatrix4(qs[m], query_at + (m * 16 * STRIDE + d * 16) * 2);
#pragma unroll
                    for (int n = 0; n < N / 16; n++) {
                        u32 ks[4];
                        ldmatrix4(ks, tile + key_lane + (n * 16 * STRIDE + d * 16) * 2);
#pragma unroll
                        for (int m = 0; m < TILES; m++) {
                            mma16816<T>(s[m][2 * n], qs[m], ks[0], ks[1]);
                            mma16816<T>(s[m][2 * n + 1], qs[m], ks[2], ks[3]);
                        }
                    }
                }
                if (a.softcap > 0.0f) {
                    const float inner = a.scale / a.softcap;
#pragma unroll
                    for (int m = 0; m < TILES; m++)
#pragma unroll
                        for (int n = 0; n < N / 8; n++)
#pragma unroll
                            for (int i = 0; i < 4; i++) s[m][n][i] = a.softcap * tanh_fast(s[m][n][i] * inner);
                }
                bool whole = end - begin == TILES * 16 && walk.key + N - 1 <= low_position &&
                             walk.key >= lowest_key(high_position, a.window);
                if (!whole) {
#pragma unroll
                    for (int m = 0; m < TILES; m++)
#pragma unroll
                        for (int r = 0; r < 2; r++) {
                            u32 row = warp_row + m * 16 + r * 8 + lane / 4;
                            u32 position = walk.position + row - walk.row;
                            u32 low = lowest_key(position, a.window);
                            bool mine = row >= walk.row && row < walk.row_end;
#pragma unroll
                            for (int n = 0; n < N / 8; n++)
#pragma unroll
                                for (int i = 0; i < 2; i++) {
                                    u32 key = walk.key + n * 8 + lane % 4 * 2 + i;
                                    if (!(mine && key <= position && key >= low)) s[m][n][2 * r + i] = NEG_INF;
                                }
                        }
                }
#pragma unroll
                for (int m = 0; m < TILES; m++)
#pragma unroll
                    for (int r = 0; r < 2; r++) {
                        float top = largest[m][r];
#pragma unroll
                        for (int n = 0; n < N / 8; n++) top = fmaxf(top, fmaxf(s[m][n][2 * r], s[m][n][2 * r + 1]));
                        top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 1));
                        top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 2));
                        float base = top == NEG_INF ? 0.0f : top * scale2; // a row that has seen no key yet stays at 0
                        float shrink = exp2_fast(largest[m][r] * scale2 - base);
                        largest[m][r] = top;
                        float sum = 0.0f;
#pragma unroll
                        for (int n = 0; n < N / 8; n++)
#pragma unroll
                            for (int i = 2 * r; i < 2 * r + 2; i++) {
                                s[m][n][i] = exp2_fast(s[m][n][i] * scale2 - base);
                                sum += s[m][n][i];
                            }
                        total[m][r] = total[m][r] * shrink + sum;
#pragma unroll
                        for (int n = 0; n < D / 8; n++) sums[m][n][2 * r] *= shrink, sums[m][n][2 * r + 1] *= shrink;
                    }
#pragma unroll
                for (int n = 0; n < N / 16; n++) {
                    u32 ps[TILES][4];
#pragma unroll
                    for (int m = 0; m < TILES; m++)
#pragma unroll
                        for (int i = 0; i < 4; i++)
                            ps[m][i] = pack2<T>(s[m][2 * n + i / 2][i % 2 * 2], s[m][2 * n + i / 2][i % 2 * 2 + 1]);
#pragma unroll
                    for (int d = 0; d < D / 16; d++) {
                        u32 vs[4];
                        ldmatrix4_transposed(vs, tile + value_lane + (n * 16 * STRIDE + d * 16) * 2);
#pragma unroll
                        for (int m = 0; m < TILES; m++) {
                            mma16816<T>(sums[m][2 * d], ps[m], vs[0], vs[1]);
                            mma16816<T>(sums[m][2 * d + 1], ps[m], vs[2], vs[3]);
                        }
                    }
                }
            }
        }

        // Through the warp's own part of the queries' memory, so that global stores are of 16 bytes.
#pragma unroll
        for (int m = 0; m < TILES; m++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float sum = total[m][r];
                sum += __shfl_xor_sync(FULL_WARP, sum, 1);
                sum += __shfl_xor_sync(FULL_WARP, sum, 2);
                u32 row = warp_row + m * 16 + r * 8 + lane / 4;
                float share = 1.0f / sum;
                u32* to = (u32*)((T*)shared_memory + row * STRIDE) + lane % 4;
#pragma unroll
                for (int n = 0; n < D / 8; n++)
                    to[n * 4] = pack2<T>(sums[m][n][2 * r] * share, sums[m][n][2 * r + 1] * share);
                bool write = row < rows && !(skipped[row / 32] >> (row % 32) & 1);
                if (a.lse && write && lane % 4 == 0)
                    a.lse[(u64)(first + row) * a.heads + head] = (largest[m][r] * scale2 + __log2f(sum)) / LOG2E;
            }
        __syncwarp();
        for (u32 at = lane; at < TILES * 16 * UNITS; at += 32) {
            u32 row = warp_row + at / UNITS, unit = at % UNITS;
            if (row < rows && !(skipped[row / 32] >> (row % 32) & 1))
                *(uint4*)(a.out + (u64)(first + row) * row_stride + head * D + unit * 8) =
                    *(const uint4*)((const T*)shared_memory + row * STRIDE + unit * 8);
        }
    }
};

#define PARAMETERS(T)                                                                                                  \
    T *out, float *lse, const T *q, const T *k, const T *v, const u32 *seqs, const u32 *positions, const u32 *map,     \
        const u32 *counts, u32 rows, u32 heads, u32 kv_heads, u32 head_dim, u32 pages, u32 page, float scale,          \
            u32 window,                                                                                                \
        float softcap, u32 skip_single, u32 kind
#define PROBLEM(T)                                                                                                     \
    Problem<T> { out, lse, q, k, v, seqs, positions, map, counts, rows, heads, kv_heads, head_dim, pages, page, scale, \
        window,                                                                                                        \
                 softcap, skip_single, kind }

#define PLAIN(name, T, PAGED)                                                                                          \
    extern "C" __global__ void __launch_bounds__(128) name(PARAMETERS(T)) { attention_plain<T, PAGED>(PROBLEM(T)); }
#define PLAIN_PAGED(name, T) PLAIN(name, T, true)
#define PLAIN_PACKED(name, T) PLAIN(name, T, false)
INSTANTIATE(PLAIN_PAGED, attention_paged_plain)
INSTANTIATE(PLAIN_PACKED, attention_packed_plain)

// Two blocks on a multiprocessor: while one waits for its keys or computes exponentials the other feeds the tensor
// cores.
#define TENSOR(name, T, D, PAGED)                                                                                      \
    extern "C" __global__ void __launch_bounds__(128, 2) name(PARAMETERS(T)) { Tensor<T, D, PAGED>::run(PROBLEM(T)); }
#define WIDTH(D)                                                                                                       \
    TENSOR(attention_paged_d##D##_bf16, bf16, D, true)                                                                 \
    TENSOR(attention_paged_d##D##_f16, f16, D, true)                                                                   \
    TENSOR(attention_packed_d##D##_bf16, bf16, D, false)                                                               \
    TENSOR(attention_packed_d##D##_f16, f16, D, false)
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
