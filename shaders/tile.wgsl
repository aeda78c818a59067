// The inner part of every tiled product: out tile BM × BN += a [BM × BK] · b [BK × BN], both tiles in
// workgroup memory, stored [k][m / 4] and [k][n / 4] so that an invocation reads four neighbours at once.
// (BM / TM) · (BN / TN) invocations, each with TM × TN sums in registers (TM, TN multiples of 4).
// Workgroup memory: 4 · BK · (BM + BN) bytes (16 KiB for 64, 64, 32), half of it with F16: operands are then rounded to
// f16, products and sums stay f32.

#if F16
alias Tile = f16;
alias Tile4 = vec4<f16>;
#else
alias Tile = f32;
alias Tile4 = vec4<f32>;
#endif

var<workgroup> a_tile: array<Tile4, ${BK} * ${BM} / 4>;
var<workgroup> b_tile: array<Tile4, ${BK} * ${BN} / 4>;
var<private> acc: array<array<vec4<f32>, ${TN} / 4>, ${TM}>;

fn put_a(m: u32, k: u32, v: f32) {
    a_tile[k * (${BM}u / 4u) + (m >> 2u)][m & 3u] = Tile(v);
}

fn put_b(n: u32, k: u32, v: f32) {
    b_tile[k * (${BN}u / 4u) + (n >> 2u)][n & 3u] = Tile(v);
}

// Eight values along k of row m.
fn put_a8(m: u32, k: u32, v: W8) {
    put_a(m, k, v.a.x);
    put_a(m, k + 1u, v.a.y);
    put_a(m, k + 2u, v.a.z);
    put_a(m, k + 3u, v.a.w);
    put_a(m, k + 4u, v.b.x);
    put_a(m, k + 5u, v.b.y);
    put_a(m, k + 6u, v.b.z);
    put_a(m, k + 7u, v.b.w);
}

fn put_b8(n: u32, k: u32, v: W8) {
    put_b(n, k, v.a.x);
    put_b(n, k + 1u, v.a.y);
    put_b(n, k + 2u, v.a.z);
    put_b(n, k + 3u, v.a.w);
    put_b(n, k + 4u, v.b.x);
    put_b(n, k + 5u, v.b.y);
    put_b(n, k + 6u, v.b.z);
    put_b(n, k + 7u, v.b.w);
}

fn clear_tile() {
#for i in 0..TM
#for j in 0..TN4
    acc[${i}][${j}] = vec4<f32>(0.0);
#endfor
#endfor
}

fn multiply_tile(tm: u32, tn: u32) {
#for kk in 0..BK
    {
#for i in 0..TM4
        let a${i} = vec4<f32>(a_tile[${kk}u * (${BM}u / 4u) + tm * ${TM4}u + ${i}u]);
#endfor
#for j in 0..TN4
        let b${j} = vec4<f32>(b_tile[${kk}u * (${BN}u / 4u) + tn * ${TN4}u + ${j}u]);
#endfor
#for i in 0..TM4
#for j in 0..TN4
        acc[${i} * 4][${j}] = fma(a${i}.xxxx, b${j}, acc[${i} * 4][${j}]);
        acc[${i} * 4 + 1][${j}] = fma(a${i}.yyyy, b${j}, acc[${i} * 4 + 1][${j}]);
        acc[${i} * 4 + 2][${j}] = fma(a${i}.zzzz, b${j}, acc[${i} * 4 + 2][${j}]);
        acc[${i} * 4 + 3][${j}] = fma(a${i}.wwww, b${j}, acc[${i} * 4 + 3][${j}]);
#endfor
#endfor
    }
#endfor
}
