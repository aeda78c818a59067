// What optimizers with moments of 8 bits share: a moment is hyper[map + code] · max of its block; `map` is where the 256
// ascending numbers of its map start. The includer binds grads, norm and hyper.

// Four moments of a word of codes.
fn decode(word: u32, map: u32, top: f32) -> vec4<f32> {
    let at = (vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u) & vec4<u32>(255u)) + vec4<u32>(map);
    return vec4<f32>(hyper[at.x], hyper[at.y], hyper[at.z], hyper[at.w]) * top;
}

// The code nearest to x: how many means of neighbours in the map are below it.
fn code_of(x: f32, map: u32) -> u32 {
    var code = 0u;
    for (var step = 128u; step > 0u; step >>= 1u) {
        let i = map + code + step;
        if (hyper[i - 1u] + hyper[i]) * 0.5 < x {
            code += step;
        }
    }
    return code;
}

// Negative numbers stay negative.
fn signed_code(x: f32, map: u32) -> u32 {
    let code = code_of(x, map);
    return code - select(0u, 1u, x < 0.0 && hyper[map + code] == 0.0);
}

fn gradients(i: u32) -> vec4<f32> {
    var g = vec4<f32>(grads[i], grads[i + 1u], grads[i + 2u], grads[i + 3u]);
    if hyper[7] > 0.0 {
        g *= min(1.0, hyper[7] / (norm[0] + 1e-6));
    }
    return g;
}

fn largest(x: vec4<f32>) -> f32 {
    return max(max(x.x, x.y), max(x.z, x.w));
}
