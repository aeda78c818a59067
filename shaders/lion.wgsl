// Lion (https://arxiv.org/abs/2302.06675) with decoupled weight decay, n elements of flat f32 buffers.
// hyper: lr, beta1, beta2, –, weight decay, –, –, clip norm (0: none); norm[0] is the gradient's norm. One invocation
// an element. Launched by launch_flat.rs.

struct Params {
    n: u32, pad0: u32, pad1: u32, pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind params array<f32>
#bind grads array<f32>
#bind m array<f32>
#bind norm array<f32>
#bind hyper array<f32>
#include "common.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let i = thread_index(ids);
    if i >= p.n {
        return;
    }
    let lr = hyper[0];
    let beta1 = hyper[1];
    let beta2 = hyper[2];
    var g = grads[i];
    if hyper[7] > 0.0 {
        g *= min(1.0, hyper[7] / (norm[0] + 1e-6));
    }
    let step = fma(beta1, m[i], (1.0 - beta1) * g);
    m[i] = fma(beta2, m[i], (1.0 - beta2) * g);
    params[i] = params[i] * (1.0 - lr * hyper[4]) - lr * sign(step);
}
