// Lion (lion.wgsl) with its moment in 8 bits: map[code] · max of its block of 256 elements, see Op::AdamW8bit in
// src/program/op.rs. params, grads [n]; m four codes a word; m_max one number a block; hyper as in lion.wgsl, then the map of m
// (256 numbers). One workgroup a block, four elements an invocation and turn. Launched by launch_flat.rs.

struct Params {
    n: u32, pad0: u32, pad1: u32, pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind params array<f32>
#bind grads array<f32>
#bind m array<u32>
#bind m_max array<f32>
#bind norm array<f32>
#bind hyper array<f32>
#include "common.wgsl"
#include "reduce.wgsl"
#include "codes_moment.wgsl"

const MAP = 8u;

// The moment between the old one and the gradient.
fn between(beta: f32, word: u32, top: f32) -> vec4<f32> {
    return fma(vec4<f32>(beta), decode(m[word], MAP, top), (1.0 - beta) * gradients(word * 4u));
}

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let block = group_index(ids);
    let words = p.n / 4u;
    if block * 64u >= words {
        return;
    }
    let end = min(block * 64u + 64u, words);
    let old = m_max[block];
    var top = 0.0;
    for (var word = block * 64u + ids.lid; word < end; word += ${WG}u) {
        top = max(top, largest(abs(between(hyper[2], word, old))));
    }
    top = group_max(ids, top);
    let lr = hyper[0];
    for (var word = block * 64u + ids.lid; word < end; word += ${WG}u) {
        let step = sign(between(hyper[1], word, old));
        let next = between(hyper[2], word, old);
        // A block of zeros has a maximum of 0.
        let scaled = select(vec4<f32>(0.0), next / top, top > 0.0);
        var codes = 0u;
#for j in 0..4
        params[word * 4u + ${j}u] = params[word * 4u + ${j}u] * (1.0 - lr * hyper[4]) - lr * step[${j}];
        codes |= signed_code(scaled[${j}], MAP) << (8u * ${j}u);
#endfor
        m[word] = codes;
    }
    if ids.lid == 0u {
        m_max[block] = top;
    }
}
