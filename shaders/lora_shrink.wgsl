// out[t, r] = Σ_k x[t, k] · a[slot(t) · rank + r, k]; 0 where the row has no adapter (slot u32::MAX).
// x [rows, k], a [slots · rank, k], out [rows, rank]. One workgroup an element of out.
// Without slots and with many rows matmul.wgsl does this. Launched by launch_matmul.rs.

struct Params {
    rows: u32, live: u32, row0: u32, k: u32,
    rank: u32, adapters: u32, pad1: u32, pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind x array<f32>
#bind a array<f32>
#bind out array<f32>
#if SLOTS
#bind slots array<u32>
#endif
#include "common.wgsl"
#include "live.wgsl"
#include "reduce.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let group = group_index(ids);
    let t = group / p.rank;
    let r = group % p.rank;
    if t >= live_rows() {
        return;
    }
#if SLOTS
    let slot = slots[t];
    if slot >= p.adapters {
        if ids.lid == 0u {
            out[t * p.rank + r] = 0.0;
        }
        return;
    }
#else
    let slot = 0u;
#endif
    let row = (slot * p.rank + r) * p.k;
    var sum = 0.0;
    for (var c = ids.lid; c < p.k; c += ${WG}u) {
        sum = fma(x[t * p.k + c], a[row + c], sum);
    }
    sum = group_sum(ids, sum);
    if ids.lid == 0u {
        out[t * p.rank + r] = sum;
    }
}
