// norms[o] = max(sqrt(Σ_k (W[o, k] + scale · Σ_r B[o, r] · A[r, k])²), 1e-15): the length of each row of an adapted weight (DoRA). w is the
// part of the weight whose rows start at `first` and has n of them; a [rank, k], b [·, rank], norms [·]. A workgroup has
// ROWS rows, an invocation every WG-th octet of them. Launched by launch_dora.rs.

struct Params {
    n: u32, first: u32, rank: u32, k: u32,
    stride: u32, groups: u32, w1: u32, w2: u32,
    w3: u32, pad0: u32, pad1: u32, pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind w array<vec4<u32>>
#bind a array<f32>
#bind b array<f32>
#bind scales array<f32>
#bind norms array<f32>
#include "common.wgsl"
#include "decode.wgsl"
#include "reduce.wgsl"

fn a_at(r: u32, k: u32) -> f32 {
#if K_ANY
    if k >= p.k {
        return 0.0;
    }
#endif
    return a[r * p.k + k];
}

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let row = group_index(ids) * ${ROWS}u;
    if row >= p.n {
        return;
    }
#for i in 0..ROWS
    // Past the end the last row is computed once more, and not written.
    let row${i} = min(row + ${i}u, p.n - 1u);
    let b${i} = (p.first + row${i}) * p.rank;
    var sum${i} = 0.0;
#endfor
    for (var octet = ids.lid; octet < (p.k + 7u) / 8u; octet += ${WG}u) {
        let k = octet * 8u;
#for i in 0..ROWS
        var low${i} = vec4<f32>(0.0);
        var high${i} = vec4<f32>(0.0);
#endfor
        for (var r = 0u; r < p.rank; r++) {
            let low = vec4<f32>(a_at(r, k), a_at(r, k + 1u), a_at(r, k + 2u), a_at(r, k + 3u));
            let high = vec4<f32>(a_at(r, k + 4u), a_at(r, k + 5u), a_at(r, k + 6u), a_at(r, k + 7u));
#for i in 0..ROWS
            low${i} = fma(vec4<f32>(b[b${i} + r]), low, low${i});
            high${i} = fma(vec4<f32>(b[b${i} + r]), high, high${i});
#endfor
        }
#for i in 0..ROWS
        let w${i} = w8(row${i}, octet);
        let v${i} = fma(vec4<f32>(scales[0]), low${i}, w${i}.a);
        let u${i} = fma(vec4<f32>(scales[0]), high${i}, w${i}.b);
        sum${i} += dot(v${i}, v${i}) + dot(u${i}, u${i});
#endfor
    }
#for i in 0..ROWS
    let total${i} = group_sum(ids, sum${i});
    if ids.lid == 0u && row + ${i}u < p.n {
        norms[p.first + row + ${i}u] = max(sqrt(total${i}), 1e-15);
    }
#endfor
}
