// The loss of pairs of sequences and the derivative with respect to each token's cross-entropy: Op::PreferenceLoss has the
// formulas. loss f32 [T], kinds u32 [T], bounds u32 [2 · pairs + 1], reference f32 [2 · pairs], hyper f32 [4] (which loss, beta, nu, epsilon),
// weights f32 [T], pairs f32 [pairs, 4]; counts[2] / 2 pairs are live. One block of 256 threads a pair, grid = pairs.
// Launched by launch_rows.rs.
#include "common.cuh"

DEVICE float log_sigmoid(float x) { return fminf(x, 0.0f) - log1pf(expf(-fabsf(x))); }
DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

extern "C" __global__ void __launch_bounds__(256)
    preference_loss(const u32* counts, const float* loss, const u32* kinds, const u32* bounds, const float* reference,
                    const float* hyper, float* weights, float* pairs) {
    u32 pair = blockIdx.x;
    if (pair >= counts[2] / 2) return;
    u32 first = bounds[2 * pair], middle = bounds[2 * pair + 1], end = bounds[2 * pair + 2];
    float p_c = 0.0f, p_r = 0.0f, n_c = 0.0f, n_r = 0.0f, kept = 0.0f;
    for (u32 t = first + threadIdx.x; t < end; t += blockDim.x) {
        if (kinds[t] & 1) {
            (t < middle ? p_c : p_r) -= loss[t];
            (t < middle ? n_c : n_r) += 1.0f;
        }
        if (kinds[t] & 2) kept += loss[t];
    }
    p_c = block_sum(p_c);
    p_r = block_sum(p_r);
    n_c = block_sum(n_c);
    n_r = block_sum(n_r);
    kept = block_sum(kept);
    float gain_c = p_c - reference[2 * pair], gain_r = p_r - reference[2 * pair + 1];
    u32 which = (u32)hyper[0];
    float beta = hyper[1], m = gain_c - gain_r, value, d_c, d_r;
    if (which == 0) {
        float wrong = hyper[3];
        value = -(1.0f - wrong) * log_sigmoid(beta * m) - wrong * log_sigmoid(-beta * m);
        d_c = beta * (wrong * sigmoid(beta * m) - (1.0f - wrong) * sigmoid(-beta * m));
        d_r = -d_c;
    } else if (which == 1) {
        value = fmaxf(0.0f, 1.0f - beta * m);
        d_c = beta * m < 1.0f ? -beta : 0.0f;
        d_r = -d_c;
    } else if (which == 2) {
        float off = gain_c / n_c - gain_r / n_r - 0.5f / beta;
        value = off * off;
        d_c = 2.0f * off / n_c;
        d_r = -2.0f * off / n_r;
    } else {
        // The odds of a certain text are infinite.
        float l_c = fminf(p_c / n_c, -1e-6f), l_r = fminf(p_r / n_r, -1e-6f);
        float odds = (l_c - l_r) - (log1pf(-expf(l_c)) - log1pf(-expf(l_r)));
        float d = -beta * sigmoid(-odds);
        value = -beta * log_sigmoid(odds);
        d_c = d / -expm1f(l_c) / n_c;
        d_r = -d / -expm1f(l_r) / n_r;
    }
    for (u32 t = first + threadIdx.x; t < end; t += blockDim.x) {
        float w = kinds[t] & 1 ? -(t < middle ? d_c : d_r) : 0.0f;
        if (kinds[t] & 2) w += hyper[2];
        weights[t] = w;
    }
    if (threadIdx.x == 0) {
        pairs[4 * pair] = value;
        pairs[4 * pair + 1] = p_c;
        pairs[4 * pair + 2] = p_r;
        pairs[4 * pair + 3] = kept;
    }
}
