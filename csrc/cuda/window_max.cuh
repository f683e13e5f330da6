// The largest of a window's values and its tap, for V neighbouring maps: the first in order of the taps wins, NaN is
// the largest, -0 equals 0 (and comes out as 0).
//
// A value becomes an integer in the same order: adding 0 leaves one zero and one NaN, and a negative value's lower bits
// are flipped. For half types this integer and 255 - tap share a word, so that one integer maximum decides both: 3.5
// instructions a value and tap instead of about 7, so that memory is the limit.
#pragma once
#include "cuda/pack.cuh"
#include "cuda/pool_window.h"

namespace zf::cuda {

template <typename T>
__device__ __forceinline__ uint32_t plus_zero(uint32_t pair);
template <>
__device__ __forceinline__ uint32_t plus_zero<BFloat16>(uint32_t pair) {
    return ptx::fma_bfloat16x2(pair, 0x3f803f80u, 0u);
}
template <>
__device__ __forceinline__ uint32_t plus_zero<Float16>(uint32_t pair) {
    return ptx::fma_float16x2(pair, 0x3c003c00u, 0u);
}

// Flips the lower 15 bits of each negative half; its own inverse.
__device__ __forceinline__ uint32_t turned(uint32_t pair) {
    return pair ^ (ptx::permute_bytes(pair, 0, 0xbb99) & 0x7fff7fffu);
}

template <typename T, int V>
struct WindowMax {
    static constexpr int kEven = V + V % 2;
    int32_t keys[kEven];

    __device__ __forceinline__ WindowMax() {
        for (int i = 0; i < kEven; ++i) keys[i] = INT32_MIN;  // below -inf's key
    }
    __device__ __forceinline__ void see(const Pack<T, V>& values, int place) {
        for (int i = 0; i < kEven / 2; ++i) {
            const uint32_t pair = turned(plus_zero<T>(values.words[i]));
            const uint32_t rank = 255 - place;
            keys[2 * i] = max(keys[2 * i], static_cast<int32_t>(ptx::permute_bytes(pair, rank, 0x1054)));
            keys[2 * i + 1] = max(keys[2 * i + 1], static_cast<int32_t>(ptx::permute_bytes(pair, rank, 0x3254)));
        }
    }
    __device__ __forceinline__ Pack<T, V> values() const {
        Pack<T, V> p;
        for (int i = 0; i < kEven / 2; ++i)
            p.words[i] = turned(
                ptx::permute_bytes(static_cast<uint32_t>(keys[2 * i]), static_cast<uint32_t>(keys[2 * i + 1]), 0x7632));
        return p;
    }
    __device__ __forceinline__ uint32_t place(int i) const { return 255 - (static_cast<uint32_t>(keys[i]) & 0xff); }
};

template <int V>
struct WindowMax<float, V> {
    int32_t keys[V];
    uint32_t places[V];

    __device__ __forceinline__ WindowMax() {
        for (int i = 0; i < V; ++i) keys[i] = INT32_MIN, places[i] = 0;
    }
    __device__ __forceinline__ static int32_t turned(int32_t bits) { return bits ^ (bits >> 31 & 0x7fffffff); }
    __device__ __forceinline__ void see(const Pack<float, V>& values, int place) {
        for (int i = 0; i < V; ++i) {
            const float value = values[i];
            // fminf and fmaxf drop NaN; adding 0 would keep its sign and payload on a CPU.
            const int32_t key =
                value != value ? INT32_MAX : turned(static_cast<int32_t>(__float_as_uint(value + 0.0f)));
            if (key > keys[i]) keys[i] = key, places[i] = static_cast<uint32_t>(place);
        }
    }
    __device__ __forceinline__ Pack<float, V> values() const {
        Pack<float, V> p;
        for (int i = 0; i < V; ++i) p.words[i] = static_cast<uint32_t>(turned(keys[i]));
        return p;
    }
    __device__ __forceinline__ uint32_t place(int i) const { return places[i]; }
};

// The places of V winners as bytes.
template <typename T, int V>
__device__ __forceinline__ Bytes<V> places(const WindowMax<T, V>& best) {
    Bytes<V> b;
    for (uint32_t& word : b.words) word = 0;
    for (int i = 0; i < V; ++i) b.words[i / 4] |= best.place(i) << i % 4 * 8;
    return b;
}

// The winners of window (oh, ow) of an image for the maps c ... c + V - 1; `map` is at the image's (0, 0), map c.
// kWindow: the window's height and width, 0 where they are known at run time only.
template <typename T, int V, int kWindow>
__device__ __forceinline__ WindowMax<T, V> window_max(const PoolWindow& s, const T* map, int oh, int ow) {
    WindowMax<T, V> best;
    const int top = oh * s.SH - s.PH, left = ow * s.SW - s.PW;
    const int64_t pitch = int64_t{s.W} * s.C;
    const T* const from = map + top * pitch + int64_t{left} * s.C;
    if constexpr (kWindow > 0) {
        // A row's loads come before its comparisons, to be in flight together.
        if (top >= 0 && left >= 0 && top + kWindow <= s.H && left + kWindow <= s.W) {
#pragma unroll
            for (int kh = 0; kh < kWindow; ++kh) {
                Pack<T, V> values[kWindow];
#pragma unroll
                for (int kw = 0; kw < kWindow; ++kw)
                    values[kw] = Pack<T, V>::load(from + kh * pitch + int64_t{kw} * s.C);
#pragma unroll
                for (int kw = 0; kw < kWindow; ++kw) best.see(values[kw], kh * kWindow + kw);
            }
            return best;
        }
    }
    const int h0 = first_tap(oh, s.SH, s.PH), h1 = end_tap(oh, s.KH, s.SH, s.PH, s.H);
    const int w0 = first_tap(ow, s.SW, s.PW), w1 = end_tap(ow, s.KW, s.SW, s.PW, s.W);
    for (int kh = h0; kh < h1; ++kh)
        for (int kw = w0; kw < w1; ++kw)
            best.see(Pack<T, V>::load(from + kh * pitch + int64_t{kw} * s.C), kh * s.KW + kw);
    return best;
}

}  // namespace zf::cuda
