// out[t] = table[ids[t]]: one invocation decodes eight elements. w is the part of the table's rows that
// starts at row0 of the vocabulary and has n rows; rows of other parts are left to other dispatches.
// An id past the vocabulary (p.vocab rows) gives zeros. Launched by launch_rows.rs.

struct Params {
    rows: u32, live: u32, row0: u32, k: u32,
    n: u32, vocab: u32, first: u32, stride: u32,
    groups: u32, w1: u32, w2: u32, w3: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind w array<vec4<u32>>
#bind ids_in array<u32>
#bind out array<f32>
#include "common.wgsl"
#include "live.wgsl"
#include "decode.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let octets = (p.k + 7u) / 8u;
    let i = thread_index(ids);
    let t = i / octets;
    if t >= live_rows() {
        return;
    }
    let octet = i % octets;
    let id = ids_in[t];
    let unknown = id >= p.vocab;
    if !unknown && (id < p.first || id >= p.first + p.n) {
        return;
    }
    var v = W8(vec4<f32>(0.0), vec4<f32>(0.0));
    if !unknown {
        v = w8(id - p.first, octet);
    }
    for (var j = 0u; j < 8u; j++) {
        let c = octet * 8u + j;
        if c < p.k {
            out[t * p.k + c] = select(v.b[j & 3u], v.a[j & 3u], j < 4u);
        }
    }
}
