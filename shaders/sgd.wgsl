// SGD with momentum, as torch.optim.SGD: the decay is added to the gradient. n elements of flat f32 buffers.
// hyper: lr, momentum, –, –, weight decay, –, –, clip norm (0: none); norm[0] is the gradient's norm. One invocation
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
    var g = grads[i];
    if hyper[7] > 0.0 {
        g *= min(1.0, hyper[7] / (norm[0] + 1e-6));
    }
    let w = params[i];
    let m1 = fma(hyper[1], m[i], fma(hyper[4], w, g));
    m[i] = m1;
    params[i] = w - hyper[0] * m1;
}
