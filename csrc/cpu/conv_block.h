// What the convolutions share: packed weights, blocks of output pixels, padded bands of input rows.
//
// In a channels-last map the taps of one kernel row are one contiguous run of taps_w * C elements, so a block of output
// pixels needs no im2col: pixel (r, c) reads `taps_h` runs, `pitch` apart, from origin + r*row_step + c*col_step.
// Weights are packed [block of 2*lanes outputs][taps_h][run][2*lanes], as tile.h streams them.
//
// Cache: a tile streams a whole block of weights, 147 KiB for 3x3 over 256 maps at AVX2, from L2, where it stays while
// all tiles of the block of pixels pass over it: 64 bytes for 12 multiply-adds are within what L2 delivers. Cutting the
// weights into pieces that fit L1 was 4-8% slower, for the accumulators that it stores and loads again; so only what
// would leave L2 is cut, into chunks of kChunk elements of a run. A block has about kBlockPixels pixels.
#pragma once
#include "../window.h"
#include "kernels.h"
#include "pack.h"
#include "simd.h"
#include "threads.h"
#include "tile.h"

namespace zf {
namespace {

constexpr int64_t kChunk = 4096;
constexpr int64_t kBlockPixels = 192;

// Into how many groups the blocks of output channels are cut so that `others` units of work a group share out evenly
// among the threads. No more than that: each group pads its input for itself.
inline int64_t groups_for(int64_t blocks, int64_t others, int64_t threads) {
    int64_t a = threads, b = others;  // their greatest common divisor ends in a
    while (b) {
        const int64_t rest = a % b;
        a = b, b = rest;
    }
    return larger(1, smaller(blocks, threads / a));
}

template <typename T>
struct Block {
    const T* origin;             // the input element under tap (0, 0) of output pixel (0, 0)
    int64_t row_step, col_step;  // elements of input from one output row, column to the next
    int64_t rows, cols;          // output pixels
    int64_t pitch, taps_h, run;  // elements from one tap row to the next; tap rows; elements of a tap row
};

// acc[pixel][kWidth] = bias + correlation; `bias` has kWidth elements, `w` is one packed block of weights. done(begin,
// end) is called as soon as the sums of pixels [begin, end), numbered row by row, are made, while they are in L1.
template <typename T, typename Done>
void convolve_block(const Block<T>& b, const T* w, const T* bias, T* acc, const Done& done) {
    const int64_t pixels = b.rows * b.cols;
    // Tiles of equal size, give or take one: 169 pixels are 24 tiles of 6 and 5 of 5, not 28 of 6 and a lone one.
    const int64_t tiles = ceil_div(pixels, kPixels);
    const int64_t whole_rows = larger(1, kChunk / b.run), pieces = ceil_div(b.run, kChunk);
    T first[kPixels * kWidth<T>];  // what the sums of a tile start from
    for (int64_t i = 0; i < kPixels; ++i) copy(first + i * kWidth<T>, bias, kWidth<T>);
    for (int64_t row = 0; row < b.taps_h; row += whole_rows)
        for (int64_t piece = 0; piece < pieces; ++piece) {
            const int64_t begin = b.run * piece / pieces, end = b.run * (piece + 1) / pieces;
            const Walk walk{smaller(whole_rows, b.taps_h - row), end - begin, b.pitch, 1};
            const T* const weights = w + (row * b.run + begin) * kWidth<T>;
            const T* const origin = b.origin + row * b.pitch + begin;
            const bool starts = row == 0 && piece == 0, ends = row + whole_rows >= b.taps_h && piece + 1 == pieces;
            int64_t r = 0, c = 0;  // of the next tile's first pixel
            for (int64_t tile_at = 0, from = 0; tile_at < tiles; ++tile_at) {
                const int64_t to = pixels * (tile_at + 1) / tiles;
                const T* at[kPixels];
                for (int64_t i = 0; i < to - from; ++i) {
                    at[i] = origin + r * b.row_step + c * b.col_step;
                    if (++c == b.cols) c = 0, ++r;
                }
                T* const sums = acc + from * kWidth<T>;
                tile(to - from, at, walk, weights, starts ? first : sums, sums);
                if (ends) done(from, to);
                from = to;
            }
        }
}

template <typename T>
void convolve_block(const Block<T>& b, const T* w, const T* bias, T* acc) {
    convolve_block(b, w, bias, acc, [](int64_t, int64_t) {});
}

// Rows of `cols` pixels that make about `pixels`, at most `most`.
inline int64_t rows_of_block(int64_t cols, int64_t most, int64_t pixels = kBlockPixels) {
    return smaller(most, larger(1, (pixels + cols / 2) / cols));
}

// The first `outputs` <= kWidth values of each pixel of acc to pixels `step` elements apart.
template <typename T>
ZF_INLINE void copy_pixels(T* to, int64_t step, const T* acc, int64_t pixels, int64_t outputs) {
    if (outputs == kWidth<T>)  // a size known to the compiler: two stores, not a call
        for (int64_t p = 0; p < pixels; ++p) copy(to + p * step, acc + p * kWidth<T>, kWidth<T>);
    else
        for (int64_t p = 0; p < pixels; ++p) copy(to + p * step, acc + p * kWidth<T>, outputs);
}

// max(0, v) of a row, NaN kept.
template <typename T>
ZF_INLINE void rectify_all(T* values, int64_t count) {
    for (int64_t i = 0; i < count; ++i) values[i] = values[i] < 0 ? 0 : values[i];
}

// A band of rows [begin, end) x columns [left, left + cols) of one image, zeros outside the map, that one thread fills
// row by row and keeps: the rows that two successive bands share are moved, not computed again.
template <typename T>
struct Band {
    T* data;
    int64_t cols, channels;
    int64_t image = -1, begin = 0, end = 0;

    int64_t pitch() const { return cols * channels; }

    template <typename FillRow>
    void require(int64_t n, int64_t from, int64_t to, const FillRow& fill_row) {
        int64_t filled = from;
        if (n == image && from >= begin && from < end) {
            filled = smaller(end, to);
            __builtin_memmove(data, data + (from - begin) * pitch(),
                              static_cast<std::size_t>((filled - from) * pitch()) * sizeof(T));
        }
        image = n, begin = from, end = to;
        for (int64_t h = filled; h < to; ++h) fill_row(n, h, data + (h - from) * pitch());
    }
};

// Row h of a map (H, W, C) into `to`: columns [left, left + cols), zeros outside the map.
template <typename T>
void copy_row(T* to, const T* map, int64_t h, int64_t H, int64_t W, int64_t C, int64_t left, int64_t cols,
              bool rectify) {
    const int64_t first = larger(0, -left), last = smaller(cols, W - left);
    if (h < 0 || h >= H || first >= last) return zero(to, cols * C);
    zero(to, first * C);
    zero(to + last * C, (cols - last) * C);
    copy(to + first * C, map + (h * W + left + first) * C, (last - first) * C);
    if (rectify) rectify_all(to + first * C, (last - first) * C);
}

}  // namespace
}  // namespace zf
