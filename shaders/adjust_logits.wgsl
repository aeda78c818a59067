// out[row][c] = logits[row][c], or IMPOSSIBLE (src/program/op.rs) where bit c of the row's mask is 0: row mask_of[row] of masks
// [M, words], 0xffffffff for none. logits, out [rows, vocab]. First pass of Op::AdjustLogits; adjust_logits_entries.wgsl is
// the second. One invocation an element. Launched by launch_rows.rs.

struct Params {
    rows: u32, live: u32, row0: u32, vocab: u32,
    words: u32, pad0: u32, pad1: u32, pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind logits array<f32>
#bind masks array<u32>
#bind mask_of array<u32>
#bind out array<f32>
#include "common.wgsl"
#include "live.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let i = thread_index(ids);
    let row = i / p.vocab;
    if row >= live_rows() {
        return;
    }
    let c = i % p.vocab;
    let mask = mask_of[row];
    var l = logits[i];
    if mask != 0xffffffffu && ((masks[mask * p.words + c / 32u] >> (c % 32u)) & 1u) == 0u {
        l = -0x1.fffffep+127f;
    }
    out[i] = l;
}
