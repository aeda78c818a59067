// With s = 1 / sqrt(mean(x²) + eps):  dx (+)= s · w · dy − x · s³ / k · Σ(x · w · dy).
// x, dy, dx [rows, k], weight [k]. ACCUMULATE adds to dx. One workgroup a row. Launched by launch_rows.rs.

struct Params {
    rows: u32, live: u32, row0: u32, k: u32,
    eps: f32, pad0: u32, pad1: u32, pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind x array<f32>
#bind weight array<f32>
#bind dy array<f32>
#bind dx array<f32>
#include "common.wgsl"
#include "live.wgsl"
#include "reduce.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let t = group_index(ids);
    if t >= live_rows() {
        return;
    }
    let base = t * p.k;
    var squares = 0.0;
    var product = 0.0;
    for (var c = ids.lid; c < p.k; c += ${WG}u) {
        let v = x[base + c];
        squares = fma(v, v, squares);
        product = fma(v, weight[c] * dy[base + c], product);
    }
    let s = 1.0 / sqrt(group_sum(ids, squares) / f32(p.k) + p.eps);
    let back = group_sum(ids, product) * s * s * s / f32(p.k);
    for (var c = ids.lid; c < p.k; c += ${WG}u) {
        let v = s * weight[c] * dy[base + c] - x[base + c] * back;
#if ACCUMULATE
        dx[base + c] += v;
#else
        dx[base + c] = v;
#endif
    }
}
