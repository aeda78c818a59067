// parts[s][i] = Σ back(dout)[i] · x[i] / sqrt(mean(x²) + eps) over the heads of the live rows of chunk s (`chunk` rows each),
// where back undoes the rotation: x, dout [rows, heads · d], parts [count, d]. matmul_sum_parts.wgsl adds the parts up in
// order. One workgroup a part; an invocation owns the elements that it adds to. Launched by launch_weights.rs.

struct Params {
    rows: u32, live: u32, row0: u32, heads: u32,
    d: u32, chunk: u32, eps: f32, rope_dim: u32,
    rope_rows: u32, pad0: u32, pad1: u32, pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind x array<f32>
#bind positions array<u32>
#bind rope array<f32>
#bind dout array<f32>
#bind parts array<f32>
#include "common.wgsl"
#include "live.wgsl"
#include "reduce.wgsl"

// Element i of the gradient before the rotation.
fn turned(base: u32, angle: u32, i: u32) -> f32 {
    let v = dout[base + i];
    if i >= p.rope_dim {
        return v;
    }
    let half = p.rope_dim / 2u;
    let first = i < half;
    let other = dout[base + select(i - half, i + half, first)];
    let pair = angle + 2u * select(i - half, i, first);
    return v * rope[pair] + select(-other, other, first) * rope[pair + 1u];
}

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let part = group_index(ids);
    let first = part * p.chunk;
    if first >= p.rows {
        return;
    }
    let end = min(first + p.chunk, live_rows());
    for (var i = ids.lid; i < p.d; i += ${WG}u) {
        parts[part * p.d + i] = 0.0;
    }
    for (var item = first * p.heads; item < end * p.heads; item++) {
        let base = item * p.d;
        let angle = min(positions[item / p.heads], p.rope_rows - 1u) * p.rope_dim;
        var squares = 0.0;
        for (var i = ids.lid; i < p.d; i += ${WG}u) {
            squares = fma(x[base + i], x[base + i], squares);
        }
        let r = 1.0 / sqrt(group_sum(ids, squares) / f32(p.d) + p.eps);
        for (var i = ids.lid; i < p.d; i += ${WG}u) {
            parts[part * p.d + i] += turned(base, angle, i) * x[base + i] * r;
        }
    }
}
