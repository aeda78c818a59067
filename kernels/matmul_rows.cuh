// What the kernels for few rows of x share (matmul_rows.cu, matmul_dots.cu): their argument, how quantised weights are
// stored, tiles of 16 rows of w, outputs. Up to three weights share x; with `act` there are two, gate and up, of which
// a tile has 8 rows each.
#pragma once
#include "activation.cuh"
#include "decode.cuh"
#include "mma.cuh"

struct RowsPart {
    WeightView w;
    const float* bias;
    const void* residual;
    void* out;
    u32 ldo;
    u32 pad;
};

struct RowsArgs {
    RowsPart part[3];
    const void* x;
    const float* norm;
    const u32* counts;
    u32 which, rows, ldx, parts;
    float eps;
    u32 act, out_f32, chunk;
    // Adapters of rows of their own, where `slots` is given: to part p's result scales[slot] · u[p] · b[p][slot]ᵀ is added.
    // u T [rows, rank], b T [slots · n, rank] or null; rank a multiple of 8. The kernel ahead computes u. Where it raises
    // `ready`, matmul_rows waits for that flag before it reads x, and for the kernel's end only before it reads u.
    const u32* slots;
    const float* scales;
    const void* u[3];
    const void* b[3];
    const u32* ready;
    u32 rank, pad;
};

// What the token's adapter adds to element n of a part's result.
template <typename T> DEVICE float adapter_term(const RowsArgs& a, u32 part, u32 token, u32 n) {
    u32 slot = a.slots[token];
    if (slot == NO_SLOT || !a.b[part]) return 0.0f;
    const T* u = (const T*)a.u[part] + token * a.rank;
    const T* b = (const T*)a.b[part] + ((size_t)slot * a.part[part].w.n + n) * a.rank;
    float sum = 0.0f;
#pragma unroll 1
    for (u32 r = 0; r < a.rank; r += 8) {
        float v[8], w[8];
        load8<T>(b + r, w);
        wait_for_previous();
        load8<T>(u + r, v);
#pragma unroll
        for (u32 i = 0; i < 8; i++) sum = fmaf(v[i], w[i], sum);
    }
    return sum * a.scales[slot];
}

DEVICE uint4 shared16(u32 address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address));
    return v;
}
DEVICE float f16_low(u32 word) {
    f16 h;
    h.bits = (u16)word;
    return to_float(h);
}

template <typename A, typename B> struct Same {
    static const bool value = false;
};
template <typename A> struct Same<A, A> {
    static const bool value = true;
};

// How a quantised type is stored. ABOVE: bytes of a group's bits above the fourth. SCALE: what stands in the scale
// plane.
enum { HALF_D, PAIR_DM, K_SCALES, Q6_SCALES, ABSMAX };
template <typename W> struct Format;
#define FORMAT(W, above, scale)                                                                                       \
    template <> struct Format<W> {                                                                                    \
        static const int ABOVE = above, SCALE = scale;                                                                \
    };
FORMAT(q4_0, 0, HALF_D)
FORMAT(q4_1, 0, PAIR_DM)
FORMAT(q5_0, 4, HALF_D)
FORMAT(q5_1, 4, PAIR_DM)
FORMAT(q8_0, 0, HALF_D)
FORMAT(q4_k, 0, K_SCALES)
FORMAT(q5_k, 4, K_SCALES)
FORMAT(q6_k, 8, Q6_SCALES)
FORMAT(nf4, 0, ABSMAX)

DEVICE u32 tiles_of(const RowsArgs& a, u32 part) {
    if (part >= (a.act ? 1u : a.parts)) return 0;
    return a.act ? (a.part[part].w.n + 7) / 8 : (a.part[part].w.n + 15) / 16;
}

// A tile's weight and first row.
struct Tile {
    u32 part, row;
};
DEVICE Tile find_tile(const RowsArgs& a, u32 tile) {
    Tile at = {0, tile};
    u32 first = tiles_of(a, 0), second = tiles_of(a, 1);
    if (at.row >= first) {
        at.part = 1, at.row -= first;
        if (at.row >= second) at.part = 2, at.row -= second;
    }
    at.row <<= a.act ? 3 : 4;
    return at;
}

template <typename T> DEVICE void store_out(const RowsArgs& a, const RowsPart& p, u32 token, u32 n, float v) {
    size_t at = (size_t)token * p.ldo + n;
    if (p.residual) v += to_float(((const T*)p.residual)[at]);
    if (a.out_f32) ((float*)p.out)[at] = v;
    else ((T*)p.out)[at] = from_float<T>(v);
}
