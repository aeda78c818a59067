// out[t, n] = Σ_k x[t, k] · w[n, k] (+ bias[n]) (+ residual[t, n]) for T rows or fewer on a GPU: a workgroup
// owns R rows of w, its invocations stride over the groups of 32 elements (neighbours load neighbouring 16
// bytes of a plane), then the sums are reduced (reduce.wgsl).
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
#include "common.wgsl"
#include "live.wgsl"
#include "reduce.wgsl"
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

fn finish(t: u32, n: u32, sum: f32) {
    let at = t * p.ldo + p.n0 + n;
    var v = sum;
#if BIAS
    v += bias[p.n0 + n];
#endif
#if RESIDUAL
    v += residual[at];
#endif
    out[at] = v;
}

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let n = group_index(ids) * ${R}u;
    let live = live_rows();
    if n >= p.n || live == 0u {
        return;
    }
#for r in 0..R
    let w_row${r} = min(n + ${r}u, p.n - 1u);
#endfor
#for t in 0..T
    let t${t} = min(${t}u, live - 1u);
#for r in 0..R
    var acc_${r}_${t} = 0.0;
#endfor
#endfor
    for (var g = ids.lid; g < p.groups; g += ${WG}u) {
#if NIBBLES
        // One load of 16 bytes and one or two of the scale for the group.
#for r in 0..R
        let at${r} = w_row${r} * p.groups + g;
        let quants${r} = w[at${r}];
        let scale${r} = w_scale(at${r}, 0u);
#if W_Q6_K
        let second${r} = w_scale(at${r}, 2u);
#endif
#endfor
#endif
#for o in 0..4
        {
#for t in 0..T
            let xa${t} = x4(t${t}, g * 32u + ${o}u * 8u);
            let xb${t} = x4(t${t}, g * 32u + ${o}u * 8u + 4u);
#endfor
#for r in 0..R
            {
#if NIBBLES
#if W_Q6_K
                let v = w8_of(quants${r}[${o}u], at${r}, ${o}u, select(scale${r}, second${r}, ${o}u >= 2u));
#else
                let v = w8_of(quants${r}[${o}u], at${r}, ${o}u, scale${r});
#endif
#else
                let v = w8(w_row${r}, g * 4u + ${o}u);
#endif
#for t in 0..T
                acc_${r}_${t} += dot(v.a, xa${t}) + dot(v.b, xb${t});
#endfor
            }
#endfor
        }
#endfor
    }
#for t in 0..T
#for r in 0..R
    {
        let sum = group_sum(ids, acc_${r}_${t});
        if ids.lid == 0u && ${t}u < live && n + ${r}u < p.n {
            finish(${t}u, n + ${r}u, sum);
        }
    }
#endfor
#endfor
}
