// Op::TopLogprobs (src/program/op.rs) from the records of top_logprobs_chunks.wgsl: the sum of the exponentials of a row, and the n
// best of the chunks' tokens. logits [rows, vocab], tokens, labels [rows], logprobs [rows, 1 + n], top [rows, n].
// One workgroup a row. Launched by launch_rows.rs.

struct Params {
    rows: u32, live: u32, row0: u32, vocab: u32,
    chunks: u32, n: u32, pad0: u32, pad1: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind logits array<f32>
#bind tokens array<u32>
#bind labels array<u32>
#bind records array<f32>
#bind logprobs array<f32>
#bind top array<u32>
#include "common.wgsl"
#include "live.wgsl"
#include "reduce.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let row = group_index(ids);
    if row >= live_rows() {
        return;
    }
    let size = 2u + 2u * p.n;
    let base = row * p.chunks * size;
    var largest = -3.4e38;
    for (var c = ids.lid; c < p.chunks; c += ${WG}u) {
        largest = max(largest, records[base + c * size]);
    }
    largest = group_max(ids, largest);
    var sum = 0.0;
    for (var c = ids.lid; c < p.chunks; c += ${WG}u) {
        sum += records[base + c * size + 1u] * exp(records[base + c * size] - largest);
    }
    let shift = largest + log(group_sum(ids, sum));
    if ids.lid == 0u {
        let token = select(labels[row], tokens[row], labels[row] == 0xffffffffu);
        logprobs[row * (1u + p.n)] = logits[row * p.vocab + min(token, p.vocab - 1u)] - shift;
    }
    var last = 3.4e38;
    var last_id = 0u;
    for (var i = 0u; i < p.n; i++) {
        var best = -3.4e38;
        var id = p.vocab;
        for (var c = ids.lid; c < p.chunks * p.n; c += ${WG}u) {
            let at = base + c / p.n * size + 2u + c % p.n * 2u;
            let l = records[at];
            let token = u32(records[at + 1u]);
            let behind = i == 0u || l < last || (l == last && token > last_id);
            if token < p.vocab && behind && (l > best || (l == best && token < id)) {
                best = l;
                id = token;
            }
        }
        last = group_max(ids, best);
        last_id = p.vocab - u32(group_max(ids, select(0.0, f32(p.vocab - id), best == last)));
        if ids.lid == 0u {
            logprobs[row * (1u + p.n) + 1u + i] = last - shift;
            top[row * p.n + i] = last_id;
        }
    }
}
