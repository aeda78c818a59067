// out[t, n] = sum_k x[t, k] * w[n, k] (+ bias[n]) (+ residual[t, n]) for 1..4 rows of x and quantised weights, by
// integer dot products on tensor cores. Up to three weights that share x go in one launch (q, k, v); `act` makes
// silu(x wg) * (x wu), or the same with GELU, out of two; `norm` puts the RMS norm of x in front.
//
// matmul_dots<N>_<W>_<T>, N = 1, 2, 4 rows at most, T = bf16 or f16, W = q4_0, q4_1, q5_0, q5_1, q4_k, q5_k, q6_k.
// x becomes 16-bit integers with one scale for each group of 32, off by at most 2^-16 of the group's largest, which is
// less than bf16 and f16 have lost before; split in two signed bytes, q = 256 upper + lower. A weight's quant, shifted
// left until it fills its byte, is the other factor of mma.sync m16n8k32. Both sums are exact.
//
// A warp's step is 16 rows of w by 8 groups. Lane (g, t) has groups 2t and 2t + 1 of rows g and g + 8. The four lanes
// of a quad hold different groups, whose products no column of D may mix: B is diagonal. Its columns 2c and 2c + 1, the
// upper and lower bytes of x, are zero except where the A of lane c of a quad meets them. So D gives each lane the sums
// of the group that it holds, beside its scales, and lanes meet once a tile.
// value = s * q + m, where m * sum(x) is added for each group, or, with a centre and no m, quants are signed bytes.
//
// A block has a span of tiles of 16 rows (`act`: 8 of gate, 8 of up). Its warps cut the steps of all of them evenly,
// wherever a tile ends, and leave a tile's part sums in shared memory to the end. Weights come through a ring of RING
// steps a warp in shared memory by cp.async; with one row of x and small steps two blocks fit an SM (64 registers), so
// that the next launch's block fills its ring while this one ends.
//
// Limits: parts of one launch have the same type and k; k % 256 == 0; ldx % 8 == 0; x, norm and data aligned to 16
// bytes. Weights are read before the previous kernel has ended where launches are dependent (programmatic), so no
// kernel just before may write them.
// Launch: block 512, grid min(tiles, SMs), tiles = the parts' sum of ceil(n / 16) (act: ceil(n / 8)),
// shared = rows * (9 * k / 4 + k / 64) + 16 * RING * step + (ceil(tiles / grid) + 16) * N * 64, with RING = 2 and
// step = 2368 (q4_k), 2304 (q4_0), 2560 (q4_1), 2816 (q5_0), 3072 (q5_1), 2880 (q5_k), 3392 (q6_k) bytes.
//
// Measured on an H100, 2026-11-24, in graphs with dependent launches, q4_k, bf16, 1 row, as a share of the copy
// bandwidth (3.02 TB/s), in brackets matmul_rows2 in the same run: q, k, v of 4096x4096 with norm 68 % (45), 4096x4096
// 61 % (45), gate and up of 12288x4096 81 % (66), 4096x12288 73 % (60), 151936x4096 88 % (75); those of a layer one
// after the other 52.8 us (64.9). 4 rows: 45, 37, 72, 54, 81 % (37, 32, 56, 47, 65). 8 rows were slower than
// matmul_rows8.
#include "matmul_rows.cuh"

#define RING 2

// Planes of a step in shared memory: bytes of 16 rows by 8 groups of each, and where they start.
template <typename W> struct Step {
    typedef Format<W> F;
    static const u32 ABOVE_ROW = 8 * F::ABOVE;
    static const u32 SCALE_ROW = F::SCALE == PAIR_DM ? 32 : 16;
    static const u32 SUPER_ROW = F::SCALE == K_SCALES ? 4 : F::SCALE == Q6_SCALES ? 2 : 0;
    static const u32 ABOVE = 2048, SCALE = ABOVE + 16 * ABOVE_ROW, SUPER = SCALE + 16 * SCALE_ROW;
    static const u32 BYTES = SUPER + (SUPER_ROW ? 64 : 0);
    // Bits of a quant; `shift` brings its highest to bit 7 of a byte.
    static const u32 BITS = F::ABOVE == 8 ? 6 : F::ABOVE == 4 ? 5 : 4, SHIFT = 8 - BITS;
    // Signed quants with a scale alone, or unsigned ones with a minimum.
    static const bool CENTRED = F::SCALE == HALF_D || F::SCALE == Q6_SCALES;
    // q6_k has a scale for each half of a group.
    static const u32 HALVES = F::SCALE == Q6_SCALES ? 2 : 1;
};

DEVICE void copy4_async(u32 shared, const void* global, bool valid) {
    int bytes = valid ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared), "l"(global), "r"(bytes) : "memory");
}
DEVICE u32 shared4(u32 address) {
    u32 v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
    return v;
}
DEVICE u32 shared2(u32 address) {
    u16 v;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(address));
    return v;
}
DEVICE uint2 shared8(u32 address) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address));
    return v;
}
// Only where `on`; else v stays what it was.
DEVICE void shared16_where(bool on, uint4& v, u32 address) {
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %5, 0; @p ld.shared.v4.u32 {%0,%1,%2,%3}, [%4]; }"
                 : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
                 : "r"(address), "r"((u32)on));
}
// NaN wins, so that it reaches the output.
DEVICE float max_or_nan(float a, float b) {
    float m;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(m) : "f"(a), "f"(b));
    return m;
}

// d += a * b: a 16 x 32 bytes, signed or not, b 32 x 8 signed bytes.
template <bool SIGNED> DEVICE void mma16832(int (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    if constexpr (SIGNED) {
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    } else {
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    }
}

// ---- x in shared memory ----
// A row: for each 256 elements 512 bytes, then for each group {unit, unit * sum}. The 512 bytes are four planes of 8
// groups by 16 bytes: the upper bytes of the even elements, of the odd ones, then the lower bytes of both, where groups
// 0..3 and 4..7 change places (the banks of upper and lower bytes must differ). An octet has a word in each.

template <typename W, typename T, bool NORM>
DEVICE void stage_x(const RowsArgs& a, u8* shared, float* squares, u32 rows) {
    const u32 lane = threadIdx.x % 32, k = a.part[0].w.k, steps = k / 256, warps = blockDim.x / 32;
    const u32 x_row = k / 4 * 9;
    const u32 TURNS = NORM ? 1 : 3; // loads in flight: as many as registers hold
    for (u32 first = threadIdx.x / 32; first < rows * steps; first += TURNS * warps) {
        uint4 loaded[TURNS];
        float4 norm[TURNS][2];
#pragma unroll
        for (u32 j = 0; j < TURNS; j++) {
            u32 i = first + j * warps, row = i / steps, e = (i - row * steps) * 256 + lane * 8;
            if (i >= rows * steps) break;
            loaded[j] = *(const uint4*)((const T*)a.x + (size_t)row * a.ldx + e);
            if (NORM) norm[j][0] = *(const float4*)(a.norm + e), norm[j][1] = *(const float4*)(a.norm + e + 4);
        }
#pragma unroll
        for (u32 j = 0; j < TURNS; j++) {
            u32 i = first + j * warps;
            if (i >= rows * steps) break;
            u32 row = i / steps, step = i - row * steps;
            u32 words[4] = {loaded[j].x, loaded[j].y, loaded[j].z, loaded[j].w};
            float v[8];
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                float2 p = unpack2<T>(words[e]);
                v[2 * e] = p.x, v[2 * e + 1] = p.y;
            }
            if constexpr (NORM) {
                float square = 0.0f;
#pragma unroll
                for (u32 e = 0; e < 8; e++) square = fmaf(v[e], v[e], square);
                square = warp_sum(square);
                if (lane == 0) squares[i] = square;
                float4 n0 = norm[j][0], n1 = norm[j][1];
                v[0] *= n0.x, v[1] *= n0.y, v[2] *= n0.z, v[3] *= n0.w;
                v[4] *= n1.x, v[5] *= n1.y, v[6] *= n1.z, v[7] *= n1.w;
            }
            float largest = 0.0f;
#pragma unroll
            for (u32 e = 0; e < 8; e++) largest = max_or_nan(largest, fabsf(v[e]));
            largest = max_or_nan(largest, __shfl_xor_sync(FULL_WARP, largest, 1));
            largest = max_or_nan(largest, __shfl_xor_sync(FULL_WARP, largest, 2));
            // At most 127 * 256, so that the upper byte fits. Below 2^-100 all is zero: the quotient must be finite.
            float inverse;
            asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(largest));
            float up = largest < 7.9e-31f ? 0.0f : 32512.0f * inverse;
            // Adding 1.5 * 2^23 rounds to an integer in the low bits. 128 more makes the second byte the upper one of
            // q = 256 upper + lower, and flips the top bit of the first.
            const float MAGIC = 12582912.0f + 128.0f;
            u32 q[8];
            u32 sum = 0;
#pragma unroll
            for (u32 e = 0; e < 8; e++) {
                q[e] = __float_as_uint(fmaf(v[e], up, MAGIC));
                sum += q[e];
            }
            u32 even0 = __byte_perm(q[0], q[2], 0x5140), even1 = __byte_perm(q[4], q[6], 0x5140);
            u32 odd0 = __byte_perm(q[1], q[3], 0x5140), odd1 = __byte_perm(q[5], q[7], 0x5140);
            u32* to = (u32*)(shared + row * x_row + step * 512);
            to[lane] = __byte_perm(even0, even1, 0x7632);
            to[32 + lane] = __byte_perm(odd0, odd1, 0x7632);
            to[64 + (lane ^ 16)] = __byte_perm(even0, even1, 0x5410) ^ 0x80808080u;
            to[96 + (lane ^ 16)] = __byte_perm(odd0, odd1, 0x5410) ^ 0x80808080u;
            if constexpr (!Step<W>::CENTRED) {
                sum -= 8u * 0x4b400080u;
                sum += __shfl_xor_sync(FULL_WARP, sum, 1);
                sum += __shfl_xor_sync(FULL_WARP, sum, 2);
            }
            if (lane % 4 == 0) {
                float unit = largest * (1.0f / 32512.0f);
                float2 of_group = make_float2(unit * (1.0f / (1 << Step<W>::SHIFT)), unit * (float)(int)sum);
                *(float2*)(shared + row * x_row + k * 2 + step * 64 + lane * 2) = of_group;
            }
        }
    }
}

// ---- Weights ----

template <typename W> struct Loader {
    typedef Step<W> S;
    const u8 *quants[2], *above[2], *small; // of rows 0..8 and 8..16; scales and what is above them
    u32 row_bytes;                          // of quants
    u32 valid;                              // whether each of this lane's rows exists: quants 4 bits, above 2, small 1

    // Where this lane reads the tile's step.
    DEVICE void place(const RowsArgs& a, u32 tile, u32 step) {
        const u32 lane = threadIdx.x % 32;
        Tile at = find_tile(a, tile);
        const WeightView* w[2] = {&a.part[at.part].w, &a.part[a.act ? 1 : at.part].w};
        const u32 groups = w[0]->k / 32, top[2] = {at.row, at.row + (a.act ? 0 : 8)};
        row_bytes = groups * 16, valid = 0;
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            u32 row = top[h] + lane / 8, n = w[h]->n;
            quants[h] = (const u8*)w[h]->data + (size_t)row * row_bytes + step * 128 + lane % 8 * 16;
            valid |= (row < n ? 1u : 0u) << (2 * h) | (row + 4 < n ? 2u : 0u) << (2 * h);
            if constexpr (S::ABOVE_ROW == 64) {
                row = top[h] + lane / 4;
                above[h] = (const u8*)(w[h]->data + w[h]->w1) + (size_t)row * groups * 8 + step * 64 + lane % 4 * 16;
                valid |= (row < n ? 16u : 0u) << h;
            }
        }
        if constexpr (S::ABOVE_ROW == 32) {
            const WeightView& own = lane < 16 ? *w[0] : *w[1];
            u32 row = (lane < 16 ? top[0] : top[1]) + lane % 16 / 2;
            above[0] = (const u8*)(own.data + own.w1) + (size_t)row * groups * 4 + step * 32 + lane % 2 * 16;
            valid |= row < own.n ? 16u : 0u;
        }
        if constexpr (S::SCALE_ROW == 32) {
            const WeightView& own = lane < 16 ? *w[0] : *w[1];
            u32 row = (lane < 16 ? top[0] : top[1]) + lane % 16 / 2;
            u32 plane = S::ABOVE_ROW ? own.w2 : own.w1;
            small = (const u8*)(own.data + plane) + (size_t)row * groups * 4 + step * 32 + lane % 2 * 16;
            valid |= row < own.n ? 64u : 0u;
        } else {
            // Lanes 0..16 read scales, the others what eight groups share.
            const WeightView& own = lane & 8 ? *w[1] : *w[0];
            u32 row = (lane & 8 ? top[1] : top[0]) + lane % 8;
            u32 scale = S::ABOVE_ROW ? own.w2 : own.w1, super = S::ABOVE_ROW ? own.w3 : own.w2;
            small = (const u8*)(own.data + (lane < 16 ? scale : super)) +
                    ((size_t)row * (groups / 8) + step) * (lane < 16 ? 16 : S::SUPER_ROW);
            valid |= row < own.n ? 64u : 0u;
        }
    }
    DEVICE void load(u32 to) const {
        const u32 lane = threadIdx.x % 32;
        // Odd rows' neighbours change places, so that a read of eight lanes meets every bank once.
        u32 at = to + lane / 8 * 128 + (lane % 8 ^ lane / 8 % 2) * 16;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            copy16_async(at + i * 512, quants[i / 2] + i % 2 * 4 * row_bytes, valid >> i & 1);
        }
        if constexpr (S::ABOVE_ROW != 0) {
            copy16_async(to + S::ABOVE + lane * 16, above[0], valid & 16);
            if (S::ABOVE_ROW == 64) copy16_async(to + S::ABOVE + 512 + lane * 16, above[1], valid & 32);
        }
        if (S::SCALE_ROW == 32 || lane < 16) {
            copy16_async(to + S::SCALE + lane * 16, small, valid & 64);
        } else if (S::SUPER_ROW) {
            copy4_async(to + S::SUPER + (lane - 16) * 4, (const u8*)((u64)small & ~3ull), valid & 64);
        }
    }
    DEVICE void advance() {
        quants[0] += 128, quants[1] += 128;
        if constexpr (S::ABOVE_ROW != 0) above[0] += S::ABOVE_ROW;
        if constexpr (S::ABOVE_ROW == 64) above[1] += 64;
        small += S::SCALE_ROW == 32 ? 32 : threadIdx.x % 32 < 16 ? 16 : S::SUPER_ROW;
    }
};

DEVICE u32 component(uint4 v, u32 i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// This lane's part of half a step: group 2t + j of rows g and g + 8.
template <typename W> struct Stage {
    typedef Step<W> S;
    typedef Format<W> F;
    uint4 q[2];
    u32 above[2][2], scale[2], super[2];

    DEVICE void read(u32 from, u32 g, u32 t, u32 j) {
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            u32 row = g + 8 * r;
            q[r] = shared16(from + row * 128 + t * 32 + (g % 2 ^ j) * 16);
            if (S::ABOVE_ROW == 32) above[r][0] = shared4(from + S::ABOVE + row * 32 + t * 8 + j * 4);
            if constexpr (S::ABOVE_ROW == 64) {
                uint2 v = shared8(from + S::ABOVE + row * 64 + t * 16 + j * 8);
                above[r][0] = v.x, above[r][1] = v.y;
            }
            if (S::SCALE_ROW == 32) scale[r] = shared4(from + S::SCALE + row * 32 + t * 8 + j * 4);
            else scale[r] = shared2(from + S::SCALE + row * 16 + t * 4 + j * 2);
            if (S::SUPER_ROW != 0) super[r] = shared4(from + S::SUPER + row * 4);
        }
    }

    // Octet o of row r as eight bytes: the even elements, the odd ones.
    DEVICE uint2 bytes(u32 r, u32 o) const {
        u32 w = component(q[r], o);
        if constexpr (S::BITS == 4) {
            if (S::CENTRED) w ^= 0x88888888u;
            return make_uint2(w << 4 & 0xf0f0f0f0u, w & 0xf0f0f0f0u);
        } else if constexpr (S::BITS == 5) {
            u32 h = above[r][0] >> (8 * o);
            if (S::CENTRED) h = ~h;
            // Every second bit to the top of a byte.
            u32 even = (h & 0x55u) * 0x02082080u & 0x80808080u, odd = (h & 0xaau) * 0x01041040u & 0x80808080u;
            return make_uint2((w << 3 & 0x78787878u) | even, (w >> 1 & 0x78787878u) | odd);
        } else {
            u32 h = above[r][o / 2] ^ 0xaaaaaaaau;
            h = __byte_perm(h, 0u, o % 2 ? 0x4342 : 0x4140);
            h = (h | h << 4) & 0x0f0f0f0fu; // two bits of an even element, two of an odd one
            return make_uint2((w << 2 & 0x3c3c3c3cu) | (h << 6 & 0xc0c0c0c0u),
                              (w >> 2 & 0x3c3c3c3cu) | (h << 4 & 0xc0c0c0c0u));
        }
    }

    // (s, m) of row r, or (s, s) of the group's halves. `odd`: which of two halves of a word q6_k's d is.
    DEVICE float2 scales(u32 r, u32 odd) const {
        u32 raw = scale[r];
        if constexpr (F::SCALE == PAIR_DM) {
            return unpack2<f16>(raw);
        } else if constexpr (F::SCALE == K_SCALES) {
            float2 d = unpack2<f16>(super[r]);
            return make_float2(d.x * (float)(raw & 255u), -d.y * (float)(raw >> 8));
        } else if constexpr (F::SCALE == Q6_SCALES) {
            float d = f16_low(super[r] >> (16 * odd));
            return make_float2(d * (float)(i8)raw, d * (float)(i8)(raw >> 8));
        } else {
            return make_float2(f16_low(raw), 0.0f);
        }
    }

    // acc[token][row] += the products. `x`: this lane's B of the first token, `unit`: its group's {unit, unit * sum}.
    template <int N>
    DEVICE void multiply(float (&acc)[N][2], uint4 (&b)[2], bool on, u32 x, u32 unit, u32 x_row, u32 last,
                         u32 odd) const {
        uint2 f[2][4];
        float2 s[2];
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
#pragma unroll
            for (u32 o = 0; o < 4; o++) f[r][o] = bytes(r, o);
            s[r] = scales(r, odd);
        }
#pragma unroll
        for (u32 n = 0; n < N; n++) {
            u32 row = min(n, last) * x_row;
            shared16_where(on, b[0], x + row);
            shared16_where(on, b[1], x + row + 128);
            uint2 of_group = shared8(unit + row);
            int d[2][4] = {};
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                u32 to = S::HALVES == 2 ? half : 0, o = 2 * half;
                mma16832<S::CENTRED>(d[to], f[0][o].x, f[1][o].x, f[0][o + 1].x, f[1][o + 1].x, component(b[0], o),
                                     component(b[0], o + 1));
                mma16832<S::CENTRED>(d[to], f[0][o].y, f[1][o].y, f[0][o + 1].y, f[1][o + 1].y, component(b[1], o),
                                     component(b[1], o + 1));
            }
            float scale = __uint_as_float(of_group.x), sum = __uint_as_float(of_group.y);
#pragma unroll
            for (u32 r = 0; r < 2; r++) {
                float dot = (float)(d[0][2 * r] * 256 + d[0][2 * r + 1]);
                if constexpr (S::HALVES == 2) {
                    float second = (float)(d[1][2 * r] * 256 + d[1][2 * r + 1]);
                    acc[n][r] = fmaf(scale, fmaf(s[r].x, dot, s[r].y * second), acc[n][r]);
                } else {
                    acc[n][r] = fmaf(s[r].x, scale * dot, acc[n][r]);
                    if (!S::CENTRED) acc[n][r] = fmaf(s[r].y, sum, acc[n][r]);
                }
            }
        }
    }
};

template <typename W, typename T, int N> DEVICE void matmul_dots(const RowsArgs& a) {
    extern __shared__ uint4 shared_words[];
    typedef Step<W> S;
    u8* shared = (u8*)shared_words;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, g = lane / 4, t = lane % 4;
    const u32 k = a.part[0].w.k, steps = k / 256, x_row = k / 4 * 9, rows = min(a.rows, (u32)N);
    const u32 tiles = tiles_of(a, 0) + tiles_of(a, 1) + tiles_of(a, 2);
    // This block's tiles, and this warp's share of their steps.
    const u32 first = (u32)((u64)tiles * blockIdx.x / gridDim.x);
    const u32 mine = (u32)((u64)tiles * (blockIdx.x + 1) / gridDim.x) - first;
    const u32 span = (mine * steps + warps - 1) / warps;
    const u32 begin = min(warp * span, mine * steps), end = min(begin + span, mine * steps);

    const u32 base = shared_address(shared);
    const u32 ring = base + rows * x_row + warp * (RING * S::BYTES);
    float* squares = (float*)(shared + rows * x_row + warps * (RING * S::BYTES));
    // Sums of tile p by warp w are at p + w: along the block's steps no two of those are equal.
    float* sums = squares + rows * steps;

    Loader<W> loader;
    u32 load_tile = begin / steps, load_step = begin - load_tile * steps;
    auto load_next = [&](u32 index, u32 to) {
        if (index < end) {
            loader.load(to);
            if (++load_step == steps) {
                load_step = 0, load_tile++;
                if (index + 1 < end) loader.place(a, first + load_tile, 0);
            } else {
                loader.advance();
            }
        }
        copy_commit();
    };
    if (begin < end) loader.place(a, first + load_tile, load_step);
#pragma unroll
    for (u32 i = 0; i < RING; i++) load_next(begin + i, ring + i * S::BYTES);
    if (a.norm) {
        for (u32 i = threadIdx.x * 32; i < k; i += blockDim.x * 32) {
            asm volatile("prefetch.global.L2 [%0];" ::"l"(a.norm + i));
        }
    }

    let_next_start();
    wait_for_previous();
    // With few rows none waits to hear how many are live.
    const u32 live = N <= 2 ? rows : min(live_rows(a.counts, a.which, a.rows), rows);
    if (a.norm) stage_x<W, T, true>(a, shared, squares, live);
    else stage_x<W, T, false>(a, shared, squares, live);
    __syncthreads();

    // B: upper bytes to even columns, lower ones to odd columns, where this lane's quad is theirs.
    const bool on = t == g / 2;
    const u32 x0 = base + g % 2 * 256 + (2 * t ^ g % 2 * 4) * 16, units0 = base + k * 2 + t * 16;
    uint4 b[2] = {};
    float acc[N][2] = {};
    u32 slot = ring, tile = begin / steps, step = begin - tile * steps;
    for (u32 i = begin; i < end; i++) {
        copy_wait<RING - 1>();
        __syncwarp();
        const u32 from = slot, x = x0 + step * 512, unit = units0 + step * 64, odd = (g * steps + step) & 1;
        slot = slot == ring + (RING - 1) * S::BYTES ? ring : slot + S::BYTES;
        Stage<W> stage;
        stage.read(from, g, t, 0);
        stage.multiply(acc, b, on, x, unit, x_row, rows - 1, odd);
        stage.read(from, g, t, 1);
        __syncwarp();
        load_next(i + RING, from);
        stage.multiply(acc, b, on, x + 16, unit + 8, x_row, rows - 1, odd);
        if (++step == steps || i + 1 == end) {
#pragma unroll
            for (u32 n = 0; n < N; n++) {
                // Lane 0 of a quad keeps row g, lane 1 row g + 8.
                float other = __shfl_xor_sync(FULL_WARP, t % 2 ? acc[n][0] : acc[n][1], 1);
                float v = (t % 2 ? acc[n][1] : acc[n][0]) + other;
                v += __shfl_xor_sync(FULL_WARP, v, 2);
                if (t < 2) sums[((tile + warp) * N + n) * 16 + g + 8 * t] = v;
                acc[n][0] = acc[n][1] = 0.0f;
            }
            step = 0, tile++;
        }
    }
    __syncthreads();

    const u32 width = a.act ? 8 : 16;
    for (u32 i = threadIdx.x; i < mine * N * width; i += blockDim.x) {
        u32 row = i % width, token = i / width % N, of = i / width / N;
        Tile at = find_tile(a, first + of);
        const RowsPart& p = a.part[at.part];
        u32 n = at.row + row;
        if (token >= live || n >= p.w.n) continue;
        float v = 0.0f, up = 0.0f;
        for (u32 w = of * steps / span; w <= (of * steps + steps - 1) / span; w++) {
            const float* from = sums + ((of + w) * N + token) * 16 + row;
            v += from[0];
            if (a.act) up += from[8];
        }
        if (a.norm) {
            float square = 0.0f;
#pragma unroll 8
            for (u32 j = 0; j < steps; j++) square += squares[token * steps + j];
            float inverse = 1.0f / sqrtf(square / (float)k + a.eps);
            v *= inverse, up *= inverse;
        }
        if (p.bias) v += p.bias[n];
        if (a.slots) v += adapter_term<T>(a, at.part, token, n);
        if (a.act) {
            if (a.part[1].bias) up += a.part[1].bias[n];
            if (a.slots) up += adapter_term<T>(a, 1, token, n);
            v = (a.act == 1 ? activate<0>(v) : activate<1>(v)) * up;
        }
        store_out<T>(a, p, token, n, v);
    }
}

// 64 registers hold one row of x; q6_k's ring leaves no room for a second block.
#define DOTS_KERNEL(name, W, T, N)                                                                                    \
    extern "C" __global__ void __launch_bounds__(512, N == 1 && Step<W>::HALVES == 1 ? 2 : 1)                         \
        name(const __grid_constant__ RowsArgs a) {                                                                    \
        matmul_dots<W, T, N>(a);                                                                                      \
    }
#define KERNEL1(name, W, T) DOTS_KERNEL(name, W, T, 1)
#define KERNEL2(name, W, T) DOTS_KERNEL(name, W, T, 2)
#define KERNEL4(name, W, T) DOTS_KERNEL(name, W, T, 4)
#define INSTANTIATE_DOTS(KERNEL, name)                                                                                \
    WEIGHT_PAIR(KERNEL, name, WEIGHT_ONLY, bf16)                                                                      \
    WEIGHT_PAIR(KERNEL, name, WEIGHT_ONLY, f16)
INSTANTIATE_DOTS(KERNEL1, matmul_dots1)
INSTANTIATE_DOTS(KERNEL2, matmul_dots2)
INSTANTIATE_DOTS(KERNEL4, matmul_dots4)
