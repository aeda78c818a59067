// Cross-entropy of one chunk of rows, the logits turned into their gradient in place:
// loss[row0 + i] = log Σ exp(l) − l[label], l[c] = scale · weights[row0 + i] · (softmax(l)[c] − [c = label]); both 0 where the label
// is u32::MAX. logits [chunk, vocab], labels and loss over all rows. GRADIENT: the gradient is wanted.
// With smoothing ε, (1 − ε) · [c = label] + ε / vocab takes the label's place.
// WEIGHTED: there are weights over all rows, else they are all 1.
// One workgroup a row. The products before and after it are matmul.wgsl and matmul_dx.wgsl.
// Launched by launch_matmul.rs.

struct Params {
    rows: u32, live: u32, row0: u32, vocab: u32,
    smoothing: f32, pad0: u32, pad1: u32, pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind logits array<f32>
#bind labels array<u32>
#bind loss array<f32>
#bind scale array<f32>
#if WEIGHTED
#bind weights array<f32>
#endif
#include "common.wgsl"
#include "live.wgsl"
#include "reduce.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let i = group_index(ids);
    if i >= live_rows() {
        return;
    }
    let base = i * p.vocab;
    let label = labels[p.row0 + i];
    if label >= p.vocab {
        if ids.lid == 0u {
            loss[p.row0 + i] = 0.0;
        }
#if GRADIENT
        for (var c = ids.lid; c < p.vocab; c += ${WG}u) {
            logits[base + c] = 0.0;
        }
#endif
        return;
    }
    var top = -3.4e38;
    for (var c = ids.lid; c < p.vocab; c += ${WG}u) {
        top = max(top, logits[base + c]);
    }
    top = group_max(ids, top);
    var sum = 0.0;
    for (var c = ids.lid; c < p.vocab; c += ${WG}u) {
        sum += exp(logits[base + c] - top);
    }
    sum = group_sum(ids, sum);
    var mean = 0.0;
    if p.smoothing > 0.0 {
        for (var c = ids.lid; c < p.vocab; c += ${WG}u) {
            mean += logits[base + c] - top;
        }
        mean = group_sum(ids, mean) / f32(p.vocab);
    }
    if ids.lid == 0u {
        loss[p.row0 + i] = log(sum) - (1.0 - p.smoothing) * (logits[base + label] - top) - p.smoothing * mean;
    }
#if GRADIENT
    // The label's logit was read by invocation 0, which also owns it where label % WG = 0 only: keep the
    // others from overwriting it first.
    storageBarrier();
    workgroupBarrier();
#if WEIGHTED
    let factor = scale[0] * weights[p.row0 + i];
#else
    let factor = scale[0];
#endif
    let inverse = factor / sum;
    let each = factor * p.smoothing / f32(p.vocab);
    for (var c = ids.lid; c < p.vocab; c += ${WG}u) {
        var d = exp(logits[base + c] - top) * inverse - each;
        if c == label {
            d -= factor * (1.0 - p.smoothing);
        }
        logits[base + c] = d;
    }
#endif
}
