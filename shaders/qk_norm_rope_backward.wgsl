// Gradients through rotation and norm of each head: rotate dout back (the transpose of the rotation), then the
// backward of the norm as in rms_norm_backward.wgsl. q, dq_out, dq [rows, heads · d]; k, dk_out, dk [rows, kv · d].
// One workgroup a head of q or k. Launched by launch_attention.rs.

struct Params {
    rows: u32, live: u32, row0: u32, heads: u32,
    kv: u32, d: u32, rope_dim: u32, eps: f32,
    rope_rows: u32, pad0: u32, pad1: u32, pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind q array<f32>
#bind k array<f32>
#bind positions array<u32>
#bind rope array<f32>
#bind dq_out array<f32>
#bind dk_out array<f32>
#bind dq array<f32>
#bind dk array<f32>
#if Q_NORM
#bind q_norm array<f32>
#endif
#if K_NORM
#bind k_norm array<f32>
#endif
#include "common.wgsl"
#include "live.wgsl"
#include "reduce.wgsl"

fn input(is_q: bool, i: u32) -> f32 {
    if is_q { return q[i]; }
    return k[i];
}

fn upstream(is_q: bool, i: u32) -> f32 {
    if is_q { return dq_out[i]; }
    return dk_out[i];
}

// Element i of the gradient before the rotation, times the norm's weight.
fn turned(is_q: bool, base: u32, angle: u32, i: u32) -> f32 {
    var v = upstream(is_q, base + i);
    let half = p.rope_dim / 2u;
    if i < p.rope_dim {
        let first = i < half;
        let j = select(i - half, i + half, first);
        let other = upstream(is_q, base + j);
        let pair = angle + 2u * select(i - half, i, first);
        v = v * rope[pair] + select(-other, other, first) * rope[pair + 1u];
    }
#if Q_NORM
    if is_q { v *= q_norm[i]; }
#endif
#if K_NORM
    if !is_q { v *= k_norm[i]; }
#endif
    return v;
}

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let parts = p.heads + p.kv;
    let group = group_index(ids);
    let t = group / parts;
    let h = group % parts;
    if t >= live_rows() {
        return;
    }
    let is_q = h < p.heads;
    let base = select((t * p.kv + h - p.heads) * p.d, (t * p.heads + h) * p.d, is_q);
    let angle = min(positions[t], p.rope_rows - 1u) * p.rope_dim;
    var s = 1.0;
    var back = 0.0;
#if NORMS
    var normed = false;
#if Q_NORM
    normed = normed || is_q;
#endif
#if K_NORM
    normed = normed || !is_q;
#endif
    if normed {
        var squares = 0.0;
        var product = 0.0;
        for (var i = ids.lid; i < p.d; i += ${WG}u) {
            let v = input(is_q, base + i);
            squares = fma(v, v, squares);
            product = fma(v, turned(is_q, base, angle, i), product);
        }
        s = 1.0 / sqrt(group_sum(ids, squares) / f32(p.d) + p.eps);
        back = group_sum(ids, product) * s * s * s / f32(p.d);
    }
#endif
    for (var i = ids.lid; i < p.d; i += ${WG}u) {
        let v = s * turned(is_q, base, angle, i) - back * input(is_q, base + i);
        if is_q { dq[base + i] = v; } else { dk[base + i] = v; }
    }
}
