// packed[n / F, k / F, n % F, k % F] = f16(w[n, k]): a weight of any type, or a part of its rows, in the fragments that
// matmul_coop.wgsl loads. n a multiple of F, k of 32. One invocation eight elements. Launched by launch_coop.rs.

struct Params {
    rows: u32, row0: u32, pad0: u32, k: u32,
    pad1: u32, pad2: u32, pad3: u32, stride: u32,
    groups: u32, w1: u32, w2: u32, w3: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind w array<vec4<u32>>
#bind packed array<vec4<u32>>
#include "common.wgsl"
#include "decode.wgsl"

fn pair(a: f32, b: f32) -> u32 {
    return pack2x16float(clamp(vec2<f32>(a, b), vec2<f32>(-65504.0), vec2<f32>(65504.0)));
}

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let e = thread_index(ids);
    let blocks = p.k / ${F}u;
    if e >= p.rows * p.k / 8u {
        return;
    }
    let block = e / (${F}u * ${F}u / 8u);
    let row = block / blocks * ${F}u + e / (${F}u / 8u) % ${F}u;
    let octet = block % blocks * (${F}u / 8u) + e % (${F}u / 8u);
    let v = w8(p.row0 + row, octet);
    packed[e] = vec4<u32>(pair(v.a.x, v.a.y), pair(v.a.z, v.a.w), pair(v.b.x, v.b.y), pair(v.b.z, v.b.w));
}
