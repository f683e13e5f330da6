// tile.h's micro-kernel where there are registers for more pixels than addresses: up to 14 pixels in two rows, those of
// a row equally far apart.
//
//   acc[i][v] = from[i][v] + sum over r < rows, k < run of p[i][r * row_step + k] * w[(r * run + k) * 2 + v]
//
// p[i] = first + i * distance in the first row, second + (i - row) * distance in the second. The sums of a pixel are
// made in tile.h's order: its bits do not depend on which of the two makes it. v < kVectors: where a block has no more
// outputs than a vector has lanes, its second vector is left out.
#pragma once
#include "tile.h"
#include "units.h"

namespace zf {
namespace {

template <typename T>
struct TwoRows {
    const T *first, *second;
    int64_t distance;
};

#if defined(ZF_REGISTER)
constexpr int kRowPixels = kPixels < 7 ? kPixels : 7;
// clang-format off
// Pixel j of a row: its address, from a or b, and its accumulators; `lo` and `hi` are its vectors in memory too, in the
// second row less 14.
#define ZF_ROW_0(M, row)
#define ZF_ROW_1(M, row) M(row, 0, "", 0, 1)
#define ZF_ROW_2(M, row) ZF_ROW_1(M, row) M(row, 1, ",%[d]", 2, 3)
#define ZF_ROW_3(M, row) ZF_ROW_2(M, row) M(row, 2, ",%[d],2", 4, 5)
#define ZF_ROW_4(M, row) ZF_ROW_3(M, row) M(row, 3, ",%[d3]", 6, 7)
#define ZF_ROW_5(M, row) ZF_ROW_4(M, row) M(row, 4, ",%[d],4", 8, 9)
#define ZF_ROW_6(M, row) ZF_ROW_5(M, row) M(row, 5, ",%[d5]", 10, 11)
#define ZF_ROW_7(M, row) ZF_ROW_6(M, row) M(row, 6, ",%[d3],2", 12, 13)

#define ZF_OF_a(n) ZF_REGISTER(n)
#define ZF_OF_b(n) ZF_SECOND_##n
#define ZF_SECOND_0 ZF_REGISTER(14)
#define ZF_SECOND_1 ZF_REGISTER(15)
#define ZF_SECOND_2 ZF_REGISTER(16)
#define ZF_SECOND_3 ZF_REGISTER(17)
#define ZF_SECOND_4 ZF_REGISTER(18)
#define ZF_SECOND_5 ZF_REGISTER(19)
#define ZF_SECOND_6 ZF_REGISTER(20)
#define ZF_SECOND_7 ZF_REGISTER(21)
#define ZF_SECOND_8 ZF_REGISTER(22)
#define ZF_SECOND_9 ZF_REGISTER(23)
#define ZF_SECOND_10 ZF_REGISTER(24)
#define ZF_SECOND_11 ZF_REGISTER(25)
#define ZF_SECOND_12 ZF_REGISTER(26)
#define ZF_SECOND_13 ZF_REGISTER(27)
// clang-format on
#else
constexpr int kRowPixels = (kPixels + 1) / 2;
#endif

#if defined(__x86_64__) && defined(__AVX512F__)
constexpr bool kTwoRows = true;
#define ZF_CLOBBERED_ALL                                                                                             \
    ZF_CLOBBERED, "zmm16", "zmm17", "zmm18", "zmm19", "zmm20", "zmm21", "zmm22", "zmm23", "zmm24", "zmm25", "zmm26", \
        "zmm27"
// call(n, m) for every tile of n pixels in one row and m in the next, n >= m, n <= m + 1.
#define ZF_EACH_TWO_ROWS(call)                                                                                    \
    call(1, 0) call(1, 1) call(2, 1) call(2, 2) call(3, 2) call(3, 3) call(4, 3) call(4, 4) call(5, 4) call(5, 5) \
        call(6, 5) call(6, 6) call(7, 6) call(7, 7)

// clang-format off
#define ZF_ROWS_LOAD_1(row, j, at, lo, hi) "vmovups 64*" #lo "(%[k]), " ZF_OF_##row(lo) "\n\t"
#define ZF_ROWS_LOAD_2(row, j, at, lo, hi) \
    ZF_ROWS_LOAD_1(row, j, at, lo, hi) "vmovups 64*" #hi "(%[k]), " ZF_OF_##row(hi) "\n\t"
#define ZF_ROWS_STORE_1(row, j, at, lo, hi) "vmovups " ZF_OF_##row(lo) ", 64*" #lo "(%[k])\n\t"
#define ZF_ROWS_STORE_2(row, j, at, lo, hi) \
    ZF_ROWS_STORE_1(row, j, at, lo, hi) "vmovups " ZF_OF_##row(hi) ", 64*" #hi "(%[k])\n\t"
#define ZF_ROWS_1(s, row, at, lo)                         \
    "vbroadcasts" s " (%[" #row "]" at "), " ZF_X "\n\t"  \
    "vfmadd231p" s " " ZF_W0 ", " ZF_X ", " ZF_OF_##row(lo) "\n\t"
#define ZF_ROWS_2(s, row, at, lo, hi) \
    ZF_ROWS_1(s, row, at, lo) "vfmadd231p" s " " ZF_W1 ", " ZF_X ", " ZF_OF_##row(hi) "\n\t"
#define ZF_ROWS_1_float(row, j, at, lo, hi) ZF_ROWS_1("s", row, at, lo)
#define ZF_ROWS_2_float(row, j, at, lo, hi) ZF_ROWS_2("s", row, at, lo, hi)
#define ZF_ROWS_1_double(row, j, at, lo, hi) ZF_ROWS_1("d", row, at, lo)
#define ZF_ROWS_2_double(row, j, at, lo, hi) ZF_ROWS_2("d", row, at, lo, hi)
#define ZF_ROWS_W_1 ""
#define ZF_ROWS_W_2 "vmovups 64(%[w]), " ZF_W1 "\n\t"

// n pixels in the first row, m in the second.
#define ZF_ROWS_OF(T, size, n, m, vectors)                                                                        \
    inline void rows_of(Index<n + m>, Index<vectors>, const TwoRows<T>& p, const Walk& walk, const T* w,          \
                        const T* ahead, const T* from, T* acc) {                                                  \
        const T *a = p.first, *b = p.second;                                                                      \
        const int64_t d = p.distance * size, d3 = 3 * d, d5 = 5 * d, jump = (walk.row_step - walk.run) * size;    \
        int64_t k, rows = walk.rows;                                                                              \
        asm volatile(                                                                                             \
            "mov %[from], %[k]\n\t"                                                                               \
            ZF_ROW_##n(ZF_ROWS_LOAD_##vectors, a)                                                                 \
            "add $128*" #n ", %[k]\n\t"                                                                           \
            ZF_ROW_##m(ZF_ROWS_LOAD_##vectors, b)                                                                 \
            "1:\n\t"                                                                                              \
            "mov %[run], %[k]\n\t"                                                                                \
            ".p2align 5\n\t"                                                                                      \
            "2:\n\t"                                                                                              \
            "vmovups (%[w]), " ZF_W0 "\n\t"                                                                       \
            ZF_ROWS_W_##vectors                                                                                   \
            ZF_ROW_##n(ZF_ROWS_##vectors##_##T, a)                                                                \
            ZF_ROW_##m(ZF_ROWS_##vectors##_##T, b)                                                                \
            "prefetcht1 (%[ahead])\n\t"                                                                           \
            "add $64, %[ahead]\n\t"                                                                               \
            "add $" #size ", %[a]\n\t"                                                                            \
            "add $" #size ", %[b]\n\t"                                                                            \
            "sub $-128, %[w]\n\t"                                                                                 \
            "dec %[k]\n\t"                                                                                        \
            "jnz 2b\n\t"                                                                                          \
            "add %[jump], %[a]\n\t"                                                                               \
            "add %[jump], %[b]\n\t"                                                                               \
            "decq %[rows]\n\t"                                                                                    \
            "jnz 1b\n\t"                                                                                          \
            "mov %[acc], %[k]\n\t"                                                                                \
            ZF_ROW_##n(ZF_ROWS_STORE_##vectors, a)                                                                \
            "add $128*" #n ", %[k]\n\t"                                                                           \
            ZF_ROW_##m(ZF_ROWS_STORE_##vectors, b)                                                                \
            : [a] "+r"(a), [b] "+r"(b), [w] "+r"(w), [ahead] "+r"(ahead), [k] "=&r"(k), [rows] "+m"(rows)         \
            : [d] "r"(d), [d3] "r"(d3), [d5] "r"(d5), [run] "m"(walk.run), [jump] "m"(jump), [acc] "m"(acc),      \
              [from] "m"(from)                                                                                    \
            : "memory", "cc", ZF_CLOBBERED_ALL);                                                                  \
    }
#define ZF_ROWS(n, m)              \
    ZF_ROWS_OF(float, 4, n, m, 1)  \
    ZF_ROWS_OF(float, 4, n, m, 2)  \
    ZF_ROWS_OF(double, 8, n, m, 1) \
    ZF_ROWS_OF(double, 8, n, m, 2)
// clang-format on
ZF_EACH_TWO_ROWS(ZF_ROWS)

// `count` pixels, the larger half in the first row; `ahead`: as many cache lines as the walk has steps are fetched from
// there on.
template <typename T>
ZF_INLINE void tile_rows(int64_t count, int64_t vectors, const TwoRows<T>& p, const Walk& walk, const T* w,
                         const T* ahead, const T* from, T* acc) {
    with_count<2 * kRowPixels>(count, [&](auto n) {
        if (vectors == 1)
            rows_of(n, Index<1>{}, p, walk, w, ahead, from, acc);
        else
            rows_of(n, Index<2>{}, p, walk, w, ahead, from, acc);
    });
}
#else
constexpr bool kTwoRows = false;
template <typename T>
void tile_rows(int64_t, int64_t, const TwoRows<T>&, const Walk&, const T*, const T*, const T*, T*) {}
#endif

// Pixels of a tile that are equally far apart, and its sums: tile_rows's where there is one.
constexpr int kEvenTile = kTwoRows ? 2 * kRowPixels : kPixels;

// `count` <= kEvenTile pixels from `first` on; from `ahead` on lie those of the next tile.
template <typename T>
ZF_INLINE void tile_even(int64_t count, const T* first, int64_t distance, const Walk& walk, const T* w, const T* from,
                         T* acc) {
    const T* const ahead = first + count * distance;
    if constexpr (kTwoRows) {
        const TwoRows<T> pixels{first, first + (count + 1) / 2 * distance, distance};
        return tile_rows(count, 2, pixels, walk, w, ahead, from, acc);
    }
    const T* at[kPixels];
    for (int64_t i = 0; i < count; ++i) at[i] = first + i * distance;
    tile(count, at, WalkAhead{walk, ahead}, w, from, acc);
}

// Calls each(from, to, first, second) for the tiles of `rows` rows of `cols` pixels, numbered row by row: a row's in
// equal parts, or two short rows together. `first` and `second` are (row, column) of the first pixels of a tile's rows.
template <typename Each>
void for_row_tiles(int64_t rows, int64_t cols, const Each& each) {
    if (cols <= kRowPixels && rows > 1) {
        for (int64_t r = 0; r + 2 <= rows; r += 2) each(r * cols, (r + 2) * cols, r, 0, r + 1, 0);
        if (rows % 2 == 0) return;
        const int64_t r = rows - 1;
        return each(r * cols, rows * cols, r, 0, r, (cols + 1) / 2);
    }
    const int64_t parts = ceil_div(cols, 2 * kRowPixels);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t part = 0; part < parts; ++part) {
            const Range own = share(cols, part, parts);
            each(r * cols + own.begin, r * cols + own.end, r, own.begin, r, own.begin + (own.size() + 1) / 2);
        }
}

}  // namespace
}  // namespace zf
