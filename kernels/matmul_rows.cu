// out[t, n] = sum_k x[t, k] * w[n, k] (+ bias[n]) (+ residual[t, n]) for 1..16 rows of x and weights of any type, at
// the speed of memory. Up to three weights that share x go in one launch (q, k, v); `act` makes silu(x wg) * (x wu),
// or the same with GELU, out of two; `norm` puts the RMS norm of x in front.
//
// matmul_rows<R>_<W>_<T>, R = 2, 4, 8, 16 rows at most, T = bf16 or f16: a block owns a tile of 16 rows of w (with
// `act` 8 of gate and 8 of up) at a time, its warps share k; x lies in shared memory. Every product is an mma.sync
// m16n8k16 whose A is w, in registers filled straight from 16-byte loads several steps ahead (the order of k within a
// step is free as long as x follows it).
// Quantised: each lane loads whole groups of 32, a quad of lanes four of a row. Their scales differ, so no column of D
// may mix them. Up to four tokens: x is laid out diagonally, column c of B is token c / 4 with all but lane c % 4's
// elements zero, so that column c of D is the partial sum of one lane's groups. More tokens: the quad exchanges words
// and goes through the groups one by one. Scale and minimum are applied to D in f32: s * (q . x) + m * sum(x), where
// sum(x) was computed once. Quants become 16-bit floats by bit operations: 128 + q as bf16 (128 goes into m), q *
// 2^-24 (a subnormal, 2^24 goes into s) as f16; both are exact. NF4's table is rounded to T. Plain weights that have
// more bits than T (f32; f16 beside bf16) are split in two terms.
// matmul_rows_any_<W>_<T>, T = f32 too: any k, exact f32 products, a warp for each row of w. Slower.
//
// The file is long because the decoders, the layout of x and the pipeline are written for each other.
//
// Limits: parts of one launch have the same type, k and stride; k % 8 == 0, ldx % 8 == 0, plain stride % 8 == 0 (else
// _any); nf4: k % 64 == 0; at most 16 rows; x, norm and data aligned to 16 bytes. Weights are read before the previous
// kernel has ended where launches are dependent (programmatic), so no kernel just before may write them.
// Launch: block 128, 256 or 512; grid min(tiles, SMs * blocks that fit one). Block: 256 if k < 2048; else 512, but 256
// for quantised types with R = 2 and more tiles than SMs.
// shared = x_rows * (2 * c + 64) + 256 + x_rows * c / 32 * S * 4 + B * warps * x_rows * 80
//          (+ ceil(tiles / SMs) * x_rows * 64 where c < k)
// with tiles = the parts' sum of ceil(n / 16) (act: ceil(n / 8)), x_rows = 1 if R == 2 and rows == 1, else R,
// c = chunk = k rounded up to 128, or, if that is too much, up to 128 a part of it, S = 2 for q6_k, 0 for plain types,
// q8_0 and nf4, else 1, B = 4 (R <= 4) or 2.
// Adapters: see RowsArgs; their terms are added before the residual, in f32.
// _any: block 256, grid min(ceil(rows of w / 8), SMs * 8), no dynamic shared memory.
//
// Measured on an H100, 2026-11-23, in graphs with dependent launches, bf16 activations, the blocks above, as a share of
// the copy bandwidth (3.02 TB/s), 1 / 8 / 16 rows: bf16 12288x4096 94 / 90 / 88 % (without dependent launches 86 / 84 /
// 80, torch 89 / 90 / 90), 4096x4096 87 / 83 / 79 %, 4096x12288 91 / 69 / 80 % (torch 85 / 84 / 84), 151936x4096
// 97 / 96 / 94 %. q4_k 12288x4096 67 / 51 / 41 %, 4096x4096 46 / 34 / 27 %, 151936x4096 76 / 68 / 57 %. q6_k 12288x4096
// 77 / 54 / 44 %, q8_0 88 / 75 / 67 %. 1024x1024, 1 row: 2.9 us (bf16 and q4_k).
#include "matmul_rows.cuh"

// Weights pass through once: they need no place in L1.
DEVICE uint4 load_once16(const u8* p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}
DEVICE uint2 load8_bytes(const u8* p) {
    uint2 v;
    asm volatile("ld.global.nc.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}
DEVICE u32 load4_bytes(const u8* p) {
    u32 v;
    asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}
DEVICE u32 load2_bytes(const u8* p) {
    u16 v;
    asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(v) : "l"(p));
    return v;
}
// (x & MASK) | magic in one instruction: one of the constants must come in a register.
template <u32 MASK> DEVICE u32 and_or(u32 x, u32 magic) {
    u32 y;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(y) : "r"(x), "n"(MASK), "r"(magic));
    return y;
}

// Where the planes of a row of w start.
struct Source {
    const u8 *quants, *above, *scale, *super;
};

// ---- A step of a warp: 16 rows of w (this lane: row g and row g + 8) by STEP elements of k ----

// Plain types. Lane t of a quad holds eight consecutive elements of every 32.
template <typename W, typename T> struct PlainStage {
    static const int STEP = sizeof(W) == 4 ? 32 : 64;
    static const int SUMS = 0;
    static const bool DIAGONAL = false;
    // One term is exact unless the weight has more bits than T.
    static const bool SPLIT = sizeof(W) == 4 || (Same<W, f16>::value && Same<T, bf16>::value);
    uint4 q[2][2];

    DEVICE static Source source(const WeightView& w, u32 row) {
        Source s = {};
        s.quants = (const u8*)w.data + (size_t)row * w.stride * sizeof(W);
        return s;
    }
    DEVICE static void advance(Source& s, u32 rows, u32 stride) { s.quants += (size_t)rows * stride * sizeof(W); }
    DEVICE void load(const Source (&s)[2], u32 step, u32 t, u32 k) {
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            // Past the end x is zero, so any finite element will do.
            u32 e = sizeof(W) == 4 ? min(step * 32 + t * 8, k - 8) + h * 4 : min(step * 64 + h * 32 + t * 8, k - 8);
#pragma unroll
            for (u32 r = 0; r < 2; r++) q[r][h] = load_once16(s[r].quants + e * sizeof(W));
        }
    }
    // The i-th pair of the 16-byte piece (of two, where W is f32) of row r; `rest` is what rounding to T leaves.
    DEVICE u32 pair(u32 r, u32 h, u32 i, u32& rest) const {
        uint4 p = q[r][sizeof(W) == 4 ? i / 2 : h];
        if constexpr (Same<W, T>::value) {
            return i == 0 ? p.x : i == 1 ? p.y : i == 2 ? p.z : p.w;
        } else {
            float2 v;
            if constexpr (sizeof(W) == 4) {
                v = i % 2 ? make_float2(__uint_as_float(p.z), __uint_as_float(p.w))
                          : make_float2(__uint_as_float(p.x), __uint_as_float(p.y));
            } else {
                v = unpack2<W>(i == 0 ? p.x : i == 1 ? p.y : i == 2 ? p.z : p.w);
            }
            u32 high = pack2<T>(v.x, v.y);
            if constexpr (SPLIT) {
                float2 back = unpack2<T>(high);
                rest = pack2<T>(v.x - back.x, v.y - back.y);
            }
            return high;
        }
    }
    template <int TILES> DEVICE void multiply(float (&acc)[TILES][4], u32 x, u32 x_tile, u32, u32, u32) const {
#pragma unroll
        for (u32 h = 0; h < STEP / 32; h++) {
            u32 a[2][4], rest[2][4];
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                a[i / 2][i % 2 * 2] = pair(0, h, i, rest[i / 2][i % 2 * 2]);
                a[i / 2][i % 2 * 2 + 1] = pair(1, h, i, rest[i / 2][i % 2 * 2 + 1]);
            }
#pragma unroll
            for (u32 n = 0; n < TILES; n++) {
                uint4 b = shared16(x + h * 64 + n * x_tile);
                mma16816<T>(acc[n], a[0], b.x, b.y);
                mma16816<T>(acc[n], a[1], b.z, b.w);
                if constexpr (SPLIT) {
                    mma16816<T>(acc[n], rest[0], b.x, b.y);
                    mma16816<T>(acc[n], rest[1], b.z, b.w);
                }
            }
        }
    }
};

// bf16 or f16 bits of NF4's table: the upper and the lower bytes of its 16 entries.
template <typename T> struct Nf4Bytes;
template <> struct Nf4Bytes<bf16> {
    static const u32 H0 = 0xbebfbfbf, H1 = 0x00bdbebe, H2 = 0x3e3e3e3d, H3 = 0x3f3f3f3e;
    static const u32 L0 = 0xca063280, L1 = 0x00ba3d92, L2 = 0xad7c25a3, L3 = 0x803910e2;
};
template <> struct Nf4Bytes<f16> {
    static const u32 H0 = 0xb6b8b9bc, H1 = 0x00adb1b4, H2 = 0x3533312d, H3 = 0x3c393837;
    static const u32 L0 = 0x52339200, L1 = 0x00d4ea8d, L2 = 0x68e02618, L3 = 0x00c9800d;
};

// v[j] of lane t becomes v[t] of lane j of the quad.
DEVICE void transpose_quad(u32 (&v)[4], u32 t) {
    bool odd = t & 1, upper = t & 2;
#pragma unroll
    for (u32 i = 0; i < 4; i += 2) {
        u32 got = __shfl_xor_sync(FULL_WARP, odd ? v[i] : v[i + 1], 1);
        v[i] = odd ? got : v[i], v[i + 1] = odd ? v[i + 1] : got;
    }
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        u32 got = __shfl_xor_sync(FULL_WARP, upper ? v[i] : v[i + 2], 2);
        v[i] = upper ? got : v[i], v[i + 2] = upper ? v[i + 2] : got;
    }
}

// Quantised types: a step is four groups of each row. Lane t of a quad loads group t. DIAG: it also multiplies that
// group (q8_0: the t-th quarter of two groups, twice). Otherwise the quad exchanges words until lane t has octet t of
// each group.
template <typename W, typename T, bool DIAG> struct QuantStage {
    typedef Format<W> F;
    static const int STEP = 128;
    static const bool Q8 = Same<W, q8_0>::value, NF4 = Same<W, nf4>::value, Q6 = Same<W, q6_k>::value;
    static const bool BF16 = Same<T, bf16>::value;
    static const bool DIAGONAL = DIAG;
    // Sums of x for each group: 2 (q6_k has a scale for each half), 1, or 0 where the mma sees the quants without an
    // offset.
    static const int SUMS = Q8 || NF4 ? 0 : Q6 ? 2 : 1;
    // value = s * seen + m where MINS, else s * (seen + OFFSET). seen = 128 + q (bf16) or q / 2^24 (f16, 2^24 goes
    // into s).
    static const bool MINS = F::SCALE == PAIR_DM || F::SCALE == K_SCALES;
    static constexpr float CENTRE = Q6 ? 32.0f : F::ABOVE ? 16.0f : 8.0f;
    static constexpr float OFFSET = BF16 ? -128.0f - CENTRE : -CENTRE / 16777216.0f;
    uint4 q[2][Q8 ? 2 : 1];
    uint2 above[2];
    u32 scale[2][2], super[2];

    DEVICE static Source source(const WeightView& w, u32 row) {
        size_t g = (size_t)row * (w.stride / 32);
        const u8* base = (const u8*)w.data;
        const u8 *p1 = base + (size_t)w.w1 * 4, *p2 = base + (size_t)w.w2 * 4, *p3 = base + (size_t)w.w3 * 4;
        Source s = {};
        s.quants = base + g * (Q8 ? 32 : 16);
        if (F::ABOVE) s.above = p1 + g * F::ABOVE;
        s.scale = (F::ABOVE ? p2 : p1) + g * (F::SCALE == PAIR_DM ? 4 : 2);
        if (F::SCALE == K_SCALES) s.super = (F::ABOVE ? p3 : p2) + g / 8 * 4;
        if (F::SCALE == Q6_SCALES) s.super = p3 + g / 8 * 2;
        return s;
    }

    DEVICE static void advance(Source& s, u32 rows, u32 stride) {
        size_t g = (size_t)rows * (stride / 32);
        s.quants += g * (Q8 ? 32 : 16);
        if (F::ABOVE) s.above += g * F::ABOVE;
        s.scale += g * (F::SCALE == PAIR_DM ? 4 : 2);
        if (F::SCALE == K_SCALES) s.super += g / 8 * 4;
        if (F::SCALE == Q6_SCALES) s.super += g / 8 * 2;
    }

    DEVICE static u32 load_scale(const u8* p, u32 group) {
        if constexpr (F::SCALE == PAIR_DM) return load4_bytes(p + group * 4);
        else if constexpr (F::SCALE == ABSMAX) return load4_bytes(p + group / 2 * 4);
        else return load2_bytes(p + group * 2);
    }
    DEVICE void load(const Source (&s)[2], u32 step, u32 t, u32 k) {
        u32 last = k / 32 - 1; // past the end x is zero: any group will do
        u32 own = min(step * 4 + t, last);
        u32 pair = step * 4 + t % 2 * 2; // DIAG: the groups whose scales this lane applies are pair and pair + 1
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            if constexpr (Q8 && DIAG) {
#pragma unroll
                for (u32 h = 0; h < 2; h++) {
                    q[r][h] = load_once16(s[r].quants + min(step * 4 + h * 2 + t / 2, last) * 32 + t % 2 * 16);
                    scale[r][h] = load_scale(s[r].scale, min(step * 4 + h * 2 + t % 2, last));
                }
            } else {
                if constexpr (Q8) {
                    uint2 v[4];
#pragma unroll
                    for (u32 j = 0; j < 4; j++) v[j] = load8_bytes(s[r].quants + min(step * 4 + j, last) * 32 + t * 8);
                    q[r][0] = make_uint4(v[0].x, v[0].y, v[1].x, v[1].y);
                    q[r][1] = make_uint4(v[2].x, v[2].y, v[3].x, v[3].y);
                } else {
                    q[r][0] = load_once16(s[r].quants + own * 16);
                }
                if constexpr (F::ABOVE == 4) above[r].x = load4_bytes(s[r].above + own * 4);
                if constexpr (F::ABOVE == 8) above[r] = load8_bytes(s[r].above + own * 8);
                if constexpr (!DIAG) {
                    scale[r][0] = load_scale(s[r].scale, own);
                } else if constexpr (F::SCALE == K_SCALES || F::SCALE == Q6_SCALES) {
                    scale[r][0] = load4_bytes(s[r].scale + pair * 2); // both
                } else {
                    scale[r][0] = load_scale(s[r].scale, min(pair, last));
                    scale[r][1] = F::SCALE == ABSMAX ? scale[r][0] : load_scale(s[r].scale, min(pair + 1, last));
                }
                if constexpr (F::SCALE == K_SCALES) super[r] = load4_bytes(s[r].super + step / 2 * 4);
                if constexpr (F::SCALE == Q6_SCALES) super[r] = load2_bytes(s[r].super + step / 2 * 2);
            }
        }
    }

    // (s, m) of row r from the i-th scale that was loaded; `half` of the group for q6_k.
    DEVICE float2 scales(u32 r, u32 i, u32 half) const {
        float s, m = 0.0f;
        u32 raw = scale[r][i];
        if constexpr (DIAG && (F::SCALE == K_SCALES || F::SCALE == Q6_SCALES)) raw = scale[r][0] >> (16 * i);
        if constexpr (F::SCALE == HALF_D) {
            s = f16_low(raw);
        } else if constexpr (F::SCALE == PAIR_DM) {
            float2 v = unpack2<f16>(raw);
            s = v.x, m = v.y;
        } else if constexpr (F::SCALE == K_SCALES) {
            float2 d = unpack2<f16>(super[r]);
            s = d.x * (float)(raw & 255u), m = -d.y * (float)(raw >> 8 & 255u);
        } else if constexpr (F::SCALE == Q6_SCALES) {
            s = f16_low(super[r]) * (float)(i8)(raw >> (8 * half));
        } else {
            s = __uint_as_float(raw);
        }
        if constexpr (SUMS != 0) {
            if (!BF16) s *= 16777216.0f;
            else if (MINS) m -= 128.0f * s;
        }
        return make_float2(s, m);
    }

    DEVICE static u32 subtract2(u32 a, u32 b) {
        u32 d;
        if constexpr (BF16) {
            // a * 1 - b: bf16x2 has no plain subtraction before sm_90.
            asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(0x3f803f80u), "r"(b ^ 0x80008000u));
        } else {
            asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
        }
        return d;
    }
    // Eight bytes as four pairs: elements 0, 2 | 1, 3 | 4, 6 | 5, 7.
    DEVICE static void decode_bytes(u32 low, u32 high, u32 (&f)[4]) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 w = (i < 2 ? low : high) >> (i % 2 * 8);
            if constexpr (BF16) {
                // 128 + (q & 127), less 128 or (q < 0) 256.
                f[i] = subtract2(and_or<0x007f007fu>(w, 0x43004300u), and_or<0x00800080u>(w, 0x43004300u));
            } else {
                f[i] = subtract2((w & 0x00ff00ffu) ^ 0x64806480u, 0x64806480u); // 1152 + q - 1152
            }
        }
    }
    // Eight nibbles as four pairs: 0, 4 | 1, 5 | 2, 6 | 3, 7 (nf4: in their order). `high` has the bits above, `step`
    // bits from pair to pair, in two words for the first and the second two pairs.
    DEVICE static void decode_nibbles(u32 word, u32 high0, u32 high1, u32 (&f)[4]) {
        if constexpr (NF4) {
            typedef Nf4Bytes<T> B;
            u32 low = word & 0x77777777u, upper = (word & 0x88888888u) >> 1;
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                u32 index = low >> (16 * i), mask = __byte_perm(0u, 0xffffffffu, upper >> (16 * i));
                u32 h = (__byte_perm(B::H0, B::H1, index) & ~mask) | (__byte_perm(B::H2, B::H3, index) & mask);
                u32 l = (__byte_perm(B::L0, B::L1, index) & ~mask) | (__byte_perm(B::L2, B::L3, index) & mask);
                f[2 * i] = __byte_perm(l, h, 0x5140), f[2 * i + 1] = __byte_perm(l, h, 0x7362);
            }
        } else {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                f[i] = BF16 ? and_or<0x000f000fu>(word >> (4 * i), 0x43004300u) : word >> (4 * i) & 0x000f000fu;
                if constexpr (F::ABOVE == 4) f[i] = and_or<0x00100010u>(high0 >> i, f[i]);
                if constexpr (F::ABOVE == 8) f[i] = and_or<0x00300030u>((i < 2 ? high0 : high1) >> (i % 2 * 2), f[i]);
            }
        }
    }
    DEVICE static u32 component(uint4 v, u32 i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

    // acc[tile]: rows g and g + 8 of token 2 * tile + t / 2, this lane's two groups of four (the rest is in lane t ^
    // 1). `sums`: those of this lane's groups for the first tile; sums_tile: bytes to the next tile's.
    template <int TILES>
    DEVICE void multiply(float (&acc)[TILES][2], u32 x, u32 x_tile, u32 sums, u32 sums_tile, u32) const {
        const u32 PARTS = Q8 || Q6 ? 2 : 1, OCTETS = 4 / PARTS;
#pragma unroll
        for (u32 half = 0; half < PARTS; half++) {
            float part[TILES][4] = {};
#pragma unroll
            for (u32 o = half * OCTETS; o < (half + 1) * OCTETS; o++) {
                u32 f[2][4];
#pragma unroll
                for (u32 r = 0; r < 2; r++) {
                    if constexpr (Q8) {
                        uint4 p = q[r][o / 2];
                        decode_bytes(component(p, o % 2 * 2), component(p, o % 2 * 2 + 1), f[r]);
                    } else {
                        u32 high = 0;
                        if constexpr (F::ABOVE == 4) high = (above[r].x >> (8 * o) & 255u) * 0x10010u;
                        if constexpr (F::ABOVE == 8) {
                            u32 bits = o < 2 ? above[r].x : above[r].y;
                            high = __byte_perm(bits, 0u, o % 2 ? 0x4342 : 0x4140) << 4;
                        }
                        decode_nibbles(component(q[r][0], o), high, high >> 4, f[r]);
                    }
                }
                u32 a[2][4] = {{f[0][0], f[1][0], f[0][1], f[1][1]}, {f[0][2], f[1][2], f[0][3], f[1][3]}};
#pragma unroll
                for (u32 n = 0; n < TILES; n++) {
                    uint4 b = shared16(x + o * 64 + n * x_tile);
                    mma16816<T>(part[n], a[0], b.x, b.y);
                    mma16816<T>(part[n], a[1], b.z, b.w);
                }
            }
            float2 s[2][2];
#pragma unroll
            for (u32 r = 0; r < 2; r++) {
                s[r][0] = scales(r, Q8 ? half : 0, half);
                s[r][1] = Q8 || NF4 ? s[r][0] : scales(r, 1, half);
            }
#pragma unroll
            for (u32 n = 0; n < TILES; n++) {
                float2 sum = make_float2(0.0f, 0.0f);
                if constexpr (SUMS == 1) sum = shared_pair(sums + n * sums_tile);
                if constexpr (SUMS == 2) {
                    uint4 all = shared16(sums + n * sums_tile);
                    sum = make_float2(__uint_as_float(component(all, half)), __uint_as_float(component(all, half + 2)));
                }
#pragma unroll
                for (u32 r = 0; r < 2; r++) {
                    add_part(acc[n][r], part[n][2 * r], s[r][0], sum.x);
                    add_part(acc[n][r], part[n][2 * r + 1], s[r][1], sum.y);
                }
            }
        }
    }
    DEVICE static float2 shared_pair(u32 address) {
        float2 v;
        asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address));
        return v;
    }
    DEVICE static void add_part(float& acc, float part, float2 s, float sum) {
        if constexpr (MINS) acc = fmaf(s.x, part, fmaf(s.y, sum, acc));
        else if constexpr (SUMS != 0) acc = fmaf(s.x, fmaf(OFFSET, sum, part), acc);
        else acc = fmaf(s.x, part, acc);
    }

    // acc[tile]: rows g (0, 1) and g + 8 (2, 3) of tokens 8 * tile + 2 t and + 1. `sums`: those of this lane's two
    // tokens, first group; sums_item: bytes from one to the next.
    template <int TILES>
    DEVICE void multiply(float (&acc)[TILES][4], u32 x, u32 x_tile, u32 sums, u32 sums_tile, u32 sums_item) const {
        const u32 t = threadIdx.x % 4;
        u32 word[2][4], high[2][2];
        float2 own[2][Q6 ? 2 : 1];
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
#pragma unroll
            for (u32 half = 0; half < (Q6 ? 2 : 1); half++) own[r][half] = scales(r, 0, half);
            if constexpr (Q8) continue;
            uint4 p = q[r][0];
            if constexpr (Q6) {
                // Lane t is to get elements 4 t .. 4 t + 4 of both halves, for they have different scales: bytes 0 and
                // 2 from the first, 1 and 3 from the second. The upper bits: one byte of each half.
                p = make_uint4(__byte_perm(p.x, p.z, 0x5140), __byte_perm(p.x, p.z, 0x7362),
                               __byte_perm(p.y, p.w, 0x5140), __byte_perm(p.y, p.w, 0x7362));
                u32 u0 = __byte_perm(above[r].x, above[r].y, 0x5140), u1 = __byte_perm(above[r].x, above[r].y, 0x7362);
                u32 got = __shfl_xor_sync(FULL_WARP, t & 2 ? u0 : u1, 2);
                u0 = t & 2 ? got : u0, u1 = t & 2 ? u1 : got;
                u32 keep = __byte_perm(u0, u1, t & 1 ? 0x7632 : 0x5410);
                got = __shfl_xor_sync(FULL_WARP, __byte_perm(u0, u1, t & 1 ? 0x5410 : 0x7632), 1);
                high[r][0] = t & 1 ? got : keep, high[r][1] = t & 1 ? keep : got; // of groups 0, 2 and of 1, 3
            }
            word[r][0] = p.x, word[r][1] = p.y, word[r][2] = p.z, word[r][3] = p.w;
            transpose_quad(word[r], t);
        }
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            u32 f[2][4];
            float2 s[2][Q6 ? 2 : 1];
#pragma unroll
            for (u32 r = 0; r < 2; r++) {
#pragma unroll
                for (u32 half = 0; half < (Q6 ? 2 : 1); half++) {
                    s[r][half].x = __shfl_sync(FULL_WARP, own[r][half].x, j, 4);
                    s[r][half].y = MINS ? __shfl_sync(FULL_WARP, own[r][half].y, j, 4) : 0.0f;
                }
                if constexpr (Q8) {
                    uint4 p = q[r][j / 2];
                    decode_bytes(component(p, j % 2 * 2), component(p, j % 2 * 2 + 1), f[r]);
                } else {
                    u32 high0 = 0, high1 = 0;
                    if constexpr (F::ABOVE == 4) {
                        high0 = (__shfl_sync(FULL_WARP, above[r].x, j, 4) >> (8 * t) & 255u) * 0x10010u;
                        high1 = high0;
                    }
                    if constexpr (F::ABOVE == 8) {
                        u32 both = high[r][j % 2] >> (j / 2 * 16);
                        high0 = (both & 255u) * 0x10010u, high1 = (both >> 8 & 255u) * 0x10010u;
                    }
                    decode_nibbles(word[r][j], high0, high1, f[r]);
                }
            }
            u32 a[2][4] = {{f[0][0], f[1][0], f[0][1], f[1][1]}, {f[0][2], f[1][2], f[0][3], f[1][3]}};
#pragma unroll
            for (u32 n = 0; n < TILES; n++) {
                uint4 b = shared16(x + j * 64 + n * x_tile);
                float part[Q6 ? 2 : 1][4] = {};
                mma16816<T>(part[0], a[0], b.x, b.y);
                mma16816<T>(part[Q6 ? 1 : 0], a[1], b.z, b.w);
#pragma unroll
                for (u32 half = 0; half < (Q6 ? 2 : 1); half++) {
                    float2 sum = make_float2(0.0f, 0.0f);
                    if constexpr (SUMS != 0) sum = shared_pair(sums + (j * SUMS + half) * sums_item + n * sums_tile);
#pragma unroll
                    for (u32 i = 0; i < 4; i++) {
                        add_part(acc[n][i], part[half][i], s[i / 2][half], i % 2 ? sum.y : sum.x);
                    }
                }
            }
        }
    }
};

// The diagonal way costs less for up to four tokens.
template <typename W, typename T, int R, bool QUANTISED> struct StageOf {
    typedef PlainStage<W, T> type;
};
template <typename W, typename T, int R> struct StageOf<W, T, R, true> {
    typedef QuantStage<W, T, R <= 4> type;
};

// ---- x: normalised, in the order in which the weights' registers hold k, and its sums ----

// How a block's shared memory is divided, in bytes from its start.
struct Layout {
    u32 x_stride, zeros, sums, sums_row, sums_item, red, red_size, partial;
};

// Octet i of a row: to its place among the 16 octets of a step, and elements of it to theirs.
template <typename S, typename W> DEVICE u32 place_octet(u32 i) {
    if (!S::DIAGONAL) return i;
    if (Same<W, q8_0>::value) return (i & ~7u) + (i & 1) * 4 + (i >> 1 & 3);
    return (i & ~15u) + (i & 3) * 4 + (i >> 2 & 3);
}
template <typename S, typename W> DEVICE uint4 order_octet(uint4 v) {
    if (!WeightTraits<W>::quantised || Same<W, nf4>::value) return v;
    if (!S::DIAGONAL && Same<W, q6_k>::value) { // 0, 2 | 1, 3 | 4, 6 | 5, 7, as q8_0
        return make_uint4(__byte_perm(v.x, v.y, 0x5410), __byte_perm(v.x, v.y, 0x7632), __byte_perm(v.z, v.w, 0x5410),
                          __byte_perm(v.z, v.w, 0x7632));
    }
    if (Same<W, q8_0>::value) { // bytes 0, 2 | 1, 3
        return make_uint4(__byte_perm(v.x, v.y, 0x5410), __byte_perm(v.x, v.y, 0x7632), __byte_perm(v.z, v.w, 0x5410),
                          __byte_perm(v.z, v.w, 0x7632));
    }
    // nibbles 0, 4 | 1, 5 | 2, 6 | 3, 7
    return make_uint4(__byte_perm(v.x, v.z, 0x5410), __byte_perm(v.x, v.z, 0x7632), __byte_perm(v.y, v.w, 0x5410),
                      __byte_perm(v.y, v.w, 0x7632));
}

template <typename T> DEVICE float square_sum(uint4 v) {
    u32 words[4] = {v.x, v.y, v.z, v.w};
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 p = unpack2<T>(words[i]);
        sum += p.x * p.x + p.y * p.y;
    }
    return sum;
}

// Elements [from, from + size) of every live row of x to shared memory. Each row is shared by `team` warps. With a
// norm, each warp leaves its part of the row's sum of squares in squares[row][warp of the team]. bf16 has the range to
// be multiplied by 1 / rms in the epilogue, f16 has not: there a first pass over the whole row computes it.
template <typename S, typename W, typename T>
DEVICE void stage_x(const RowsArgs& a, const Layout& l, u8* shared, float (&squares)[16][16], u32 log_team, u32 live,
                    u32 from, u32 size) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 team = 1u << log_team, member = warp & (team - 1), teams = (blockDim.x / 32) >> log_team;
    const u32 k = a.part[0].w.k;
    const bool ahead = Same<T, f16>::value;
    if (S::DIAGONAL && threadIdx.x < 16) ((uint4*)(shared + l.zeros))[threadIdx.x] = make_uint4(0, 0, 0, 0);
    if (ahead && a.norm) {
        for (u32 row = warp >> log_team; row < live; row += teams) {
            const T* x = (const T*)a.x + (size_t)row * a.ldx;
            float sum = 0.0f;
            for (u32 e = (member * 32 + lane) * 8; e < k; e += team * 256) sum += square_sum<T>(*(const uint4*)(x + e));
            sum = warp_sum(sum);
            if (lane == 0) squares[row][member] = sum;
        }
        __syncthreads();
    }
    for (u32 row = warp >> log_team; row < live; row += teams) {
        const T* x = (const T*)a.x + (size_t)row * a.ldx;
        float scale = 1.0f, sum = 0.0f;
        if (ahead && a.norm) {
            for (u32 i = 0; i < team; i++) sum += squares[row][i];
            scale = 1.0f / sqrtf(sum / (float)k + a.eps);
            sum = 0.0f;
        }
        // `size` is a multiple of 128: whole quads of lanes have work or none, those past k write zeros. Four loads at
        // a time.
        for (u32 i0 = member * 32 + lane; i0 < size / 8; i0 += team * 128) {
            uint4 loaded[4];
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                u32 i = i0 + j * team * 32, e = from + i * 8;
                loaded[j] = i < size / 8 && e < k ? *(const uint4*)(x + e) : make_uint4(0, 0, 0, 0);
            }
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                u32 i = i0 + j * team * 32, e = from + i * 8;
                if (i >= size / 8) break;
                uint4 v = loaded[j];
                if (a.norm) {
                    float4 n0 = make_float4(0, 0, 0, 0), n1 = n0;
                    if (e < k) n0 = *(const float4*)(a.norm + e), n1 = *(const float4*)(a.norm + e + 4);
                    if (!ahead) sum += square_sum<T>(v);
                    float2 p0 = unpack2<T>(v.x), p1 = unpack2<T>(v.y), p2 = unpack2<T>(v.z), p3 = unpack2<T>(v.w);
                    v.x = pack2<T>(p0.x * scale * n0.x, p0.y * scale * n0.y);
                    v.y = pack2<T>(p1.x * scale * n0.z, p1.y * scale * n0.w);
                    v.z = pack2<T>(p2.x * scale * n1.x, p2.y * scale * n1.y);
                    v.w = pack2<T>(p3.x * scale * n1.z, p3.y * scale * n1.w);
                }
                uint4 ordered = order_octet<S, W>(v);
                u8* to = shared + row * l.x_stride;
                if constexpr (!S::DIAGONAL && Same<W, q6_k>::value) {
                    // Both fours to the lanes that hold them; upper halves of groups to the second eight bytes.
                    to += (i >> 2) * 64 + (i & 1) * 32 + (i & 2) * 4;
                    *(uint2*)to = make_uint2(ordered.x, ordered.y);
                    *(uint2*)(to + 16) = make_uint2(ordered.z, ordered.w);
                } else {
                    *(uint4*)(to + place_octet<S, W>(i) * 16) = ordered;
                }
                if constexpr (S::SUMS != 0) {
                    float2 p0 = unpack2<T>(v.x), p1 = unpack2<T>(v.y), p2 = unpack2<T>(v.z), p3 = unpack2<T>(v.w);
                    float all = ((p0.x + p0.y) + (p1.x + p1.y)) + ((p2.x + p2.y) + (p3.x + p3.y));
                    u32 quad = 15u << (lane & 28);
                    all += __shfl_xor_sync(quad, all, 1);
                    if (S::SUMS == 1) all += __shfl_xor_sync(quad, all, 2);
                    if (lane % (4 / S::SUMS) == 0) {
                        *(float*)(shared + l.sums + row * l.sums_row + i / (4 / S::SUMS) * l.sums_item) = all;
                    }
                }
            }
        }
        if (!ahead && a.norm) {
            sum = warp_sum(sum);
            if (lane == 0) squares[row][member] = from == 0 ? sum : squares[row][member] + sum;
        }
    }
}

// ---- Tiles ----

// The sums of a tile leave a warp as red[token][20] (16 rows of w; 20 spreads the banks).
#define RED_ROW 20

// Adds up what the warps left of a tile and writes the outputs first, first + step, .. of its 16 * live (one a lane).
// With more than one chunk of x, `partial` keeps the sums until the last.
template <typename T>
DEVICE void finish_tile(const RowsArgs& a, u32 tile, const float* red, u32 red_warp, float* partial, bool is_first,
                        bool is_last, u32 live, const float (&squares)[16][16], u32 team, u32 first, u32 step) {
    const u32 warps = blockDim.x / 32;
    Tile at = find_tile(a, tile);
    const RowsPart& p = a.part[at.part];
    // Gate and up of the same row are 8 apart, in one half-warp.
#pragma unroll 1
    for (u32 i = first; i < live * 16; i += step) {
        u32 token = i / 16, row = i % 16;
        const float* from = red + token * RED_ROW + row;
        float v = 0.0f;
#pragma unroll 1
        for (u32 w = 0; w < warps; w += 4) {
            float v0 = from[0], v1 = from[red_warp], v2 = from[2 * red_warp], v3 = from[3 * red_warp];
            v += (v0 + v1) + (v2 + v3);
            from += 4 * red_warp;
        }
        if (partial) {
            if (!is_first) v += partial[i];
            if (!is_last) {
                partial[i] = v;
                continue;
            }
        }
        if (!Same<T, f16>::value && a.norm) {
            float sum = 0.0f;
#pragma unroll 1
            for (u32 w = 0; w < team; w++) sum += squares[token][w];
            v *= 1.0f / sqrtf(sum / (float)p.w.k + a.eps);
        }
        if (a.act) {
            const RowsPart& up = a.part[1];
            u32 n = at.row + row % 8;
            const float* bias = row < 8 ? p.bias : up.bias;
            if (bias && n < p.w.n) v += bias[n];
            if (a.slots && n < p.w.n) v += adapter_term<T>(a, row / 8, token, n);
            float other = __shfl_down_sync(0xffffu << (threadIdx.x & 16), v, 8, 16);
            if (row < 8 && n < p.w.n) {
                store_out<T>(a, p, token, n, (a.act == 1 ? activate<0>(v) : activate<1>(v)) * other);
            }
        } else if (at.row + row < p.w.n) {
            u32 n = at.row + row;
            if (p.bias) v += p.bias[n];
            if (a.slots) v += adapter_term<T>(a, at.part, token, n);
            store_out<T>(a, p, token, n, v);
        }
    }
}

// Barriers in shared memory on which arriving and waiting are apart: a phase ends when `arrivals` have come.
DEVICE void phase_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
DEVICE void phase_arrive(u32 barrier) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(barrier) : "memory");
}
DEVICE void phase_wait(u32 barrier, u32 parity) {
    u32 done;
    do {
#if __CUDA_ARCH__ >= 900
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
#else
        asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
#endif
    } while (!done);
}

// Steps that a warp loads ahead: as many as 128 registers hold without spills.
template <typename W, int R> struct Depth {
    static const bool LARGE = Same<W, q6_k>::value || Same<W, q8_0>::value; // steps of about 2 KB
    static const int value = !WeightTraits<W>::quantised || (R <= 4 && !LARGE) ? 3 : 2;
};

template <typename W, typename T, int R> DEVICE void matmul_rows(const RowsArgs& a) {
    typedef typename StageOf<W, T, R, WeightTraits<W>::quantised>::type S;
    const int AHEAD = Depth<W, R>::value;
    const int TILES = S::DIAGONAL ? R / 2 : (R + 7) / 8; // of eight columns of B
    extern __shared__ uint4 shared_words[];
    __shared__ float squares[16][16];
    // Tiles' sums go round BUFFERS places, so that warps need not wait for each other at the end of every tile.
    const u32 BUFFERS = R <= 4 ? 4 : 2;
    __shared__ u64 phases[2 * BUFFERS];
    u8* shared = (u8*)shared_words;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, g = lane / 4, t = lane % 4;
    const u32 k = a.part[0].w.k;
    const u32 x_rows = R == 2 && a.rows == 1 ? 1 : R;
    const u32 tiles = tiles_of(a, 0) + tiles_of(a, 1) + tiles_of(a, 2);
    const u32 all_steps = (k + S::STEP - 1) / S::STEP;
    const u32 whole = (k + 127) / 128 * 128, chunk = min(a.chunk, whole);
    // A block has 4, 8 or 16 warps.
    const u32 log_warps = 31 - __clz(warps), log_rows = 31 - __clz(x_rows);
    const u32 log_team = max(log_warps, log_rows) - log_rows; // warps that share a row of x

    Layout l;
    l.x_stride = chunk * 2 + 64; // 64: two tokens' halves of a bank row do not meet
    l.zeros = x_rows * l.x_stride;
    l.sums = l.zeros + 256;
    // Diagonal: [token][group], the lane reads two groups; else [group][token], it reads two tokens.
    l.sums_row = S::DIAGONAL ? chunk / 32 * S::SUMS * 4 : 4;
    l.sums_item = S::DIAGONAL ? 4 : x_rows * 4;
    l.red = l.sums + x_rows * (chunk / 32) * S::SUMS * 4;
    const u32 red_warp = x_rows * RED_ROW;
    l.red_size = warps * red_warp * 4;
    l.partial = l.red + BUFFERS * l.red_size;

    // This lane's x: diagonal, lanes off the diagonal read zeros.
    const u32 base = shared_address(shared);
    u32 x0, x_step, x_tile, sums0, sums_tile;
    if (S::DIAGONAL) {
        bool on = t == g % 4;
        x0 = on ? base + min(g / 4, x_rows - 1) * l.x_stride + t * 16 : base + l.zeros;
        x_step = on ? S::STEP * 2 : 0;
        x_tile = on ? 2 * l.x_stride : 0;
        sums0 = base + l.sums + min(t / 2, x_rows - 1) * l.sums_row + t % 2 * 8 * S::SUMS;
        sums_tile = 2 * l.sums_row;
    } else {
        x0 = base + min(g, x_rows - 1) * l.x_stride + t * 16;
        x_step = S::STEP * 2;
        x_tile = 8 * l.x_stride;
        sums0 = base + l.sums + t * 8;
        sums_tile = 32;
    }
    const u32 sums_step = 4 * S::SUMS * l.sums_item;

    const u32 filled = shared_address(phases), emptied = filled + 8 * BUFFERS;
    u32 live = 0, finishers = 0, count = 0; // count: tiles so far, of all chunks
    for (u32 from = 0; from < k; from += chunk) {
        const u32 size = min(chunk, whole - from);
        const u32 first_step = from / S::STEP, steps = min(all_steps - first_step, size / S::STEP);
        const u32 turns = (steps + warps - 1) >> log_warps; // steps of a warp for a tile

        // The next step to load.
        u32 load_tile = blockIdx.x, load_turn = 0, load_row = 0, load_n = 0;
        Source source[2];
        S ring[AHEAD];
        const u32 same_stride = a.part[0].w.stride; // of all the launch's weights
        const u32 tile_rows = a.act ? 8 : 16, row_step = gridDim.x * tile_rows;
        auto place = [&]() {
            Tile at = find_tile(a, min(load_tile, tiles - 1));
            const WeightView& w = a.part[at.part].w;
            const WeightView& second = a.act ? a.part[1].w : w;
            source[0] = S::source(w, min(at.row + g, w.n - 1));
            source[1] = S::source(second, min(at.row + g + (a.act ? 0 : 8), w.n - 1));
            load_row = at.row, load_n = w.n;
        };
        auto load_next = [&](S& stage) {
            u32 step = load_turn * warps + warp;
            if (load_tile < tiles && step < steps) stage.load(source, first_step + step, t, k);
            if (++load_turn == turns) {
                load_turn = 0;
                load_tile += gridDim.x;
                load_row += row_step;
                // A whole tile of the same weight is a fixed way further.
                if (load_row + tile_rows <= load_n) {
                    S::advance(source[0], row_step, same_stride);
                    S::advance(source[1], row_step, same_stride);
                } else {
                    place();
                }
            }
        };
        place();
#pragma unroll
        for (int i = 0; i < AHEAD; i++) load_next(ring[i]);

        if (from == 0) {
            let_next_start();
            if (a.ready) {
                if (threadIdx.x == 0) await_flag(a.ready);
                __syncthreads();
            } else {
                wait_for_previous();
            }
            live = min(live_rows(a.counts, a.which, a.rows), (u32)R);
        } else {
            __syncthreads(); // the previous chunk is no longer read
        }
        // With few rows none waits to hear how many are live.
        stage_x<S, W, T>(a, l, shared, squares, log_team, R == 2 ? min(a.rows, 2u) : live, from, size);
        if (from == 0) {
            if (live == 0) break;
            finishers = min(warps, (live + 1) / 2); // 32 outputs each
            if (threadIdx.x < BUFFERS) {
                phase_init(filled + 8 * threadIdx.x, warps);
                phase_init(emptied + 8 * threadIdx.x, finishers);
            }
        }
        __syncthreads();

        // Other warps finish other tiles.
        auto finish = [&](u32 which, u32 tile, u32 slot) {
            u32 finisher = (warp - which) & (warps - 1), buffer = which % BUFFERS;
            if (finisher >= finishers) return;
            phase_wait(filled + 8 * buffer, which / BUFFERS & 1);
            const float* red = (const float*)(shared + l.red + buffer * l.red_size);
            float* partial = chunk < whole ? (float*)(shared + l.partial) + slot * x_rows * 16 : nullptr;
            finish_tile<T>(a, tile, red, red_warp, partial, from == 0, from + size >= whole, live, squares,
                           1u << log_team, finisher * 32 + lane, finishers * 32);
            __syncwarp();
            if (lane == 0) phase_arrive(emptied + 8 * buffer);
        };

        float acc[TILES][S::DIAGONAL ? 2 : 4] = {};
        u32 tile = blockIdx.x, turn = 0, slot = 0;
        while (tile < tiles) {
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                if (tile >= tiles) break;
                u32 step = turn * warps + warp;
                if (step < steps) {
                    ring[i].template multiply<TILES>(acc, x0 + step * x_step, x_tile, sums0 + step * sums_step,
                                                     sums_tile, l.sums_item);
                }
                load_next(ring[i]);
                if (++turn == turns) {
                    u32 buffer = count % BUFFERS;
                    if (count >= BUFFERS) phase_wait(emptied + 8 * buffer, (count / BUFFERS - 1) & 1);
                    float* red = (float*)(shared + l.red + buffer * l.red_size);
                    float* own = red + warp * red_warp;
#pragma unroll
                    for (int n = 0; n < TILES; n++) {
                        if constexpr (S::DIAGONAL) {
                            float low = acc[n][0] + __shfl_xor_sync(FULL_WARP, acc[n][0], 1);
                            float high = acc[n][1] + __shfl_xor_sync(FULL_WARP, acc[n][1], 1);
                            u32 token = 2 * n + t / 2;
                            if (token < x_rows) own[token * RED_ROW + g + t % 2 * 8] = t % 2 ? high : low;
                            acc[n][0] = acc[n][1] = 0.0f;
                        } else {
#pragma unroll
                            for (u32 j = 0; j < 4; j++) {
                                u32 token = 8 * n + 2 * t + j % 2;
                                if (token < x_rows) own[token * RED_ROW + g + j / 2 * 8] = acc[n][j];
                                acc[n][j] = 0.0f;
                            }
                        }
                    }
                    __syncwarp();
                    if (lane == 0) phase_arrive(filled + 8 * buffer);
                    // The tile before: by now the other warps are likely to have left their sums of it.
                    if (slot > 0) finish(count - 1, tile - gridDim.x, slot - 1);
                    count++;
                    turn = 0, slot++, tile += gridDim.x;
                }
            }
        }
        finish(count - 1, tile - gridDim.x, slot - 1);
    }
    wait_for_previous(); // whoever waits for this kernel's end relies on those ahead of it having ended
}

// ---- Any k, any T: f32 arithmetic throughout ----

// Octet of x that lies anywhere in a row of k elements; 0 past its end.
template <typename T> DEVICE void load_x8(const T* x, u32 c, u32 k, bool aligned, float (&v)[8]) {
    if (aligned && c + 8 <= k) {
        load8<T>(x + c, v);
    } else {
#pragma unroll
        for (u32 j = 0; j < 8; j++) v[j] = c + j < k ? to_float(x[c + j]) : 0.0f;
    }
}

// A warp owns a row of w (with `act` one of gate and the same of up) and goes over k once for every four tokens.
template <typename W, typename T> DEVICE void matmul_rows_any(const RowsArgs& a) {
    __shared__ float inverse[16];
    const u32 lane = threadIdx.x % 32, warp = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    const u32 k = a.part[0].w.k, octets = (k + 7) / 8;
    const bool aligned = a.ldx % 8 == 0;
    let_next_start();
    wait_for_previous();
    const u32 live = min(live_rows(a.counts, a.which, a.rows), 16u);
    if (a.norm) {
        for (u32 row = 0; row < live; row++) {
            const T* x = (const T*)a.x + (size_t)row * a.ldx;
            float sum = 0.0f;
            for (u32 i = threadIdx.x; i < k; i += blockDim.x) sum += to_float(x[i]) * to_float(x[i]);
            sum = block_sum(sum);
            if (threadIdx.x == 0) inverse[row] = 1.0f / sqrtf(sum / (float)k + a.eps);
        }
        __syncthreads();
    }
    const u32 parts = a.act ? 1 : a.parts;
    u32 all = 0;
    for (u32 p = 0; p < parts; p++) all += a.part[p].w.n;
    for (u32 i = warp; i < all; i += gridDim.x * (blockDim.x / 32)) {
        u32 part = 0, n = i;
        while (n >= a.part[part].w.n) n -= a.part[part++].w.n;
        const RowsPart& p = a.part[part];
        Weight<W> w = {p.w}, up = {a.part[1].w};
        for (u32 first = 0; first < live; first += 4) {
            float acc[4] = {}, acc_up[4] = {};
            for (u32 o = lane; o < octets; o += 32) {
                float v[8], u[8] = {};
                w.load8(n, o, v);
                if (a.act) up.load8(n, o, u);
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    u32 token = min(first + j, live - 1);
                    float x[8];
                    load_x8<T>((const T*)a.x + (size_t)token * a.ldx, o * 8, k, aligned, x);
#pragma unroll
                    for (u32 e = 0; e < 8; e++) {
                        // Rounded to T as the norm's own kernel does.
                        if (a.norm) {
                            float scale = o * 8 + e < k ? a.norm[o * 8 + e] : 0.0f;
                            x[e] = to_float(from_float<T>(x[e] * inverse[token] * scale));
                        }
                        acc[j] = fmaf(v[e], x[e], acc[j]);
                        if (a.act) acc_up[j] = fmaf(u[e], x[e], acc_up[j]);
                    }
                }
            }
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                float sum = warp_sum(acc[j]);
                if (p.bias) sum += p.bias[n];
                bool adapted = a.slots && first + j < live;
                if (adapted) sum += adapter_term<T>(a, part, first + j, n);
                if (a.act) {
                    float other = warp_sum(acc_up[j]);
                    if (a.part[1].bias) other += a.part[1].bias[n];
                    if (adapted) other += adapter_term<T>(a, 1, first + j, n);
                    sum = (a.act == 1 ? activate<0>(sum) : activate<1>(sum)) * other;
                }
                if (lane == 0 && first + j < live) store_out<T>(a, p, first + j, n, sum);
            }
        }
    }
}

#define ROWS_KERNEL(name, W, T, R)                                                                                    \
    extern "C" __global__ void __launch_bounds__(512, 1) name(const __grid_constant__ RowsArgs a) {                   \
        matmul_rows<W, T, R>(a);                                                                                      \
    }
#define KERNEL2(name, W, T) ROWS_KERNEL(name, W, T, 2)
#define KERNEL4(name, W, T) ROWS_KERNEL(name, W, T, 4)
#define KERNEL8(name, W, T) ROWS_KERNEL(name, W, T, 8)
#define KERNEL16(name, W, T) ROWS_KERNEL(name, W, T, 16)
// The mma kernels are for 16-bit activations alone.
#define MMA_f32 0
#define MMA_bf16 1
#define MMA_f16 1
#define MMA_OF_(T) MMA_##T
#define MMA_OF(T) MMA_OF_(T)
#ifndef ACT_ONLY
#define INSTANTIATE_16BIT(KERNEL, name)                                                                               \
    INSTANTIATE_WEIGHTS(KERNEL, name, bf16)                                                                           \
    INSTANTIATE_WEIGHTS(KERNEL, name, f16)
#elif MMA_OF(ACT_ONLY)
#define INSTANTIATE_16BIT(KERNEL, name) INSTANTIATE_WEIGHTS(KERNEL, name, ACT_ONLY)
#else
#define INSTANTIATE_16BIT(KERNEL, name)
#endif
INSTANTIATE_16BIT(KERNEL2, matmul_rows2)
INSTANTIATE_16BIT(KERNEL4, matmul_rows4)
INSTANTIATE_16BIT(KERNEL8, matmul_rows8)
INSTANTIATE_16BIT(KERNEL16, matmul_rows16)
#define KERNEL_ANY(name, W, T)                                                                                        \
    extern "C" __global__ void __launch_bounds__(256, 2) name(const __grid_constant__ RowsArgs a) {                   \
        matmul_rows_any<W, T>(a);                                                                                     \
    }
INSTANTIATE_PAIRS(KERNEL_ANY, matmul_rows_any)
