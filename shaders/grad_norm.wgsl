// Two stages of out = sqrt(Σ x²) over millions of elements.
// First stage: workgroup g of p.groups sums the squares of elements g · WG + lid, stepping by groups · WG,
// into partials[p.first + g]. LAST: one workgroup sums p.n partials and writes the root.
// Launched by launch_flat.rs.

struct Params {
    n: u32, first: u32, groups: u32, pad0: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind x array<f32>
#bind out array<f32>
#include "common.wgsl"
#include "reduce.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    var sum = 0.0;
#if LAST
    for (var i = ids.lid; i < p.n; i += ${WG}u) {
        sum += x[i];
    }
    sum = group_sum(ids, sum);
    if ids.lid == 0u {
        out[0] = sqrt(sum);
    }
#else
    let group = group_index(ids);
    if group >= p.groups {
        return;
    }
    for (var i = thread_index(ids); i < p.n; i += ${WG}u * p.groups) {
        sum = fma(x[i], x[i], sum);
    }
    sum = group_sum(ids, sum);
    if ids.lid == 0u {
        out[p.first + group] = sum;
    }
#endif
}
