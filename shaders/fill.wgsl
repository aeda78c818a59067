// x = value in n elements of 32 bits (value as bits). One invocation an element. Launched by launch_flat.rs.

struct Params {
    n: u32, bits: u32, pad0: u32, pad1: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind x array<u32>
#include "common.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let i = thread_index(ids);
    if i < p.n {
        x[i] = p.bits;
    }
}
