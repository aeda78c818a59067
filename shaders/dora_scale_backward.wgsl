// dm[c] += scale · Σ_t dy[t, c] · x[t, c] / norms[c]: dy, x [rows, n], norms and dm [n]. SCALE: scale [1], else 1. One invocation a
// column, which adds up all rows in order. Launched by launch_dora.rs.

struct Params {
    rows: u32, live: u32, row0: u32, n: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind dy array<f32>
#bind x array<f32>
#bind norms array<f32>
#bind dm array<f32>
#if SCALE
#bind scale array<f32>
#endif
#include "common.wgsl"
#include "live.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let c = thread_index(ids);
    if c >= p.n {
        return;
    }
    var sum = 0.0;
    let end = live_rows();
    for (var t = 0u; t < end; t++) {
        sum = fma(dy[t * p.n + c], x[t * p.n + c], sum);
    }
#if SCALE
    sum *= scale[0];
#endif
    dm[c] += sum / norms[c];
}
