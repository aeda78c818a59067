// parts[s][c] = Σ x[t][c] over the live rows of chunk s (`chunk` rows each): x [rows, k], parts [count, k].
// matmul_sum_parts.wgsl adds the parts up in order. One invocation a column of a part. Launched by launch_weights.rs.

struct Params {
    rows: u32, live: u32, row0: u32, k: u32,
    chunk: u32, count: u32, pad0: u32, pad1: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind x array<f32>
#bind parts array<f32>
#include "common.wgsl"
#include "live.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let i = thread_index(ids);
    let part = i / p.k;
    if part >= p.count {
        return;
    }
    let c = i % p.k;
    let first = part * p.chunk;
    let end = min(first + p.chunk, live_rows());
    var sum = 0.0;
    for (var t = first; t < end; t++) {
        sum += x[t * p.k + c];
    }
    parts[i] = sum;
}
