// The two products that tiled attention and its gradients are made of. An item is one (row, query head) of a key/value
// group: item i of group g is row i / PER, head g · PER + i % PER, so all items of a group share keys. A tile is 64
// rows (index m) by 64 columns (index n), items and keys one way or the other; 256 invocations, of which (tm, tn) has
// rows 4 tm + {0..3} and columns tn + 16 {0..3}.
//   dots       s[m][n] = Σ_c A[m, c] · B[n, c], in registers, operands through workgroup memory 16 numbers at a time
//   weigh_U    sums_U[m][c] += Σ_n weights[n][m] · X[n, c], X through workgroup memory CHUNK rows at a time
// The includer defines fetch(which, index, c): four numbers of row `index` of operand `which`, from number 4 c.
// Constants: D (a multiple of 4), QUADS = D / 4, DV = ⌈QUADS / 16⌉, CHUNK (a divisor of 64; CHUNK · QUADS ≤ 640), PER,
// SUMS (1 or 2 sets of sums). Workgroup memory: 27,648 bytes.

var<workgroup> tile_s: array<vec4<f32>, 640>;
// Rows of 17, so that neighbours in n fall into different banks.
var<workgroup> weights: array<vec4<f32>, 64 * 17>;
var<private> s: array<vec4<f32>, 4>;
#for u in 0..SUMS
var<private> sums_${u}: array<array<vec4<f32>, ${DV}>, 4>;
#endfor

fn dots(a: u32, a0: u32, b: u32, b0: u32, lid: u32) {
    let tm = lid / 16u;
    let tn = lid % 16u;
    var s0 = vec4<f32>(0.0);
    var s1 = vec4<f32>(0.0);
    var s2 = vec4<f32>(0.0);
    var s3 = vec4<f32>(0.0);
    for (var c0 = 0u; c0 < ${QUADS}u; c0 += 4u) {
        var va = vec4<f32>(0.0);
        var vb = vec4<f32>(0.0);
        if c0 + (lid & 3u) < ${QUADS}u {
            va = fetch(a, a0 + (lid >> 2u), c0 + (lid & 3u));
            vb = fetch(b, b0 + (lid >> 2u), c0 + (lid & 3u));
        }
        workgroupBarrier();
        tile_s[(lid >> 2u) * 5u + (lid & 3u)] = va;
        tile_s[320u + (lid >> 2u) * 5u + (lid & 3u)] = vb;
        workgroupBarrier();
#for c in 0..4
        {
#for j in 0..4
            let a${j} = tile_s[(tm * 4u + ${j}u) * 5u + ${c}u];
            let b${j} = tile_s[320u + (tn + 16u * ${j}u) * 5u + ${c}u];
#endfor
            let bx = vec4<f32>(b0.x, b1.x, b2.x, b3.x);
            let by = vec4<f32>(b0.y, b1.y, b2.y, b3.y);
            let bz = vec4<f32>(b0.z, b1.z, b2.z, b3.z);
            let bw = vec4<f32>(b0.w, b1.w, b2.w, b3.w);
#for i in 0..4
            s${i} = fma(a${i}.xxxx, bx, s${i});
            s${i} = fma(a${i}.yyyy, by, s${i});
            s${i} = fma(a${i}.zzzz, bz, s${i});
            s${i} = fma(a${i}.wwww, bw, s${i});
#endfor
        }
#endfor
    }
    s = array<vec4<f32>, 4>(s0, s1, s2, s3);
}

// Puts the tile `s` where weigh_U reads it.
fn put_weights(lid: u32) {
    let at = (lid % 16u) * 17u + lid / 16u;
#for j in 0..4
    weights[at + ${j}u * 16u * 17u] = vec4<f32>(s[0][${j}], s[1][${j}], s[2][${j}], s[3][${j}]);
#endfor
}

#for u in 0..SUMS
fn weigh_${u}(x: u32, x0: u32, lid: u32) {
    let tm = lid / 16u;
    let tn = lid % 16u;
    for (var n0 = 0u; n0 < 64u; n0 += ${CHUNK}u) {
        workgroupBarrier();
        for (var e = lid; e < ${CHUNK}u * ${QUADS}u; e += 256u) {
            tile_s[e] = fetch(x, x0 + n0 + e / ${QUADS}u, e % ${QUADS}u);
        }
        workgroupBarrier();
#for n in 0..CHUNK
        {
            let w = weights[(n0 + ${n}u) * 17u + tm];
#for j in 0..DV
            {
                // Columns past the head are summed for nothing and not written.
                let v = tile_s[${n}u * ${QUADS}u + min(tn + 16u * ${j}u, ${QUADS}u - 1u)];
                sums_${u}[0][${j}] = fma(w.xxxx, v, sums_${u}[0][${j}]);
                sums_${u}[1][${j}] = fma(w.yyyy, v, sums_${u}[1][${j}]);
                sums_${u}[2][${j}] = fma(w.zzzz, v, sums_${u}[2][${j}]);
                sums_${u}[3][${j}] = fma(w.wwww, v, sums_${u}[3][${j}]);
            }
#endfor
        }
#endfor
    }
}

fn clear_sums_${u}() {
#for i in 0..4
#for j in 0..DV
    sums_${u}[${i}][${j}] = vec4<f32>(0.0);
#endfor
#endfor
}
#endfor
