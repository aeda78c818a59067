// out = x / sqrt(mean(x²) + eps) · weight: x, out [rows, k], weight [k]. One workgroup a row.
// Launched by launch_rows.rs.

struct Params {
    rows: u32, live: u32, row0: u32, k: u32,
    eps: f32, pad0: u32, pad1: u32, pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind x array<f32>
#bind weight array<f32>
#bind out array<f32>
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
    var sum = 0.0;
    for (var c = ids.lid; c < p.k; c += ${WG}u) {
        let v = x[base + c];
        sum = fma(v, v, sum);
    }
    let scale = 1.0 / sqrt(group_sum(ids, sum) / f32(p.k) + p.eps);
    for (var c = ids.lid; c < p.k; c += ${WG}u) {
        out[base + c] = x[base + c] * scale * weight[c];
    }
}
