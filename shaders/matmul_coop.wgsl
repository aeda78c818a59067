// out[t, c] = Σ x[t, ·] · w (+ residual[t, c]) on the matrix units of a GPU: f16 operands, f32 sums. Forward c is a row of w, DX sums
// over the rows of w (matmul_dx.wgsl). ACCUMULATE adds to out, SCALE multiplies by scale[0].
// a: x in fragments of F × F, a_depth of them in a row of fragments, from a0 on; scales one for each (matmul_pack_rows.wgsl).
// b: w in fragments, [cols, depth] of them, DX [depth, cols] (matmul_pack_weight.wgsl). out [rows, ldo] from row out_row0 and column c0.
// A subgroup sums FM × FN fragments, a workgroup has WM × WN subgroups. Fragments come straight from memory, 512 bytes in a row
// for F = 16: no workgroup memory, no barrier. Rows and columns are whole tiles (naga wants these operations outside of
// conditions), depth a multiple of STEPS. Launched by launch_coop.rs.

struct Params {
    rows: u32, live: u32, row0: u32, depth: u32,
    cols: u32, ldo: u32, c0: u32, out_row0: u32,
    a_depth: u32, a0: u32, pad0: u32, pad1: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
#bind a array<vec4<f16>>
#bind scales array<f32>
#bind b array<vec4<f16>>
#bind out array<f32>
#if RESIDUAL
#bind residual array<f32>
#endif
#if SCALE
#bind scale array<f32>
#endif
#include "common.wgsl"

alias Left = coop_mat${F}x${F}<f16, A>;
alias Right = coop_mat${F}x${F}<f16, B>;
alias Sum = coop_mat${F}x${F}<f32, C>;

@compute @workgroup_size(${WG})
fn main(ids: Ids) {
    let tiles = p.cols / (${FN}u * ${WN}u);
    let group = group_index(ids);
    // First fragments of this subgroup.
    let row = (group / tiles * ${WM}u + ids.sub / ${WN}u) * ${FM}u;
    let col = (group % tiles * ${WN}u + ids.sub % ${WN}u) * ${FN}u;
#for i in 0..FM
    let at_a${i} = (row + ${i}u) * p.a_depth + p.a0;
#for j in 0..FN
    var sum_${i}_${j} = Sum();
#endfor
#endfor
#for j in 0..FN
#if DX
    let at_b${j} = col + ${j}u;
#else
    let at_b${j} = (col + ${j}u) * p.depth;
#endif
#endfor
    for (var d = 0u; d < p.depth; d += ${STEPS}u) {
#for s in 0..STEPS
        {
#for i in 0..FM
            let a${i} = coopLoadT<Left>(&a[(at_a${i} + d + ${s}u) * ${FRAGMENT}u], ${STRIDE}u);
#endfor
#for j in 0..FN
#if DX
            let b${j} = coopLoadT<Right>(&b[(at_b${j} + (d + ${s}u) * p.cols) * ${FRAGMENT}u], ${STRIDE}u);
#else
            let b${j} = coopLoad<Right>(&b[(at_b${j} + d + ${s}u) * ${FRAGMENT}u], ${STRIDE}u);
#endif
#endfor
#for i in 0..FM
#for j in 0..FN
            sum_${i}_${j} = coopMultiplyAdd(a${i}, b${j}, sum_${i}_${j});
#endfor
#endfor
        }
#endfor
    }
#if SCALE
    let factor = scale[0];
#else
    let factor = 1.0;
#endif
    let ldo = p.ldo;
#for i in 0..FM
    let by${i} = scales[row + ${i}u] * factor;
    let to${i} = ((row + ${i}u) * ${F}u + p.out_row0) * ldo + p.c0 + col * ${F}u;
#for j in 0..FN
    {
        var v = sum_${i}_${j} * by${i};
#if RESIDUAL
        v = v + coopLoadT<Sum>(&residual[to${i} + ${j}u * ${F}u], ldo);
#endif
#if ACCUMULATE
        v = v + coopLoadT<Sum>(&out[to${i} + ${j}u * ${F}u], ldo);
#endif
        // naga does not evaluate the operands of a store before it: they must be values already.
        let whole = v;
        let at = to${i} + ${j}u * ${F}u;
        coopStoreT(whole, &out[at], ldo);
    }
#endfor
#endfor
}
