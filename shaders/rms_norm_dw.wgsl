// parts[s][c] = Σ dy[t][c] · x[t][c] / sqrt(mean(x[t]²) + eps) over the live rows of chunk s (`chunk` rows each): x, dy
// [rows, k], parts [count, k]. matmul_sum_parts.wgsl adds the parts up in order. One workgroup a part; an invocation owns the
// columns that it adds to. Launched by launch_weights.rs.

struct Params {
    rows: u32, live: u32, row0: u32, k: u32,
    chunk: u32, eps: f32, pad0: u32, pad1: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind x array<f32>
#bind dy array<f32>
#bind parts array<f32>
#include "common.wgsl"
#include "live.wgsl"
#include "reduce.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let part = group_index(ids);
    let first = part * p.chunk;
    if first >= p.rows {
        return;
    }
    let end = min(first + p.chunk, live_rows());
    for (var c = ids.lid; c < p.k; c += ${WG}u) {
        parts[part * p.k + c] = 0.0;
    }
    for (var t = first; t < end; t++) {
        let base = t * p.k;
        var squares = 0.0;
        for (var c = ids.lid; c < p.k; c += ${WG}u) {
            squares = fma(x[base + c], x[base + c], squares);
        }
        let r = 1.0 / sqrt(group_sum(ids, squares) / f32(p.k) + p.eps);
        for (var c = ids.lid; c < p.k; c += ${WG}u) {
            parts[part * p.k + c] += dy[base + c] * x[base + c] * r;
        }
    }
}
