// The frame of element-wise kernels over the live rows of [rows, k] tensors: 256 threads, eight elements a thread, grid =
// ceil(rows · k / 2048). `each(index, count)` is called with the first of `count` consecutive elements: 8 where all
// operands are aligned for load8 there, else 1.
#pragma once
#include "common.cuh"

template <typename F> DEVICE void for_live_elements(u32 rows, u32 k, const u32* counts, u32 which, F each) {
    u64 end = (u64)live_rows(counts, which, rows) * k;
    u64 start = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    // Tensors start at multiples of 256 bytes, so eight elements from a multiple of eight are aligned.
    if (start + 8 <= end) {
        each(start, 8);
    } else {
        for (u64 i = start; i < end; i++) each(i, 1);
    }
}

// Up to eight elements, zeros past `count`.
template <typename T> DEVICE void load_some(const T* p, int count, float (&v)[8]) {
    if (count == 8) {
        load8(p, v);
    } else {
        v[0] = to_float(p[0]);
    }
}
template <typename T> DEVICE void store_some(T* p, int count, const float (&v)[8]) {
    if (count == 8) {
        store8(p, v);
    } else {
        p[0] = from_float<T>(v[0]);
    }
}
