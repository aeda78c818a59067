// Causal softmax attention of one query row and head, keys in chunks of WG with an online softmax:
// out[t, h] = Σ_j softmax_j(score(q[t, h] · k[j, g])) · v[j, g], lse[t, h] = log Σ_j exp(score).
// q, out [rows, heads · D]; k, v rows of [kv_rows, kv · D], f32 or, paged only, f16 (KV_F16) or
// codes (KV_CODES, codes.wgsl; with D4).
// PAGED: key j of sequence s is row table[s, j / page] · page + j % page; otherwise row bounds[s] + j.
// SPLIT: p.splits workgroups share the keys of a row; each writes its unnormalised sum, maximum and sum of
// exponentials to partials [rows, heads, splits, D + 2] for attention_combine.wgsl.
// One workgroup a (row, head, split). Launched by launch_attention.rs.

struct Params {
    rows: u32, live: u32, row0: u32, heads: u32,
    kv: u32, kv_rows: u32, window: u32, scale: f32,
    cap: f32, page: u32, pages: u32, splits: u32,
    seqs: u32, stride: u32, pad1: u32, pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#if D4
#bind q array<vec4<f32>>
#else
#bind q array<f32>
#endif
#if KV_CODES
#bind k array<u32>
#bind v array<u32>
#else
#if D4
#if KV_F16
#bind k array<vec2<u32>>
#else
#bind k array<vec4<f32>>
#endif
#else
#if KV_F16
#bind k array<u32>
#else
#bind k array<f32>
#endif
#endif
#if KV_F16
#bind v array<u32>
#else
#bind v array<f32>
#endif
#endif
#bind seqs array<u32>
#bind layout_in array<u32>
#bind out array<f32>
#if PAGED
#bind positions array<u32>
#endif
#if LSE
#bind lse array<f32>
#endif
#include "common.wgsl"
#include "live.wgsl"
#include "reduce.wgsl"
#include "attention_mask.wgsl"
#if KV_CODES
#include "codes.wgsl"
#endif

#if D4
var<workgroup> q_s: array<vec4<f32>, ${D} / 4>;
#else
var<workgroup> q_s: array<f32, ${D}>;
#endif
var<workgroup> p_s: array<f32, ${WG}>;
var<workgroup> row_s: array<u32, ${WG}>;

fn key_dot(row: u32, g: u32) -> f32 {
    var s = 0.0;
#if KV_CODES
    let base = row * p.stride + g * (${D}u / 4u);
    for (var c = 0u; c < ${D}u / 4u; c++) {
        s += dot(q_s[c], codes4(k[base + c]));
    }
    return s * bitcast<f32>(k[row * p.stride + p.kv * (${D}u / 4u) + g]);
#else
#if D4
    let base = (row * p.kv + g) * (${D}u / 4u);
    for (var c = 0u; c < ${D}u / 4u; c++) {
#if KV_F16
        let w = k[base + c];
        s += dot(q_s[c], vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y)));
#else
        s += dot(q_s[c], k[base + c]);
#endif
    }
#else
    let base = (row * p.kv + g) * ${D}u;
    for (var c = 0u; c < ${D}u; c++) {
#if KV_F16
        let i = base + c;
        s = fma(q_s[c], unpack2x16float(k[i >> 1u] >> ((i & 1u) * 16u)).x, s);
#else
        s = fma(q_s[c], k[base + c], s);
#endif
    }
#endif
    return s;
#endif
}

// Element i of v, of codes before its scale.
fn value_at(i: u32) -> f32 {
#if KV_CODES
    return codes4(v[i >> 2u] >> ((i & 3u) * 8u)).x;
#else
#if KV_F16
    return unpack2x16float(v[i >> 1u] >> ((i & 1u) * 16u)).x;
#else
    return v[i];
#endif
#endif
}

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let group = group_index(ids);
    let split = group % p.splits;
    let h = (group / p.splits) % p.heads;
    let t = group / (p.splits * p.heads);
    if t >= live_rows() {
        return;
    }
    let g = h / (p.heads / p.kv);
    let seq = min(seqs[t], p.seqs - 1u);
#if PAGED
    let position = min(positions[t], p.pages * p.page - 1u);
#else
    let start = layout_in[seq];
    let position = t - start;
#endif
    var lo = first_key(position);
    var hi = position + 1u;
#if SPLIT
    let each = (hi - lo + p.splits - 1u) / p.splits;
    lo = lo + split * each;
    hi = min(hi, lo + each);
#endif
#if D4
    for (var c = ids.lid; c < ${D}u / 4u; c += ${WG}u) {
        q_s[c] = q[(t * p.heads + h) * (${D}u / 4u) + c];
    }
#else
    for (var c = ids.lid; c < ${D}u; c += ${WG}u) {
        q_s[c] = q[(t * p.heads + h) * ${D}u + c];
    }
#endif
    workgroupBarrier();
    var top = -3.0e38;
    var sum = 0.0;
#for i in 0..DPT
    var acc${i} = 0.0;
#endfor
    for (var j0 = lo; j0 < hi; j0 += ${WG}u) {
        let j = j0 + ids.lid;
        var s = -3.0e38;
        var row = 0u;
        if j < hi {
#if PAGED
            row = layout_in[seq * p.pages + j / p.page] * p.page + j % p.page;
#else
            row = start + j;
#endif
            row = min(row, p.kv_rows - 1u);
            s = score_of(key_dot(row, g));
        }
        let next = max(top, group_max(ids, s));
        let e = select(0.0, exp(s - next), j < hi);
#if KV_CODES
        p_s[ids.lid] = e * bitcast<f32>(v[row * p.stride + p.kv * (${D}u / 4u) + g]);
        row_s[ids.lid] = row * p.stride * 4u + g * ${D}u;
#else
        p_s[ids.lid] = e;
        row_s[ids.lid] = (row * p.kv + g) * ${D}u;
#endif
        let keep = exp(top - next);
        sum = sum * keep + group_sum(ids, e);
        workgroupBarrier();
        let n = min(${WG}u, hi - j0);
#for i in 0..DPT
        if ids.lid + ${i}u * ${WG}u < ${D}u {
            acc${i} *= keep;
            for (var jj = 0u; jj < n; jj++) {
                acc${i} = fma(p_s[jj], value_at(row_s[jj] + ids.lid + ${i}u * ${WG}u), acc${i});
            }
        }
#endfor
        top = next;
        workgroupBarrier();
    }
#if SPLIT
    let base = ((t * p.heads + h) * p.splits + split) * (${D}u + 2u);
#for i in 0..DPT
    if ids.lid + ${i}u * ${WG}u < ${D}u {
        out[base + ids.lid + ${i}u * ${WG}u] = acc${i};
    }
#endfor
    if ids.lid == 0u {
        out[base + ${D}u] = top;
        out[base + ${D}u + 1u] = sum;
    }
#else
    let inverse = select(0.0, 1.0 / sum, sum > 0.0);
#for i in 0..DPT
    if ids.lid + ${i}u * ${WG}u < ${D}u {
        out[(t * p.heads + h) * ${D}u + ids.lid + ${i}u * ${WG}u] = acc${i} * inverse;
    }
#endfor
#if LSE
    if ids.lid == 0u {
        lse[t * p.heads + h] = top + log(sum);
    }
#endif
#endif
}
