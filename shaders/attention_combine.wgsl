// Joins the splits of attention.wgsl: with m the largest maximum,
// out[t, h] = Σ_s exp(top_s − m) · acc_s / Σ_s exp(top_s − m) · sum_s, lse = m + log of the denominator.
// One workgroup a (row, head). Launched by launch_attention.rs.

struct Params {
    rows: u32, live: u32, row0: u32, heads: u32,
    splits: u32, pad0: u32, pad1: u32, pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind partials array<f32>
#bind out array<f32>
#if LSE
#bind lse array<f32>
#endif
#include "common.wgsl"
#include "live.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let group = group_index(ids);
    let t = group / p.heads;
    if t >= live_rows() {
        return;
    }
    let base = group * p.splits * (${D}u + 2u);
    var top = -3.0e38;
    for (var s = 0u; s < p.splits; s++) {
        top = max(top, partials[base + s * (${D}u + 2u) + ${D}u]);
    }
    var sum = 0.0;
    for (var s = 0u; s < p.splits; s++) {
        let at = base + s * (${D}u + 2u) + ${D}u;
        sum += exp(partials[at] - top) * partials[at + 1u];
    }
    let inverse = select(0.0, 1.0 / sum, sum > 0.0);
    for (var d = ids.lid; d < ${D}u; d += ${WG}u) {
        var v = 0.0;
        for (var s = 0u; s < p.splits; s++) {
            let at = base + s * (${D}u + 2u);
            v += exp(partials[at + ${D}u] - top) * partials[at + d];
        }
        out[group * ${D}u + d] = v * inverse;
    }
#if LSE
    if ids.lid == 0u {
        lse[group] = top + log(sum);
    }
#endif
}
