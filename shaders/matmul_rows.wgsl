// out[t, n] = Σ_k x[t, k] · w[n, k] (+ bias[n]) (+ residual[t, n]) on software adapters: one invocation a
// row of w (an output column) and T rows of x, no workgroup memory and no barrier.
// SG8: subgroups are exactly 8 wide, so the 32 x values of a group are loaded once a subgroup, four a lane,
// and broadcast; otherwise every invocation loads them. ACCUMULATE as in matmul.wgsl.
// k a multiple of 32 unless K_ANY. Launched by launch_matmul.rs.

struct Params {
    rows: u32, live: u32, row0: u32, k: u32,
    n: u32, n0: u32, ldo: u32, stride: u32,
    groups: u32, w1: u32, w2: u32, w3: u32,
    x_row0: u32, pad0: u32, pad1: u32, pad2: u32,
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

#if K_ANY
fn x4(t: u32, k: u32) -> vec4<f32> {
    let i = (t + p.x_row0) * p.k + k;
    var v = vec4<f32>(0.0);
    if k < p.k { v.x = x[i]; }
    if k + 1u < p.k { v.y = x[i + 1u]; }
    if k + 2u < p.k { v.z = x[i + 2u]; }
    if k + 3u < p.k { v.w = x[i + 3u]; }
    return v;
}
#else
fn x4(t: u32, k: u32) -> vec4<f32> {
    return x[(t + p.x_row0) * (p.k >> 2u) + (k >> 2u)];
}
#endif

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let blocks_n = (p.n + ${WG}u - 1u) / ${WG}u;
    let group = group_index(ids);
    let first = (group / blocks_n) * ${T}u;
    let live = live_rows();
    if first >= live {
        return;
    }
    let n = (group % blocks_n) * ${WG}u + ids.lid;
    let row = min(n, p.n - 1u);
#for t in 0..T
    var acc${t} = 0.0;
    let row_${t} = min(first + ${t}u, live - 1u);
#endfor
    for (var g = 0u; g < p.groups; g++) {
#if SG8
#for t in 0..T
        let own${t} = x4(row_${t}, g * 32u + ids.lane * 4u);
#endfor
#endif
#if NIBBLES
        // One load of 16 bytes and one of the scale for the group.
        let quants = w[row * p.groups + g];
        let scale0 = w_scale(row * p.groups + g, 0u);
#if W_Q6_K
        let scale2 = w_scale(row * p.groups + g, 2u);
#endif
#endif
#for o in 0..4
        {
#if NIBBLES
#if W_Q6_K
            let v = w8_of(quants[${o}u], row * p.groups + g, ${o}u, select(scale0, scale2, ${o}u >= 2u));
#else
            let v = w8_of(quants[${o}u], row * p.groups + g, ${o}u, scale0);
#endif
#else
            let v = w8(row, g * 4u + ${o}u);
#endif
#for t in 0..T
            {
#if SG8
                let xa = subgroupBroadcast(own${t}, ${o}u * 2u);
                let xb = subgroupBroadcast(own${t}, ${o}u * 2u + 1u);
#else
                let xa = x4(row_${t}, g * 32u + ${o}u * 8u);
                let xb = x4(row_${t}, g * 32u + ${o}u * 8u + 4u);
#endif
                acc${t} = fma(v.a.x, xa.x, fma(v.a.y, xa.y, fma(v.a.z, xa.z, fma(v.a.w, xa.w, acc${t}))));
                acc${t} = fma(v.b.x, xb.x, fma(v.b.y, xb.y, fma(v.b.z, xb.z, fma(v.b.w, xb.w, acc${t}))));
            }
#endfor
        }
#endfor
    }
    if n < p.n {
#if ACCUMULATE
        let scale = scales[0];
#endif
#for t in 0..T
        if first + ${t}u < live {
            let at = (first + ${t}u) * p.ldo + p.n0 + n;
            var v = acc${t};
#if BIAS
            v += bias[p.n0 + n];
#endif
#if RESIDUAL
            v += residual[at];
#endif
#if ACCUMULATE
            v = out[at] + scale * v;
#endif
            out[at] = v;
        }
#endfor
    }
}
