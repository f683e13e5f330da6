// Which kernel computes a convolution: every cost and every decision. tests/csrc/test_choose.py pins what the layers of
// ZFNet, VGG-16 and ResNet-50 get.
//
// A cost is what a kernel takes for one image on one thread, in cycles. It depends on neither the batch nor the number
// of threads nor any value, so these change no bit of an image. The constants are fits to times measured with AVX2 on
// Zen 3, whose vectors of another width scale; those that differ by kWide, with AVX-512 on Sapphire Rapids.
#pragma once
#include "depthwise.h"
#include "nonzeros.h"
#include "winograd_rows.h"

namespace zf {
namespace {

constexpr bool kWide = kVectorBytes == 64;
constexpr double kMargin = 1.1;          // Winograd and nonzeros must be a tenth faster: costs are that uncertain
constexpr double kLeastCycles = 1e5;     // 30 us: below it exact sums, whose ties pool by the rule, are worth more
constexpr double kRectified = 0.5;       // share of rectified values taken to be nonzero; they must not be looked at
constexpr double kPlainValues = 64;      // of a pixel, from which adding its sums is cheaper than packing filters
constexpr double kPeak = 0.82;           // share of the multiply-add peak that tile.h reaches over a block
constexpr double kScatterPeak = 0.62;    // the same where products are added to memory
constexpr double kTileSteps = 9;         // steps of tile.h that a tile costs besides its products
constexpr double kDirectStep = 1.03;     // cycles for two multiply-adds
constexpr double kDirectStore = 10;      // cycles for storing two vectors of an output
constexpr double kDirectPack = 5;        // for packing a vector of filters
constexpr double kTransposedPack = 0.6;  // for packing an element of the filters
constexpr double kRowsOut = kWide ? 44 : 32;           // for transforming a vector of an output's points
constexpr double kRowsMeasured = kWide ? 1.2 : 1;      // the whole over the sum of its parts
constexpr double kRowsFilter = 43;                     // for transforming a vector of filters
constexpr double kTilesIn = 36;                        // for transforming a channel of a tile
constexpr double kTilesOut = 30;                       // for transforming an output of a tile back
constexpr double kTilesFilter = kWide ? 5 : 13;        // for transforming a channel of an output's filter
constexpr double kTilesChunk = 7;                      // steps that a chunk of channels costs besides its products
constexpr double kTilesMeasured = kWide ? 1.55 : 1.2;  // the whole over the sum of its parts
constexpr double kNonzeroProduct = 1.1;                // for a vector of a value's products, with filters from L2
constexpr double kNonzeroVisit = 3;                    // for loading and storing a vector of x for a pixel
constexpr double kNonzeroPack = 0.7;                   // for packing an element of the filters
constexpr double kNonzeroPlainElement = 2;             // for adding an element of a pixel's sums to x

template <typename... Sizes>
constexpr double product(Sizes... sizes) {
    return static_cast<double>((sizes * ...));
}

template <typename T>
double direct_cycles(const Conv& s) {
    const double pixels = product(s.OH, s.OW), depth = product(s.KH, s.KW, s.C);
    const double vectors = product(round_up(s.K, kWidth<T>)) / Lanes<T>::count;
    return vectors * (pixels * (kDirectStep * (depth + kTileSteps) / 2 + kDirectStore) + kDirectPack * depth);
}

template <typename T>
double rows_cycles(const Conv& s) {
    const int64_t taps = ceil_div(s.KW, s.SW);
    const double tiles = product(s.OH, ceil_div(s.OW, 7 - taps)), depth = product(s.KH, s.SW, s.C);
    const double vectors = product(round_up(s.K, kWidth<T>)) / Lanes<T>::count;
    return vectors * (kRowsMeasured * tiles * (6 * (depth + kTileSteps) / 2 + kRowsOut) + kRowsFilter * depth);
}

template <typename T>
double tiles_cycles(const Grid& g) {
    constexpr double kPerCycle = 2 * Lanes<T>::count, kNarrower = 8.0 / Lanes<T>::count;
    const double tiles = product(g.tile_rows(), g.tile_cols()), depth = product(g.depth());
    const double outputs = product(round_up(g.outputs, kWidth<T>));
    const double steps = depth + kTilesChunk * product(ceil_div(g.depth(), kDepth));
    const double products = kTaps * tiles * steps * outputs / kPerCycle;
    const double transforms = kTilesIn * tiles * depth + kTilesOut * tiles * outputs + kTilesFilter * depth * outputs;
    return kTilesMeasured * (products + transforms * kNarrower);
}

template <typename T>
double weight_grad_cycles(const Conv& s) {
    return product(s.OH, s.OW, s.K, s.KH, s.KW, s.C) / (kPeak * kWidth<T>);
}

template <typename T>
double transposed_cycles(const Conv& s, const Grid& g) {
    const int64_t elements = s.KH * s.KW * s.C;
    if (few_channels<T>(s.C))
        return product(s.OH, s.OW, s.K, round_up(elements, kWidth<T>)) / (kScatterPeak * kWidth<T>);
    return product(g.rows, g.cols, s.K, s.KH, s.KW, round_up(s.C, kWidth<T>)) / (kPeak * kWidth<T>)+kTransposedPack *
           product(s.K, elements);
}

// Of an image with `values` values that are not 0, by a kernel of nonzeros.h.
template <typename T>
double nonzeros_cycles(Kernel kernel, const Conv& s, double values) {
    const double pixels = product(s.OH, s.OW), looks = pixels * product(s.K);  // a cycle a value
    if (kernel == Kernel::kNonzerosPlain) {
        const double product_cycles = kNonzeroProduct / Lanes<T>::count * values;
        return product(s.C, s.KH, s.KW) * (product_cycles + kNonzeroPlainElement * pixels) + looks;
    }
    const double vectors = product(Panels<T>::vectors(s));
    return vectors * (kNonzeroProduct * values + kNonzeroVisit * smaller(pixels, values)) + looks +
           kNonzeroPack * product(s.K) * Lanes<T>::count * vectors;
}

inline bool winograd_pays(double cycles, double direct, Mode mode) {
    return mode == Mode::kFastest && direct > kLeastCycles && kMargin * cycles < direct;
}

// Whether Winograd's tiles replace a kernel that takes `direct` cycles. `other_taps` are the grid's taps along the
// other axis.
template <typename T>
bool tiles_pay(const Grid& g, int64_t other_taps, double direct, Mode mode) {
    if (!kWinograd<T> || g.dilated || g.taps != other_taps || g.taps < 2 || g.taps > 5) return false;
    return mode == Mode::kTiles || winograd_pays(tiles_cycles<T>(g), direct, mode);
}

template <typename T>
Kernel forward_kernel(const Conv& s, Mode mode) {
    const Grid grid = forward_grid(s);
    const int64_t taps = ceil_div(s.KW, s.SW);
    const double direct = direct_cycles<T>(s);
    const bool tiles = tiles_pay<T>(grid, taps, direct, mode);
    if (kWinograd<T> && !s.dilated() && taps >= 2 && taps <= 5) {
        if (mode == Mode::kRows) return Kernel::kRows;
        const double rows = rows_cycles<T>(s);
        if (winograd_pays(rows, direct, mode) && !(tiles && tiles_cycles<T>(grid) < rows)) return Kernel::kRows;
    }
    return tiles ? Kernel::kTiles : Kernel::kDirect;
}

template <typename T>
Kernel weight_grad_kernel(const Conv& s, Mode mode) {
    const bool tiles = tiles_pay<T>(forward_grid(s), ceil_div(s.KW, s.SW), weight_grad_cycles<T>(s), mode);
    return tiles && s.N > 0 ? Kernel::kTiles : Kernel::kDirect;
}

// Among the kernels that multiply zeros too.
template <typename T>
Kernel dense_transposed_kernel(const Conv& s, Mode mode) {
    const Grid grid = transposed_grid(s);
    const bool alone = s.XP == s.C;  // a position of y makes whole pixels of x
    if (alone && tiles_pay<T>(grid, ceil_div(s.KW, s.SW), transposed_cycles<T>(s, grid), mode)) return Kernel::kTiles;
    return few_channels<T>(s.C) ? Kernel::kScatter : Kernel::kDirect;
}

// Of y with at most `most` values an image that are not 0, before it is rectified if `rectify`.
template <typename T>
Kernel transposed_kernel(const Conv& s, int64_t most, bool rectify, Mode mode) {
    const Kernel dense = dense_transposed_kernel<T>(s, mode);
    if (mode == Mode::kTiles || mode == Mode::kRows || !Panels<T>::possible(s)) return dense;
    if (s.dilated() || s.XP != s.C) return dense;
    const double values = product(most) * (rectify ? kRectified : 1);
    const bool plain = plain_filters_possible<T>(s) && values >= kPlainValues * product(s.OH, s.OW);
    const Kernel sparse = plain ? Kernel::kNonzerosPlain : Kernel::kNonzeros;
    const Grid grid = transposed_grid(s);
    const double direct = transposed_cycles<T>(s, grid);
    const double cycles = dense == Kernel::kTiles ? smaller(direct, tiles_cycles<T>(grid)) : direct;
    return mode == Mode::kNonzeros || kMargin * nonzeros_cycles<T>(sparse, s, values) < cycles ? sparse : dense;
}

// Of one of the groups.
template <typename T>
Choice choose(const Conv& all, int64_t most, bool rectify, Mode mode) {
    if (depthwise<T>(all)) return {Kernel::kDepthwise, Kernel::kDepthwise, Kernel::kDepthwise};
    const Conv s = all.group();
    return {forward_kernel<T>(s, mode), transposed_kernel<T>(s, most, rectify, mode), weight_grad_kernel<T>(s, mode)};
}

}  // namespace
}  // namespace zf
