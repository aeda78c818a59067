// Hopper's own instructions (sm_90a) as inline PTX: mbarrier, TMA tensor copies, wgmma, setmaxnreg, clusters, proxy
// fences. Tiles in shared memory are what a TMA copy with CU_TENSOR_MAP_SWIZZLE_128B leaves: rows of 128 bytes (64
// elements of 16 bits) whose eight 16-byte chunks are permuted by xor with (row % 8); each tile starts at a multiple of
// 1,024 bytes.
#pragma once
#include "mma.cuh"

// The driver's CUtensorMap, passed by value as a __grid_constant__ parameter (NVRTC has no cuda.h).
struct alignas(64) CUtensorMap {
    u64 opaque[16];
};

// ---- mbarrier: a phase ends when `arrivals` threads have arrived and all expected bytes have come ----

DEVICE void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes initialised barriers visible to the copy engine and to the cluster; a block or cluster barrier must follow.
DEVICE void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
DEVICE void barrier_arrive_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Arrives at the barrier with the same offset in the shared memory of block `rank` of the cluster. It orders nothing
// beyond this block (.release.cluster costs a fence of the whole GPU): enough to say that wgmma has read a stage.
DEVICE void barrier_arrive_cluster(u32 barrier, u32 rank) {
    asm volatile("{ .reg .b32 remote; mapa.shared::cluster.u32 remote, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [remote]; }" ::"r"(barrier), "r"(rank)
                 : "memory");
}
// Waits until the phase of this parity has ended (a fresh barrier is in phase 0: waiting for parity 1 returns at once).
DEVICE void barrier_wait(u32 barrier, u32 parity) {
    asm volatile("{ .reg .pred done;\n"
                 "AGAIN: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra AGAIN; }" ::"r"(barrier), "r"(parity)
                 : "memory");
}
// A barrier of `threads` threads of the block (hardware barrier `id`, 1..15; 0 is __syncthreads).
DEVICE void named_barrier(u32 id, u32 threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// ---- TMA: a box of a 2-D tensor, to shared memory; coordinates in elements, the contiguous one first ----

DEVICE void tma_prefetch_map(const CUtensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
DEVICE void tma_load(u32 to, const CUtensorMap* map, u32 barrier, int column, int row) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%3, %4}], [%2];" ::"r"(to), "l"(map), "r"(barrier), "r"(column), "r"(row)
                 : "memory");
}
// The same box to the same offset in every block of the cluster named in `blocks` (one bit a block), each one's barrier
// told.
DEVICE void tma_load_multicast(u32 to, const CUtensorMap* map, u32 barrier, int column, int row, u16 blocks) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
                 " [%0], [%1, {%3, %4}], [%2], %5;"
                 ::"r"(to), "l"(map), "r"(barrier), "r"(column), "r"(row), "h"(blocks)
                 : "memory");
}

// Ordinary writes to shared memory become visible to the copy engine and to wgmma; a thread barrier must follow.
DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// What this thread knows to be written in global memory becomes visible to the copies that it starts.
DEVICE void fence_async_proxy_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

// ---- programmatic dependent launch: without the launch attribute both do nothing ----

// Waits until the kernels before this one in the stream have ended and their writes are visible.
DEVICE void launch_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
// The next kernel's blocks may start where there is room (they wait in turn before they touch what this kernel writes).
DEVICE void launch_next() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// ---- clusters ----

DEVICE u32 cluster_rank() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
DEVICE u32 cluster_size() {
    u32 size;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return size;
}
// All threads of all blocks; shared memory written before is visible after.
DEVICE void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
DEVICE float4 cluster_load(u32 address, u32 rank) {
    float4 v;
    asm volatile("{ .reg .b32 remote; mapa.shared::cluster.u32 remote, %4, %5;\n"
                 "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [remote]; }"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(address), "r"(rank)
                 : "memory");
    return v;
}

// ---- registers: a warpgroup gives some back, another takes them (multiples of 8) ----

template <int COUNT> DEVICE void registers_decrease() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT> DEVICE void registers_increase() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// ---- wgmma ----

DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most N of the warpgroup's newest groups are still running.
template <int N> DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

// The descriptor of an operand tile. K-major (rows of 64 k): the next 8 rows lie 1,024 bytes on; k advances by 32 bytes
// for 16 elements. MN-major (rows are k, 64 m or n wide): 8 rows of k take 1,024 bytes, so k advances by 2,048 bytes
// for 16; the next 64 columns lie `column_step` bytes on (K-major ignores it).
DEVICE u64 wgmma_descriptor(u32 address, u32 column_step) {
    const u64 swizzle_128 = 1ull << 62;
    return swizzle_128 | (u64)(1024 >> 4) << 32 | (u64)(column_step >> 4) << 16 | (u64)((address & 0x3ffff) >> 4);
}
// The same of a K-major tile with rows of 16 k, left by a copy with CU_TENSOR_MAP_SWIZZLE_32B.
DEVICE u64 wgmma_descriptor_32(u32 address) {
    const u64 swizzle_32 = 3ull << 62;
    return swizzle_32 | (u64)(256 >> 4) << 32 | (u64)((address & 0x3ffff) >> 4);
}

#define WGMMA_D0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define WGMMA_D1 "%8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_D2 "%16, %17, %18, %19, %20, %21, %22, %23"
#define WGMMA_D3 "%24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_D4 "%32, %33, %34, %35, %36, %37, %38, %39"
#define WGMMA_D5 "%40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_D6 "%48, %49, %50, %51, %52, %53, %54, %55"
#define WGMMA_D7 "%56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_D8 "%64, %65, %66, %67, %68, %69, %70, %71"
#define WGMMA_D9 "%72, %73, %74, %75, %76, %77, %78, %79"
#define WGMMA_D10 "%80, %81, %82, %83, %84, %85, %86, %87"
#define WGMMA_D11 "%88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_D12 "%96, %97, %98, %99, %100, %101, %102, %103"
#define WGMMA_D13 "%104, %105, %106, %107, %108, %109, %110, %111"
#define WGMMA_D14 "%112, %113, %114, %115, %116, %117, %118, %119"
#define WGMMA_D15 "%120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA_DLOW WGMMA_D0 ", " WGMMA_D1 ", " WGMMA_D2 ", " WGMMA_D3
#define WGMMA_D_8 WGMMA_DLOW ", " WGMMA_D4 ", " WGMMA_D5 ", " WGMMA_D6 ", " WGMMA_D7
#define WGMMA_D_12 WGMMA_D_8 ", " WGMMA_D8 ", " WGMMA_D9 ", " WGMMA_D10 ", " WGMMA_D11
#define WGMMA_D_16 WGMMA_D_12 ", " WGMMA_D12 ", " WGMMA_D13 ", " WGMMA_D14 ", " WGMMA_D15
#define WGMMA_R8(i)                                                                                                   \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]),       \
        "+f"(d[i + 7])
#define WGMMA_R32(i) WGMMA_R8(i), WGMMA_R8(i + 8), WGMMA_R8(i + 16), WGMMA_R8(i + 24)
#define WGMMA_ISSUE(SHAPE, TYPE, D, A, B, KEEP, TRANSPOSE, ...)                                                       \
    asm volatile("{ .reg .pred keep; setp.ne.b32 keep, " KEEP ", 0;\n"                                                \
                 "wgmma.mma_async.sync.aligned.m64n" SHAPE "k16.f32." TYPE "." TYPE " {" D "}, " A ", " B             \
                 ", keep, 1, 1, 0, " TRANSPOSE "; }"                                                                  \
                 : __VA_ARGS__                                                                                        \
                 : "l"(a), "l"(b), "r"(keep), "n"(TRANSPOSE_B))
#define WGMMA_SHAPES(TYPE)                                                                                            \
    if constexpr (N == 16)                                                                                            \
        WGMMA_ISSUE("16", TYPE, WGMMA_D0, "%8", "%9", "%10", "%11", WGMMA_R8(0));                                     \
    else if constexpr (N == 32)                                                                                       \
        WGMMA_ISSUE("32", TYPE, WGMMA_D0 ", " WGMMA_D1, "%16", "%17", "%18", "%19", WGMMA_R8(0), WGMMA_R8(8));        \
    else if constexpr (N == 64)                                                                                       \
        WGMMA_ISSUE("64", TYPE, WGMMA_DLOW, "%32", "%33", "%34", "%35", WGMMA_R32(0));                                \
    else if constexpr (N == 128)                                                                                      \
        WGMMA_ISSUE("128", TYPE, WGMMA_D_8, "%64", "%65", "%66", "%67", WGMMA_R32(0), WGMMA_R32(32));                 \
    else if constexpr (N == 192)                                                                                      \
        WGMMA_ISSUE("192", TYPE, WGMMA_D_12, "%96", "%97", "%98", "%99", WGMMA_R32(0), WGMMA_R32(32), WGMMA_R32(64)); \
    else                                                                                                              \
        WGMMA_ISSUE("256", TYPE, WGMMA_D_16, "%128", "%129", "%130", "%131", WGMMA_R32(0), WGMMA_R32(32),             \
                    WGMMA_R32(64), WGMMA_R32(96))

template <typename T> struct Wgmma16;
template <> struct Wgmma16<bf16> { static constexpr bool is_bf16 = true; };
template <> struct Wgmma16<f16> { static constexpr bool is_bf16 = false; };

// d = (keep ? d : 0) + a · b over 16 of k: a 64×16 K-major, b 16×N (N in 16, 32, 64, 128, 192, 256) K-major or, with
// TRANSPOSE_B, MN-major. Asynchronous: d may be touched only after wgmma_wait. Of d, lane 4g + t of warp w of the group
// holds at 4j + 2h + i the element of row 16w + g + 8h and column 8j + 2t + i.
template <typename T, int N, int TRANSPOSE_B> DEVICE void wgmma(float (&d)[N / 2], u64 a, u64 b, u32 keep) {
    static_assert(N == 16 || N == 32 || N == 64 || N == 128 || N == 192 || N == 256, "no such shape here");
    if constexpr (Wgmma16<T>::is_bf16) {
        WGMMA_SHAPES("bf16");
    } else {
        WGMMA_SHAPES("f16");
    }
}
