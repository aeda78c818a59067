// packed[t / F, c / F, t % F, c % F] = f16(x[t, c] · 2^e), e one for each F rows, chosen so that the largest of their elements is
// just below 2^14: the operand of matmul_coop.wgsl in the fragments that it loads. scales[t / F] = 2^-e.
// x [rows, k] f32 from row x_row0 on; rows and k multiples of F. Rows past the live ones become zeros. Scaling by powers of two is
// exact, so that gradients of any size keep f16's 11 bits. One workgroup F rows. Launched by launch_coop.rs.

struct Params {
    rows: u32, live: u32, row0: u32, k: u32,
    x_row0: u32, pad0: u32, pad1: u32, pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind counts array<u32>
#bind x array<vec4<f32>>
#bind packed array<vec2<u32>>
#bind scales array<f32>
#include "common.wgsl"
#include "live.wgsl"
#include "reduce.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let block = group_index(ids);
    let live = live_rows();
    let quads = p.k >> 2u;
    var most = 0.0;
    for (var e = ids.lid; e < ${F}u * quads; e += ${WG}u) {
        let t = block * ${F}u + e / quads;
        if t < live {
            let v = abs(x[(t + p.x_row0) * quads + e % quads]);
            most = max(most, max(max(v.x, v.y), max(v.z, v.w)));
        }
    }
    most = group_max(ids, most);
    // Biased exponents: 127 + 13 of what `most` becomes.
    let up = u32(clamp(267 - i32(bitcast<u32>(most) >> 23u), 1, 253));
    let scale = bitcast<f32>(up << 23u);
    if ids.lid == 0u {
        scales[block] = bitcast<f32>((254u - up) << 23u);
    }
    for (var e = ids.lid; e < ${F}u * quads; e += ${WG}u) {
        let r = e / (${F}u / 4u) % ${F}u;
        let c = e / (${F}u * ${F}u / 4u) * (${F}u / 4u) + e % (${F}u / 4u);
        let t = block * ${F}u + r;
        var v = vec4<f32>(0.0);
        if t < live {
            v = x[(t + p.x_row0) * quads + c] * scale;
        }
        packed[block * ${F}u * quads + e] = vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw));
    }
}
