// attention_dkv.wgsl by tiles of 64 keys × 64 items (attention_tile.wgsl): the scores are computed again from q, k and lse.
// Same operands and results; D a multiple of 4, at most 256. One workgroup of 256 a tile of keys and a group: each sums
// over all items that see its keys, in order, so results are reproducible. Workgroup memory: 28,672 bytes.
// Launched by launch_attention.rs.

struct Params {
    rows: u32, live: u32, row0: u32, heads: u32,
    kv: u32, kv_rows: u32, window: u32, scale: f32,
    cap: f32, pad0: u32, pad1: u32, seqs: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind q array<vec4<f32>>
#bind k array<vec4<f32>>
#bind v array<vec4<f32>>
#bind seqs array<u32>
#bind bounds array<u32>
#bind dout array<vec4<f32>>
#bind lse array<f32>
#bind delta array<f32>
#bind dk array<vec4<f32>>
#bind dv array<vec4<f32>>
#include "common.wgsl"
#include "live.wgsl"
#include "attention_mask.wgsl"
#include "attention_tile.wgsl"

// Of each item of the tile: the first and the last key that it sees, lse and delta.
var<workgroup> first_s: array<u32, 64>;
var<workgroup> last_s: array<u32, 64>;
var<workgroup> lse_s: array<f32, 64>;
var<workgroup> delta_s: array<f32, 64>;
var<private> group: u32;
var<private> items: u32;
var<private> keys_end: u32;

fn fetch(which: u32, index: u32, c: u32) -> vec4<f32> {
    let i = min(index, items - 1u);
    let item = ((i / ${PER}u) * p.heads + group * ${PER}u + i % ${PER}u) * ${QUADS}u + c;
    let key = (min(index, keys_end - 1u) * p.kv + group) * ${QUADS}u + c;
    switch which {
        case 0u: { return q[item]; }
        case 1u: { return k[key]; }
        case 2u: { return v[key]; }
        default: { return dout[item]; }
    }
}

@compute @workgroup_size(256)
fn main(ids: Ids) {
    keys_end = live_rows();
    let index = group_index(ids);
    group = index % p.kv;
    let j0 = index / p.kv * 64u;
    if j0 >= keys_end {
        return;
    }
    // Rows past the last that sees a key of the tile: the end of the last key's sequence or window.
    let last_key = min(j0 + 64u, keys_end) - 1u;
    let last_seq = min(seqs[last_key], p.seqs - 1u);
    var rows_end = min(bounds[last_seq + 1u], keys_end);
    if p.window > 0u {
        rows_end = min(rows_end, last_key + p.window);
    }
    items = rows_end * ${PER}u;
    let lid = ids.lid;
    let tm = lid / 16u;
    let tn = lid % 16u;
    clear_sums_0();
    clear_sums_1();
    for (var i0 = j0 * ${PER}u; i0 < items; i0 += 64u) {
        if lid < 64u {
            let i = min(i0 + lid, items - 1u);
            let t = i / ${PER}u;
            let own = t * p.heads + group * ${PER}u + i % ${PER}u;
            let start = bounds[min(seqs[t], p.seqs - 1u)];
            first_s[lid] = start + first_key(t - start);
            // Items past the end see nothing.
            last_s[lid] = select(0u, t + 1u, i0 + lid < items);
            lse_s[lid] = lse[own];
            delta_s[lid] = delta[own];
        }
        dots(1u, j0, 0u, i0, lid);
        var grads: array<vec4<f32>, 4>;
#for i in 0..4
        {
            let key = j0 + tm * 4u + ${i}u;
#for j in 0..4
            {
                let n = tn + 16u * ${j}u;
                let score = score_of(s[${i}][${j}]);
                let seen = key >= first_s[n] && key < last_s[n];
                s[${i}][${j}] = select(0.0, exp(score - lse_s[n]), seen);
                grads[${i}][${j}] = select(0.0, s[${i}][${j}] * score_slope(score), seen);
            }
#endfor
        }
#endfor
        put_weights(lid);
        weigh_0(3u, i0, lid);
        dots(2u, j0, 3u, i0, lid);
#for i in 0..4
#for j in 0..4
        s[${i}][${j}] = (s[${i}][${j}] - delta_s[tn + 16u * ${j}u]) * grads[${i}][${j}];
#endfor
#endfor
        put_weights(lid);
        weigh_1(0u, i0, lid);
        workgroupBarrier();
    }
#for i in 0..4
    {
        let key = j0 + tm * 4u + ${i}u;
        if key < keys_end {
            let own = (key * p.kv + group) * ${QUADS}u;
#for j in 0..DV
            if tn + 16u * ${j}u < ${QUADS}u {
                dv[own + tn + 16u * ${j}u] = sums_0[${i}][${j}];
                dk[own + tn + 16u * ${j}u] = sums_1[${i}][${j}];
            }
#endfor
        }
    }
#endfor
}
