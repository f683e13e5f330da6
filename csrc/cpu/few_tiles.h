// Winograd's products of so few tiles that to transform a filter takes longer than to use it: at most kFewTiles.
//
//   sums[z][t][o] += sum over channels c of (G g_co G^T)[z] * x[z][t][c]             z < 36, t < tiles, o < kWidth
//
// winograd.h writes the points of all filters to memory and reads them again. Here a step makes a row of six points of
// one channel's kLanes filters from their taps, in registers, and multiplies them by the inputs of kFewTiles tiles: 24
// sums, which stay in registers while kFewDepth channels pass. Their taps stay in L1 while the six rows pass, and the
// next ones are asked for meanwhile. Sums are made in winograd.h's order, of the same points: no bit depends on which
// of the two makes them. 512 maps of 7 x 7 with 3 x 3 taps: 1.37 times as fast at N = 1.
#pragma once
#include "tile.h"
#include "units.h"
#include "winograd_points.h"

namespace zf {
namespace {

// With fewer than 32 registers there are none for the points besides the sums.
constexpr int64_t kFewTiles = kVectorBytes == 64 ? 4 : 0;

// The taps of a block of outputs, [taps][taps][depth][kWidth]; the points of the inputs, [row of six][depth][6][4],
// zero where there are fewer tiles; and the sums, [36][sum_plane], of which each plane begins with [tiles][kWidth].
template <typename T>
struct FewTiles {
    const T *filters, *points;
    int64_t depth, tiles;
    T* sums;
    int64_t sum_plane;
};

#if defined(__AVX512F__)
constexpr int64_t kFewDepth = 32;

// sum += v * *w
ZF_INLINE void add_product_of_one(Vec<float>& sum, Vec<float> v, const float* w) {
    asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(v), "m"(*w));
}

// clang-format off
#define ZF_FEW_TILES(M, j) M(j, 0) M(j, 1) M(j, 2) M(j, 3)
#define ZF_FEW(M) ZF_FEW_TILES(M, 0) ZF_FEW_TILES(M, 1) ZF_FEW_TILES(M, 2) \
    ZF_FEW_TILES(M, 3) ZF_FEW_TILES(M, 4) ZF_FEW_TILES(M, 5)
#define ZF_FEW_LOAD(j, t) V acc_##j##t = load<V>(acc + (j * kFewTiles + t) * kLanes);
#define ZF_FEW_ADD(j, t) add_product_of_one(acc_##j##t, z[j], x + j * kFewTiles + t);
#define ZF_FEW_STORE(j, t) store(acc + (j * kFewTiles + t) * kLanes, acc_##j##t);
// clang-format on

// One row of points of `channels` channels: tap t of channel c at filters[t * tap + c * kWidth]. The sums have names,
// because GCC 12 stores an array of them in each step. `next` is what filters will be, to be asked for.
template <int kTapsOf, int kRow>
void add_few_row(const float* filters, int64_t tap, const float* x, int64_t channels, const float* next, float* acc) {
    using V = Vec<float>;
    constexpr int64_t kLanes = Lanes<float>::count;
    ZF_FEW(ZF_FEW_LOAD)
    const float* row[kTapsOf];
    repeat<kTapsOf>([&](auto i) { row[i.at] = filters + i.at * kTapsOf * tap; });
    for (const float* const end = x + channels * 6 * kFewTiles; x < end; x += 6 * kFewTiles) {
        V taps[kTapsOf * kTapsOf], columns[6 * kTapsOf], z[6];
        repeat<kTapsOf>([&](auto i) {
            repeat<kTapsOf>([&](auto j) { taps[i.at * kTapsOf + j.at] = load<V>(row[i.at] + j.at * tap); });
            row[i.at] += kWidth<float>;
        });
        __builtin_prefetch(next + kRow * tap, 0, 2);
        if constexpr (kRow + 6 < kTapsOf * kTapsOf) __builtin_prefetch(next + (kRow + 6) * tap, 0, 2);
        repeat<kTapsOf>([&](auto j) { filter_to_points<kTapsOf>(taps + j.at, kTapsOf, columns + j.at, kTapsOf); });
        filter_to_points<kTapsOf>(columns + kRow * kTapsOf, 1, z, 1);
        ZF_FEW(ZF_FEW_ADD)
        next += kWidth<float>;
    }
    ZF_FEW(ZF_FEW_STORE)
}

// Channels [begin, end), summed apart and then added; the sums of channel 0 are new.
template <int kTapsOf>
void add_few_tiles(const FewTiles<float>& f, int64_t begin, int64_t end) {
    using V = Vec<float>;
    constexpr int64_t kLanes = Lanes<float>::count, kRowSums = 6 * kFewTiles * kLanes;
    const int64_t tap = f.depth * kWidth<float>;
    for (int64_t o = 0; o < kWidth<float>; o += kLanes) {
        alignas(64) float acc[6 * kRowSums] = {};
        for (int64_t c = begin, c_end; c < end; c = c_end) {
            c_end = smaller(c + kFewDepth, end);
            const float* const block = f.filters + o;
            const float* const next = c_end < f.depth ? block + c_end * kWidth<float> : block + kTapsOf * kTapsOf * tap;
            repeat<6>([&](auto row) {
                add_few_row<kTapsOf, row.at>(block + c * kWidth<float>, tap,
                                             f.points + (row.at * f.depth + c) * 6 * kFewTiles, c_end - c, next,
                                             acc + row.at * kRowSums);
            });
        }
        for (int64_t z = 0; z < kTaps; ++z)
            for (int64_t t = 0; t < f.tiles; ++t) {
                float* const sum = f.sums + z * f.sum_plane + t * kWidth<float> + o;
                const V added = load<V>(acc + (z * kFewTiles + t) * kLanes);
                store(sum, begin ? load<V>(sum) + added : added);
            }
    }
}
#else
template <int kTapsOf, typename T>
void add_few_tiles(const FewTiles<T>&, int64_t, int64_t) {}
#endif

}  // namespace
}  // namespace zf
