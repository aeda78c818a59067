// Cross-entropy of a chunk of rows and its gradient with respect to the logits:
// loss[row0 + i] = log Σ exp(l) − l[label], gradient[i][c] = scale · weights[row0 + i] · (softmax(l)[c] − [c = label]); both 0 where the label is
// no token (u32::MAX). weights f32 over all rows, or null: all 1. With smoothing ε, (1 − ε) · [c = label] + ε / vocab takes the label's place. logits f32 [chunk, vocab], labels u32 and loss f32 over all rows; gradient T [chunk, vocab] with rows
// `pitch` elements apart, or null where it is not wanted. It may lie where the logits do, row on row (pitch = vocab for
// float, 2 · vocab else). One block of 1,024 threads a row, grid = rows of the chunk. The products before and after it are matmul and matmul_dx. Launched by launch_matmul.rs.
#include "common.cuh"

template <typename T>
DEVICE void head_loss(const float* logits, const u32* labels, const float* scale, const float* weights, float* loss,
                      T* gradient, u32 pitch, u32 chunk, u32 vocab, u32 row0, u32 rows, const u32* counts, u32 which,
                      float smoothing) {
    u32 i = blockIdx.x;
    if (i >= chunk || row0 + i >= live_rows(counts, which, rows)) return;
    const float* row = logits + (u64)i * vocab;
    T* d = gradient ? gradient + (u64)i * pitch : nullptr;
    u32 label = labels[row0 + i];
    if (label >= vocab) {
        if (threadIdx.x == 0) loss[row0 + i] = 0.0f;
        if (d) {
            for (u32 c = threadIdx.x; c < vocab; c += blockDim.x) d[c] = from_float<T>(0.0f);
        }
        return;
    }
    // One pass for maximum and sum: a thread's sum is kept relative to its own maximum.
    float top = NEG_INF, sum = 0.0f, plain = 0.0f;
    for (u32 c = threadIdx.x; c < vocab; c += blockDim.x) {
        float l = row[c];
        if (l > top) {
            sum *= expf(top - l);
            top = l;
        }
        sum += expf(l - top);
        plain += l;
    }
    float all = block_max(top);
    sum = block_sum(top == NEG_INF ? 0.0f : sum * expf(top - all));
    float mean = smoothing > 0.0f ? block_sum(plain) / (float)vocab : all;
    // Every thread reads the label's logit before anyone may overwrite it (the barrier inside block_sum comes earlier).
    float wanted = row[label];
    __syncthreads();
    if (threadIdx.x == 0) loss[row0 + i] = logf(sum) - (1.0f - smoothing) * (wanted - all) - smoothing * (mean - all);
    if (d) {
        float factor = weights ? scale[0] * weights[row0 + i] : scale[0];
        float inverse = factor / sum, each = factor * smoothing / (float)vocab;
        // A turn of all threads reads its logits before it writes, and what it writes lies where no later turn reads.
        for (u32 c0 = 0; c0 < vocab; c0 += blockDim.x) {
            u32 c = c0 + threadIdx.x;
            float g = c < vocab ? expf(row[c] - all) * inverse - each : 0.0f;
            if (c == label) g -= factor * (1.0f - smoothing);
            __syncthreads();
            if (c < vocab) d[c] = from_float<T>(g);
        }
    }
}

#define KERNEL(name, T)                                                                                               \
    extern "C" __global__ void __launch_bounds__(1024)                                                                \
        name(const float* logits, const u32* labels, const float* scale, const float* weights, float* loss,           \
             T* gradient, u32 pitch, u32 chunk, u32 vocab, u32 row0, u32 rows, const u32* counts, u32 which,          \
             float smoothing) {                                                                                       \
        head_loss<T>(logits, labels, scale, weights, loss, gradient, pitch, chunk, vocab, row0, rows, counts, which,  \
                     smoothing);                                                                                      \
    }
INSTANTIATE(KERNEL, head_loss)
