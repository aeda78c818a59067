// out[i] = x[rows_in[i]]: x [source, k], rows_in u32 [rows], out [rows, k]. A row past the source gives zeros.
// One invocation an element. Launched by launch_rows.rs.

struct Params {
    rows: u32, live: u32, row0: u32, k: u32,
    source: u32, pad0: u32, pad1: u32, pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind x array<f32>
#bind rows_in array<u32>
#bind out array<f32>
#include "common.wgsl"
#include "live.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let i = thread_index(ids);
    let r = i / p.k;
    if r >= live_rows() {
        return;
    }
    let t = rows_in[r];
    var v = 0.0;
    if t < p.source {
        v = x[t * p.k + i % p.k];
    }
    out[i] = v;
}
