// out_i[t, :] = x[t, :] · A_i[slot(t)]ᵀ, times scales[slot], where rows have adapters of their own: the first half of what
// sm90_matmul adds with BY_SLOT.
//
//   x T [rows, k], A_i T [slots · rank, k], scales f32 [slots], out_i T [rows, slots · rank]: a row's numbers in the columns
//   of its slot, zeros in all others; slot 0xffffffff: zeros alone. T = bf16 or f16. Up to three A share x.
//
// A block has ROWS neighbouring rows and 16 ranks, and goes over the slots that these rows have; gridDim.y blocks share
// them. Its warps share k, so that all its loads are on their way at once, and no block waits for another. Rows sorted by slot
// have one to three of them in ROWS: most blocks for more end at once. The adapter is the mma's A (its ranks are the 16
// rows), so eight tokens fill it.
//
// ready, clear: flags (common.cuh), or null. One is raised when the kernels ahead have ended: the product, which starts early,
// works on x meanwhile. The other is the next such launch's: it is lowered, for by now nobody waits for it any more.
//
// Limits: k and rank multiples of 8, pointers aligned to 16 bytes. No dynamic shared memory; grid (ceil(rows / ROWS), 1..,
// groups · ceil(rank / 16)). lora_shrink_slots_TYPE: ROWS = 8, 256 threads where k ≤ 2,048, else 512.
// lora_shrink_slots_many_TYPE: ROWS = 16, 256 threads, for more than some hundred rows: it reads the adapters half as
// often. With programmatic launches the adapter is read while the kernel before ends.
#include "mma.cuh"

struct Shrink {
    const void* x;
    const void* a[3];
    void* out[3];
    const u32* slots;
    const float* scales;
    u32 live, k, rank, spread;
    u32 *ready, *clear;
};

// Waits for the kernels ahead, and the first block says so.
DEVICE void tell(const Shrink& p) {
    wait_for_previous();
    if (blockIdx.x + blockIdx.y + blockIdx.z + threadIdx.x > 0) return;
    if (p.ready) raise_flag(p.ready);
    if (p.clear) *p.clear = 0;
}

// TILES of eight rows; AHEAD chunks of 32 inputs on their way in each of up to WARPS warps.
template <typename T, u32 TILES, u32 AHEAD, u32 WARPS> DEVICE void shrink_slots(const Shrink& p) {
    constexpr u32 ROWS = 8 * TILES;
    __shared__ float4 parts[WARPS][TILES][32];
    __shared__ float sums[ROWS][16];
    __shared__ u32 slot_of[ROWS];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, g = lane / 4, t = lane % 4;
    u32 first = blockIdx.x * ROWS, deep = (p.rank + 15) / 16, group = blockIdx.z / deep, rank0 = blockIdx.z % deep * 16;
    if (first >= p.live) {
        tell(p); // even if no row is live
        return;
    }
    // The slots of the rows, each in four lanes.
    u32 mine[TILES];
#pragma unroll
    for (u32 n = 0; n < TILES; n++) {
        u32 row = first + 8 * n + g;
        mine[n] = row < p.live ? p.slots[row] : NO_SLOT;
        if (warp == 0 && t == 0) slot_of[8 * n + g] = mine[n];
    }
    const uint4 zeros = make_uint4(0, 0, 0, 0);
    T* out = (T*)(group == 0 ? p.out[0] : group == 1 ? p.out[1] : p.out[2]);
    const T* bank = (const T*)(group == 0 ? p.a[0] : group == 1 ? p.a[1] : p.a[2]);
    const T* x = (const T*)p.x + (u64)(first + g) * p.k;

    u32 slot = NO_SLOT, from = 0;
    for (u32 turn = 0;; turn++) {
        // The blockIdx.y-th of the slots first, then each gridDim.y-th.
        u32 skipped = turn == 0 ? blockIdx.y : gridDim.y - 1;
        for (u32 i = 0; i <= skipped; i++) {
            u32 least = NO_SLOT;
#pragma unroll
            for (u32 n = 0; n < TILES; n++)
                if (mine[n] >= from) least = min(least, mine[n]);
            slot = __reduce_min_sync(FULL_WARP, least);
            if (slot == NO_SLOT) break;
            from = slot + 1;
        }
        // The first block also has the rows without an adapter, and the flags.
        bool any = slot != NO_SLOT;
        if (!any && turn + blockIdx.y > 0) return;

        bool low = any && rank0 + g < p.rank, high = any && rank0 + g + 8 < p.rank;
        const T* a = bank + ((u64)(any ? slot : 0) * p.rank + rank0 + g) * p.k;
        uint4 top[AHEAD], bottom[AHEAD], token[AHEAD][TILES];
        auto load_a = [&](u32 chunk, u32 i) {
            u32 k = (chunk + i * warps) * 32 + t * 8;
            top[i] = low && k < p.k ? *(const uint4*)(a + k) : zeros;
            bottom[i] = high && k < p.k ? *(const uint4*)(a + 8 * (u64)p.k + k) : zeros;
        };
        auto load_x = [&](u32 chunk, u32 i) {
            u32 k = (chunk + i * warps) * 32 + t * 8;
#pragma unroll
            for (u32 n = 0; n < TILES; n++) {
                bool own = any && mine[n] == slot && k < p.k;
                token[i][n] = own ? *(const uint4*)(x + 8 * n * (u64)p.k + k) : zeros;
            }
        };
        float d[TILES][4] = {}, scale = any ? p.scales[slot] : 0.0f;
#pragma unroll
        for (u32 i = 0; i < AHEAD; i++) load_a(warp, i);
        if (turn == 0) tell(p);
#pragma unroll
        for (u32 i = 0; i < AHEAD; i++) load_x(warp, i);
        for (u32 chunk = warp; any && chunk * 32 < p.k; chunk += AHEAD * warps) {
#pragma unroll
            for (u32 i = 0; i < AHEAD; i++) {
                u32 first_half[4] = {top[i].x, bottom[i].x, top[i].y, bottom[i].y};
                u32 second_half[4] = {top[i].z, bottom[i].z, top[i].w, bottom[i].w};
#pragma unroll
                for (u32 n = 0; n < TILES; n++) {
                    mma16816<T>(d[n], first_half, token[i][n].x, token[i][n].y);
                    mma16816<T>(d[n], second_half, token[i][n].z, token[i][n].w);
                }
                load_a(chunk + AHEAD * warps, i);
                load_x(chunk + AHEAD * warps, i);
            }
        }
#pragma unroll
        for (u32 n = 0; n < TILES; n++) parts[warp][n][lane] = make_float4(d[n][0], d[n][1], d[n][2], d[n][3]);
        __syncthreads();
        if (warp < TILES) {
            float4 sum = parts[0][warp][lane];
            for (u32 w = 1; w < warps; w++) {
                float4 v = parts[w][warp][lane];
                sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
            }
            u32 row = 8 * warp + 2 * t;
            sums[row][g] = sum.x * scale, sums[row + 1][g] = sum.y * scale;
            sums[row][g + 8] = sum.z * scale, sums[row + 1][g + 8] = sum.w * scale;
        }
        __syncthreads();
        // Eight ranks of a row and a slot at a time.
        for (u32 i = threadIdx.x; i < ROWS * p.spread * 2; i += blockDim.x) {
            u32 row = i / (p.spread * 2), to = i / 2 % p.spread, rank = rank0 + i % 2 * 8;
            if (first + row >= p.live || rank >= p.rank) continue;
            u32 of = slot_of[row];
            if (of != slot && !(of == NO_SLOT && turn + blockIdx.y == 0)) continue;
            uint4 v = zeros;
            if (of != NO_SLOT && of == to) {
                const float* s = &sums[row][i % 2 * 8];
                v = make_uint4(pack2<T>(s[0], s[1]), pack2<T>(s[2], s[3]), pack2<T>(s[4], s[5]), pack2<T>(s[6], s[7]));
            }
            *(uint4*)(out + ((u64)(first + row) * p.spread + to) * p.rank + rank) = v;
        }
        if (!any) return;
    }
}

#define KERNEL(name, T, TILES, AHEAD, WARPS, BLOCKS)                                                                  \
    extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS) lora_shrink_slots_##name##T(                     \
        const T* x, const T* a0, const T* a1, const T* a2, T* out0, T* out1, T* out2, const u32* slots,               \
        const float* scales, const u32* counts, u32 which, u32 rows, u32 k, u32 rank, u32 spread, u32* ready,         \
        u32* clear) {                                                                                                 \
        let_next_start();                                                                                             \
        u32 live = live_rows(counts, which, rows);                                                                    \
        shrink_slots<T, TILES, AHEAD, WARPS>(                                                                         \
            {x, {a0, a1, a2}, {out0, out1, out2}, slots, scales, live, k, rank, spread, ready, clear});               \
    }
KERNEL(, bf16, 1, 4, 16, 1)
KERNEL(, f16, 1, 4, 16, 1)
KERNEL(many_, bf16, 2, 3, 8, 2)
KERNEL(many_, f16, 2, 3, 8, 2)
