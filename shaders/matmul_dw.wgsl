// dw[n, k] += scale · Σ_t dy[t, col0 + n] · x[x_row0 + t, k]: the gradient of a trainable weight, or of n of its rows.
// dy [rows, ldy], x [·, k], dw [n, k], all f32; SCALE multiplies by scale[0]. One workgroup a tile of BM
// rows (n) × BN columns (k); the sum runs over the live rows in steps of BK. SPLIT: dw [parts, n, k] holds sums
// over `chunk` rows each, which matmul_sum_parts.wgsl adds up in order. Launched by launch_weights.rs.

struct Params {
    rows: u32, live: u32, row0: u32, k: u32,
    n: u32, chunk: u32, ldy: u32, col0: u32,
    x_row0: u32, pad0: u32, pad1: u32, pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind dy array<f32>
#bind x array<f32>
#bind dw array<f32>
#if SCALE
#bind scale array<f32>
#endif
#include "common.wgsl"
#include "live.wgsl"

struct W8 {
    a: vec4<f32>,
    b: vec4<f32>,
}
#include "tile.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let tiles_k = (p.k + ${BN}u - 1u) / ${BN}u;
#if SPLIT
    let tiles = tiles_k * ((p.n + ${BM}u - 1u) / ${BM}u);
    let part = group_index(ids) / tiles;
    let group = group_index(ids) % tiles;
    let first = part * p.chunk;
    let end = min(first + p.chunk, live_rows());
#else
    let group = group_index(ids);
    let first = 0u;
    let end = live_rows();
#endif
    let r0 = (group / tiles_k) * ${BM}u;
    let c0 = (group % tiles_k) * ${BN}u;
    if r0 >= p.n {
        return;
    }
    let tm = ids.lid / (${BN}u / ${TN}u);
    let tn = ids.lid % (${BN}u / ${TN}u);
    clear_tile();
    for (var t0 = first; t0 < end; t0 += ${BK}u) {
        for (var e = ids.lid; e < ${BM}u * ${BK}u; e += ${WG}u) {
            let m = e % ${BM}u;
            let t = t0 + e / ${BM}u;
            var v = 0.0;
            if t < end {
                v = dy[t * p.ldy + p.col0 + min(r0 + m, p.n - 1u)];
            }
            put_a(m, e / ${BM}u, v);
        }
        for (var e = ids.lid; e < ${BN}u * ${BK}u; e += ${WG}u) {
            let m = e % ${BN}u;
            let t = t0 + e / ${BN}u;
            var v = 0.0;
            if t < end {
                v = x[(p.x_row0 + t) * p.k + min(c0 + m, p.k - 1u)];
            }
            put_b(m, e / ${BN}u, v);
        }
        workgroupBarrier();
        multiply_tile(tm, tn);
        workgroupBarrier();
    }
#if SCALE
    let factor = scale[0];
#else
    let factor = 1.0;
#endif
    for (var i = 0u; i < ${TM}u; i++) {
        let r = r0 + tm * ${TM}u + i;
        for (var j = 0u; j < ${TN}u; j++) {
            let c = c0 + tn * ${TN}u + j;
            if r < p.n && c < p.k {
#if SPLIT
                dw[(part * p.n + r) * p.k + c] = acc[i][j >> 2u][j & 3u];
#else
                dw[r * p.k + c] += factor * acc[i][j >> 2u][j & 3u];
#endif
            }
        }
    }
}
