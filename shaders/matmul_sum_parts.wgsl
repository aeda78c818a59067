// out[t, c] (+)= scale · Σ_s parts[s, t, c], in the order of s, so that a sum is the same in every run.
// parts [parts, rows, cols], out [rows, ldo] from column c0 and row out_row0 on. ACCUMULATE adds to out, SCALE multiplies
// by scale[0]. One invocation an element. The second pass of SPLIT products (matmul.wgsl, matmul_dx.wgsl, matmul_dw.wgsl).

struct Params {
    rows: u32, live: u32, row0: u32, cols: u32,
    ldo: u32, c0: u32, out_row0: u32, parts: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind parts array<f32>
#bind out array<f32>
#if SCALE
#bind scale array<f32>
#endif
#include "common.wgsl"
#include "live.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let i = thread_index(ids);
    let t = i / p.cols;
    if t >= live_rows() {
        return;
    }
    let step = p.rows * p.cols;
    var sum = 0.0;
    for (var s = 0u; s < p.parts; s++) {
        sum += parts[s * step + i];
    }
#if SCALE
    sum *= scale[0];
#endif
    let at = (t + p.out_row0) * p.ldo + p.c0 + i % p.cols;
#if ACCUMULATE
    out[at] += sum;
#else
    out[at] = sum;
#endif
}
