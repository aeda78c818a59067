// to[place] = scale * from[matrix] for a list of matrices, zeros where the place is larger: an adapter's way from the trainer's
// buffer to its place among those that are served. Rows of table: first element, rows, columns in `from`; first element, rows,
// columns in `to`; scale as bits; unused. `each` invocations a matrix. Launched by launch_flat.rs.

struct Params {
    matrices: u32, each: u32, pad0: u32, pad1: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind source array<f32>
#bind table array<u32>
#bind place array<f32>
#include "common.wgsl"

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let index = thread_index(ids);
    let m = index / p.each;
    if m >= p.matrices {
        return;
    }
    let own_rows = table[8u * m + 1u];
    let own_cols = table[8u * m + 2u];
    let rows = table[8u * m + 4u];
    let cols = table[8u * m + 5u];
    let scale = bitcast<f32>(table[8u * m + 6u]);
    for (var i = index % p.each; i < rows * cols; i += p.each) {
        let row = i / cols;
        let col = i % cols;
        var value = 0.0;
        if row < own_rows && col < own_cols {
            value = scale * source[table[8u * m] + row * own_cols + col];
        }
        place[table[8u * m + 3u] + i] = value;
    }
}
