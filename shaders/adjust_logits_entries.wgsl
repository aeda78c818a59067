// The entries of Op::AdjustLogits (src/program/op.rs), whose first pass has copied and masked the logits: each changes one token
// of its row in out [rows, vocab], reading it from logits [rows, vocab]. entries [E, 2], those of a row from starts[row] on.
// One workgroup a row. Launched by launch_rows.rs.

struct Params {
    rows: u32, live: u32, row0: u32, vocab: u32,
    words: u32, pad0: u32, pad1: u32, pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind logits array<f32>
#bind entries array<u32>
#bind starts array<u32>
#bind repetition array<f32>
#bind masks array<u32>
#bind mask_of array<u32>
#bind out array<f32>
#include "common.wgsl"
#include "live.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let row = group_index(ids);
    if row >= live_rows() {
        return;
    }
    let mask = mask_of[row];
    let r = repetition[row];
    for (var e = starts[row] + ids.lid; e < starts[row + 1u]; e += ${WG}u) {
        let word = entries[e * 2u];
        let token = word & 0x7fffffffu;
        if mask != 0xffffffffu && ((masks[mask * p.words + token / 32u] >> (token % 32u)) & 1u) == 0u {
            continue;
        }
        var l = logits[row * p.vocab + token];
        if word != token {
            l = select(l * r, l / r, l > 0.0);
        }
        out[row * p.vocab + token] = l + bitcast<f32>(entries[e * 2u + 1u]);
    }
}
