// Attention of few rows over a paged cache: causal softmax as in attention.wgsl. A workgroup takes the PER query heads that
// share a key/value head, and of one row's keys the part `split` of p.splits, ${KEYS} at a time: each key and value is loaded
// once, all loads of a turn at the same time.
// q, out [rows, heads · D]; k, v rows of [kv_rows, kv · D], f32, f16 (KV_F16) or codes (KV_CODES, codes.wgsl); key j of sequence s is row
// table[s, j / page] · page + j % page. SPLIT: unnormalised sums, maxima and sums of exponentials go to
// partials [rows, heads, splits, D + 2] for attention_combine.wgsl, else the result to out.
// WG 256; D 64, 128 or 256. For the scores four invocations share a key, for the values an invocation has two columns
// (PAIRS = D / 2) of every VQ-th key (VQ = WG / PAIRS). Launched by launch_attention.rs.

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
#bind k array<vec4<u32>>
#bind v array<u32>
#else
#if KV_F16
#bind k array<vec4<u32>>
#bind v array<u32>
#else
#bind k array<vec4<f32>>
#bind v array<vec2<f32>>
#endif
#endif
#bind seqs array<u32>
#bind table array<u32>
#bind out array<f32>
#bind positions array<u32>
#if LSE
#bind lse array<f32>
#endif
#include "common.wgsl"
#include "live.wgsl"
#include "attention_mask.wgsl"
#if KV_CODES
#include "codes.wgsl"
#endif

var<workgroup> q_s: array<vec4<f32>, ${PER}u * ${D}u / 4u>;
// Heads of this row's keys in the cache, in elements.
var<workgroup> base_s: array<u32, ${KEYS}>;
#if KV_CODES
// Of the same, the scales of keys and values.
var<workgroup> scale_s: array<vec2<f32>, ${KEYS}>;
#endif
var<workgroup> part_s: array<vec4<f32>, ${PER}u * ${KEYS}u>;
// Scores, then their exponentials.
var<workgroup> score_s: array<vec4<f32>, ${PER}u * ${KEYS}u / 4u>;
var<workgroup> sum_s: array<vec2<f32>, ${PER}u * ${WG}u>;

fn value2(i: u32) -> vec2<f32> {
#if KV_CODES
    return codes4(v[i >> 2u] >> ((i & 2u) * 8u)).xy;
#else
#if KV_F16
    return unpack2x16float(v[i >> 1u]);
#else
    return v[i >> 1u];
#endif
#endif
}

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let group = group_index(ids);
    let split = group % p.splits;
    let g = (group / p.splits) % p.kv;
    let t = group / (p.splits * p.kv);
    if t >= live_rows() {
        return;
    }
    let seq = min(seqs[t], p.seqs - 1u);
    let position = min(positions[t], p.pages * p.page - 1u);
    let start = first_key(position);
    // Whole turns for every split, so that few keys take few workgroups.
    let turns = (position + 1u - start + ${KEYS}u * p.splits - 1u) / (${KEYS}u * p.splits);
    let lo = start + split * turns * ${KEYS}u;
    let hi = min(position + 1u, lo + turns * ${KEYS}u);
    let first_head = t * p.heads + g * ${PER}u;
    for (var i = ids.lid; i < ${PER}u * ${D}u / 4u; i += ${WG}u) {
        q_s[i] = q[first_head * (${D}u / 4u) + i];
    }
    let key = ids.lid / 4u;
    let quarter = ids.lid % 4u;
    let column = ids.lid % ${PAIRS}u * 2u;
    let phase = ids.lid / ${PAIRS}u;
#for h in 0..PER
    var top${h} = -3.0e38;
    var sum${h} = 0.0;
    var acc${h} = vec2<f32>(0.0);
#endfor
    for (var j0 = lo; j0 < hi; j0 += ${KEYS}u) {
        if ids.lid < ${KEYS}u {
            let j = min(j0 + ids.lid, hi - 1u);
            let row = table[seq * p.pages + j / p.page] * p.page + j % p.page;
#if KV_CODES
            let words = min(row, p.kv_rows - 1u) * p.stride;
            let scale = words + p.kv * (${D}u / 4u) + g;
            base_s[ids.lid] = words * 4u + g * ${D}u;
            scale_s[ids.lid] = vec2<f32>(bitcast<f32>(k[scale >> 2u][scale & 3u]), bitcast<f32>(v[scale]));
#else
            base_s[ids.lid] = (min(row, p.kv_rows - 1u) * p.kv + g) * ${D}u;
#endif
        }
        workgroupBarrier();
        let base = base_s[key];
#for i in 0..K_LOADS
#if KV_CODES
        let k${i} = k[(base >> 4u) + ${i}u * 4u + quarter];
#else
#if KV_F16
        let k${i} = k[(base >> 3u) + ${i}u * 4u + quarter];
#else
        let k${i} = k[(base >> 2u) + ${i}u * 4u + quarter];
#endif
#endif
#endfor
#for i in 0..V_LOADS
#if KV_CODES
        let v${i} = value2(base_s[${i}u * ${VQ}u + phase] + column) * scale_s[${i}u * ${VQ}u + phase].y;
#else
        let v${i} = value2(base_s[${i}u * ${VQ}u + phase] + column);
#endif
#endfor
#for h in 0..PER
        var dot${h} = 0.0;
#endfor
#for i in 0..K_LOADS
        {
#if KV_CODES
            let at = (${i}u * 4u + quarter) * 4u;
#for c in 0..4
            let c${c} = codes4(k${i}[${c}]);
#endfor
#for h in 0..PER
#for c in 0..4
            dot${h} += dot(q_s[${h}u * (${D}u / 4u) + at + ${c}u], c${c});
#endfor
#endfor
#else
#if KV_F16
            let at = (${i}u * 4u + quarter) * 2u;
            let a = vec4<f32>(unpack2x16float(k${i}.x), unpack2x16float(k${i}.y));
            let b = vec4<f32>(unpack2x16float(k${i}.z), unpack2x16float(k${i}.w));
#for h in 0..PER
            dot${h} += dot(q_s[${h}u * (${D}u / 4u) + at], a) + dot(q_s[${h}u * (${D}u / 4u) + at + 1u], b);
#endfor
#else
#for h in 0..PER
            dot${h} += dot(q_s[${h}u * (${D}u / 4u) + ${i}u * 4u + quarter], k${i});
#endfor
#endif
#endif
        }
#endfor
#for h in 0..PER
        part_s[${h}u * ${KEYS}u + key][quarter] = dot${h};
#endfor
        workgroupBarrier();
        for (var i = ids.lid; i < ${PER}u * ${KEYS}u; i += ${WG}u) {
#if KV_CODES
            let whole = dot(part_s[i], vec4<f32>(1.0)) * scale_s[i % ${KEYS}u].x;
#else
            let whole = dot(part_s[i], vec4<f32>(1.0));
#endif
            score_s[i >> 2u][i & 3u] = select(-3.0e38, score_of(whole), j0 + i % ${KEYS}u < hi);
        }
        workgroupBarrier();
#for h in 0..PER
        var most${h} = score_s[${h}u * (${KEYS}u / 4u)];
        for (var i = 1u; i < ${KEYS}u / 4u; i++) {
            most${h} = max(most${h}, score_s[${h}u * (${KEYS}u / 4u) + i]);
        }
        let next${h} = max(top${h}, max(max(most${h}.x, most${h}.y), max(most${h}.z, most${h}.w)));
        let keep${h} = exp(top${h} - next${h});
        top${h} = next${h};
#endfor
        workgroupBarrier();
        for (var i = ids.lid; i < ${PER}u * ${KEYS}u; i += ${WG}u) {
            let h = i / ${KEYS}u;
            var top = top0;
#for h in 1..PER
            top = select(top, top${h}, h == ${h}u);
#endfor
            let e = exp(score_s[i >> 2u][i & 3u] - top);
            score_s[i >> 2u][i & 3u] = select(0.0, e, j0 + i % ${KEYS}u < hi);
        }
        workgroupBarrier();
#for h in 0..PER
        {
            sum${h} *= keep${h};
            acc${h} *= keep${h};
#for i in 0..V_LOADS
            {
                let j = ${h}u * ${KEYS}u + ${i}u * ${VQ}u + phase;
                let e = score_s[j >> 2u][j & 3u];
                sum${h} += e;
                acc${h} = fma(vec2<f32>(e), v${i}, acc${h});
            }
#endfor
        }
#endfor
    }
    // Over the phases: the sums of exponentials go the same way as the values.
    workgroupBarrier();
#for h in 0..PER
    sum_s[${h}u * ${WG}u + ids.lid] = acc${h};
#endfor
    if column == 0u {
#for h in 0..PER
        part_s[${h}u * ${VQ}u + phase].x = sum${h};
#endfor
    }
    workgroupBarrier();
    if phase == 0u {
#for h in 0..PER
        {
            var total = vec2<f32>(0.0);
            var sum = 0.0;
#for i in 0..VQ
            total += sum_s[${h}u * ${WG}u + ${i}u * ${PAIRS}u + ids.lid];
            sum += part_s[${h}u * ${VQ}u + ${i}u].x;
#endfor
#if SPLIT
            let to = ((first_head + ${h}u) * p.splits + split) * (${D}u + 2u);
            out[to + column] = total.x;
            out[to + column + 1u] = total.y;
            if column == 0u {
                out[to + ${D}u] = top${h};
                out[to + ${D}u + 1u] = sum;
            }
#else
            let inverse = select(0.0, 1.0 / sum, sum > 0.0);
            out[(first_head + ${h}u) * ${D}u + column] = total.x * inverse;
            out[(first_head + ${h}u) * ${D}u + column + 1u] = total.y * inverse;
#if LSE
            if column == 0u {
                lse[first_head + ${h}u] = top${h} + log(sum);
            }
#endif
#endif
        }
#endfor
    }
}
