// out = x, both [rows, k]. One invocation an element. Launched by launch_rows.rs.

struct Params {
    rows: u32, live: u32, row0: u32, k: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind x array<f32>
#bind out array<f32>
#include "common.wgsl"
#include "live.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let i = thread_index(ids);
    if i / p.k >= live_rows() {
        return;
    }
    out[i] = x[i];
}
