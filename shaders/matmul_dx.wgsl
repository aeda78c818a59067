// dx[t, k] (+)= scale · Σ_n dy[t, n] · w[n, k]: the backward product of matmul with respect to its input.
// dy [rows, ldy], of which columns n0 .. n0 + n belong to this part of w [n, k] (any type), dx [rows, k].
// ACCUMULATE adds to dx, SCALE multiplies by scale[0]. One workgroup a tile of BM rows × BN columns of k;
// the sum runs over n in steps of BK. SPLIT: dx [parts, rows, k] holds sums over `chunk` of the n each, which
// matmul_sum_parts.wgsl adds up in order. EIGHTS: rows of dy are whole octets, aligned to 16 bytes. Launched by launch_matmul.rs.

struct Params {
    rows: u32, live: u32, row0: u32, k: u32,
    n: u32, n0: u32, ldy: u32, stride: u32,
    groups: u32, w1: u32, w2: u32, w3: u32,
    dx_row0: u32, chunk: u32, pad0: u32, pad1: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#if EIGHTS
#bind dy array<vec4<f32>>
#else
#bind dy array<f32>
#endif
#bind w array<vec4<u32>>
#bind dx array<f32>
#if SCALE
#bind scale array<f32>
#endif
#include "common.wgsl"
#include "live.wgsl"
#include "decode.wgsl"
#include "tile.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let tiles_k = (p.k + ${BN}u - 1u) / ${BN}u;
#if SPLIT
    let tiles = tiles_k * ((p.rows + ${BM}u - 1u) / ${BM}u);
    let part = group_index(ids) / tiles;
    let group = group_index(ids) % tiles;
    let first = part * p.chunk;
    let end = min(first + p.chunk, p.n);
#else
    let group = group_index(ids);
    let first = 0u;
    let end = p.n;
#endif
    let t0 = (group / tiles_k) * ${BM}u;
    let c0 = (group % tiles_k) * ${BN}u;
    let live = live_rows();
    if t0 >= live {
        return;
    }
    let tm = ids.lid / (${BN}u / ${TN}u);
    let tn = ids.lid % (${BN}u / ${TN}u);
    let last_octet = (p.k + 7u) / 8u - 1u;
    clear_tile();
    for (var n0 = first; n0 < end; n0 += ${BK}u) {
#if EIGHTS
        for (var e = ids.lid; e < ${BM}u * ${BK}u / 8u; e += ${WG}u) {
            let m = e % ${BM}u;
            let n = n0 + e / ${BM}u * 8u;
            var v = W8(vec4<f32>(0.0), vec4<f32>(0.0));
            if n < end {
                let i = (min(t0 + m, live - 1u) * p.ldy + p.n0 + n) >> 2u;
                v = W8(dy[i], dy[i + 1u]);
            }
            put_a8(m, n - n0, v);
        }
#else
        for (var e = ids.lid; e < ${BM}u * ${BK}u; e += ${WG}u) {
            let kk = e % ${BK}u;
            let m = e / ${BK}u;
            var v = 0.0;
            if n0 + kk < end {
                v = dy[min(t0 + m, live - 1u) * p.ldy + p.n0 + n0 + kk];
            }
            put_a(m, kk, v);
        }
#endif
        for (var e = ids.lid; e < ${BK}u * ${BN}u / 8u; e += ${WG}u) {
            let o = e % (${BN}u / 8u);
            let kk = e / (${BN}u / 8u);
            var v = W8(vec4<f32>(0.0), vec4<f32>(0.0));
            if n0 + kk < end {
                v = w8(n0 + kk, min(c0 / 8u + o, last_octet));
            }
            b_tile[kk * (${BN}u / 4u) + o * 2u] = v.a;
            b_tile[kk * (${BN}u / 4u) + o * 2u + 1u] = v.b;
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
        let t = t0 + tm * ${TM}u + i;
        if t >= live {
            return;
        }
        for (var j = 0u; j < ${TN}u; j++) {
            let c = c0 + tn * ${TN}u + j;
            if c < p.k {
#if SPLIT
                dx[(part * p.rows + t) * p.k + c] = acc[i][j >> 2u][j & 3u];
#else
                let at = (t + p.dx_row0) * p.k + c;
#if ACCUMULATE
                dx[at] += factor * acc[i][j >> 2u][j & 3u];
#else
                dx[at] = factor * acc[i][j >> 2u][j & 3u];
#endif
#endif
            }
        }
    }
}
