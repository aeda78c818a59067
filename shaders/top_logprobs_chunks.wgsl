// First pass of top_logprobs: of each chunk of 4096 logits of each row, the largest, the sum of exp(l − largest), and the n
// likeliest tokens with their logits, best first and of equals the smaller id first:
// records[(row · chunks + chunk) · (2 + 2n) ..] = largest, sum, (logit, id) × n. Ids are stored as numbers, exact in f32; a chunk
// with fewer tokens than n fills up with the id `vocab`. logits [rows, vocab]. One workgroup a chunk: each of the n rounds
// looks for the best token behind the one found last. Launched by launch_rows.rs.

struct Params {
    rows: u32, live: u32, row0: u32, vocab: u32,
    chunks: u32, n: u32, pad0: u32, pad1: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind logits array<f32>
#bind records array<f32>
#include "common.wgsl"
#include "live.wgsl"
#include "reduce.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let group = group_index(ids);
    let row = group / p.chunks;
    if row >= live_rows() {
        return;
    }
    let first = group % p.chunks * 4096u;
    let end = min(first + 4096u, p.vocab);
    let base = row * p.vocab;
    let record = group * (2u + 2u * p.n);
    var last = 3.4e38;
    var last_id = 0u;
    var top = 0.0;
    for (var i = 0u; i < p.n; i++) {
        var best = -3.4e38;
        var id = end;
        for (var c = first + ids.lid; c < end; c += ${WG}u) {
            let l = logits[base + c];
            if l > best && (i == 0u || l < last || (l == last && c > last_id)) {
                best = l;
                id = c;
            }
        }
        last = group_max(ids, best);
        last_id = end - u32(group_max(ids, select(0.0, f32(end - id), best == last)));
        if i == 0u {
            top = last;
        }
        if ids.lid == 0u {
            records[record + 2u + 2u * i] = last;
            records[record + 3u + 2u * i] = f32(select(p.vocab, last_id, last_id < end));
        }
    }
    var sum = 0.0;
    for (var c = first + ids.lid; c < end; c += ${WG}u) {
        sum += exp(logits[base + c] - top);
    }
    sum = group_sum(ids, sum);
    if ids.lid == 0u {
        records[record] = top;
        records[record + 1u] = sum;
    }
}
