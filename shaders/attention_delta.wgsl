// delta[t, h] = Σ_d out[t, h, d] · dout[t, h, d]: first step of attention's backward pass
// (FlashAttention-2, https://arxiv.org/abs/2307.08691). One invocation an element. Launched by launch_attention.rs.

struct Params {
    rows: u32, live: u32, row0: u32, heads: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind out array<f32>
#bind dout array<f32>
#bind delta array<f32>
#include "common.wgsl"
#include "live.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let i = thread_index(ids);
    if i / p.heads >= live_rows() {
        return;
    }
    var sum = 0.0;
    for (var d = 0u; d < ${D}u; d++) {
        sum = fma(out[i * ${D}u + d], dout[i * ${D}u + d], sum);
    }
    delta[i] = sum;
}
