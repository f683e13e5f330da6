// Index arithmetic of windows, shared by the CPU and the CUDA kernels.
//
// Along one axis: window `o` of a kernel of k taps, stride s and padding p covers the positions o*s - p + [0, k).
// A position `i` is covered by the windows first_window(i) .. last_window(i), and lies at tap i + p - o*s of window o.
//
// Transposed filtering splits positions by residue r = (i + p) mod s: position i = q*s + r - p receives exactly the
// taps r, r + s, r + 2s, ... (taps_of_residue many), tap r + j*s from window q - j. So each residue class is a stride-1
// correlation, and no multiplication by an inserted zero is made.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define ZF_HOST_DEVICE __host__ __device__
#else
#define ZF_HOST_DEVICE
#endif

namespace zf {

// a / b rounded down, b > 0.
ZF_HOST_DEVICE static inline int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// a / b rounded up, b > 0.
ZF_HOST_DEVICE static inline int64_t ceil_div(int64_t a, int64_t b) { return -floor_div(-a, b); }

ZF_HOST_DEVICE static inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

ZF_HOST_DEVICE static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
ZF_HOST_DEVICE static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// The first window that covers position i (may exceed the last one: then none does).
ZF_HOST_DEVICE static inline int64_t first_window(int64_t i, int64_t k, int64_t s, int64_t p) {
    return larger(0, ceil_div(i + p - k + 1, s));
}

// The last of `count` windows that covers position i.
ZF_HOST_DEVICE static inline int64_t last_window(int64_t i, int64_t s, int64_t p, int64_t count) {
    return smaller(count - 1, floor_div(i + p, s));
}

// The taps of window o that lie inside a map of `size` positions: [first_tap, end_tap).
ZF_HOST_DEVICE static inline int64_t first_tap(int64_t o, int64_t s, int64_t p) { return larger(0, p - o * s); }
ZF_HOST_DEVICE static inline int64_t end_tap(int64_t o, int64_t k, int64_t s, int64_t p, int64_t size) {
    return smaller(k, size + p - o * s);
}

// How many of k taps fall to residue r of stride s.
ZF_HOST_DEVICE static inline int64_t taps_of_residue(int64_t k, int64_t s, int64_t r) {
    return r < k ? (k - r + s - 1) / s : 0;
}

}  // namespace zf
