// attention.wgsl for many rows: 64 items (row, head) of a key/value group against 64 keys at a time, with an online
// softmax (FlashAttention-2, https://arxiv.org/abs/2307.08691). Same operands and results as attention.wgsl without
// SPLIT; D a multiple of 4, at most 256. Rows of a sequence follow each other; where a tile has rows of several
// sequences of a paged cache, they are taken one after another. One workgroup of 256 a tile of items and a group,
// those with the most keys first. Workgroup memory: 32,512 bytes. Launched by launch_attention.rs.

struct Params {
    rows: u32, live: u32, row0: u32, heads: u32,
    kv: u32, kv_rows: u32, window: u32, scale: f32,
    cap: f32, page: u32, pages: u32, splits: u32,
    seqs: u32, stride: u32, pad1: u32, pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind q array<vec4<f32>>
#if KV_CODES
#bind k array<u32>
#bind v array<u32>
#else
#if KV_F16
#bind k array<vec2<u32>>
#bind v array<vec2<u32>>
#else
#bind k array<vec4<f32>>
#bind v array<vec4<f32>>
#endif
#endif
#bind seqs array<u32>
#bind layout_in array<u32>
#bind out array<vec4<f32>>
#if PAGED
#bind positions array<u32>
#endif
#if LSE
#bind lse array<f32>
#endif
#include "common.wgsl"
#include "live.wgsl"
#include "attention_mask.wgsl"
#if KV_CODES
#include "codes.wgsl"
#endif
#include "attention_tile.wgsl"

// Of each item: its sequence, the first and the last key that it sees.
var<workgroup> seq_s: array<u32, 64>;
var<workgroup> first_s: array<u32, 64>;
var<workgroup> last_s: array<u32, 64>;
var<workgroup> partial: array<vec4<f32>, 256>;
var<private> group: u32;
var<private> items: u32;
var<private> run_seq: u32;
var<private> keys_end: u32;

fn fetch(which: u32, index: u32, c: u32) -> vec4<f32> {
    if which == 0u {
        let i = min(index, items - 1u);
        return q[((i / ${PER}u) * p.heads + group * ${PER}u + i % ${PER}u) * ${QUADS}u + c];
    }
    let j = min(index, keys_end - 1u);
#if PAGED
    let row = layout_in[run_seq * p.pages + j / p.page] * p.page + j % p.page;
#else
    let row = j;
#endif
#if KV_CODES
    let words = min(row, p.kv_rows - 1u) * p.stride;
    let own = words + group * ${QUADS}u + c;
    let scale = words + p.kv * ${QUADS}u + group;
    if which == 1u {
        return codes4(k[own]) * bitcast<f32>(k[scale]);
    }
    return codes4(v[own]) * bitcast<f32>(v[scale]);
#else
    let at = (min(row, p.kv_rows - 1u) * p.kv + group) * ${QUADS}u + c;
#if KV_F16
    var w = vec2<u32>(0u);
    if which == 1u { w = k[at]; } else { w = v[at]; }
    return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y));
#else
    if which == 1u {
        return k[at];
    }
    return v[at];
#endif
#endif
}

// Maximum or sum over the 16 invocations that share rows.
fn row_max(v: vec4<f32>, lid: u32) -> vec4<f32> {
    workgroupBarrier();
    partial[lid] = v;
    workgroupBarrier();
    var m = partial[lid / 16u * 16u];
    for (var i = 1u; i < 16u; i++) {
        m = max(m, partial[lid / 16u * 16u + i]);
    }
    return m;
}

fn row_sum(v: vec4<f32>, lid: u32) -> vec4<f32> {
    workgroupBarrier();
    partial[lid] = v;
    workgroupBarrier();
    var m = partial[lid / 16u * 16u];
    for (var i = 1u; i < 16u; i++) {
        m += partial[lid / 16u * 16u + i];
    }
    return m;
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
    let count = min(64u, items - i0);
    let lid = ids.lid;
    let tm = lid / 16u;
    let tn = lid % 16u;
    if lid < 64u {
        let t = min(i0 + lid, items - 1u) / ${PER}u;
        let seq = min(seqs[t], p.seqs - 1u);
#if PAGED
        let start = 0u;
        let position = min(positions[t], p.pages * p.page - 1u);
#else
        let start = layout_in[seq];
        let position = t - start;
#endif
        seq_s[lid] = seq;
        first_s[lid] = start + first_key(position);
        last_s[lid] = start + position;
    }
    workgroupBarrier();
    clear_sums_0();
    var top = vec4<f32>(-3.0e38);
    var sum = vec4<f32>(0.0);
    var run = 0u;
    while run < count {
        var run_end = count;
        run_seq = seq_s[run];
#if PAGED
        if seq_s[count - 1u] != run_seq {
            run_end = run + 1u;
            while run_end < count && seq_s[run_end] == run_seq {
                run_end++;
            }
        }
#endif
        keys_end = last_s[run_end - 1u] + 1u;
        for (var j0 = first_s[run]; j0 < keys_end; j0 += 64u) {
            dots(0u, i0, 1u, j0, lid);
            var high = vec4<f32>(-3.0e38);
#for i in 0..4
            {
                let m = tm * 4u + ${i}u;
                let mine = m >= run && m < run_end;
#for j in 0..4
                let key${j} = j0 + tn + 16u * ${j}u;
                let seen${j} = mine && key${j} >= first_s[m] && key${j} <= last_s[m];
                s[${i}][${j}] = select(-3.0e38, score_of(s[${i}][${j}]), seen${j});
#endfor
                high[${i}] = max(max(s[${i}].x, s[${i}].y), max(s[${i}].z, s[${i}].w));
            }
#endfor
            let next = max(top, row_max(high, lid));
            let keep = exp(top - next);
            top = next;
#for i in 0..4
            s[${i}] = select(exp(s[${i}] - vec4<f32>(next[${i}])), vec4<f32>(0.0), s[${i}] < vec4<f32>(-2.9e38));
#for j in 0..DV
            sums_0[${i}][${j}] *= keep[${i}];
#endfor
            sum[${i}] = fma(sum[${i}], keep[${i}], s[${i}].x + s[${i}].y + s[${i}].z + s[${i}].w);
#endfor
            put_weights(lid);
            weigh_0(2u, j0, lid);
        }
        run = run_end;
    }
    sum = row_sum(sum, lid);
#for i in 0..4
    {
        let item = i0 + tm * 4u + ${i}u;
        if item < items {
            let own = (item / ${PER}u) * p.heads + group * ${PER}u + item % ${PER}u;
            let inverse = select(0.0, 1.0 / sum[${i}], sum[${i}] > 0.0);
#for j in 0..DV
            if tn + 16u * ${j}u < ${QUADS}u {
                out[own * ${QUADS}u + tn + 16u * ${j}u] = sums_0[${i}][${j}] * inverse;
            }
#endfor
#if LSE
            if tn == 0u {
                lse[own] = top[${i}] + log(sum[${i}]);
            }
#endif
        }
    }
#endfor
}
