// AdamW (adamw.wgsl) with moments of 8 bits: a moment is map[code] · max of its block of 256 elements, see Op::AdamW8bit in
// src/program/op.rs. params, grads [n]; m, v four codes a word; m_max, v_max one number a block; hyper as in adamw.wgsl,
// then the map of m (256 numbers) and that of v. One workgroup a block, four elements an invocation and turn.
// Launched by launch_flat.rs.

struct Params {
    n: u32, pad0: u32, pad1: u32, pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind params array<f32>
#bind grads array<f32>
#bind m array<u32>
#bind v array<u32>
#bind m_max array<f32>
#bind v_max array<f32>
#bind norm array<f32>
#bind hyper array<f32>
#include "common.wgsl"
#include "reduce.wgsl"

// Where the maps start in hyper.
const MAP_M = 8u;
const MAP_V = 264u;

#include "codes_moment.wgsl"

fn first_moments(word: u32, top: f32) -> vec4<f32> {
    let g = gradients(word * 4u);
    return fma(vec4<f32>(hyper[1]), decode(m[word], MAP_M, top), (1.0 - hyper[1]) * g);
}

fn second_moments(word: u32, top: f32) -> vec4<f32> {
    let g = gradients(word * 4u);
    return fma(vec4<f32>(hyper[2]), decode(v[word], MAP_V, top), (1.0 - hyper[2]) * g * g);
}

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let block = group_index(ids);
    let words = p.n / 4u;
    if block * 64u >= words {
        return;
    }
    let end = min(block * 64u + 64u, words);
    let old_m = m_max[block];
    let old_v = v_max[block];
    var top_m = 0.0;
    var top_v = 0.0;
    for (var word = block * 64u + ids.lid; word < end; word += ${WG}u) {
        top_m = max(top_m, largest(abs(first_moments(word, old_m))));
        top_v = max(top_v, largest(second_moments(word, old_v)));
    }
    top_m = group_max(ids, top_m);
    top_v = group_max(ids, top_v);
    let lr = hyper[0];
    for (var word = block * 64u + ids.lid; word < end; word += ${WG}u) {
        let first = first_moments(word, old_m);
        let second = second_moments(word, old_v);
        let update = lr / hyper[5] * first / (sqrt(second) / sqrt(hyper[6]) + vec4<f32>(hyper[3]));
        // A block of zeros has a maximum of 0.
        let scaled_m = select(vec4<f32>(0.0), first / top_m, top_m > 0.0);
        let scaled_v = select(vec4<f32>(0.0), second / top_v, top_v > 0.0);
        var codes_m = 0u;
        var codes_v = 0u;
#for j in 0..4
        params[word * 4u + ${j}u] = params[word * 4u + ${j}u] * (1.0 - lr * hyper[4]) - update[${j}];
        codes_m |= signed_code(scaled_m[${j}], MAP_M) << (8u * ${j}u);
        codes_v |= code_of(scaled_v[${j}], MAP_V) << (8u * ${j}u);
#endfor
        m[word] = codes_m;
        v[word] = codes_v;
    }
    if ids.lid == 0u {
        m_max[block] = top_m;
        v_max[block] = top_v;
    }
}
