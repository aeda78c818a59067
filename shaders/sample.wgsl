// tokens[row] drawn from logits [rows, vocab] as Op::Sample in src/program/op.rs says, without a sort. A threshold on the
// logit (of top-k: its count, of top-p: its weight) is the largest key whose "how much lies at or above me" reaches a
// goal; so is the drawn token, with the id counted from the end as key. All three are found by `find`, which measures
// eight keys at a time: three bits a pass over the row. The key of a logit is its bits, ordered as unsigned numbers.
// chunks: what sample_chunks.wgsl wrote, n chunks of 4096 in a row. One workgroup a row. Launched by launch_rows.rs.

struct Params {
    rows: u32, live: u32, row0: u32, vocab: u32,
    n: u32, pad0: u32, pad1: u32, pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind logits array<f32>
#bind sampling array<f32>
#bind uniforms array<f32>
#bind chunks array<f32>
#bind tokens array<u32>
#include "common.wgsl"
#include "live.wgsl"
#include "reduce.wgsl"

const COUNT = 0u;
const MASS = 1u;
const DRAW = 2u;

// What all passes over a row share.
struct Row {
    base: u32,
    // The largest logit, 1 / temperature.
    top: f32,
    scale: f32,
    // Kept are tokens with at least this key and this weight.
    floor: u32,
    least: f32,
}

struct Eight {
    a: vec4<f32>,
    b: vec4<f32>,
}

fn key_of(l: f32) -> u32 {
    let bits = bitcast<u32>(l);
    // Zeros of both signs are equal.
    return select(bits | 0x80000000u, ~bits, bits > 0x80000000u);
}

// How much of elements [first, end) lies at or above the keys lo, lo + step, … lo + 7 · step: tokens at or above the floor
// (COUNT) or their weight (MASS) by the key of the logit, or the weight of those that are kept by vocab − 1 − id (DRAW).
fn measure(ids: Ids, row: Row, mode: u32, first: u32, end: u32, lo: u32, step: u32) -> Eight {
    let from_a = vec4<u32>(lo, lo + step, lo + 2u * step, lo + 3u * step);
    let from_b = from_a + vec4<u32>(4u * step);
    var sum_a = vec4<f32>(0.0);
    var sum_b = vec4<f32>(0.0);
    for (var c = first + ids.lid; c < end; c += ${WG}u) {
        let l = logits[row.base + c];
        var key = key_of(l);
        if key < row.floor {
            continue;
        }
        var w = 1.0;
        if mode != COUNT {
            w = exp((l - row.top) * row.scale);
        }
        if mode == DRAW {
            w = select(0.0, w, w >= row.least);
            key = p.vocab - 1u - c;
        }
        sum_a += select(vec4<f32>(0.0), vec4<f32>(w), vec4<u32>(key) >= from_a);
        sum_b += select(vec4<f32>(0.0), vec4<f32>(w), vec4<u32>(key) >= from_b);
    }
    var all: Eight;
#for i in 0..4
    all.a[${i}] = group_sum(ids, sum_a[${i}]);
    all.b[${i}] = group_sum(ids, sum_b[${i}]);
#endfor
    return all;
}

// The largest key of [lo, hi] at which the measure reaches the goal: >= it, or > it for DRAW. Where it is not reached
// at lo, the search goes on below; 0 where it is reached nowhere. A goal below 0 is minus the share of the measure at lo.
fn find(ids: Ids, row: Row, mode: u32, first: u32, end: u32, low: u32, high: u32, wanted: f32) -> u32 {
    var lo = low;
    var hi = high;
    var goal = wanted;
    var begun = false;
    while lo < hi || !begun {
        begun = true;
        let step = (hi - lo) / 8u + 1u;
        let all = measure(ids, row, mode, first, end, lo, step);
        if goal < 0.0 {
            goal = -goal * all.a.x;
        }
        if mode == DRAW && lo == low {
            // Sums in another order may have ended a little higher: some token must be left.
            goal = min(goal, all.a.x * 0.9999999);
        }
        var reached_a = all.a >= vec4<f32>(goal);
        var reached_b = all.b >= vec4<f32>(goal);
        if mode == DRAW {
            reached_a = all.a > vec4<f32>(goal);
            reached_b = all.b > vec4<f32>(goal);
        }
        let n = dot(select(vec4<f32>(0.0), vec4<f32>(1.0), reached_a), vec4<f32>(1.0))
            + dot(select(vec4<f32>(0.0), vec4<f32>(1.0), reached_b), vec4<f32>(1.0));
        if n > 0.0 {
            lo += (u32(n) - 1u) * step;
            hi = min(hi, lo + step - 1u);
        } else if lo == 0u {
            return 0u;
        } else {
            hi = lo - 1u;
            lo = 0u;
        }
    }
    return lo;
}

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let r = group_index(ids);
    if r >= live_rows() {
        return;
    }
    let records = r * p.n * 4u;
    var best = 0u;
    for (var c = 1u; c < p.n; c++) {
        if chunks[records + c * 4u] > chunks[records + best * 4u] {
            best = c;
        }
    }
    let top = chunks[records + best * 4u];
    let temperature = sampling[r * 4u];
    let top_k = sampling[r * 4u + 1u];
    let top_p = sampling[r * 4u + 2u];
    let min_p = sampling[r * 4u + 3u];
    if temperature == 0.0 || abs(top) > 3.39e38 {
        if ids.lid == 0u {
            tokens[r] = u32(chunks[records + best * 4u + 2u]);
        }
        return;
    }
    var row = Row(r * p.vocab, top, 1.0 / temperature, 0u, min_p);
    var total = 0.0;
    for (var c = 0u; c < p.n; c++) {
        total += chunks[records + c * 4u + 1u] * exp((chunks[records + c * 4u] - top) * row.scale);
    }
    // A first guess at thresholds: tokens with at least e⁻¹⁰ of the best one's probability.
    let near = key_of(top - 10.0 * temperature);
    let cut = top_k >= 1.0 && u32(top_k) < p.vocab;
    if cut {
        row.floor = find(ids, row, COUNT, 0u, p.vocab, near, key_of(top), f32(u32(top_k)));
    }
    if top_p < 1.0 {
        if cut {
            row.floor = find(ids, row, MASS, 0u, p.vocab, row.floor, key_of(top), -top_p);
        } else {
            row.floor = find(ids, row, MASS, 0u, p.vocab, near, key_of(top), top_p * total);
        }
    }
    // The chunk that the draw falls in: the weights of chunks are known, or measured where a filter is on.
    let filtered = row.floor > 0u || min_p > 0.0;
    var goal = uniforms[r] * total;
    if filtered {
        goal = uniforms[r] * measure(ids, row, DRAW, 0u, p.vocab, 0u, 0u).a.x;
    }
    var chunk = 0u;
    var last = best;
    var found = false;
    for (; chunk < p.n; chunk++) {
        // A chunk whose best token is below the floor has nothing to measure.
        if filtered && key_of(chunks[records + chunk * 4u]) < row.floor {
            continue;
        }
        var w = 0.0;
        if filtered {
            w = measure(ids, row, DRAW, chunk * 4096u, min(chunk * 4096u + 4096u, p.vocab), 0u, 0u).a.x;
        } else {
            w = chunks[records + chunk * 4u + 1u] * exp((chunks[records + chunk * 4u] - top) * row.scale);
        }
        if w > 0.0 {
            last = chunk;
            if w > goal {
                found = true;
                break;
            }
            goal -= w;
        }
    }
    let first = last * 4096u;
    let end = min(first + 4096u, p.vocab);
    // Past the last chunk by rounding: its last kept token.
    goal = select(3.0e38, max(goal, 0.0), found);
    let key = find(ids, row, DRAW, first, end, p.vocab - end, p.vocab - 1u - first, goal);
    if ids.lid == 0u {
        tokens[r] = p.vocab - 1u - key;
    }
}
