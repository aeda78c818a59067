// Decodes what decode_load.wgsl loads, four elements at a time, in as few integer operations as there are: an integer of few bits
// becomes a float where it stands, by putting it under the exponent of 2²³ (whose ulp is 1) and subtracting 2²³ and the
// type's own offset, both exactly. It then is too large by the power of two of its place in the word, which the x values
// have been divided by (`x_scale`). What is left of ggml's formulas is one multiplier a group, and a minimum where the type
// has one (MINIMUM): w = (d · q + m).

struct Loaded {
    // Plane 0; the second half of it, or the upper bits; scales as they lie in memory.
    q: vec4<u32>,
    r: vec4<u32>,
    s: vec2<u32>,
}

#if W_NF4
var<private> nf4: array<f32, 16> = array<f32, 16>(
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022833234, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
);
#endif

fn x_scale() -> vec4<f32> {
#if W_Q8_0
    return vec4<f32>(1.0, 0.00390625, 1.0, 0.00390625);
#endif
#if NIBBLES
#if !W_NF4
    return vec4<f32>(1.0, 0.0625, 0.00390625, 0.000244140625);
#endif
#endif
    return vec4<f32>(1.0);
}

// Powers of two that x_scale divides by.
fn places() -> vec4<f32> {
    return 1.0 / x_scale();
}

// (d, m) of a group; of Q6_K the multipliers of its two halves.
fn scale_of(l: Loaded) -> vec2<f32> {
#if W_Q4_1
    return unpack2x16float(l.s.x);
#endif
#if W_Q5_1
    return unpack2x16float(l.s.x);
#endif
#if W_Q4_K
    return unpack2x16float(l.s.y) * vec2<f32>(f32(l.s.x & 255u), -f32(l.s.x >> 8u));
#endif
#if W_Q5_K
    return unpack2x16float(l.s.y) * vec2<f32>(f32(l.s.x & 255u), -f32(l.s.x >> 8u));
#endif
#if W_Q6_K
    return unpack2x16float(l.s.y).x * vec2<f32>(unpack4xI8(l.s.x).xy);
#endif
#if W_NF4
    return vec2<f32>(bitcast<f32>(l.s.x), 0.0);
#endif
    return vec2<f32>(unpack2x16float(l.s.x).x, 0.0);
}

#for i in 0..VECS
// Elements ${i} · 4 .. of a unit.
fn value${i}(l: Loaded) -> vec4<f32> {
#if K_ANY
#if i == 0
    return bitcast<vec4<f32>>(l.q);
#else
    return bitcast<vec4<f32>>(l.r);
#endif
#else
#if W_F32
#if i == 0
    return bitcast<vec4<f32>>(l.q);
#else
    return bitcast<vec4<f32>>(l.r);
#endif
#endif
#if W_F16
    return vec4<f32>(unpack2x16float(l.q[${i}u * 2u]), unpack2x16float(l.q[${i}u * 2u + 1u]));
#endif
#if W_BF16
    let a = l.q[${i}u * 2u];
    let b = l.q[${i}u * 2u + 1u];
    return bitcast<vec4<f32>>(vec4<u32>(a << 16u, a & 0xffff0000u, b << 16u, b & 0xffff0000u));
#endif
#endif
#if W_Q8_0
#if i < 4
    let q = l.q[${i}u] ^ 0x80808080u;
#else
    let q = l.r[${i}u - 4u] ^ 0x80808080u;
#endif
    let bits = (vec4<u32>(q, q, q >> 16u, q >> 16u) & vec4<u32>(0xffu, 0xff00u, 0xffu, 0xff00u)) | vec4<u32>(0x4b000000u);
    return bitcast<vec4<f32>>(bits) - (8388608.0 + 128.0 * places());
#endif
#if NIBBLES
    let q = l.q[${i}u >> 1u] >> ((${i}u & 1u) * 16u);
#if W_NF4
    return vec4<f32>(nf4[q & 15u], nf4[(q >> 4u) & 15u], nf4[(q >> 8u) & 15u], nf4[(q >> 12u) & 15u]);
#else
    var bits = (vec4<u32>(q) & vec4<u32>(0xfu, 0xf0u, 0xf00u, 0xf000u)) | vec4<u32>(0x4b000000u);
    var offset = 0.0;
#if FIFTH
    let h = l.r.x >> (${i}u * 4u);
    bits |= vec4<u32>(h << 4u, h << 7u, h << 10u, h << 13u) & vec4<u32>(0x10u, 0x100u, 0x1000u, 0x10000u);
#endif
#if W_Q4_0
    offset = 8.0;
#endif
#if W_Q5_0
    offset = 16.0;
#endif
#if W_Q6_K
    let h = l.r[${i}u >> 2u] >> ((${i}u & 3u) * 8u);
    bits |= vec4<u32>(h << 4u, h << 6u, h << 8u, h << 10u) & vec4<u32>(0x30u, 0x300u, 0x3000u, 0x30000u);
    let d = scale_of(l)[${i}u >> 2u];
    return (bitcast<vec4<f32>>(bits) - (8388608.0 + 32.0 * places())) * d;
#else
    return bitcast<vec4<f32>>(bits) - (8388608.0 + offset * places());
#endif
#endif
#endif
}
#endfor
