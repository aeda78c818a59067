// dq[t, h] = Σ_j ds_j · k[j, g], ds_j = p_j · (dout · v_j − delta) · score', p_j = exp(score_j − lse), packed layout.
// q, dout, dq [rows, heads · D]; k, v [rows, kv · D]; lse, delta [rows, heads], all f32.
// One workgroup a (row, head), keys in chunks of WG. Launched by launch_attention.rs.

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
#bind dq array<f32>
#include "common.wgsl"
#include "live.wgsl"
#include "attention_mask.wgsl"

var<workgroup> q_s: array<f32, ${D}>;
var<workgroup> o_s: array<f32, ${D}>;
var<workgroup> ds_s: array<f32, ${WG}>;

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let group = group_index(ids);
    let t = group / p.heads;
    let h = group % p.heads;
    if t >= live_rows() {
        return;
    }
    let g = h / (p.heads / p.kv);
    let start = bounds[min(seqs[t], p.seqs - 1u)];
    let own = (t * p.heads + h) * ${D}u;
    for (var c = ids.lid; c < ${D}u; c += ${WG}u) {
        q_s[c] = q[own + c];
        o_s[c] = dout[own + c];
    }
    let lse_t = lse[t * p.heads + h];
    let delta_t = delta[t * p.heads + h];
#for i in 0..DPT
    var acc${i} = 0.0;
#endfor
    workgroupBarrier();
    for (var j0 = start + first_key(t - start); j0 <= t; j0 += ${WG}u) {
        let j = j0 + ids.lid;
        if j <= t {
            let base = (j * p.kv + g) * ${D}u;
            var qk = 0.0;
            var ov = 0.0;
            for (var c = 0u; c < ${D}u; c++) {
                qk = fma(q_s[c], k[base + c], qk);
                ov = fma(o_s[c], v[base + c], ov);
            }
            let s = score_of(qk);
            ds_s[ids.lid] = exp(s - lse_t) * (ov - delta_t) * score_slope(s);
        }
        workgroupBarrier();
        let n = min(${WG}u, t + 1u - j0);
#for i in 0..DPT
        if ids.lid + ${i}u * ${WG}u < ${D}u {
            for (var jj = 0u; jj < n; jj++) {
                acc${i} = fma(ds_s[jj], k[((j0 + jj) * p.kv + g) * ${D}u + ids.lid + ${i}u * ${WG}u], acc${i});
            }
        }
#endfor
        workgroupBarrier();
    }
#for i in 0..DPT
    if ids.lid + ${i}u * ${WG}u < ${D}u {
        dq[own + ids.lid + ${i}u * ${WG}u] = acc${i};
    }
#endfor
}
