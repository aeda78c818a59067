//! Loops that the compiler vectorises for whatever the processor has (AVX2, AVX-512, NEON), chosen at run time.

/// Runs `f` compiled for the best instruction set of this processor.
///
/// The closure and all that it calls must be `#[inline(always)]`: code left outside is compiled for the oldest
/// processor, where a fused multiply-add is a library call (seen: 2 tokens a second instead of 60).
#[inline(always)]
pub fn dispatch<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// Partial sums kept in a dot product: enough independent chains to hide the latency of a fused multiply-add.
const LANES: usize = 32;

/// Σ a·b, in f32 with [`LANES`] partial sums. Call inside [`dispatch`].
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut acc = [0f32; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (x, y) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            acc[i] = x[i].mul_add(y[i], acc[i]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    sum(&acc) + rest
}

/// The sum of partial sums, pairwise.
#[inline(always)]
pub fn sum(acc: &[f32; LANES]) -> f32 {
    let mut acc = *acc;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            acc[i] += acc[i + width];
        }
        width /= 2;
    }
    acc[0]
}

/// `y += a · x`. Call inside [`dispatch`].
#[inline(always)]
pub fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = x.mul_add(a, *y);
    }
}
