// What every kernel uses: element types, conversions, vector loads, reductions. No CUDA header: NVRTC alone compiles it.
// Needs compute capability 8.0. Activations are T (float, bf16 or f16), row-major; sums are f32.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char i8;

#define DEVICE __device__ __forceinline__
#define FULL_WARP 0xffffffffu

// 16-bit floats are storage: they are converted to f32 before any arithmetic.
struct alignas(2) bf16 {
    u16 bits;
};
struct alignas(2) f16 {
    u16 bits;
};

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
DEVICE float to_float(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

template <typename T> DEVICE T from_float(float x);
template <> DEVICE float from_float<float>(float x) { return x; }
template <> DEVICE bf16 from_float<bf16>(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
template <> DEVICE f16 from_float<f16>(float x) {
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

// Two elements in one register, the first in the low half.
template <typename T> DEVICE u32 pack2(float low, float high);
template <> DEVICE u32 pack2<bf16>(float low, float high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
template <> DEVICE u32 pack2<f16>(float low, float high) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

template <typename T> DEVICE float2 unpack2(u32 pair);
template <> DEVICE float2 unpack2<bf16>(u32 pair) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}
template <> DEVICE float2 unpack2<f16>(u32 pair) {
    float2 y;
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }"
        : "=f"(y.x), "=f"(y.y)
        : "r"(pair));
    return y;
}

// Eight consecutive elements; `p` is aligned to the 16 (f32: 32) bytes that it takes.
template <typename T> DEVICE void load8(const T* p, float (&v)[8]) {
    uint4 q = *(const uint4*)p;
    u32 words[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 pair = unpack2<T>(words[i]);
        v[2 * i] = pair.x;
        v[2 * i + 1] = pair.y;
    }
}
template <> DEVICE void load8<float>(const float* p, float (&v)[8]) {
    float4 a = *(const float4*)p, b = *(const float4*)(p + 4);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}
template <typename T> DEVICE void store8(T* p, const float (&v)[8]) {
    *(uint4*)p = make_uint4(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]), pack2<T>(v[4], v[5]), pack2<T>(v[6], v[7]));
}
template <> DEVICE void store8<float>(float* p, const float (&v)[8]) {
    *(float4*)p = make_float4(v[0], v[1], v[2], v[3]);
    *(float4*)(p + 4) = make_float4(v[4], v[5], v[6], v[7]);
}

DEVICE float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) x += __shfl_xor_sync(FULL_WARP, x, step);
    return x;
}
DEVICE float warp_max(float x) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, step));
    return x;
}

// Over all threads of a block of at most 1,024, to all of them. Deterministic.
DEVICE float block_sum(float x) {
    __shared__ float parts[32];
    int warps = (blockDim.x + 31) / 32;
    x = warp_sum(x);
    __syncthreads(); // an earlier use of `parts`
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < warps ? parts[threadIdx.x % 32] : 0.0f;
    return warp_sum(x);
}
DEVICE float block_max(float x) {
    __shared__ float parts[32];
    int warps = (blockDim.x + 31) / 32;
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < warps ? parts[threadIdx.x % 32] : __int_as_float(0xff800000);
    return warp_max(x);
}

// In the place of a row's slot: it has no adapter.
#define NO_SLOT 0xffffffffu

// How many of a tensor's rows hold data: `counts` is the program's input [tokens, gathered, sequences, seed];
// `which` is 0 for tokens, 1 for gathered rows, anything else for all `rows` of the bucket.
DEVICE u32 live_rows(const u32* counts, u32 which, u32 rows) { return which < 2 ? min(counts[which], rows) : rows; }

// Dependent launches (from sm_90 on, where the launch asks for it): a kernel may start while the one before it still runs. It
// waits before it touches what any kernel of the step writes, and lets the next one start as early as it likes.
DEVICE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DEVICE void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// For kernels that have nothing to do before the wait: only the launch itself overlaps.
DEVICE void begin_dependent() {
    let_next_start();
    wait_for_previous();
}

// A word by which a kernel tells the one after it, whose blocks it lets start early, that all kernels ahead of itself have
// ended: the later one need not wait for this one then, until it reads what this one writes. It publishes no write of the
// thread that raises it: what ended kernels wrote is visible to the whole device already, and a release would cost its fence.
DEVICE void raise_flag(u32* flag) { asm volatile("st.relaxed.gpu.global.u32 [%0], 1;" ::"l"(flag) : "memory"); }
DEVICE void await_flag(const u32* flag) {
    u32 value;
    do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
    while (value == 0);
}

#define NEG_INF __int_as_float(0xff800000)

// A kernel of `name` for each activation type: INSTANTIATE(rms_norm) makes rms_norm_f32, rms_norm_bf16, rms_norm_f16
// out of the macro KERNEL(name, T).
#define INSTANTIATE(KERNEL, name)                                                                                     \
    KERNEL(name##_f32, float)                                                                                         \
    KERNEL(name##_bf16, bf16)                                                                                         \
    KERNEL(name##_f16, f16)
