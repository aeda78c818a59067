// Caches of 8-bit codes (src/program/cache.rs): a row has kv · d codes, then kv scales (f32), then zeros up to 16 bytes.
// An element is code · scale of its head. Codes are turned into T by integer arithmetic, exactly, on every architecture: the
// conversions that sm_89 has go to f16 only, and are no faster.
#pragma once
#include "common.cuh"

// An 8-bit float; signed char stands for the integers.
struct e4m3 {
    u8 bits;
};

template <typename T> struct IsBf16 {
    static const bool value = false;
};
template <> struct IsBf16<bf16> {
    static const bool value = true;
};

// How a launch says what a cache holds (`storage` in launch_attention.rs).
enum CacheKind : u32 { PLAIN_CACHE = 0, I8_CACHE = 1, E4M3_CACHE = 2 };

template <typename C> struct IsCode {
    static const bool value = false;
};
template <> struct IsCode<i8> {
    static const bool value = true;
};
template <> struct IsCode<e4m3> {
    static const bool value = true;
};

// Bytes from row to row of a cache of codes.
DEVICE u64 code_stride(u32 kv, u32 d) { return ((u64)kv * d + 4 * kv + 15) / 16 * 16; }
// The scale of a head in a row that starts at `row`.
DEVICE const float* scale_at(const void* row, u32 kv, u32 d, u32 head) {
    return (const float*)((const u8*)row + (u64)kv * d) + head;
}

// What expand4's numbers have to be multiplied by, besides the scale.
template <typename T, typename C> DEVICE float code_unit() { return 1.0f; }
template <> DEVICE float code_unit<f16, e4m3>() { return 256.0f; }

// Four codes in their order as two registers of T. 8-bit floats keep their fields and change their place: their exponents
// count from 7, those of f16 from 15 (code_unit) and those of bf16 from 127 (times 2^120 here, for a bf16 that small is
// subnormal). An integer becomes the mantissa of a number whose exponent makes the last bit a one.
template <typename T, typename C> DEVICE void expand4(u32 codes, u32& first, u32& second);
template <> DEVICE void expand4<f16, e4m3>(u32 codes, u32& first, u32& second) {
    u32 x = __byte_perm(codes, 0, 0x1404), y = __byte_perm(codes, 0, 0x3424);
    first = ((x >> 1) & 0x3f803f80u) | (x & 0x80008000u);
    second = ((y >> 1) & 0x3f803f80u) | (y & 0x80008000u);
}
template <> DEVICE void expand4<bf16, e4m3>(u32 codes, u32& first, u32& second) {
    u32 x = __byte_perm(codes, 0, 0x1404), y = __byte_perm(codes, 0, 0x3424);
    x = ((x >> 4) & 0x07f007f0u) | (x & 0x80008000u);
    y = ((y >> 4) & 0x07f007f0u) | (y & 0x80008000u);
    const u32 power = 0x7b807b80u, zero = 0x80008000u; // 2^120, -0
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(first) : "r"(x), "r"(power), "r"(zero));
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(second) : "r"(y), "r"(power), "r"(zero));
}
template <> DEVICE void expand4<f16, i8>(u32 codes, u32& first, u32& second) {
    codes ^= 0x80808080u;
    const u32 x = __byte_perm(codes, 0x64646464u, 0x4140), y = __byte_perm(codes, 0x64646464u, 0x4342); // 1024 + 128 + code
    const u32 base = 0x64806480u;                                                                        // 1152
    asm("sub.f16x2 %0, %1, %2;" : "=r"(first) : "r"(x), "r"(base));
    asm("sub.f16x2 %0, %1, %2;" : "=r"(second) : "r"(y), "r"(base));
}
template <> DEVICE void expand4<bf16, i8>(u32 codes, u32& first, u32& second) {
    // Seven bits fit the mantissa of 128 + …; the sign makes the 128 that is taken off a 256.
    const u32 x = __byte_perm(codes, 0x43434343u, 0x4140), y = __byte_perm(codes, 0x43434343u, 0x4342);
    const u32 minus = 0xbf80bf80u; // -1
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(first) : "r"(x & 0xff80ff80u), "r"(minus), "r"(x & 0xff7fff7fu));
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(second) : "r"(y & 0xff80ff80u), "r"(minus), "r"(y & 0xff7fff7fu));
}

// Eight codes times their scale, rounded to T. For bf16 the scale is rounded, too: its error of 2^-9 at most is far below the
// codes', and packed products take half the time. An f16 could be too small for it.
template <typename T, typename C> DEVICE uint4 decode8(uint2 codes, float scale) {
    u32 words[4];
    expand4<T, C>(codes.x, words[0], words[1]);
    expand4<T, C>(codes.y, words[2], words[3]);
    if constexpr (IsBf16<T>::value) {
        const u32 scales = pack2<T>(scale, scale), zero = 0x80008000u; // -0
#pragma unroll
        for (int i = 0; i < 4; i++)
            asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(words[i]) : "r"(words[i]), "r"(scales), "r"(zero));
        return make_uint4(words[0], words[1], words[2], words[3]);
    }
    scale *= code_unit<T, C>();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 pair = unpack2<T>(words[i]);
        words[i] = pack2<T>(pair.x * scale, pair.y * scale);
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}
template <typename T> DEVICE uint4 decode8(uint2 codes, float scale, u32 kind) {
    return kind == I8_CACHE ? decode8<T, i8>(codes, scale) : decode8<T, e4m3>(codes, scale);
}

// One code, before its scale.
DEVICE float code_value(u8 code, u32 kind) {
    if (kind == I8_CACHE) return (float)(i8)code;
    return __uint_as_float((u32)(code & 0x7f) << 20 | (u32)(code & 0x80) << 24) * 1.32922799578491587e36f; // 2^120
}

// The code of a number that is scaled already.
DEVICE u8 encode(float x, u32 kind) {
    if (kind == I8_CACHE) return (u8)(i8)__float2int_rn(fminf(fmaxf(x, -127.0f), 127.0f));
    const float size = fminf(fabsf(x), 448.0f);
    const u32 sign = __float_as_uint(x) >> 24 & 0x80, bits = __float_as_uint(size);
    // Below the normal numbers codes count 512ths; 8 of them are the first normal number.
    if (size < 0.015625f) return (u8)(sign | (u32)__float2int_rn(size * 512.0f));
    return (u8)(sign | (((bits + 0x7ffffu + (bits >> 20 & 1)) >> 20) - (120 << 3)));
}
DEVICE float largest_code(u32 kind) { return kind == I8_CACHE ? 127.0f : 448.0f; }
// What the elements of a head are multiplied by before they are coded, from the largest of them.
DEVICE float code_factor(float top, u32 kind) { return top < 1e-30f ? 0.0f : largest_code(kind) / top; }

DEVICE void store16_shared(u32 to, uint4 x) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}

// Eight elements of a head of a row, as T, to shared memory; zeros where `valid` is false.
template <typename T>
DEVICE void load8_codes(u32 shared, const u8* row, u32 kv, u32 d, u32 head, u32 unit, bool valid, u32 kind) {
    uint4 x = make_uint4(0, 0, 0, 0);
    if (valid) x = decode8<T>(*(const uint2*)(row + head * d + unit * 8), *scale_at(row, kv, d, head), kind);
    store16_shared(shared, x);
}
