// The loss of pairs of sequences and the derivative with respect to each token's cross-entropy: Op::PreferenceLoss has the
// formulas. loss f32 [T], kinds u32 [T], bounds u32 [2 · pairs + 1], reference f32 [2 · pairs], hyper f32 [4] (which loss, beta, nu, epsilon),
// weights f32 [T], pairs f32 [pairs, 4]; counts[2] / 2 pairs are live. One workgroup a pair. Launched by launch_rows.rs.

struct Params {
    pairs: u32, pad0: u32, pad1: u32, pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind loss array<f32>
#bind kinds array<u32>
#bind bounds array<u32>
#bind reference array<f32>
#bind hyper array<f32>
#bind weights array<f32>
#bind pairs array<f32>
#include "common.wgsl"
#include "reduce.wgsl"

fn log_sigmoid(x: f32) -> f32 {
    return min(x, 0.0) - log(1.0 + exp(-abs(x)));
}

fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(-x));
}

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let pair = group_index(ids);
    if pair >= min(counts[2] / 2u, p.pairs) {
        return;
    }
    let first = bounds[2u * pair];
    let middle = bounds[2u * pair + 1u];
    let end = bounds[2u * pair + 2u];
    var lp = vec2<f32>(0.0);
    var n = vec2<f32>(0.0);
    var kept = 0.0;
    for (var t = first + ids.lid; t < end; t += ${WG}u) {
        let one = vec2<f32>(select(0.0, 1.0, t < middle), select(1.0, 0.0, t < middle));
        if (kinds[t] & 1u) != 0u {
            lp -= one * loss[t];
            n += one;
        }
        if (kinds[t] & 2u) != 0u {
            kept += loss[t];
        }
    }
    lp = vec2<f32>(group_sum(ids, lp.x), group_sum(ids, lp.y));
    n = vec2<f32>(group_sum(ids, n.x), group_sum(ids, n.y));
    kept = group_sum(ids, kept);
    let gain = lp - vec2<f32>(reference[2u * pair], reference[2u * pair + 1u]);
    let which = u32(hyper[0]);
    let beta = hyper[1];
    let m = gain.x - gain.y;
    var value = 0.0;
    var d = vec2<f32>(0.0);
    if which == 0u {
        let wrong = hyper[3];
        value = -(1.0 - wrong) * log_sigmoid(beta * m) - wrong * log_sigmoid(-beta * m);
        d = beta * (wrong * sigmoid(beta * m) - (1.0 - wrong) * sigmoid(-beta * m)) * vec2<f32>(1.0, -1.0);
    } else if which == 1u {
        value = max(0.0, 1.0 - beta * m);
        d = select(0.0, -beta, beta * m < 1.0) * vec2<f32>(1.0, -1.0);
    } else if which == 2u {
        let off = gain.x / n.x - gain.y / n.y - 0.5 / beta;
        value = off * off;
        d = 2.0 * off * vec2<f32>(1.0, -1.0) / n;
    } else {
        // The odds of a certain text are infinite.
        let l = min(lp / n, vec2<f32>(-1e-6));
        let rest = 1.0 - exp(l);
        let odds = (l.x - l.y) - (log(rest.x) - log(rest.y));
        value = -beta * log_sigmoid(odds);
        d = -beta * sigmoid(-odds) * vec2<f32>(1.0, -1.0) / rest / n;
    }
    for (var t = first + ids.lid; t < end; t += ${WG}u) {
        var w = 0.0;
        if (kinds[t] & 1u) != 0u {
            w = -select(d.y, d.x, t < middle);
        }
        if (kinds[t] & 2u) != 0u {
            w += hyper[2];
        }
        weights[t] = w;
    }
    if ids.lid == 0u {
        pairs[4u * pair] = value;
        pairs[4u * pair + 1u] = lp.x;
        pairs[4u * pair + 2u] = lp.y;
        pairs[4u * pair + 3u] = kept;
    }
}
