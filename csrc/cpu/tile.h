// The one micro-kernel of all convolutions: kCount x 2 vectors of accumulators.
//
//   acc[i][v] = from[i][v] + sum over r < rows, k < run of p[i][r * row_step + k * step] * w[(r * run + k) * 2 + v]
//
// Each step loads two vectors of w, which stream, and broadcasts one element for each i. A forward or transposed
// convolution has pixels for i, output channels for lanes and walks the taps (step 1); the weight gradient has elements
// of a tap row for i and walks the pixels.
//
// x86 with FMA: the loop is one block of assembly. From intrinsics GCC 12 stores the accumulators to the stack (33
// GFLOP/s against 85 on a 3x3 convolution of 256 maps).
#pragma once
#include <cstddef>
#include <cstdint>

#include "simd.h"

namespace zf {
namespace {

#if defined(__x86_64__) && defined(__AVX512F__)
constexpr int kPixels = 8;
#define ZF_REGISTER(n) "%%zmm" #n
#define ZF_W0 "%%zmm29"
#define ZF_W1 "%%zmm30"
#define ZF_X "%%zmm31"
#define ZF_BYTES 64
#define ZF_CLOBBERED                                                                                           \
    "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", "zmm11", "zmm12", \
        "zmm13", "zmm14", "zmm15", "zmm29", "zmm30", "zmm31"
#elif defined(__x86_64__) && defined(__AVX2__) && defined(__FMA__)
constexpr int kPixels = 6;
#define ZF_REGISTER(n) "%%ymm" #n
#define ZF_W0 "%%ymm13"
#define ZF_W1 "%%ymm14"
#define ZF_X "%%ymm15"
#define ZF_BYTES 32
#define ZF_CLOBBERED                                                                                           \
    "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10", "ymm11", "ymm13", \
        "ymm14", "ymm15"
#elif defined(__aarch64__)
constexpr int kPixels = 8;  // 16 + 2 + 1 of 32 registers
#else
constexpr int kPixels = 6;
#endif

// How a tile walks from its addresses; in elements.
struct Walk {
    int64_t rows, run, row_step, step;
};

// The same for a tile whose successor reads other memory, kCount * run elements from `ahead` on, which are prefetched
// kCount elements a step: 1.04 times as fast where that is in L3. (Walks over the same memory again: 0.9 times.)
struct WalkAhead : Walk {
    const void* ahead;
};

#if defined(ZF_REGISTER)

inline const void* ahead_of(const Walk&) { return nullptr; }
inline const void* ahead_of(const WalkAhead& walk) { return walk.ahead; }

// clang-format off
#define ZF_TEXT(n) ZF_TEXT_(n)
#define ZF_TEXT_(n) #n

// Pixel i has the accumulators lo and hi.
#define ZF_LOAD(i, lo, hi)                                               \
    "vmovups " ZF_TEXT(ZF_BYTES) "*" #lo "(%[k]), " ZF_REGISTER(lo) "\n\t" \
    "vmovups " ZF_TEXT(ZF_BYTES) "*" #hi "(%[k]), " ZF_REGISTER(hi) "\n\t"
#define ZF_STORE(i, lo, hi)                                              \
    "vmovups " ZF_REGISTER(lo) ", " ZF_TEXT(ZF_BYTES) "*" #lo "(%[k])\n\t" \
    "vmovups " ZF_REGISTER(hi) ", " ZF_TEXT(ZF_BYTES) "*" #hi "(%[k])\n\t"
#define ZF_STEP(s, i, lo, hi)                              \
    "vbroadcasts" s " (%[p" #i "],%[x]), " ZF_X "\n\t"       \
    "vfmadd231p" s " " ZF_W0 ", " ZF_X ", " ZF_REGISTER(lo) "\n\t" \
    "vfmadd231p" s " " ZF_W1 ", " ZF_X ", " ZF_REGISTER(hi) "\n\t"
#define ZF_STEP_float(i, lo, hi) ZF_STEP("s", i, lo, hi)
#define ZF_STEP_double(i, lo, hi) ZF_STEP("d", i, lo, hi)
#define ZF_ADDRESS(i, lo, hi) [p##i] "r"(p[i]),

#define ZF_EACH_1(M) M(0, 0, 1)
#define ZF_EACH_2(M) ZF_EACH_1(M) M(1, 2, 3)
#define ZF_EACH_3(M) ZF_EACH_2(M) M(2, 4, 5)
#define ZF_EACH_4(M) ZF_EACH_3(M) M(3, 6, 7)
#define ZF_EACH_5(M) ZF_EACH_4(M) M(4, 8, 9)
#define ZF_EACH_6(M) ZF_EACH_5(M) M(5, 10, 11)
#define ZF_EACH_7(M) ZF_EACH_6(M) M(6, 12, 13)
#define ZF_EACH_8(M) ZF_EACH_7(M) M(7, 14, 15)

// x is the offset in bytes that all addresses share; `jump` leads from the end of one run to the start of the next.
#define ZF_TILE_OF(T, count, WalkOf, ask, ...)                                                                    \
    inline void tile_of(Index<count>, const T* const* p, const WalkOf& walk, const T* w, const T* from, T* acc) { \
        int64_t x = 0, k, rows = walk.rows;                                                                       \
        const int64_t step = walk.step * static_cast<int64_t>(sizeof(T)), run = walk.run;                         \
        const int64_t jump = (walk.row_step - walk.run * walk.step) * static_cast<int64_t>(sizeof(T));            \
        [[maybe_unused]] const void* ahead = ahead_of(walk);                                                      \
        asm volatile(                                                                                             \
            "mov %[from], %[k]\n\t"                                                                               \
            ZF_EACH_##count(ZF_LOAD)                                                                              \
            "1:\n\t"                                                                                              \
            "mov %[run], %[k]\n\t"                                                                                \
            ".p2align 5\n\t"                                                                                      \
            "2:\n\t"                                                                                              \
            "vmovups (%[w]), " ZF_W0 "\n\t"                                                                       \
            "vmovups " ZF_TEXT(ZF_BYTES) "(%[w]), " ZF_W1 "\n\t"                                                  \
            ZF_EACH_##count(ZF_STEP_##T)                                                                          \
            "add %[step], %[x]\n\t"                                                                               \
            "add $2*" ZF_TEXT(ZF_BYTES) ", %[w]\n\t"                                                              \
            ask                                                                                                   \
            "dec %[k]\n\t"                                                                                        \
            "jnz 2b\n\t"                                                                                          \
            "add %[jump], %[x]\n\t"                                                                               \
            "decq %[rows]\n\t"                                                                                    \
            "jnz 1b\n\t"                                                                                          \
            "mov %[acc], %[k]\n\t"                                                                               \
            ZF_EACH_##count(ZF_STORE)                                                                             \
            : [x] "+r"(x), [w] "+r"(w), [k] "=&r"(k), [rows] "+m"(rows) __VA_ARGS__                               \
            : ZF_EACH_##count(ZF_ADDRESS)[acc] "m"(acc), [step] "r"(step), [run] "m"(run), [jump] "m"(jump),      \
              [from] "m"(from)                                                                                    \
            : "memory", "cc", ZF_CLOBBERED);                                                                      \
    }
#define ZF_ASK(size, count) "prefetcht0 (%[ahead])\n\tadd $" #size "*" #count ", %[ahead]\n\t"
#define ZF_TILE(T, size, count)           \
    ZF_TILE_OF(T, count, Walk, "")        \
    ZF_TILE_OF(T, count, WalkAhead, ZF_ASK(size, count), , [ahead] "+r"(ahead))
#define ZF_TILES(count) ZF_TILE(float, 4, count) ZF_TILE(double, 8, count)
// clang-format on

ZF_TILES(1)
ZF_TILES(2)
ZF_TILES(3)
ZF_TILES(4)
ZF_TILES(5)
ZF_TILES(6)
#if defined(__AVX512F__)
ZF_TILES(7)
ZF_TILES(8)
#endif

#else

template <typename T, int kCount>
void tile_of(Index<kCount>, const T* const* p, const Walk& walk, const T* w, const T* from, T* acc) {
    constexpr int kLanes = Lanes<T>::count;
    Vec<T> a[kCount][2];
    repeat<kCount>([&](auto i) {
        a[i.at][0] = load<Vec<T> >(from + i.at * 2 * kLanes);
        a[i.at][1] = load<Vec<T> >(from + i.at * 2 * kLanes + kLanes);
    });
    for (int64_t r = 0; r < walk.rows; ++r)
        for (int64_t k = 0; k < walk.run; ++k, w += 2 * kLanes) {
            const Vec<T> w0 = load<Vec<T> >(w), w1 = load<Vec<T> >(w + kLanes);
            const int64_t x = r * walk.row_step + k * walk.step;
            repeat<kCount>([&](auto i) {
                const Vec<T> v = broadcast<T>(p[i.at][x]);
                a[i.at][0] += v * w0;
                a[i.at][1] += v * w1;
            });
        }
    repeat<kCount>([&](auto i) {
        store(acc + i.at * 2 * kLanes, a[i.at][0]);
        store(acc + i.at * 2 * kLanes + kLanes, a[i.at][1]);
    });
}

#endif

// What new sums start from.
template <typename T>
alignas(64) const T kZeros[2 * kPixels * 2 * Lanes<T>::count] = {};

// `count` <= kPixels addresses. The sums start from `from`, which may be acc.
template <typename T, typename WalkOf>
ZF_INLINE void tile(int64_t count, const T* const* p, const WalkOf& walk, const T* w, const T* from, T* acc) {
    with_count<kPixels>(count, [&](auto n) { tile_of(n, p, walk, w, from, acc); });
}

}  // namespace
}  // namespace zf
