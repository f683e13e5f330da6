// Depthwise sums of pixels that lie equally far apart, all of whose taps are inside the map: one address a tap serves
// up to kEvenPixels pixels, which need no list of their own (depthwise.h).
//
//   out[t * step + c] = min(most, max(least, bias[c] + sum over taps n of w[n][c] * at[n][t * pixel + c]))      NaN
//   kept
#pragma once
#include "tile_rows.h"

namespace zf {
namespace {

template <typename T>
struct EvenTaps {
    const T** at;
    const T** w;
    int64_t taps, pixels, pixel;
    const T* bias;
    T* out;
    int64_t step;
    T least = 0, most = 0;
};

#if defined(ZF_REGISTER)
constexpr int kEvenPixels = kTwoRows ? 2 * kRowPixels : kRowPixels;
// clang-format off
#define ZF_EVEN_START_1(row, j, at, lo, hi) "vmovups (%[a]), " ZF_OF_##row(lo) "\n\t"
#define ZF_EVEN_START_2(row, j, at, lo, hi) \
    ZF_EVEN_START_1(row, j, at, lo, hi) "vmovups " ZF_TEXT(ZF_BYTES) "(%[a]), " ZF_OF_##row(hi) "\n\t"
#define ZF_EVEN_WEIGHT_1 "vmovups (%[k],%[c]), " ZF_W0 "\n\t"
#define ZF_EVEN_WEIGHT_2 ZF_EVEN_WEIGHT_1 "vmovups " ZF_TEXT(ZF_BYTES) "(%[k],%[c]), " ZF_W1 "\n\t"
#define ZF_EVEN_1(s, row, at, lo) "vfmadd231p" s " (%[" #row "]" at "), " ZF_W0 ", " ZF_OF_##row(lo) "\n\t"
#define ZF_EVEN_2(s, row, at, lo, hi) \
    ZF_EVEN_1(s, row, at, lo)         \
    "vfmadd231p" s " " ZF_TEXT(ZF_BYTES) "(%[" #row "]" at "), " ZF_W1 ", " ZF_OF_##row(hi) "\n\t"
#define ZF_EVEN_1_float(row, j, at, lo, hi) ZF_EVEN_1("s", row, at, lo)
#define ZF_EVEN_2_float(row, j, at, lo, hi) ZF_EVEN_2("s", row, at, lo, hi)
#define ZF_EVEN_1_double(row, j, at, lo, hi) ZF_EVEN_1("d", row, at, lo)
#define ZF_EVEN_2_double(row, j, at, lo, hi) ZF_EVEN_2("d", row, at, lo, hi)
#define ZF_EVEN_END(s, row, at, n, shift)                                \
    "vmaxp" s " " ZF_OF_##row(n) ", " ZF_W0 ", " ZF_OF_##row(n) "\n\t"    \
    "vminp" s " " ZF_OF_##row(n) ", " ZF_W1 ", " ZF_OF_##row(n) "\n\t"    \
    "vmovups " ZF_OF_##row(n) ", " shift "(%[" #row "]" at ")\n\t"
#define ZF_EVEN_END_1_float(row, j, at, lo, hi) ZF_EVEN_END("s", row, at, lo, "")
#define ZF_EVEN_END_2_float(row, j, at, lo, hi) \
    ZF_EVEN_END("s", row, at, lo, "") ZF_EVEN_END("s", row, at, hi, ZF_TEXT(ZF_BYTES))
#define ZF_EVEN_END_1_double(row, j, at, lo, hi) ZF_EVEN_END("d", row, at, lo, "")
#define ZF_EVEN_END_2_double(row, j, at, lo, hi) \
    ZF_EVEN_END("d", row, at, lo, "") ZF_EVEN_END("d", row, at, hi, ZF_TEXT(ZF_BYTES))
#define ZF_EVEN_S_float "s"
#define ZF_EVEN_S_double "d"

// n pixels from a on, m from b on.
#define ZF_EVEN_OF(T, n, m, vectors)                                                                   \
    inline void sum_even(Index<n + m>, Index<vectors>, const EvenTaps<T>& e, int64_t channel) {        \
        constexpr int64_t kSize = sizeof(T);                                                           \
        const int64_t c = channel * kSize, second = n * e.pixel * kSize, step = e.step * kSize;        \
        const T *const bias = e.bias + channel, *a, *b, *k;                                            \
        T *const out = e.out + channel, *const out_b = out + n * e.step;                               \
        int64_t d = e.pixel * kSize, d3 = 3 * d, d5 = 5 * d, left = e.taps;                            \
        const T* const* at = e.at;                                                                     \
        const T* const* w = e.w;                                                                       \
        asm volatile(                                                                                  \
            "mov %[bias], %[a]\n\t"                                                                    \
            ZF_ROW_##n(ZF_EVEN_START_##vectors, a)                                                     \
            ZF_ROW_##m(ZF_EVEN_START_##vectors, b)                                                     \
            "test %[left], %[left]\n\t"                                                                \
            "jz 2f\n\t"                                                                                \
            ".p2align 5\n\t"                                                                           \
            "1:\n\t"                                                                                   \
            "mov (%[at]), %[a]\n\t"                                                                    \
            "mov (%[w]), %[k]\n\t"                                                                     \
            "add %[c], %[a]\n\t"                                                                       \
            "lea (%[a],%[second]), %[b]\n\t"                                                           \
            ZF_EVEN_WEIGHT_##vectors                                                                   \
            ZF_ROW_##n(ZF_EVEN_##vectors##_##T, a)                                                     \
            ZF_ROW_##m(ZF_EVEN_##vectors##_##T, b)                                                     \
            "add $8, %[at]\n\t"                                                                        \
            "add $8, %[w]\n\t"                                                                         \
            "dec %[left]\n\t"                                                                          \
            "jnz 1b\n\t"                                                                               \
            "2:\n\t"                                                                                   \
            "vbroadcasts" ZF_EVEN_S_##T " %[least], " ZF_W0 "\n\t"                                     \
            "vbroadcasts" ZF_EVEN_S_##T " %[most], " ZF_W1 "\n\t"                                      \
            "mov %[step], %[d]\n\t"                                                                    \
            "lea (%[d],%[d],2), %[d3]\n\t"                                                             \
            "lea (%[d],%[d],4), %[d5]\n\t"                                                             \
            "mov %[out], %[a]\n\t"                                                                     \
            "mov %[out_b], %[b]\n\t"                                                                   \
            ZF_ROW_##n(ZF_EVEN_END_##vectors##_##T, a)                                                 \
            ZF_ROW_##m(ZF_EVEN_END_##vectors##_##T, b)                                                 \
            : [a] "=&r"(a), [b] "=&r"(b), [k] "=&r"(k), [at] "+r"(at), [w] "+r"(w), [left] "+r"(left), \
              [d] "+r"(d), [d3] "+r"(d3), [d5] "+r"(d5)                                                \
            : [c] "r"(c), [second] "r"(second), [bias] "m"(bias), [out] "m"(out), [out_b] "m"(out_b),  \
              [step] "m"(step), [least] "m"(e.least), [most] "m"(e.most)                               \
            : "memory", "cc", ZF_EVEN_CLOBBERED);                                                      \
    }
#define ZF_EVEN(n, m)           \
    ZF_EVEN_OF(float, n, m, 1)  \
    ZF_EVEN_OF(float, n, m, 2)  \
    ZF_EVEN_OF(double, n, m, 1) \
    ZF_EVEN_OF(double, n, m, 2)
// clang-format on
#if defined(__AVX512F__)
#define ZF_EVEN_CLOBBERED ZF_CLOBBERED_ALL
ZF_EACH_TWO_ROWS(ZF_EVEN)
#else
#define ZF_EVEN_CLOBBERED ZF_CLOBBERED
ZF_EVEN(1, 0)
ZF_EVEN(2, 0)
ZF_EVEN(3, 0)
ZF_EVEN(4, 0)
ZF_EVEN(5, 0)
ZF_EVEN(6, 0)
#endif
#else
constexpr int kEvenPixels = 0;  // depthwise.h lists all pixels
#endif

// make(vectors, c, end) makes the channels from c on as far as whole steps of `vectors` vectors go, and returns the
// first that is left: for all of [begin, end), at least a vector. The last vector may overlap the one before it.
template <typename T, typename Make>
void for_lanes(int64_t begin, int64_t end, const Make& make) {
    int64_t c = make(Index<2>{}, begin, end);
    c = make(Index<1>{}, c, end);
    if (c < end) make(Index<1>{}, end - Lanes<T>::count, end);
}

template <typename T>
void sum_all_even_taps([[maybe_unused]] const EvenTaps<T>& taps, [[maybe_unused]] Range channels) {
#if defined(ZF_REGISTER)
    with_count<kEvenPixels>(taps.pixels, [&](auto count) {
        for_lanes<T>(channels.begin, channels.end, [&](auto vectors, int64_t c, int64_t end) {
            constexpr int64_t kStep = vectors.at * Lanes<T>::count;
            for (; c + kStep <= end; c += kStep) sum_even(count, vectors, taps, c);
            return c;
        });
    });
#endif
}

}  // namespace
}  // namespace zf
