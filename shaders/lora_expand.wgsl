// y[t, n] += scales[slot(t)] · Σ_r u[t, r] · b[slot(t) · n_out + n, r]; rows without an adapter are left alone.
// u [rows, rank], b [slots · n_out, rank], y [rows, n_out]. One invocation an element of y.
// Without slots and with many rows matmul.wgsl does this. Launched by launch_matmul.rs.

struct Params {
    rows: u32, live: u32, row0: u32, n: u32,
    rank: u32, adapters: u32, pad1: u32, pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind u array<f32>
#bind b array<f32>
#bind scales array<f32>
#bind y array<f32>
#if SLOTS
#bind slots array<u32>
#endif
#include "common.wgsl"
#include "live.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let i = thread_index(ids);
    let t = i / p.n;
    let n = i % p.n;
    if t >= live_rows() {
        return;
    }
#if SLOTS
    let slot = slots[t];
    if slot >= p.adapters {
        return;
    }
#else
    let slot = 0u;
#endif
    let row = (slot * p.n + n) * p.rank;
    var sum = 0.0;
    for (var r = 0u; r < p.rank; r++) {
        sum = fma(u[t * p.rank + r], b[row + r], sum);
    }
    y[i] += scales[slot] * sum;
}
