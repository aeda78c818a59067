// attention on Hopper: the tensor-core kernels of attention.cu (formulas, layouts and arguments there) with wgmma.
//
// sm90_attention_{paged,packed}_d{64,128,256}_{bf16,f16}: M = 128 query rows, N = 128 keys (D = 256: 64).
//     S = 3 stages (D = 256: 2). q, k, v, out aligned to 16 bytes.
//     grid (H, ceil(rows / M)), block 384, dynamic shared memory 2·(M + 2·S·N)·D + 1024 bytes.
//     -DHEAD_DIM=n compiles the kernels of that width only.
//
// How: warpgroup 0 copies keys and values (cp.async, so that pages of any size and dead rows need no tensor map), S
// stages of each; warpgroups 1 and 2 own 64 rows of one head each. While the tensor cores compute S of a tile and O of
// the one before, the exponentials of neither are in their way: S = Q·Kᵀ of tile j + 1 is issued before O += P·V of
// tile j, and its softmax runs while the latter is under way. The two warpgroups drift apart by themselves and fill
// each other's gaps.
//
// H100, 2026-11-23, bf16, H/G = 32/8, packed (paged with pages of 16), beside PyTorch 2.11's attention with K and V of
// 32 heads: D = 128: 2 × 1,024 rows 271 (245) TFLOP/s, beside 345; 2 × 4,096 rows 433 (385), beside 576. D = 64: 182
// (169), beside 247; 303 (269), beside 416. D = 256, H/G = 16/8, 2 × 1,024 rows: 322 (290), beside 319.
#include "codes.cuh"
#include "sm90.cuh"

#define LOG2E 1.44269504f

DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// tanh with an absolute error near 1e-7, unlike tanh.approx, whose 5e-4 a cap would multiply.
DEVICE float tanh_fast(float x) { return 1.0f - __fdividef(2.0f, exp2_fast(2.0f * LOG2E * x) + 1.0f); }

// d += a · b over 16 of k: a in registers (as mma16816's), b 16×N MN-major in shared memory. Asynchronous, like wgmma.
#define WGMMA_A(SHAPE, TYPE, D, A, B, ...)                                                                             \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" SHAPE "k16.f32." TYPE "." TYPE                                    \
                 " {" D "}, {" A "}, " B ", 1, 1, 1, 1;"                                                               \
                 : __VA_ARGS__                                                                                         \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define WGMMA_A_SHAPES(TYPE)                                                                                           \
    if constexpr (N == 64)                                                                                             \
        WGMMA_A("64", TYPE, WGMMA_DLOW, "%32, %33, %34, %35", "%36", WGMMA_R32(0));                                    \
    else if constexpr (N == 128)                                                                                       \
        WGMMA_A("128", TYPE, WGMMA_D_8, "%64, %65, %66, %67", "%68", WGMMA_R32(0), WGMMA_R32(32));                     \
    else                                                                                                               \
        WGMMA_A("256", TYPE, WGMMA_D_16, "%128, %129, %130, %131", "%132", WGMMA_R32(0), WGMMA_R32(32), WGMMA_R32(64), \
                WGMMA_R32(96))
template <typename T, int N> DEVICE void wgmma_registers(float (&d)[N / 2], const u32 (&a)[4], u64 b) {
    if constexpr (Wgmma16<T>::is_bf16) {
        WGMMA_A_SHAPES("bf16");
    } else {
        WGMMA_A_SHAPES("f16");
    }
}

// Whether the phase of this parity has ended.
DEVICE bool barrier_passed(u32 barrier, u32 parity) {
    u32 passed;
    asm volatile("{ .reg .pred done; mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, done; }"
                 : "=r"(passed)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return passed;
}

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

// Where a block stands: a run of its rows that belong to one sequence, and a tile of that sequence's keys.
struct Walk {
    u32 row, row_end;   // within the block's rows; row ≥ their number: nothing is left
    u32 seq, position;  // of the run; position of its first row
    u32 key, key_end;   // this tile's first key; end of the run's keys
};

template <typename T, int D, bool PAGED> struct Hopper {
    static const int M = 128, N = D <= 128 ? 128 : 64, STAGES = D <= 128 ? 3 : 2;
    // of one stage of keys or values; of a warpgroup's rows
    static const u32 TILE_BYTES = N * D * 2, Q_BYTES = 64 * D * 2;
    static const int UNITS = D / 8;

    // Where 16-byte unit `unit` of row `row` lies in a tile of `rows` rows: 64 columns after 64 columns, swizzled.
    static DEVICE u32 unit_at(u32 row, u32 unit, u32 rows) {
        return (unit / 8) * rows * 128 + row * 128 + (unit % 8 ^ row % 8) * 16;
    }

    // Starts loading a tile of k or v; keys that no row of the run sees become 0 (they may hold NaN). Eight threads a
    // row.
    static DEVICE void load(const Problem<T>& a, const T* from, const Walk& walk, u32 group, u32 to) {
        u32 shift = 31 - __clz(a.page), low = lowest_key(walk.position, a.window);
#pragma unroll
        for (int i = 0; i < N / 16; i++) {
            u32 r = threadIdx.x / 8 + i * 16, key = walk.key + r;
            bool valid = key < walk.key_end && key >= low;
            const T* row = from + (valid ? ((u64)key_row<PAGED>(a, shift, walk.seq, key) * a.kv_heads + group) * D : 0);
#pragma unroll
            for (int j = 0; j < UNITS; j += 8) {
                u32 unit = j + threadIdx.x % 8;
                copy16_async(to + unit_at(r, unit, N), row + unit * 8, valid);
            }
        }
    }

    // The same out of a cache of codes, which become T on the way: they are asked for before there is room for them in `to`.
    template <typename C>
    static DEVICE void load_codes(const Problem<T>& a, const T* from, const Walk& walk, u32 group, u32 to, u32 empty,
        u32 parity) {
        const u32 shift = 31 - __clz(a.page), low = lowest_key(walk.position, a.window);
        const u64 stride = code_stride(a.kv_heads, D);
        const int ROWS = D <= 128 ? N / 16 : N / 32; // that registers can hold
        uint2 codes[ROWS][UNITS / 8];
        float scales[ROWS];
#pragma unroll 1
        for (u32 first = threadIdx.x / 8; first < N; first += ROWS * 16) {
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
                const u32 key = walk.key + first + i * 16;
                const bool valid = key < walk.key_end && key >= low;
                const u8* row = (const u8*)from + (valid ? key_row<PAGED>(a, shift, walk.seq, key) * stride : 0);
                scales[i] = valid ? *scale_at(row, a.kv_heads, D, group) : 0.0f;
#pragma unroll
                for (int j = 0; j < UNITS / 8; j++)
                    codes[i][j] = valid ? *(const uint2*)(row + group * D + (j * 8 + threadIdx.x % 8) * 8) : make_uint2(0, 0);
            }
            barrier_wait(empty, parity);
#pragma unroll
            for (int i = 0; i < ROWS; i++)
#pragma unroll
                for (int j = 0; j < UNITS / 8; j++)
                    store16_shared(to + unit_at(first + i * 16, j * 8 + threadIdx.x % 8, N),
                                   decode8<T, C>(codes[i][j], scales[i]));
        }
    }

    struct Shared {
        u64 full[2 * STAGES], empty[2 * STAGES]; // of keys, then of values
        Walk tiles[STAGES];
        u32 starts[M / 32], skipped[M / 32]; // bit r: row r begins a run; is left out
        u32 seqs[M], positions[M];
    };

    // Steps to the run's next tile, or to the next run.
    static DEVICE void advance(const Shared& s, Walk& walk, u32 rows, u32 window) {
        walk.key += N;
        if (walk.key < walk.key_end) return;
        // Rows that are left out may be many: past 32 of them at a time.
        walk.row = walk.row_end;
        while (walk.row < rows) {
            u32 bits = ~s.skipped[walk.row / 32] >> (walk.row % 32);
            if (bits) {
                walk.row += __ffs(bits) - 1;
                break;
            }
            walk.row = (walk.row / 32 + 1) * 32;
        }
        if (walk.row >= rows) return;
        u32 next = walk.row + 1;
        while (next < rows) {
            u32 bits = s.starts[next / 32] >> (next % 32);
            if (bits) {
                next += __ffs(bits) - 1;
                break;
            }
            next = (next / 32 + 1) * 32;
        }
        walk.row_end = min(next, rows);
        walk.seq = s.seqs[walk.row];
        walk.position = s.positions[walk.row];
        walk.key_end = walk.position + (walk.row_end - walk.row);
        walk.key = lowest_key(walk.position, window) / N * N;
    }

    // Loads keys and values in turn. What was loaded is handed over when the next load is under way, or earlier if that
    // one has to wait for room. Ends with keys of a walk that has no rows left.
    static DEVICE void produce(const Problem<T>& a, Shared& s, u32 first, u32 rows, u32 tiles) {
        const u32 group = blockIdx.x / (a.heads / a.kv_heads);
        const u32 full = shared_address(s.full), empty = shared_address(s.empty);
        Walk walk = {0, 0, 0, 0, 0, 0};
        u32 before = 0; // the barrier of what is not handed over yet
        for (u32 tile = 0;; tile++) {
            const u32 stage = tile % STAGES, parity = (tile / STAGES + 1) % 2;
            advance(s, walk, rows, a.window);
            const bool more = walk.row < rows;
            if (PAGED && a.kind && more) {
                const u32 values = STAGES + stage;
                for (u32 i = stage; i <= values; i += STAGES) {
                    const T* from = i == stage ? a.k : a.v;
                    if (a.kind == I8_CACHE)
                        load_codes<i8>(a, from, walk, group, tiles + i * TILE_BYTES, empty + i * 8, parity);
                    else
                        load_codes<e4m3>(a, from, walk, group, tiles + i * TILE_BYTES, empty + i * 8, parity);
                    if (i == stage && threadIdx.x == 0) s.tiles[stage] = walk;
                    hand_over<0>(full + i * 8);
                }
                continue;
            }
            room(empty + stage * 8, parity, before);
            if (threadIdx.x == 0) s.tiles[stage] = walk;
            if (more) load(a, a.k, walk, group, tiles + stage * TILE_BYTES);
            copy_commit();
            if (before) hand_over<1>(before);
            if (!more) {
                barrier_arrive(full + stage * 8);
                return;
            }
            before = full + stage * 8;
            room(empty + (STAGES + stage) * 8, parity, before);
            load(a, a.v, walk, group, tiles + (STAGES + stage) * TILE_BYTES);
            copy_commit();
            if (before) hand_over<1>(before);
            before = full + (STAGES + stage) * 8;
        }
    }

    static DEVICE void room(u32 empty, u32 parity, u32& before) {
        if (barrier_passed(empty, parity)) return;
        if (before) hand_over<0>(before);
        before = 0;
        barrier_wait(empty, parity);
    }

    template <int NEWER> static DEVICE void hand_over(u32 barrier) {
        copy_wait<NEWER>();
        fence_async_proxy();
        barrier_arrive(barrier);
    }

    static DEVICE void scores(float (&s)[N / 2], u32 queries, u32 keys) {
        wgmma_fence();
#pragma unroll
        for (int d = 0; d < D / 16; d++)
            wgmma<T, N, 0>(s, wgmma_descriptor(queries + d / 4 * 64 * 128 + d % 4 * 32, 0),
                           wgmma_descriptor(keys + d / 4 * N * 128 + d % 4 * 32, 0), d > 0);
        wgmma_commit();
    }
    static DEVICE void values(float (&sums)[D / 2], const u32 (&p)[N / 16][4], u32 values) {
        wgmma_fence();
#pragma unroll
        for (int n = 0; n < N / 16; n++)
            wgmma_registers<T, D>(sums, p[n], wgmma_descriptor(values + n * 2048, N * 128));
        wgmma_commit();
    }

    // Masks, takes exponentials; `shrink` is what earlier sums must be multiplied by.
    static DEVICE void softmax(const Problem<T>& a, float (&s)[N / 2], const Walk& walk, u32 warp_row, float scale2,
        float (&largest)[2],
                               float (&total)[2], float (&shrink)[2]) {
        const u32 lane = threadIdx.x % 32;
        if (a.softcap > 0.0f) {
            const float inner = a.scale / a.softcap;
#pragma unroll
            for (int i = 0; i < N / 2; i++) s[i] = a.softcap * tanh_fast(s[i] * inner);
        }
        // All of the warp's 16 rows belong to the run and see all keys.
        const bool whole = warp_row >= walk.row && warp_row + 16 <= walk.row_end &&
                           walk.key + N - 1 <= walk.position + (warp_row - walk.row) &&
                           walk.key >= lowest_key(walk.position + (warp_row + 15 - walk.row), a.window);
        if (!whole) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const u32 row = warp_row + r * 8 + lane / 4, position = walk.position + row - walk.row;
                const bool mine = row >= walk.row && row < walk.row_end;
                const u32 low = lowest_key(position, a.window), key = walk.key + lane % 4 * 2;
#pragma unroll
                for (int n = 0; n < N / 8; n++)
#pragma unroll
                    for (int i = 0; i < 2; i++)
                        if (!(mine && key + n * 8 + i <= position && key + n * 8 + i >= low))
                            s[4 * n + 2 * r + i] = NEG_INF;
            }
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float top = largest[r];
#pragma unroll
            for (int n = 0; n < N / 8; n++) top = fmaxf(top, fmaxf(s[4 * n + 2 * r], s[4 * n + 2 * r + 1]));
            top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 1));
            top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 2));
            const float base = top == NEG_INF ? 0.0f : top * scale2; // a row that has seen no key yet stays at 0
            shrink[r] = exp2_fast(largest[r] * scale2 - base);
            largest[r] = top;
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < N / 8; n++)
#pragma unroll
                for (int i = 4 * n + 2 * r; i < 4 * n + 2 * r + 2; i++) {
                    s[i] = exp2_fast(s[i] * scale2 - base);
                    sum += s[i];
                }
            total[r] = total[r] * shrink[r] + sum;
        }
    }

    static DEVICE void pack(u32 (&p)[N / 16][4], const float (&s)[N / 2]) {
#pragma unroll
        for (int n = 0; n < N / 16; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) p[n][i] = pack2<T>(s[8 * n + 2 * i], s[8 * n + 2 * i + 1]);
    }

    static DEVICE void consume(const Problem<T>& a, Shared& shared, u32 first, u32 rows, u32 memory, char* memory_of) {
        const u32 head = blockIdx.x, me = threadIdx.x / 128 - 1, thread = threadIdx.x % 128, lane = threadIdx.x % 32;
        const u32 full = shared_address(shared.full), empty = shared_address(shared.empty);
        const u32 queries = memory + me * Q_BYTES, tiles = memory + 2 * Q_BYTES;
        const u32 warp_row = me * 64 + thread / 32 * 16;
        const u64 row_stride = (u64)a.heads * D;
        copy_wait<0>(); // the queries, see run
        fence_async_proxy();
        named_barrier(1 + me, 128);

        float sums[D / 2], largest[2] = {NEG_INF, NEG_INF}, total[2] = {0.0f, 0.0f}, shrink[2];
#pragma unroll
        for (int i = 0; i < D / 2; i++) sums[i] = 0.0f;
        const float scale2 = a.softcap > 0.0f ? LOG2E : a.scale * LOG2E;
        float s[N / 2];
        u32 p[N / 16][4];

        barrier_wait(full, 0);
        Walk walk = shared.tiles[0];
        if (walk.row >= rows) return;
        scores(s, queries, tiles);
        wgmma_wait<0>();
        if (lane == 0) barrier_arrive(empty);
        softmax(a, s, walk, warp_row, scale2, largest, total, shrink);
        pack(p, s);
        u32 tile = 1;
        for (;; tile++) {
            const u32 stage = tile % STAGES, parity = tile / STAGES % 2;
            const u32 last = (tile - 1) % STAGES, last_parity = (tile - 1) / STAGES % 2;
            barrier_wait(full + stage * 8, parity);
            walk = shared.tiles[stage];
            if (walk.row >= rows) break;
            scores(s, queries, tiles + stage * TILE_BYTES);
            barrier_wait(full + (STAGES + last) * 8, last_parity);
            values(sums, p, tiles + (STAGES + last) * TILE_BYTES);
            wgmma_wait<1>();
            if (lane == 0) barrier_arrive(empty + stage * 8);
            softmax(a, s, walk, warp_row, scale2, largest, total, shrink);
            wgmma_wait<0>();
            if (lane == 0) barrier_arrive(empty + (STAGES + last) * 8);
#pragma unroll
            for (int i = 0; i < D / 2; i++) sums[i] *= shrink[i / 2 % 2];
            pack(p, s);
        }
        const u32 last = (tile - 1) % STAGES;
        barrier_wait(full + (STAGES + last) * 8, (tile - 1) / STAGES % 2);
        values(sums, p, tiles + (STAGES + last) * TILE_BYTES);
        wgmma_wait<0>();

        // Through the warpgroup's own part of the queries' memory, so that global stores are of 16 bytes.
        named_barrier(1 + me, 128);
        char* staging = memory_of + me * Q_BYTES;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float sum = total[r];
            sum += __shfl_xor_sync(FULL_WARP, sum, 1);
            sum += __shfl_xor_sync(FULL_WARP, sum, 2);
            const u32 row = warp_row + r * 8 + lane / 4;
            const float share = 1.0f / sum;
            char* to = staging + row % 64 * D * 2 + lane % 4 * 4;
#pragma unroll
            for (int n = 0; n < D / 8; n++)
                *(u32*)(to + (n ^ row % 8) * 16) = pack2<T>(sums[4 * n + 2 * r] * share,
                    sums[4 * n + 2 * r + 1] * share);
            const bool write = row < rows && !(shared.skipped[row / 32] >> (row % 32) & 1);
            if (a.lse && write && lane % 4 == 0)
                a.lse[(u64)(first + row) * a.heads + head] = (largest[r] * scale2 + __log2f(sum)) / LOG2E;
        }
        __syncwarp();
        for (u32 at = lane; at < 16 * UNITS; at += 32) {
            const u32 row = warp_row + at / UNITS, unit = at % UNITS;
            if (row < rows && !(shared.skipped[row / 32] >> (row % 32) & 1))
                *(uint4*)(a.out + (u64)(first + row) * row_stride + head * D + unit * 8) =
                    *(const uint4*)(staging + row % 64 * D * 2 + (unit ^ row % 8) * 16);
        }
    }

    static DEVICE void run(const Problem<T>& a) {
        extern __shared__ uint4 shared_memory[];
        __shared__ Shared shared;
        const u32 first = (gridDim.y - 1 - blockIdx.y) * M; // most keys first
        const u32 skew = (1024 - shared_address(shared_memory) % 1024) % 1024;
        // Everything is asked for at once, before it is known which rows are live: each wait here costs a good part of
        // a tile.
        if (threadIdx.x >= 128) {
            const u32 me = threadIdx.x / 128 - 1, to = shared_address(shared_memory) + skew + me * Q_BYTES;
#pragma unroll
            for (int i = 0; i < 64 * UNITS / 128; i++) {
                u32 at = threadIdx.x % 128 + i * 128, r = at / UNITS, unit = at % UNITS, row = first + me * 64 + r;
                const T* from = a.q + ((u64)(row < a.rows ? row : first) * a.heads + blockIdx.x) * D + unit * 8;
                copy16_async(to + unit_at(r, unit, 64), from, row < a.rows);
            }
            copy_commit();
        }
        u32 t = first + threadIdx.x % M, seq = 0, before = 0, after = 0, position = 0;
        if (threadIdx.x < M && t < a.rows) {
            seq = a.seqs[t];
            if (t > 0) before = a.seqs[t - 1];
            if (t + 1 < a.rows) after = a.seqs[t + 1];
            if (PAGED) position = a.positions[t];
        }
        const u32 live = live_rows(a.counts, 0, a.rows);
        if (first >= live) {
            copy_wait<0>();
            return;
        }
        const u32 rows = min(live - first, (u32)M);
        if (threadIdx.x < M) {
            bool begins = t < live && (t == 0 || before != seq);
            bool single = begins && a.skip_single && (t + 1 == live || after != seq);
            u32 start_bits = __ballot_sync(FULL_WARP, begins), skip_bits = __ballot_sync(FULL_WARP, single);
            if (threadIdx.x % 32 == 0)
                shared.starts[threadIdx.x / 32] = start_bits, shared.skipped[threadIdx.x / 32] = skip_bits;
            if (!PAGED && t < live) position = t - a.map[seq];
            shared.seqs[threadIdx.x] = seq;
            shared.positions[threadIdx.x] = position;
        }
        if (threadIdx.x == 0) {
            for (int i = 0; i < 2 * STAGES; i++) {
                barrier_init(shared_address(&shared.full[i]), 128);
                barrier_init(shared_address(&shared.empty[i]), 8); // a lane of each consumer warp
            }
            barrier_init_fence();
        }
        __syncthreads();
        if (threadIdx.x < 128) {
            registers_decrease<!PAGED ? 40 : D <= 128 ? 104 : 88>(); // codes of a tile need the more
            produce(a, shared, first, rows, shared_address(shared_memory) + skew + 2 * Q_BYTES);
        } else {
            registers_increase<!PAGED ? 232 : D <= 128 ? 200 : 208>();
            consume(a, shared, first, rows, shared_address(shared_memory) + skew, (char*)shared_memory + skew);
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
#define HOPPER(name, T, D, PAGED)                                                                                      \
    extern "C" __global__ void __launch_bounds__(384, 1) name(PARAMETERS(T)) { Hopper<T, D, PAGED>::run(PROBLEM(T)); }
#define WIDTH(D)                                                                                                       \
    HOPPER(sm90_attention_paged_d##D##_bf16, bf16, D, true)                                                            \
    HOPPER(sm90_attention_paged_d##D##_f16, f16, D, true)                                                              \
    HOPPER(sm90_attention_packed_d##D##_bf16, bf16, D, false)                                                          \
    HOPPER(sm90_attention_packed_d##D##_f16, f16, D, false)
#if !defined(HEAD_DIM) || HEAD_DIM == 64
WIDTH(64)
#endif
#if !defined(HEAD_DIM) || HEAD_DIM == 128
WIDTH(128)
#endif
#if !defined(HEAD_DIM) || HEAD_DIM == 256
WIDTH(256)
#endif
