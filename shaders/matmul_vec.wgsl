// out_s[t, n] = Σ_k x[t, k] · w_s[n, k] (+ bias_s[n]) (+ residual[t, n]) for T rows or fewer on a GPU, at the speed of memory.
// PARTS weights share x (query, key and value), each with its own workgroups and out. WEIGHTS 2: a workgroup takes the same
// rows of two weights and writes act(gate) · up (ACT as in activation.wgsl). NORM: x is x / sqrt(mean(x²) + eps) · norm; the
// factor of the row is applied to the sums.
// With SUBGROUPS a subgroup of LANES owns R rows of w, SETS subgroups make a workgroup; without, the workgroup does. Lanes
// stride over the row's units (decode_load.wgsl), U at a time, the loads of the next step ahead of this one's sums. x lies in workgroup
// memory, UNITS units at a time, in the order in which lanes read it.
// k a multiple of 32 unless K_ANY. Launched by launch_vec.rs.

struct Part {
    n: u32, n0: u32, ldo: u32, groups: u32,
    w1: u32, w2: u32, w3: u32, pad: u32,
}
struct Params {
    rows: u32, live: u32, row0: u32, k: u32,
    x_row0: u32, stride: u32, groups: u32, eps: f32,
    parts: array<Part, 3>,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#if K_ANY
#bind x array<f32>
#else
#bind x array<vec4<f32>>
#endif
#for s in 0..PARTS
#bind w${s} array<vec4<u32>>
#bind out${s} array<f32>
#if BIAS${s}
#bind bias${s} array<f32>
#endif
#endfor
#if WEIGHTS == 2
#bind w1 array<vec4<u32>>
#endif
#if RESIDUAL
#bind residual array<f32>
#endif
#if NORM
#if K_ANY
#bind norm array<f32>
#else
#bind norm array<vec4<f32>>
#endif
#endif
#include "common.wgsl"
#include "live.wgsl"
#include "reduce.wgsl"
#include "decode_value.wgsl"
#for s in 0..PARTS
#include "decode_load.wgsl"
#endfor
#if WEIGHTS == 2
#for s in 1..2
#include "decode_load.wgsl"
#endfor
#include "activation.wgsl"
#endif

// Between one vec4 of all units and the next: conflict-free for the writes of `stage`, too.
const PITCH = ${UNITS}u + 8u / ${VECS}u;
var<workgroup> xs: array<vec4<f32>, ${T}u * ${VECS}u * PITCH>;

#if K_ANY
fn x4(t: u32, i: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
    for (var j = 0u; j < 4u; j++) {
        if i * 4u + j < p.k {
            v[j] = x[(t + p.x_row0) * p.k + i * 4u + j];
        }
    }
    return v;
}
#if NORM
fn norm4(i: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
    for (var j = 0u; j < 4u; j++) {
        if i * 4u + j < p.k {
            v[j] = norm[i * 4u + j];
        }
    }
    return v;
}
#endif
#else
fn x4(t: u32, i: u32) -> vec4<f32> {
    if i * 4u >= p.k {
        return vec4<f32>(0.0);
    }
    return x[(t + p.x_row0) * (p.k >> 2u) + i];
}
#if NORM
fn norm4(i: u32) -> vec4<f32> {
    if i * 4u >= p.k {
        return vec4<f32>(0.0);
    }
    return norm[i];
}
#endif
#endif

#for f in 0..PARTS
fn part${f}(ids: Ids, group: u32, live: u32) {
#if SUBGROUPS
    let lane = ids.lane;
    let n = (group * ${SETS}u + ids.sub) * ${R}u;
#else
    let lane = ids.lid;
    let n = group * ${R}u;
#endif
    let units = (p.groups * 32u) / (${VECS}u * 4u);
    let steps = (units + ${LANES}u * ${U}u - 1u) / (${LANES}u * ${U}u);
#for r in 0..R
    let row${r} = min(n + ${r}u, p.parts[${f}].n - 1u);
#endfor
#for s in f..f+WEIGHTS
#for r in 0..R
#for j in 0..U
    var next_${s}_${r}_${j} = load${s}(row${r}, min(lane + ${j}u * ${LANES}u, units - 1u));
#endfor
#for t in 0..T
    var acc_${s}_${r}_${t} = 0.0;
#endfor
#endfor
#endfor
#for t in 0..T
    var squares${t} = 0.0;
#endfor
    for (var step = 0u; step < steps; step++) {
        let first = step * ${LANES}u * ${U}u % ${UNITS}u;
        if first == 0u {
            if step > 0u {
                workgroupBarrier();
            }
            let start = step * ${LANES}u * ${U}u * ${VECS}u;
            for (var i = ids.lid; i < ${UNITS}u * ${VECS}u; i += ${WG}u) {
                let to = (i % ${VECS}u) * PITCH + i / ${VECS}u;
#if NORM
                let factor = norm4(start + i) * x_scale();
#else
                let factor = x_scale();
#endif
#for t in 0..T
                {
                    let v = x4(min(${t}u, live - 1u), start + i);
#if NORM
                    squares${t} += dot(v, v);
#endif
                    xs[${t}u * ${VECS}u * PITCH + to] = v * factor;
                }
#endfor
            }
            workgroupBarrier();
        }
#for s in f..f+WEIGHTS
#for r in 0..R
#for j in 0..U
        let l_${s}_${r}_${j} = next_${s}_${r}_${j};
#endfor
#endfor
#endfor
        if step + 1u < steps {
            let u = (step + 1u) * ${LANES}u * ${U}u + lane;
#for s in f..f+WEIGHTS
#for r in 0..R
#for j in 0..U
            next_${s}_${r}_${j} = load${s}(row${r}, min(u + ${j}u * ${LANES}u, units - 1u));
#endfor
#endfor
#endfor
        }
#for j in 0..U
        {
            let u = first + lane + ${j}u * ${LANES}u;
#if QUANTISED
#for t in 0..T
#for s in f..f+WEIGHTS
#for r in 0..R
            var sum_${s}_${r}_${t} = 0.0;
#endfor
#endfor
            var all${t} = 0.0;
#endfor
#endif
#for i in 0..VECS
            {
#for t in 0..T
                let x${t} = xs[(${t}u * ${VECS}u + ${i}u) * PITCH + u];
#if MINIMUM
                all${t} += dot(x${t}, places());
#endif
#endfor
#for s in f..f+WEIGHTS
#for r in 0..R
                {
                    let v = value${i}(l_${s}_${r}_${j});
#for t in 0..T
#if QUANTISED
                    sum_${s}_${r}_${t} = fma4(v, x${t}, sum_${s}_${r}_${t});
#else
                    acc_${s}_${r}_${t} = fma4(v, x${t}, acc_${s}_${r}_${t});
#endif
#endfor
                }
#endfor
#endfor
            }
#endfor
#if QUANTISED
#for s in f..f+WEIGHTS
#for r in 0..R
            {
                let d = scale_of(l_${s}_${r}_${j});
#for t in 0..T
#if W_Q6_K
                acc_${s}_${r}_${t} += sum_${s}_${r}_${t};
#else
                acc_${s}_${r}_${t} = fma(d.x, sum_${s}_${r}_${t}, acc_${s}_${r}_${t});
#endif
#if MINIMUM
                acc_${s}_${r}_${t} = fma(d.y, all${t}, acc_${s}_${r}_${t});
#endif
#endfor
            }
#endfor
#endfor
#endif
        }
#endfor
    }
#for t in 0..T
#if NORM
    let factor${t} = 1.0 / sqrt(group_sum(ids, squares${t}) / f32(p.k) + p.eps);
#else
    let factor${t} = 1.0;
#endif
#for r in 0..R
    {
#for s in f..f+WEIGHTS
        let sum${s} = lane_sum(ids, acc_${s}_${r}_${t}) * factor${t};
#endfor
        if lane == 0u && ${t}u < live && n + ${r}u < p.parts[${f}].n {
            let column = p.parts[${f}].n0 + n + ${r}u;
            let at = ${t}u * p.parts[${f}].ldo + column;
#if WEIGHTS == 2
            out${f}[at] = act(sum0) * sum1;
#else
            var v = sum${f};
#if BIAS${f}
            v += bias${f}[column];
#endif
#if RESIDUAL
            v += residual[at];
#endif
            out${f}[at] = v;
#endif
        }
    }
#endfor
#endfor
}
#endfor

fn fma4(a: vec4<f32>, b: vec4<f32>, sum: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

// Over those who share rows.
fn lane_sum(ids: Ids, v: f32) -> f32 {
#if SUBGROUPS
    return subgroupAdd(v);
#else
    return group_sum(ids, v);
#endif
}

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let live = live_rows();
    if live == 0u {
        return;
    }
    var group = group_index(ids);
#for f in 0..PARTS
    if group < p.parts[${f}].groups {
        part${f}(ids, group, live);
        return;
    }
    group -= p.parts[${f}].groups;
#endfor
}
