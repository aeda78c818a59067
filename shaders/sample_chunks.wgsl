// First pass of sample: of each chunk of 4096 logits of each row, the largest logit, the first token that has it, and the
// sum of exp((l − largest) / temperature) over the chunk: chunks[(row · n + chunk) · 4 ..], the last two words as bits.
// logits [rows, vocab], sampling [rows, 4] (temperature first), n chunks in a row. One workgroup a chunk.
// Launched by launch_rows.rs.

struct Params {
    rows: u32, live: u32, row0: u32, vocab: u32,
    n: u32, pad0: u32, pad1: u32, pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind logits array<f32>
#bind sampling array<f32>
#bind chunks array<f32>
#include "common.wgsl"
#include "live.wgsl"
#include "reduce.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let group = group_index(ids);
    let row = group / p.n;
    if row >= live_rows() {
        return;
    }
    let first = group % p.n * 4096u;
    let end = min(first + 4096u, p.vocab);
    let base = row * p.vocab;
    var top = -3.4e38;
    var id = first;
    for (var c = first + ids.lid; c < end; c += ${WG}u) {
        let l = logits[base + c];
        if l > top {
            top = l;
            id = c;
        }
    }
    let best = group_max(ids, top);
    // The smallest id among those with the best logit; ids are exact in f32 as distances within the chunk.
    let distance = group_max(ids, select(0.0, f32(end - id), top == best));
    let temperature = sampling[row * 4u];
    var sum = 0.0;
    if temperature > 0.0 {
        let scale = 1.0 / temperature;
        for (var c = first + ids.lid; c < end; c += ${WG}u) {
            sum += exp((logits[base + c] - best) * scale);
        }
    }
    sum = group_sum(ids, sum);
    if ids.lid == 0u {
        chunks[group * 4u] = best;
        chunks[group * 4u + 1u] = sum;
        chunks[group * 4u + 2u] = f32(end - u32(distance));
    }
}
