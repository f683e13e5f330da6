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
#include <type_traits>

#ifdef __CUDACC__
#define ZF_HOST_DEVICE __host__ __device__
#else
#define ZF_HOST_DEVICE
#endif

namespace zf {

// All of these compute in the common type of their arguments: int64_t, or int where every size is known to be small.

// a / b rounded down, b > 0.
template <typename A, typename B>
ZF_HOST_DEVICE inline std::common_type_t<A, B> floor_div(A a, B b) {
    return a >= 0 ? a / b : -((-a + b - 1) / b);
}

// a / b rounded up, b > 0.
template <typename A, typename B>
ZF_HOST_DEVICE inline std::common_type_t<A, B> ceil_div(A a, B b) {
    return -floor_div(-a, b);
}

template <typename A, typename B>
ZF_HOST_DEVICE inline std::common_type_t<A, B> round_up(A a, B b) {
    return ceil_div(a, b) * b;
}

template <typename A, typename B>
ZF_HOST_DEVICE inline std::common_type_t<A, B> smaller(A a, B b) {
    return a < b ? a : b;
}
template <typename A, typename B>
ZF_HOST_DEVICE inline std::common_type_t<A, B> larger(A a, B b) {
    return a > b ? a : b;
}

// The first window that covers position i (may exceed the last one: then none does).
template <typename I, typename K, typename S, typename P>
ZF_HOST_DEVICE inline std::common_type_t<I, K, S, P> first_window(I i, K k, S s, P p) {
    return larger(0, ceil_div(i + p - k + 1, s));
}

// The last of `count` windows that covers position i.
template <typename I, typename S, typename P, typename C>
ZF_HOST_DEVICE inline std::common_type_t<I, S, P, C> last_window(I i, S s, P p, C count) {
    return smaller(count - 1, floor_div(i + p, s));
}

// The taps of window o that lie inside a map of `size` positions: [first_tap, end_tap).
template <typename O, typename S, typename P>
ZF_HOST_DEVICE inline std::common_type_t<O, S, P> first_tap(O o, S s, P p) {
    return larger(0, p - o * s);
}
template <typename O, typename K, typename S, typename P, typename H>
ZF_HOST_DEVICE inline std::common_type_t<O, K, S, P, H> end_tap(O o, K k, S s, P p, H size) {
    return smaller(k, size + p - o * s);
}

// How many of k taps fall to residue r of stride s.
template <typename K, typename S, typename R>
ZF_HOST_DEVICE inline std::common_type_t<K, S, R> taps_of_residue(K k, S s, R r) {
    return r < k ? (k - r + s - 1) / s : 0;
}

}  // namespace zf
