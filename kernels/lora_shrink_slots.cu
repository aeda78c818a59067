// out_i[t, :] = scales[slot(t)] · x[t, :] · A_i[slot(t)]ᵀ where rows have adapters of their own, for steps of some dozens to a
// thousand rows: the first half of what sm90_matmul adds with BY_SLOT.
//
//   x T [rows, k], A_i T [slots · rank, k], scales f32 [slots], out_i T [rows, slots · rank]: a row's numbers in the columns
//   of its slot, zeros in all others; slot 0xffffffff: zeros alone. T = bf16 or f16. Up to three A share x.
//
// A block takes one of the slots that eight neighbouring rows have and 16 ranks; its warps share k, so that all its loads are
// on their way at once, and no block waits for another. Rows sorted by slot have one or two slots in eight: the blocks for
// more end at once. The adapter is the mma's A (its ranks are the 16 rows), so eight tokens fill it.
//
// Limits: k and rank multiples of 8, pointers aligned to 16 bytes. Launch: lora_shrink_slots_TYPE, 256 threads where k ≤ 2,048,
// else 512; grid (ceil(rows / 8), min(8, slots), groups · ceil(rank / 16)), no dynamic shared memory. With programmatic
// launches the adapter is read while the kernel before ends.
#include "mma.cuh"

struct Shrink {
    const void* x;
    const void* a[3];
    void* out[3];
    const u32* slots;
    const float* scales;
    u32 live, k, rank, spread;
};

template <typename T> DEVICE void shrink_slots(const Shrink& p) {
    constexpr u32 AHEAD = 4; // chunks of 32 inputs on their way
    __shared__ float4 parts[16][32];
    __shared__ float sums[8][16];
    __shared__ u32 slot_of[8];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, g = lane / 4, t = lane % 4;
    u32 first = blockIdx.x * 8, deep = (p.rank + 15) / 16, group = blockIdx.z / deep, rank0 = blockIdx.z % deep * 16;
    if (first >= p.live) return;

    // The slots of the eight rows, each in four lanes; the blockIdx.y-th of them is this block's.
    u32 mine = first + g < p.live ? p.slots[first + g] : NO_SLOT, slot = NO_SLOT;
    for (u32 i = 0; i <= blockIdx.y; i++) {
        u32 later = mine != NO_SLOT && (i == 0 || mine > slot) ? mine : NO_SLOT;
        slot = __reduce_min_sync(FULL_WARP, later);
        if (slot == NO_SLOT) break;
    }
    // The first block also has the rows without an adapter.
    if (slot == NO_SLOT && blockIdx.y > 0) return;

    const T* a = (const T*)(group == 0 ? p.a[0] : group == 1 ? p.a[1] : p.a[2]);
    bool any = slot != NO_SLOT, low = any && rank0 + g < p.rank, high = any && rank0 + g + 8 < p.rank;
    a += ((u64)(any ? slot : 0) * p.rank + rank0 + g) * p.k;
    const T* x = (const T*)p.x + (u64)(first + g) * p.k;
    bool own = any && mine == slot;
    const uint4 zeros = make_uint4(0, 0, 0, 0);
    uint4 top[AHEAD], bottom[AHEAD], token[AHEAD];
    auto load_a = [&](u32 chunk, u32 i) {
        u32 k = (chunk + i * warps) * 32 + t * 8;
        top[i] = low && k < p.k ? *(const uint4*)(a + k) : zeros;
        bottom[i] = high && k < p.k ? *(const uint4*)(a + 8 * (u64)p.k + k) : zeros;
    };
    auto load_x = [&](u32 chunk, u32 i) {
        u32 k = (chunk + i * warps) * 32 + t * 8;
        token[i] = own && k < p.k ? *(const uint4*)(x + k) : zeros;
    };
    float d[4] = {}, scale = any ? p.scales[slot] : 0.0f;
    if (warp == 0 && t == 0) slot_of[g] = mine;
#pragma unroll
    for (u32 i = 0; i < AHEAD; i++) load_a(warp, i);
    wait_for_previous();
#pragma unroll
    for (u32 i = 0; i < AHEAD; i++) load_x(warp, i);
    for (u32 chunk = warp; any && chunk * 32 < p.k; chunk += AHEAD * warps) {
#pragma unroll
        for (u32 i = 0; i < AHEAD; i++) {
            u32 first_half[4] = {top[i].x, bottom[i].x, top[i].y, bottom[i].y};
            u32 second_half[4] = {top[i].z, bottom[i].z, top[i].w, bottom[i].w};
            uint4 b = token[i];
            load_a(chunk + AHEAD * warps, i);
            load_x(chunk + AHEAD * warps, i);
            mma16816<T>(d, first_half, b.x, b.y);
            mma16816<T>(d, second_half, b.z, b.w);
        }
    }
    parts[warp][lane] = make_float4(d[0], d[1], d[2], d[3]);
    __syncthreads();
    if (warp == 0) {
        float4 sum = parts[0][lane];
        for (u32 w = 1; w < warps; w++) {
            float4 v = parts[w][lane];
            sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        }
        sums[2 * t][g] = sum.x * scale, sums[2 * t + 1][g] = sum.y * scale;
        sums[2 * t][g + 8] = sum.z * scale, sums[2 * t + 1][g + 8] = sum.w * scale;
    }
    __syncthreads();
    // Eight ranks of a row and a slot at a time.
    T* out = (T*)(group == 0 ? p.out[0] : group == 1 ? p.out[1] : p.out[2]);
    for (u32 i = threadIdx.x; i < 8 * p.spread * 2; i += blockDim.x) {
        u32 row = i / (p.spread * 2), to = i / 2 % p.spread, rank = rank0 + i % 2 * 8;
        if (first + row >= p.live || rank >= p.rank) continue;
        u32 of = slot_of[row];
        if (of != slot && !(of == NO_SLOT && blockIdx.y == 0)) continue;
        uint4 v = zeros;
        if (of != NO_SLOT && of == to) {
            const float* s = &sums[row][i % 2 * 8];
            v = make_uint4(pack2<T>(s[0], s[1]), pack2<T>(s[2], s[3]), pack2<T>(s[4], s[5]), pack2<T>(s[6], s[7]));
        }
        *(uint4*)(out + ((u64)(first + row) * p.spread + to) * p.rank + rank) = v;
    }
}

#define KERNEL(T)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(512, 1) lora_shrink_slots_##T(                                       \
        const T* x, const T* a0, const T* a1, const T* a2, T* out0, T* out1, T* out2, const u32* slots,               \
        const float* scales, const u32* counts, u32 which, u32 rows, u32 k, u32 rank, u32 spread) {                   \
        let_next_start();                                                                                             \
        u32 live = live_rows(counts, which, rows);                                                                    \
        shrink_slots<T>({x, {a0, a1, a2}, {out0, out1, out2}, slots, scales, live, k, rank, spread});                 \
    }
KERNEL(bf16)
KERNEL(f16)
