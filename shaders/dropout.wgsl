// out (+)= x · keep / (1 − prob), or x minus that: keep is program::op::dropout_keeps, bit for bit (a MurmurHash3 finaliser
// over the element's index, the step's seed counts[3] and the op's salt); kept and dropped are the factors of what is kept
// and of the rest. x, out [rows, k]. One invocation an element. Launched by launch_rows.rs.

struct Params {
    rows: u32, live: u32, row0: u32, k: u32,
    salt: u32, prob: f32, kept: f32, dropped: f32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind x array<f32>
#bind out array<f32>
#include "common.wgsl"
#include "live.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let i = thread_index(ids);
    if i / p.k >= live_rows() {
        return;
    }
    var h = (i * 0x9E3779B1u) ^ counts[3] ^ (p.salt * 0x85EBCA77u);
    h = (h ^ (h >> 16u)) * 0x85EBCA6Bu;
    h = (h ^ (h >> 13u)) * 0xC2B2AE35u;
    h = h ^ (h >> 16u);
    let v = x[i] * select(p.dropped, p.kept, f32(h >> 8u) * (1.0 / 16777216.0) >= p.prob);
#if ACCUMULATE
    out[i] += v;
#else
    out[i] = v;
#endif
}
