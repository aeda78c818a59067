// attention.wgsl for software adapters with subgroups of exactly 8: a lane is one (row, head) of a key/value
// group, the subgroup loads each key and value once, four numbers a lane, and broadcasts them. No barrier, no
// workgroup memory. Rows of several sequences in one subgroup are taken sequence by sequence.
// Same operands and results as attention.wgsl without SPLIT; D a multiple of 32.
// One workgroup of 8 for eight (row, head)s of a group. Launched by launch_attention.rs.

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

fn key4(i: u32) -> vec4<f32> {
#if KV_CODES
    return codes4(k[i]);
#else
#if KV_F16
    let w = k[i];
    return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y));
#else
    return k[i];
#endif
#endif
}

fn value4(i: u32) -> vec4<f32> {
#if KV_CODES
    return codes4(v[i]);
#else
#if KV_F16
    let w = v[i];
    return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y));
#else
    return v[i];
#endif
#endif
}

// Where the head of key j of a sequence starts, in vec4s (of codes: words).
fn key_base(seq: u32, j: u32, g: u32) -> u32 {
#if PAGED
    let row = layout_in[seq * p.pages + j / p.page] * p.page + j % p.page;
#else
    let row = layout_in[seq] + j;
#endif
#if KV_CODES
    return min(row, p.kv_rows - 1u) * p.stride + g * ${C}u;
#else
    return (min(row, p.kv_rows - 1u) * p.kv + g) * ${C}u;
#endif
}
#if KV_CODES

// Where the scale of the head that starts at `base` is.
fn scale_at(base: u32, g: u32) -> u32 {
    return base + (p.kv - g) * ${C}u + g;
}
#endif

@compute @workgroup_size(8)
fn main(ids: Ids) {
    let per = p.heads / p.kv;
    let group = group_index(ids);
    let g = group % p.kv;
    let first = (group / p.kv) * 8u;
    let live = live_rows();
    if first / per >= live {
        return;
    }
    let item = first + ids.lane;
    let real = item / per < live;
    let t = min(item / per, live - 1u);
    let own = (t * p.heads + g * per + item % per) * ${C}u;
    var query: array<vec4<f32>, ${C}>;
    var acc: array<vec4<f32>, ${C}>;
#for c in 0..C
    query[${c}] = q[own + ${c}u];
    acc[${c}] = vec4<f32>(0.0);
#endfor
    let seq = min(seqs[t], p.seqs - 1u);
#if PAGED
    let position = min(positions[t], p.pages * p.page - 1u);
#else
    let position = t - layout_in[seq];
#endif
    let lo = first_key(position);
    var top = -3.0e38;
    var sum = 0.0;
    var done = !real;
    for (var turn = 0u; turn < 8u; turn++) {
        let turn_seq = subgroupShuffle(seq, turn);
        let mine = !done && seq == turn_seq;
        done = done || mine;
        let begin = subgroupMin(select(0xffffffffu, lo, mine));
        let end = subgroupMax(select(0u, position + 1u, mine));
        // Four keys at a time share one rescaling of the sums.
        for (var j = begin; j < end; j += 4u) {
#for b in 0..4
            let base${b} = key_base(turn_seq, min(j + ${b}u, end - 1u), g);
            var s${b} = 0.0;
#for o in 0..C8
            {
                let loaded = key4(base${b} + ${o}u * 8u + ids.lane);
#for i in 0..8
                s${b} += dot(query[${o} * 8 + ${i}], subgroupBroadcast(loaded, ${i}u));
#endfor
            }
#endfor
#if KV_CODES
            s${b} *= bitcast<f32>(k[scale_at(base${b}, g)]);
#endif
            let seen${b} = mine && j + ${b}u >= lo && j + ${b}u <= position;
            s${b} = select(-3.0e38, score_of(s${b}), seen${b});
#endfor
            let next = max(max(top, max(s0, s1)), max(s2, s3));
            let keep = exp(top - next);
            sum *= keep;
#for c in 0..C
            acc[${c}] *= keep;
#endfor
#for b in 0..4
            let e${b} = select(0.0, exp(s${b} - next), seen${b});
            sum += e${b};
#if KV_CODES
            let weight${b} = e${b} * bitcast<f32>(v[scale_at(base${b}, g)]);
#else
            let weight${b} = e${b};
#endif
#for o in 0..C8
            {
                let loaded = value4(base${b} + ${o}u * 8u + ids.lane);
#for i in 0..8
                acc[${o} * 8 + ${i}] = fma(vec4<f32>(weight${b}), subgroupBroadcast(loaded, ${i}u), acc[${o} * 8 + ${i}]);
#endfor
            }
#endfor
#endfor
            top = next;
        }
    }
    if real {
        let inverse = select(0.0, 1.0 / sum, sum > 0.0);
#for c in 0..C
        out[own + ${c}u] = acc[${c}] * inverse;
#endfor
#if LSE
        lse[t * p.heads + g * per + item % per] = top + log(sum);
#endif
    }
}
