// Weights of every type, eight consecutive elements at a time. The layout (planes of groups of 32 elements)
// is made by src/backend/planes.rs; the formulas are ggml's dequantize_row_*, in the same order of
// operations, and bitsandbytes' of NF4. The includer binds `w` as array<vec4<u32>> and has in its parameters
//   k        elements of a row
//   stride   elements from row to row (plain types)
//   groups   groups of 32 in a row
//   w1..w3   where planes 1..3 start, in words
// NIBBLES: a type with four bits in plane 0; FIFTH: and a fifth in plane 1.
// K_ANY: k is no multiple of 32 (plain types only): elements are loaded one by one and guarded.

struct W8 {
    a: vec4<f32>,
    b: vec4<f32>,
}

fn w_word(i: u32) -> u32 {
    return w[i >> 2u][i & 3u];
}

// The i-th 16-bit half of the plane that starts at word `base`.
fn w_half(base: u32, i: u32) -> u32 {
    return (w_word(base + (i >> 1u)) >> ((i & 1u) * 16u)) & 0xffffu;
}

fn w_f16(base: u32, i: u32) -> f32 {
    return unpack2x16float(w_half(base, i)).x;
}

fn nibbles_low(q: u32) -> vec4<u32> {
    return vec4<u32>(q, q >> 4u, q >> 8u, q >> 12u) & vec4<u32>(15u);
}

fn nibbles_high(q: u32) -> vec4<u32> {
    return vec4<u32>(q >> 16u, q >> 20u, q >> 24u, q >> 28u) & vec4<u32>(15u);
}

// Four fifth bits, at the value 16.
fn fifth(bits: u32) -> vec4<u32> {
    return vec4<u32>(bits << 4u, bits << 3u, bits << 2u, bits << 1u) & vec4<u32>(16u);
}

// Four pairs of upper bits, at the values 16 and 32.
fn upper(bits: u32) -> vec4<u32> {
    return vec4<u32>(bits << 4u, bits << 2u, bits, bits >> 2u) & vec4<u32>(48u);
}

fn bf16_pair(q: u32) -> vec2<f32> {
    return bitcast<vec2<f32>>(vec2<u32>(q << 16u, q & 0xffff0000u));
}

#if K_ANY
// Element k of a row; 0 past its end.
fn w_at(row: u32, k: u32) -> f32 {
    if k >= p.k {
        return 0.0;
    }
    let i = row * p.stride + k;
#if W_F32
    return bitcast<f32>(w_word(i));
#else
#if W_F16
    return w_f16(0u, i);
#else
    return bitcast<f32>(w_half(0u, i) << 16u);
#endif
#endif
}

fn w8(row: u32, octet: u32) -> W8 {
    let k = octet * 8u;
    return W8(vec4<f32>(w_at(row, k), w_at(row, k + 1u), w_at(row, k + 2u), w_at(row, k + 3u)),
              vec4<f32>(w_at(row, k + 4u), w_at(row, k + 5u), w_at(row, k + 6u), w_at(row, k + 7u)));
}
#else
fn w8(row: u32, octet: u32) -> W8 {
#if W_F32
    let i = row * (p.stride >> 2u) + octet * 2u;
    return W8(bitcast<vec4<f32>>(w[i]), bitcast<vec4<f32>>(w[i + 1u]));
#else
#if W_F16
    let q = w[row * (p.stride >> 3u) + octet];
    return W8(vec4<f32>(unpack2x16float(q.x), unpack2x16float(q.y)), vec4<f32>(unpack2x16float(q.z), unpack2x16float(q.w)));
#else
#if W_BF16
    let q = w[row * (p.stride >> 3u) + octet];
    return W8(vec4<f32>(bf16_pair(q.x), bf16_pair(q.y)), vec4<f32>(bf16_pair(q.z), bf16_pair(q.w)));
#else
    let g = row * p.groups + (octet >> 2u);
    let part = octet & 3u;
#if W_Q8_0
    let i = g * 8u + part * 2u;
    let d = vec4<f32>(w_f16(p.w1, g));
    return W8(vec4<f32>(unpack4xI8(w_word(i))) * d, vec4<f32>(unpack4xI8(w_word(i + 1u))) * d);
#else
    return w8_of(w_word(g * 4u + part), g, part, w_scale(g, part));
#endif
#endif
#endif
#endif
}
#endif

#if W_NF4
var<private> nf4: array<f32, 16> = array<f32, 16>(
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
);

fn nf4_four(q: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(nf4[q.x], nf4[q.y], nf4[q.z], nf4[q.w]);
}
#endif

#if NIBBLES
// (d, m) of value = q · d + m for part `part` of group g. ggml's (q − 8) · d is q · d + (−8 d) exactly: the fused
// multiply-add rounds once and −8 d is exact.
fn w_scale(g: u32, part: u32) -> vec2<f32> {
#if W_Q4_0
    let d = w_f16(p.w1, g);
    return vec2<f32>(d, -8.0 * d);
#endif
#if W_Q4_1
    return unpack2x16float(w_word(p.w1 + g));
#endif
#if W_Q5_0
    let d = w_f16(p.w2, g);
    return vec2<f32>(d, -16.0 * d);
#endif
#if W_Q5_1
    return unpack2x16float(w_word(p.w2 + g));
#endif
#if W_Q4_K
    let s = w_half(p.w1, g);
    return unpack2x16float(w_word(p.w2 + (g >> 3u))) * vec2<f32>(f32(s & 255u), -f32(s >> 8u));
#endif
#if W_Q5_K
    let s = w_half(p.w2, g);
    return unpack2x16float(w_word(p.w3 + (g >> 3u))) * vec2<f32>(f32(s & 255u), -f32(s >> 8u));
#endif
#if W_Q6_K
    let s = unpack4xI8(w_half(p.w2, g));
    let d = w_f16(p.w3, g >> 3u) * f32(select(s.x, s.y, part >= 2u));
    return vec2<f32>(d, -32.0 * d);
#endif
#if W_NF4
    // value = table[q] · absmax
    return vec2<f32>(bitcast<f32>(w_word(p.w1 + (g >> 1u))), 0.0);
#endif
}

// Eight elements from their word of nibbles.
fn w8_of(q: u32, g: u32, part: u32, dm: vec2<f32>) -> W8 {
    var low = nibbles_low(q);
    var high = nibbles_high(q);
#if FIFTH
    let h = w_word(p.w1 + g) >> (part * 8u);
    low = low | fifth(h);
    high = high | fifth(h >> 4u);
#endif
#if W_Q6_K
    let h = w_word(p.w1 + g * 2u + (part >> 1u)) >> ((part & 1u) * 16u);
    low = low | upper(h);
    high = high | upper(h >> 8u);
#endif
#if W_NF4
    return W8(nf4_four(low) * dm.x, nf4_four(high) * dm.x);
#else
    return W8(fma(vec4<f32>(low), dm.xxxx, dm.yyyy), fma(vec4<f32>(high), dm.xxxx, dm.yyyy));
#endif
}
#endif
