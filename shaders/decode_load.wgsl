// Loads of weight ${s} of matmul_vec.wgsl: what one lane reads of a row at a time. A unit is 8 elements of a plain type, or a
// group of 32 of a quantised one (planes of src/backend/planes.rs). Loads keep the file's bits: decoding waits until the
// value is used, so that several loads are on their way. Included once for each weight; `decode_value.wgsl` decodes.
// K_ANY: k is no multiple of 32 (plain types only): elements are loaded one by one and guarded.

fn word${s}(i: u32) -> u32 {
    return w${s}[i >> 2u][i & 3u];
}

// The i-th 16-bit half of the plane that starts at word `base`.
fn half${s}(base: u32, i: u32) -> u32 {
    return (word${s}(base + (i >> 1u)) >> ((i & 1u) * 16u)) & 0xffffu;
}

#if K_ANY
fn at${s}(row: u32, k: u32) -> u32 {
    if k >= p.k {
        return 0u;
    }
    let i = row * p.stride + k;
#if W_F32
    return word${s}(i);
#else
#if W_F16
    return bitcast<u32>(unpack2x16float(half${s}(0u, i)).x);
#else
    return half${s}(0u, i) << 16u;
#endif
#endif
}
#endif

fn load${s}(row: u32, u: u32) -> Loaded {
    var l: Loaded;
#if K_ANY
    let k = u * 8u;
    l.q = vec4<u32>(at${s}(row, k), at${s}(row, k + 1u), at${s}(row, k + 2u), at${s}(row, k + 3u));
    l.r = vec4<u32>(at${s}(row, k + 4u), at${s}(row, k + 5u), at${s}(row, k + 6u), at${s}(row, k + 7u));
#else
#if W_F32
    let i = row * (p.stride >> 2u) + u * 2u;
    l.q = w${s}[i];
    l.r = w${s}[i + 1u];
#endif
#if W_F16
    l.q = w${s}[row * (p.stride >> 3u) + u];
#endif
#if W_BF16
    l.q = w${s}[row * (p.stride >> 3u) + u];
#endif
#endif
#if QUANTISED
    let g = row * p.groups + u;
#if W_Q8_0
    l.q = w${s}[g * 2u];
    l.r = w${s}[g * 2u + 1u];
    l.s.x = half${s}(p.parts[${s}].w1, g);
#else
    l.q = w${s}[g];
#endif
#if W_Q4_0
    l.s.x = half${s}(p.parts[${s}].w1, g);
#endif
#if W_Q4_1
    l.s.x = word${s}(p.parts[${s}].w1 + g);
#endif
#if FIFTH
    l.r.x = word${s}(p.parts[${s}].w1 + g);
#endif
#if W_Q5_0
    l.s.x = half${s}(p.parts[${s}].w2, g);
#endif
#if W_Q5_1
    l.s.x = word${s}(p.parts[${s}].w2 + g);
#endif
#if W_Q4_K
    l.s.x = half${s}(p.parts[${s}].w1, g);
    l.s.y = word${s}(p.parts[${s}].w2 + (g >> 3u));
#endif
#if W_Q5_K
    l.s.x = half${s}(p.parts[${s}].w2, g);
    l.s.y = word${s}(p.parts[${s}].w3 + (g >> 3u));
#endif
#if W_Q6_K
    l.r.x = word${s}(p.parts[${s}].w1 + g * 2u);
    l.r.y = word${s}(p.parts[${s}].w1 + g * 2u + 1u);
    l.s.x = half${s}(p.parts[${s}].w2, g);
    l.s.y = half${s}(p.parts[${s}].w3, g >> 3u);
#endif
#if W_NF4
    l.s.x = word${s}(p.parts[${s}].w1 + (g >> 1u));
#endif
#endif
    return l;
}
