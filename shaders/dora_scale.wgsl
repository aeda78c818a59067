// out[t] = x[t] · magnitude[slot(t)] / norms[slot(t)] (+ bias) (+ residual[t]): x, residual, out [rows, n], magnitude and norms
// [slots, n], bias [n]. SLOTS: each row has a slot of its own, 0xffffffff for none (the factor is 1). One invocation an
// element. Launched by launch_dora.rs.

struct Params {
    rows: u32, live: u32, row0: u32, n: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind x array<f32>
#bind magnitude array<f32>
#bind norms array<f32>
#if SLOTS
#bind slots array<u32>
#endif
#if BIAS
#bind bias array<f32>
#endif
#if RESIDUAL
#bind residual array<f32>
#endif
#bind out array<f32>
#include "common.wgsl"
#include "live.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let i = thread_index(ids);
    let t = i / p.n;
    if t >= live_rows() {
        return;
    }
    let c = i % p.n;
    var v = x[i];
#if SLOTS
    let slot = slots[t];
    if slot != 0xffffffffu {
        v *= magnitude[slot * p.n + c] / norms[slot * p.n + c];
    }
#else
    v *= magnitude[c] / norms[c];
#endif
#if BIAS
    v += bias[c];
#endif
#if RESIDUAL
    v += residual[i];
#endif
    out[i] = v;
}
