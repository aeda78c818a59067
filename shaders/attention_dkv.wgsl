// dv[j, g] = Σ_{h, t} p · dout[t, h], dk[j, g] = Σ_{h, t} ds · q[t, h] over the query heads h of group g and the
// rows t of the sequence that see key j (names as in attention_dq.wgsl), packed layout, all f32.
// One workgroup a (key row, group), queries in chunks of WG. Launched by launch_attention.rs.

struct Params {
    rows: u32, live: u32, row0: u32, heads: u32,
    kv: u32, kv_rows: u32, window: u32, scale: f32,
    cap: f32, pad0: u32, pad1: u32, seqs: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind q array<f32>
#bind k array<f32>
#bind v array<f32>
#bind seqs array<u32>
#bind bounds array<u32>
#bind dout array<f32>
#bind lse array<f32>
#bind delta array<f32>
#bind dk array<f32>
#bind dv array<f32>
#include "common.wgsl"
#include "live.wgsl"
#include "attention_mask.wgsl"

var<workgroup> k_s: array<f32, ${D}>;
var<workgroup> v_s: array<f32, ${D}>;
var<workgroup> p_s: array<f32, ${WG}>;
var<workgroup> ds_s: array<f32, ${WG}>;

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let group = group_index(ids);
    let j = group / p.kv;
    let g = group % p.kv;
    let live = live_rows();
    if j >= live {
        return;
    }
    let seq = min(seqs[j], p.seqs - 1u);
    var end = min(bounds[seq + 1u], live);
    if p.window > 0u {
        end = min(end, j + p.window);
    }
    let own = (j * p.kv + g) * ${D}u;
    for (var c = ids.lid; c < ${D}u; c += ${WG}u) {
        k_s[c] = k[own + c];
        v_s[c] = v[own + c];
    }
#for i in 0..DPT
    var dk${i} = 0.0;
    var dv${i} = 0.0;
#endfor
    workgroupBarrier();
    let per = p.heads / p.kv;
    for (var h = g * per; h < (g + 1u) * per; h++) {
        for (var t0 = j; t0 < end; t0 += ${WG}u) {
            let t = t0 + ids.lid;
            if t < end {
                let base = (t * p.heads + h) * ${D}u;
                var qk = 0.0;
                var ov = 0.0;
                for (var c = 0u; c < ${D}u; c++) {
                    qk = fma(k_s[c], q[base + c], qk);
                    ov = fma(v_s[c], dout[base + c], ov);
                }
                let s = score_of(qk);
                let e = exp(s - lse[t * p.heads + h]);
                p_s[ids.lid] = e;
                ds_s[ids.lid] = e * (ov - delta[t * p.heads + h]) * score_slope(s);
            }
            workgroupBarrier();
            let n = min(${WG}u, end - t0);
#for i in 0..DPT
            if ids.lid + ${i}u * ${WG}u < ${D}u {
                for (var tt = 0u; tt < n; tt++) {
                    let at = ((t0 + tt) * p.heads + h) * ${D}u + ids.lid + ${i}u * ${WG}u;
                    dk${i} = fma(ds_s[tt], q[at], dk${i});
                    dv${i} = fma(p_s[tt], dout[at], dv${i});
                }
            }
#endfor
            workgroupBarrier();
        }
    }
#for i in 0..DPT
    if ids.lid + ${i}u * ${WG}u < ${D}u {
        dk[own + ids.lid + ${i}u * ${WG}u] = dk${i};
        dv[own + ids.lid + ${i}u * ${WG}u] = dv${i};
    }
#endfor
}
