// For each row t and head: q and k normalised over the head (Q_NORM, K_NORM), rotated, and written; k and v
// to row slots[t] of the caches where SLOTS, else k to row t. One workgroup a head of q, k or v.
// q [rows, heads · d], k, v [rows, kv · d], rope [positions, rope_dim] of (cos, sin); element i of the first
// rope_dim / 2 turns with element i + rope_dim / 2, the rest passes through.
// KV_F16: caches hold f16, two to a word: d and rope_dim / 2 are even. KV_CODES: 8-bit codes and scales (codes.wgsl): d is a
// multiple of 4. Launched by launch_attention.rs.

struct Params {
    rows: u32, live: u32, row0: u32, heads: u32,
    kv: u32, d: u32, rope_dim: u32, eps: f32,
    cache_rows: u32, rope_rows: u32, stride: u32, pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind q array<f32>
#bind k array<f32>
#bind positions array<u32>
#bind rope array<f32>
#bind q_out array<f32>
#if KV_WORDS
#bind k_out array<u32>
#else
#bind k_out array<f32>
#endif
#if SLOTS
#bind slots array<u32>
#bind v array<f32>
#if KV_WORDS
#bind v_out array<u32>
#else
#bind v_out array<f32>
#endif
#endif
#if Q_NORM
#bind q_norm array<f32>
#endif
#if K_NORM
#bind k_norm array<f32>
#endif
#include "common.wgsl"
#include "live.wgsl"
#include "reduce.wgsl"
#if KV_CODES
#include "codes.wgsl"
#endif

fn q_factor(i: u32) -> f32 {
#if Q_NORM
    return q_norm[i];
#else
    return 1.0;
#endif
}

fn k_factor(i: u32) -> f32 {
#if K_NORM
    return k_norm[i];
#else
    return 1.0;
#endif
}

// Element i of the head after norm and rotation.
fn turned(is_q: bool, base: u32, scale: f32, angle: u32, i: u32) -> f32 {
    let half = p.rope_dim / 2u;
    var own = 0.0;
    if is_q { own = q[base + i] * scale * q_factor(i); } else { own = k[base + i] * scale * k_factor(i); }
    if i >= p.rope_dim {
        return own;
    }
    let first = i < half;
    let j = select(i - half, i + half, first);
    var other = 0.0;
    if is_q { other = q[base + j] * scale * q_factor(j); } else { other = k[base + j] * scale * k_factor(j); }
    let pair = angle + 2u * select(i - half, i, first);
    return own * rope[pair] + select(other, -other, first) * rope[pair + 1u];
}

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
#if SLOTS
    let parts = p.heads + 2u * p.kv;
#else
    let parts = p.heads + p.kv;
#endif
    let group = group_index(ids);
    let t = group / parts;
    let h = group % parts;
    if t >= live_rows() {
        return;
    }
    let is_q = h < p.heads;
#if SLOTS
    if h >= p.heads + p.kv {
        let g = h - p.heads - p.kv;
        let start = (t * p.kv + g) * p.d;
        let to = (slots[t] * p.kv + g) * p.d;
        if slots[t] >= p.cache_rows {
            return;
        }
#if KV_CODES
        var top = 0.0;
        for (var i = ids.lid; i < p.d; i += ${WG}u) {
            top = max(top, abs(v[start + i]));
        }
        top = group_max(ids, top);
        let factor = factor_of(top);
        for (var i = ids.lid * 4u; i < p.d; i += ${WG}u * 4u) {
            var word = 0u;
            for (var n = 0u; n < 4u; n++) {
                word |= encode(v[start + i + n] * factor) << (8u * n);
            }
            v_out[slots[t] * p.stride + (g * p.d + i) / 4u] = word;
        }
        if ids.lid == 0u {
            v_out[slots[t] * p.stride + p.kv * p.d / 4u + g] = bitcast<u32>(top / largest_code());
        }
#else
#if KV_F16
        for (var i = ids.lid * 2u; i < p.d; i += ${WG}u * 2u) {
            v_out[(to + i) / 2u] = pack2x16float(vec2<f32>(v[start + i], v[start + i + 1u]));
        }
#else
        for (var i = ids.lid; i < p.d; i += ${WG}u) {
            v_out[to + i] = v[start + i];
        }
#endif
#endif
        return;
    }
#endif
    var base = (t * p.heads + h) * p.d;
    if !is_q {
        base = (t * p.kv + h - p.heads) * p.d;
    }
    var scale = 1.0;
#if NORMS
    var normed = false;
#if Q_NORM
    normed = normed || is_q;
#endif
#if K_NORM
    normed = normed || !is_q;
#endif
    if normed {
        var sum = 0.0;
        for (var i = ids.lid; i < p.d; i += ${WG}u) {
            var e = 0.0;
            if is_q { e = q[base + i]; } else { e = k[base + i]; }
            sum = fma(e, e, sum);
        }
        scale = 1.0 / sqrt(group_sum(ids, sum) / f32(p.d) + p.eps);
    }
#endif
    let angle = min(positions[t], p.rope_rows - 1u) * p.rope_dim;
    if is_q {
        for (var i = ids.lid; i < p.d; i += ${WG}u) {
            q_out[base + i] = turned(true, base, scale, angle, i);
        }
        return;
    }
#if SLOTS
    if slots[t] >= p.cache_rows {
        return;
    }
    let to = (slots[t] * p.kv + h - p.heads) * p.d;
#else
    let to = base;
#endif
#if KV_CODES
    var top = 0.0;
    for (var i = ids.lid; i < p.d; i += ${WG}u) {
        top = max(top, abs(turned(false, base, scale, angle, i)));
    }
    top = group_max(ids, top);
    let factor = factor_of(top);
    let g = h - p.heads;
    for (var i = ids.lid * 4u; i < p.d; i += ${WG}u * 4u) {
        var word = 0u;
        for (var n = 0u; n < 4u; n++) {
            word |= encode(turned(false, base, scale, angle, i + n) * factor) << (8u * n);
        }
        k_out[slots[t] * p.stride + (g * p.d + i) / 4u] = word;
    }
    if ids.lid == 0u {
        k_out[slots[t] * p.stride + p.kv * p.d / 4u + g] = bitcast<u32>(top / largest_code());
    }
#else
#if KV_F16
    for (var i = ids.lid * 2u; i < p.d; i += ${WG}u * 2u) {
        let pair = vec2<f32>(turned(false, base, scale, angle, i), turned(false, base, scale, angle, i + 1u));
        k_out[(to + i) / 2u] = pack2x16float(pair);
    }
#else
    for (var i = ids.lid; i < p.d; i += ${WG}u) {
        k_out[to + i] = turned(false, base, scale, angle, i);
    }
#endif
#endif
}
