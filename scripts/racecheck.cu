// What compute-sanitizer's racecheck makes of mbarriers; no part of the program, the reason for a filter in gpu_check.sh.
//
//     nvcc -arch=sm_90 -o racecheck racecheck.cu && compute-sanitizer --tool racecheck ./racecheck
//
// Four warps write a ring of two buffers, four read it. ALL: every thread arrives at the barriers. LANE: lane 0 arrives
// for its warp after __syncwarp(), as CUTLASS does; the memory model orders both alike (the warp's barrier, then a
// release). NONE: nobody waits, a real race. compute-sanitizer 2025.3.1 on an H100, 2026-11-24: ALL is clean, LANE has
// 7,936 hazards, NONE is reported, as it should be. With the copy engine as the writer: clean when all readers arrive,
// 3,472 hazards when lane 0 of each warp does.
#include <cstdio>

enum Arrival { ALL, LANE, NONE };

__device__ unsigned address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
__device__ void wait(unsigned barrier, unsigned parity) {
    asm volatile("{ .reg .pred done;\n"
                 "AGAIN: mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
                 "@!done bra AGAIN; }" ::"r"(barrier), "r"(parity) : "memory");
}

template <Arrival ARRIVAL> __global__ void ring(float* out, int rounds) {
    __shared__ float data[2][128];
    __shared__ unsigned long long barriers[4];
    const unsigned full = address(barriers), empty = full + 16, thread = threadIdx.x;
    if (thread < 4)
        asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(full + 8 * thread), "r"(ARRIVAL == LANE ? 4 : 128));
    __syncthreads();
    auto arrive = [&](unsigned barrier) {
        __syncwarp();
        if (ARRIVAL != LANE || thread % 32 == 0)
            asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(barrier) : "memory");
    };
    float sum = 0.0f;
    for (int i = 0; i < rounds; i++) {
        const int at = i % 2;
        if (thread < 128) {
            if (ARRIVAL != NONE && i >= 2) wait(empty + 8 * at, (i / 2 - 1) & 1);
            data[at][thread] = i + thread;
            arrive(full + 8 * at);
        } else {
            if (ARRIVAL != NONE) wait(full + 8 * at, i / 2 & 1);
            sum += data[at][thread * 7 % 128];
            arrive(empty + 8 * at);
        }
    }
    if (thread >= 128) out[thread - 128] = sum;
}

int main() {
    float* out;
    cudaMalloc(&out, 512);
    ring<ALL><<<1, 256>>>(out, 9);
    ring<LANE><<<1, 256>>>(out, 9);
    ring<NONE><<<1, 256>>>(out, 9);
    printf("%s\n", cudaGetErrorString(cudaDeviceSynchronize()));
}
