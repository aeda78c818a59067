// out[t, n] = Σ_k x[t, k] · w[n, k] (+ bias[n]) (+ residual[t, n]), for many rows.
// ACCUMULATE (lora_expand without slots): out += scales[0] · x · wᵀ.
// x [rows, k] f32, w [n, k] any type or a part of its rows that starts at output column n0, out [rows, ldo].
// SPLIT: out [parts, rows, n] holds sums over `chunk` elements of k each, which matmul_sum_parts.wgsl adds up in order.
// One workgroup a tile of BM rows × BN columns (see tile.wgsl). Launched by launch_matmul.rs for more rows than
// the matrix-vector shaders take.

struct Params {
    rows: u32, live: u32, row0: u32, k: u32,
    n: u32, n0: u32, ldo: u32, stride: u32,
    groups: u32, w1: u32, w2: u32, w3: u32,
    x_row0: u32, chunk: u32, pad0: u32, pad1: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#if K_ANY
#bind x array<f32>
#else
#bind x array<vec4<f32>>
#endif
#bind w array<vec4<u32>>
#bind out array<f32>
#if BIAS
#bind bias array<f32>
#endif
#if RESIDUAL
#bind residual array<f32>
#endif
#if ACCUMULATE
#bind scales array<f32>
#endif
#include "common.wgsl"
#include "live.wgsl"
#include "decode.wgsl"
#include "tile.wgsl"

#if K_ANY
fn x_at(t: u32, k: u32) -> f32 {
    if k >= p.k {
        return 0.0;
    }
    return x[(t + p.x_row0) * p.k + k];
}
#endif

fn x8(t: u32, octet: u32) -> W8 {
#if K_ANY
    let k = octet * 8u;
    return W8(vec4<f32>(x_at(t, k), x_at(t, k + 1u), x_at(t, k + 2u), x_at(t, k + 3u)),
              vec4<f32>(x_at(t, k + 4u), x_at(t, k + 5u), x_at(t, k + 6u), x_at(t, k + 7u)));
#else
    let i = (t + p.x_row0) * (p.k >> 2u) + octet * 2u;
    return W8(x[i], x[i + 1u]);
#endif
}

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let tiles_n = (p.n + ${BN}u - 1u) / ${BN}u;
#if SPLIT
    let tiles = tiles_n * ((p.rows + ${BM}u - 1u) / ${BM}u);
    let part = group_index(ids) / tiles;
    let group = group_index(ids) % tiles;
    let first = part * p.chunk;
    let end = min(first + p.chunk, p.k);
#else
    let group = group_index(ids);
    let first = 0u;
    let end = p.k;
#endif
    let t0 = (group / tiles_n) * ${BM}u;
    let c0 = (group % tiles_n) * ${BN}u;
    let live = live_rows();
    if t0 >= live {
        return;
    }
    let tm = ids.lid / (${BN}u / ${TN}u);
    let tn = ids.lid % (${BN}u / ${TN}u);
    clear_tile();
    for (var k0 = first; k0 < end; k0 += ${BK}u) {
        for (var e = ids.lid; e < ${BM}u * ${BK}u / 8u; e += ${WG}u) {
            let m = e % ${BM}u;
            let o = e / ${BM}u;
            put_a8(m, o * 8u, x8(min(t0 + m, live - 1u), k0 / 8u + o));
        }
        for (var e = ids.lid; e < ${BN}u * ${BK}u / 8u; e += ${WG}u) {
            let m = e % ${BN}u;
            let o = e / ${BN}u;
            put_b8(m, o * 8u, w8(min(c0 + m, p.n - 1u), k0 / 8u + o));
        }
        workgroupBarrier();
        multiply_tile(tm, tn);
        workgroupBarrier();
    }
#if ACCUMULATE
    let scale = scales[0];
#endif
    for (var i = 0u; i < ${TM}u; i++) {
        let t = t0 + tm * ${TM}u + i;
        if t >= live {
            return;
        }
        for (var j = 0u; j < ${TN}u; j++) {
            let c = c0 + tn * ${TN}u + j;
            if c < p.n {
                var v = acc[i][j >> 2u][j & 3u];
#if SPLIT
                out[(part * p.rows + t) * p.n + c] = v;
#else
                let at = t * p.ldo + p.n0 + c;
#if BIAS
                v += bias[p.n0 + c];
#endif
#if RESIDUAL
                v += residual[at];
#endif
#if ACCUMULATE
                v = out[at] + scale * v;
#endif
                out[at] = v;
#endif
            }
        }
    }
}
