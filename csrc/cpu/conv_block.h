// The inner part of every convolution: register tiles over packed weights.
//
// In a channels-last map the taps of one kernel row are one contiguous run of taps_w * C elements, so a block of output
// pixels needs no im2col: pixel (r, c) reads `taps_h` runs, `pitch` apart, from origin + r*row_step + c*col_step.
//
//   broadcast tile   kPixels pixels x 2 vectors of output channels: 2 weight loads and kPixels broadcasts feed
//                    2*kPixels multiply-adds. Weights are packed [taps_h][run][2 * lanes], so that they stream.
//   dot tile         for 1 to 4 output channels (the image's, under a transposed first layer), where the broadcast tile
//                    would fill 3 lanes of 16: lanes run along the input channels and are summed at the end.
//                    Weights are packed [output][taps_h][run]; C must be a multiple of the lanes.
//
// Cache: the run is cut into chunks of kChunk elements, whose weights (kChunk * 2 vectors: 16 KiB at AVX2) stay in L1
// while every tile of the block passes over them; a block has about kBlockPixels pixels, whose accumulators stay in L1
// or L2 between chunks. Longer chunks lose L1, shorter ones pay for loading and storing accumulators.
#pragma once
#include "kernels.h"
#include "simd.h"
#include "threads.h"
#include "../window.h"

namespace zf {
namespace {

constexpr int64_t kChunk = 256;
constexpr int64_t kBlockPixels = 192;
constexpr int64_t kMostDotOutputs = 4;

template <typename T>
struct Block {
    const T* origin;              // the input element under tap (0, 0) of output pixel (0, 0)
    int64_t row_step, col_step;   // elements of input from one output row, column to the next
    int64_t rows, cols;           // output pixels
    int64_t pitch, taps_h, run;   // elements from one tap row to the next; tap rows; elements of a tap row
};

// How the output channels of a convolution are cut into blocks and its weights packed.
template <typename T>
struct Packing {
    bool dot;
    int64_t channels;  // of the input as packed: C, or C rounded up to whole vectors (dot)
    int64_t width;     // output channels of a block, as packed
    int64_t blocks;

    Packing(int64_t outputs, int64_t inputs) {
        dot = outputs <= kMostDotOutputs && inputs >= Lanes<T>::count;
        channels = dot ? round_up(inputs, Lanes<T>::count) : inputs;
        width = dot ? outputs : 2 * Lanes<T>::count;
        blocks = ceil_div(outputs, width);
    }
    int64_t elements(int64_t taps) const { return taps * channels * width; }  // of one block's weights
};

// Packs one block: element (o, c, i, j) of the source lies at o*so + c*sc + i*si + j*sj. Absent outputs and channels
// become zeros. The order of the loops follows the smaller stride, since the source is read once and from afar.
template <typename T>
void pack_weights(const Packing<T>& p, T* packed, const T* w, int64_t outputs, int64_t so, int64_t inputs, int64_t sc,
                  int64_t taps_h, int64_t si, int64_t taps_w, int64_t sj) {
    const int64_t taps = taps_h * taps_w;
    const int64_t out_step = p.dot ? taps * p.channels : 1, channel_step = p.dot ? 1 : p.width;
    const int64_t tap_step = p.channels * channel_step;
    if (outputs < p.width || inputs < p.channels)
        for (int64_t i = 0; i < p.elements(taps); ++i) packed[i] = 0;
    const int64_t chunk = so < sc ? 1 : 16;  // 16 channels x 9 taps of a block are 9 KiB at AVX2
    for (int64_t begin = 0; begin < inputs; begin += chunk) {
        const int64_t end = smaller(begin + chunk, inputs);
        for (int64_t o = 0; o < outputs; ++o)
            for (int64_t c = begin; c < end; ++c) {
                const T* from = w + o * so + c * sc;
                T* to = packed + o * out_step + c * channel_step;
                for (int64_t i = 0; i < taps_h; ++i)
                    for (int64_t j = 0; j < taps_w; ++j) to[(i * taps_w + j) * tap_step] = from[i * si + j * sj];
            }
    }
}

// acc[i][0..2) += sum over `rows` runs of `run` elements of pixel i's element times the packed weights.
template <typename T, int kCount>
ZF_INLINE void broadcast_tile(const T* const* pixels, const T* w, int64_t rows, int64_t run, int64_t pitch,
                              Vec<T> (&acc)[kCount][2]) {
    constexpr int kLanes = Lanes<T>::count;
    const T* at[kCount];
    for (int i = 0; i < kCount; ++i) at[i] = pixels[i];
    for (int64_t r = 0; r < rows; ++r) {
#pragma GCC unroll 4
        for (int64_t k = 0; k < run; ++k) {
            const Vec<T> w0 = load<Vec<T>>(w), w1 = load<Vec<T>>(w + kLanes);
            w += 2 * kLanes;
#pragma GCC unroll 16
            for (int i = 0; i < kCount; ++i) {
                const Vec<T> x = broadcast<T>(at[i][k]);
                multiply_add(acc[i][0], x, w0);
                multiply_add(acc[i][1], x, w1);
            }
        }
        for (int i = 0; i < kCount; ++i) at[i] += pitch;
    }
}

// One chunk of one tile: accumulators come from `acc` (or the bias, first), and go back to it (rectified, last).
template <typename T, int kCount>
void chunk_of_tile(const T* const* pixels, const T* w, int64_t rows, int64_t run, int64_t pitch, const T* bias,
                   bool first, bool rectify, T* acc) {
    constexpr int kLanes = Lanes<T>::count;
    Vec<T> a[kCount][2];
    for (int i = 0; i < kCount; ++i)
        for (int v = 0; v < 2; ++v)
            a[i][v] = load<Vec<T>>(first ? bias + v * kLanes : acc + (i * 2 + v) * kLanes);
    broadcast_tile<T, kCount>(pixels, w, rows, run, pitch, a);
    for (int i = 0; i < kCount; ++i)
        for (int v = 0; v < 2; ++v) store(acc + (i * 2 + v) * kLanes, rectify ? rectified(a[i][v]) : a[i][v]);
}

template <typename T, int kCount = kPixels>
ZF_INLINE void chunk_of_tile_of(int64_t count, const T* const* pixels, const T* w, int64_t rows, int64_t run,
                                int64_t pitch, const T* bias, bool first, bool rectify, T* acc) {
    if (count == kCount)
        chunk_of_tile<T, kCount>(pixels, w, rows, run, pitch, bias, first, rectify, acc);
    else if constexpr (kCount > 1)
        chunk_of_tile_of<T, kCount - 1>(count, pixels, w, rows, run, pitch, bias, first, rectify, acc);
}

// The input addresses of `count` pixels of a block, from its pixel `first` on in row-major order.
template <typename T>
ZF_INLINE void addresses(const Block<T>& b, int64_t first, int64_t count, const T** pixels) {
    int64_t r = first / b.cols, c = first % b.cols;
    for (int64_t i = 0; i < count; ++i) {
        pixels[i] = b.origin + r * b.row_step + c * b.col_step;
        if (++c == b.cols) c = 0, ++r;
    }
}

// acc[pixel][2 * lanes] = bias + correlation, rectified if asked. `bias` has 2 * lanes elements.
template <typename T>
void broadcast_block(const Block<T>& b, const T* w, const T* bias, bool rectify, T* acc) {
    constexpr int kWidth = 2 * Lanes<T>::count;
    const int64_t pixels = b.rows * b.cols;
    // Tiles of equal size, give or take one: 169 pixels are 24 tiles of 6 and 5 of 5, not 28 of 6 and a lone one.
    const int64_t tiles = ceil_div(pixels, kPixels);
    const int64_t whole_rows = larger(1, kChunk / b.run), pieces = ceil_div(b.run, kChunk);
    for (int64_t row = 0; row < b.taps_h; row += whole_rows)
        for (int64_t piece = 0; piece < pieces; ++piece) {
            const int64_t rows = smaller(whole_rows, b.taps_h - row);
            const int64_t begin = b.run * piece / pieces, end = b.run * (piece + 1) / pieces;
            const bool first = row == 0 && piece == 0;
            const bool last = row + rows == b.taps_h && piece + 1 == pieces;
            for (int64_t tile = 0; tile < tiles; ++tile) {
                const int64_t from = pixels * tile / tiles, to = pixels * (tile + 1) / tiles;
                const T* at[kPixels];
                addresses(b, from, to - from, at);
                for (int64_t i = 0; i < to - from; ++i) at[i] += row * b.pitch + begin;
                chunk_of_tile_of<T>(to - from, at, w + (row * b.run + begin) * kWidth, rows, end - begin, b.pitch, bias,
                                    first, rectify && last, acc + from * kWidth);
            }
        }
}

template <typename T, int kOutputs, int kCount>
void dot_tile(const T* const* pixels, const T* w, int64_t taps_h, int64_t run, int64_t pitch, const T* bias,
              bool rectify, T* acc) {
    constexpr int kLanes = Lanes<T>::count;
    Vec<T> a[kCount][kOutputs] = {};
    for (int64_t r = 0; r < taps_h; ++r)
        for (int64_t k = 0; k < run; k += kLanes) {
            Vec<T> weights[kOutputs];
            for (int o = 0; o < kOutputs; ++o) weights[o] = load<Vec<T>>(w + (o * taps_h + r) * run + k);
#pragma GCC unroll 16
            for (int i = 0; i < kCount; ++i) {
                const Vec<T> x = load<Vec<T>>(pixels[i] + r * pitch + k);
                for (int o = 0; o < kOutputs; ++o) multiply_add(a[i][o], x, weights[o]);
            }
        }
    for (int i = 0; i < kCount; ++i)
        for (int o = 0; o < kOutputs; ++o) {
            const T value = bias[o] + sum_of_lanes<T>(a[i][o]);
            acc[i * kOutputs + o] = rectify && value < 0 ? 0 : value;
        }
}

// acc[pixel][kOutputs] = bias + correlation, lanes along the run.
template <typename T, int kOutputs>
void dot_block(const Block<T>& b, const T* w, const T* bias, bool rectify, T* acc) {
    constexpr int kCount = 2 * kPixels / kOutputs;
    const int64_t pixels = b.rows * b.cols;
    const T* at[kCount];
    int64_t p = 0;
    for (; p + kCount <= pixels; p += kCount) {
        addresses(b, p, kCount, at);
        dot_tile<T, kOutputs, kCount>(at, w, b.taps_h, b.run, b.pitch, bias, rectify, acc + p * kOutputs);
    }
    for (; p < pixels; ++p) {
        addresses(b, p, 1, at);
        dot_tile<T, kOutputs, 1>(at, w, b.taps_h, b.run, b.pitch, bias, rectify, acc + p * kOutputs);
    }
}

// acc[pixel][packing.width] = bias + correlation of one block of pixels and one block of output channels.
template <typename T>
void convolve_block(const Packing<T>& p, const Block<T>& b, const T* w, const T* bias, bool rectify, T* acc) {
    if (!p.dot) return broadcast_block(b, w, bias, rectify, acc);
    switch (p.width) {
        case 1: return dot_block<T, 1>(b, w, bias, rectify, acc);
        case 2: return dot_block<T, 2>(b, w, bias, rectify, acc);
        case 3: return dot_block<T, 3>(b, w, bias, rectify, acc);
        default: return dot_block<T, 4>(b, w, bias, rectify, acc);
    }
}

template <typename T>
ZF_INLINE void copy(T* to, const T* from, int64_t count) {
    __builtin_memcpy(to, from, static_cast<std::size_t>(count) * sizeof(T));
}

template <typename T>
ZF_INLINE void zero(T* to, int64_t count) {
    __builtin_memset(to, 0, static_cast<std::size_t>(count) * sizeof(T));
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

// Row h of a map (H, W, C) into `to`: columns [left, left + cols), `channels` >= C elements a pixel, zeros elsewhere.
template <typename T>
void copy_row(T* to, const T* map, int64_t h, int64_t H, int64_t W, int64_t C, int64_t left, int64_t cols,
              int64_t channels, bool rectify) {
    const int64_t first = larger(0, -left), last = smaller(cols, W - left);
    if (h < 0 || h >= H || first >= last) return zero(to, cols * channels);
    zero(to, first * channels);
    zero(to + last * channels, (cols - last) * channels);
    const T* from = map + (h * W + left + first) * C;
    to += first * channels;
    if (channels == C) {
        copy(to, from, (last - first) * C);
    } else {
        for (int64_t p = 0; p < last - first; ++p) {
            copy(to + p * channels, from + p * C, C);
            zero(to + p * channels + C, channels - C);
        }
    }
    if (rectify)
        for (int64_t i = 0; i < (last - first) * channels; ++i) to[i] = to[i] < 0 ? 0 : to[i];
}

}  // namespace
}  // namespace zf
