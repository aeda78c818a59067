// dw[ids[t]] += scale · dy[t] over the live rows but those whose id is `skip`: dy [rows, k], dw the part of the table's rows
// that starts at row `first` of the vocabulary and has n rows. SCALE multiplies by scale[0]. The workgroups of a token's first
// row add up all of its rows, in order, so that a sum is the same in every run and no two write to one place. One invocation a
// column. Launched by launch_weights.rs.

struct Params {
    rows: u32, live: u32, row0: u32, k: u32,
    n: u32, first: u32, skip: u32, pad0: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind tokens array<u32>
#bind dy array<f32>
#bind dw array<f32>
#if SCALE
#bind scale array<f32>
#endif
#include "common.wgsl"
#include "live.wgsl"

var<workgroup> seen: atomic<u32>;

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let across = (p.k + ${WG}u - 1u) / ${WG}u;
    let t = group_index(ids) / across;
    let live = live_rows();
    if t >= live {
        return;
    }
    let id = tokens[t];
    if id == p.skip || id < p.first || id >= p.first + p.n {
        return;
    }
    // Workgroup memory holds anything at first.
    if ids.lid == 0u {
        atomicStore(&seen, 0u);
    }
    workgroupBarrier();
    for (var s = ids.lid; s < t; s += ${WG}u) {
        if tokens[s] == id {
            atomicStore(&seen, 1u);
        }
    }
    workgroupBarrier();
    let c = (group_index(ids) % across) * ${WG}u + ids.lid;
    if atomicLoad(&seen) != 0u || c >= p.k {
        return;
    }
    var sum = 0.0;
    for (var s = t; s < live; s++) {
        if tokens[s] == id {
            sum += dy[s * p.k + c];
        }
    }
#if SCALE
    sum *= scale[0];
#endif
    dw[(id - p.first) * p.k + c] += sum;
}
