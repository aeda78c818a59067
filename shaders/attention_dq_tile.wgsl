// attention_dq.wgsl by tiles of 64 items × 64 keys (attention_tile.wgsl): the scores are computed again from q, k and lse.
// Same operands and results; D a multiple of 4, at most 256. One workgroup of 256 a tile of items and a group, those
// with the most keys first. Workgroup memory: 28,672 bytes. Launched by launch_attention.rs.

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
#bind dq array<vec4<f32>>
#include "common.wgsl"
#include "live.wgsl"
#include "attention_mask.wgsl"
#include "attention_tile.wgsl"

// Of each item: the first and the last key that it sees, lse and delta.
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
    items = live_rows() * ${PER}u;
    let tiles = (p.rows * ${PER}u + 63u) / 64u;
    let index = group_index(ids);
    group = index % p.kv;
    if index / p.kv >= tiles {
        return;
    }
    let i0 = (tiles - 1u - index / p.kv) * 64u;
    if i0 >= items {
        return;
    }
    let lid = ids.lid;
    let tm = lid / 16u;
    let tn = lid % 16u;
    if lid < 64u {
        let i = min(i0 + lid, items - 1u);
        let t = i / ${PER}u;
        let own = t * p.heads + group * ${PER}u + i % ${PER}u;
        let start = bounds[min(seqs[t], p.seqs - 1u)];
        first_s[lid] = start + first_key(t - start);
        last_s[lid] = t;
        lse_s[lid] = lse[own];
        delta_s[lid] = delta[own];
    }
    workgroupBarrier();
    clear_sums_0();
    keys_end = last_s[63] + 1u;
    for (var j0 = first_s[0]; j0 < keys_end; j0 += 64u) {
        dots(0u, i0, 1u, j0, lid);
        let scores = s;
        dots(3u, i0, 2u, j0, lid);
#for i in 0..4
        {
            let m = tm * 4u + ${i}u;
#for j in 0..4
            {
                let key = j0 + tn + 16u * ${j}u;
                let score = score_of(scores[${i}][${j}]);
                let ds = exp(score - lse_s[m]) * (s[${i}][${j}] - delta_s[m]) * score_slope(score);
                s[${i}][${j}] = select(0.0, ds, key >= first_s[m] && key <= last_s[m]);
            }
#endfor
        }
#endfor
        put_weights(lid);
        weigh_0(1u, j0, lid);
    }
#for i in 0..4
    {
        let item = i0 + tm * 4u + ${i}u;
        if item < items {
            let own = ((item / ${PER}u) * p.heads + group * ${PER}u + item % ${PER}u) * ${QUADS}u;
#for j in 0..DV
            if tn + 16u * ${j}u < ${QUADS}u {
                dq[own + tn + 16u * ${j}u] = sums_0[${i}][${j}];
            }
#endfor
        }
    }
#endfor
}
