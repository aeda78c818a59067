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
    for (var d = ids.lid; d < ${D}u; d += ${WG}u) {
        var top = -3.0e38;
        var sum = 0.0;
        var v = 0.0;
        // Four splits' numbers are on their way together.
        for (var s = 0u; s < p.splits; s += 4u) {
#for i in 0..4
            let at${i} = base + min(s + ${i}u, p.splits - 1u) * (${D}u + 2u);
            let v${i} = partials[at${i} + d];
            let top${i} = partials[at${i} + ${D}u];
            let sum${i} = partials[at${i} + ${D}u + 1u];
#endfor
            let next = max(max(top, top0), max(top1, max(top2, top3)));
            let keep = exp(top - next);
            sum *= keep;
            v *= keep;
#for i in 0..4
            let weight${i} = select(0.0, exp(top${i} - next), s + ${i}u < p.splits);
            sum = fma(weight${i}, sum${i}, sum);
            v = fma(weight${i}, v${i}, v);
#endfor
            top = next;
        }
        out[group * ${D}u + d] = select(0.0, v / sum, sum > 0.0);
#if LSE
        if d == 0u {
            lse[group] = top + log(sum);
        }
#endif
    }
}
