// matmul_dx.wgsl for software adapters with subgroups of exactly 8: one invocation sums eight columns of dx for
// T rows, so a decoded octet of w is used T times; eight dy values a row are loaded once a subgroup, one a lane,
// and broadcast. No barrier, no workgroup memory. Launched by launch_matmul.rs.

struct Params {
    rows: u32, live: u32, row0: u32, k: u32,
    n: u32, n0: u32, ldy: u32, stride: u32,
    groups: u32, w1: u32, w2: u32, w3: u32,
    dx_row0: u32, pad0: u32, pad1: u32, pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind dy array<f32>
#bind w array<vec4<u32>>
#bind dx array<f32>
#if SCALE
#bind scale array<f32>
#endif
#include "common.wgsl"
#include "live.wgsl"
#include "decode.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let octets = (p.k + 7u) / 8u;
    let blocks = (octets + ${WG}u - 1u) / ${WG}u;
    let group = group_index(ids);
    let first = (group / blocks) * ${T}u;
    let live = live_rows();
    if first >= live {
        return;
    }
    let own = (group % blocks) * ${WG}u + ids.lid;
    let octet = min(own, octets - 1u);
#for t in 0..T
    var a${t} = vec4<f32>(0.0);
    var b${t} = vec4<f32>(0.0);
    let row_${t} = min(first + ${t}u, live - 1u) * p.ldy + p.n0;
#endfor
    for (var n = 0u; n < p.n; n += 8u) {
        let lane_n = min(n + ids.lane, p.n - 1u);
        let there = n + ids.lane < p.n;
#for t in 0..T
        let loaded${t} = select(0.0, dy[row_${t} + lane_n], there);
#endfor
#for i in 0..8
        {
            let v = w8(min(n + ${i}u, p.n - 1u), octet);
#for t in 0..T
            let d${t} = vec4<f32>(subgroupBroadcast(loaded${t}, ${i}u));
            a${t} = fma(d${t}, v.a, a${t});
            b${t} = fma(d${t}, v.b, b${t});
#endfor
        }
#endfor
    }
    if own >= octets {
        return;
    }
#if SCALE
    let factor = scale[0];
#else
    let factor = 1.0;
#endif
#for t in 0..T
    if first + ${t}u < live {
        for (var j = 0u; j < 8u; j++) {
            let c = own * 8u + j;
            if c < p.k {
                let at = (first + ${t}u + p.dx_row0) * p.k + c;
                let v = factor * select(b${t}[j & 3u], a${t}[j & 3u], j < 4u);
#if ACCUMULATE
                dx[at] += v;
#else
                dx[at] = v;
#endif
            }
        }
    }
#endfor
}
