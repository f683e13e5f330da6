// What the convolutions share: blocks of output pixels, padded bands of input rows, and how output rows are cut.
//
// In a channels-last map the taps of one kernel row are one contiguous run of taps_w * C elements, so a block of output
// pixels needs no im2col: pixel (r, c) reads `taps_h` runs, `pitch` apart, from origin + r*row_step + c*col_step. Where
// taps lie apart (dilation, a group of the channels) each is a run of its own: taps_w of them, tap_step apart.
// Weights are packed [block of 2*lanes outputs][taps_h][run][2*lanes], as tile.h streams them.
#pragma once
#include <initializer_list>

#include "kernels.h"
#include "pack.h"
#include "tile_rows.h"

namespace zf {
namespace {

constexpr int64_t kChunk = 4096;       // elements of a run that tiles take at a time: longer ones would leave L2
constexpr int64_t kBlockPixels = 192;  // of a block, about; its weights stay in L2 while all its tiles pass over them

template <typename T>
struct Block {
    const T* origin;             // the input element under tap (0, 0) of output pixel (0, 0)
    int64_t row_step, col_step;  // elements of input from one output row, column to the next
    int64_t rows, cols;          // output pixels
    int64_t pitch, taps_h, run;  // elements from one tap row to the next; tap rows; elements of a run
    int64_t taps_w = 1, tap_step = 0;
};

// each(from, to, make) for tiles of the block's pixels [from, to), numbered row by row: make(start, sums) adds the
// walk's products to `start`. Tiles are of about equal size: 169 pixels are 24 tiles of 6 and 5 of 5, not 28 of 6 and
// one of 1. The first tiles fetch the memory at `ahead`, as much as the weights take; where it is null each fetches the
// next one's pixels.
template <typename T, typename Each>
void for_tiles(const Block<T>& b, const T* origin, const T* w, const T* ahead, const Walk& walk, int64_t outputs,
               const Each& each) {
    if constexpr (kTwoRows) {
        const bool joined = b.row_step == b.cols * b.col_step;  // rows follow each other as pixels do
        const int64_t rows = joined ? 1 : b.rows, cols = joined ? b.rows * b.cols : b.cols;
        const int64_t vectors = outputs <= Lanes<T>::count ? 1 : 2,
                      lines = walk.rows * walk.run;  // that a tile fetches
        const int64_t fetched = lines * 64 / static_cast<int64_t>(sizeof(T));
        int64_t left = ahead ? 2 : 0;  // tiles that fetch `ahead`
        for_row_tiles(rows, cols, [&](int64_t from, int64_t to, int64_t r0, int64_t c0, int64_t r1, int64_t c1) {
            const TwoRows<T> at{origin + r0 * b.row_step + c0 * b.col_step, origin + r1 * b.row_step + c1 * b.col_step,
                                b.col_step};
            const T* const soon = left > 0 ? ahead + (2 - left) * fetched
                                  : ahead  ? w
                                           : at.first + (to - from) * b.col_step;
            --left;
            each(from, to,
                 [&](const T* start, T* sums) { tile_rows(to - from, vectors, at, walk, w, soon, start, sums); });
        });
        return;
    }
    const int64_t pixels = b.rows * b.cols, tiles = ceil_div(pixels, kPixels);
    int64_t r = 0, c = 0;  // of the next tile's first pixel
    for (int64_t tile_at = 0, from = 0, to; tile_at < tiles; ++tile_at, from = to) {
        to = pixels * (tile_at + 1) / tiles;
        const T* at[kPixels];
        for (int64_t i = 0; i < to - from; ++i) {
            at[i] = origin + r * b.row_step + c * b.col_step;
            if (++c == b.cols) c = 0, ++r;
        }
        each(from, to, [&](const T* start, T* sums) { tile(to - from, at, walk, w, start, sums); });
    }
}

// bias + correlation for each pixel: `bias` has kWidth elements, `w` is one packed block of weights, of whose outputs
// the first `outputs` matter. done(begin, end, sums) is called as soon as the sums of pixels [begin, end), numbered row
// by row, are complete, kWidth a pixel, while they are in L1; they lie in `acc`, which holds all pixels' if `keep`, or
// where there are several pieces. `next_w`: weights that will be read next; null where
// the pixels are read for the first time, and are to be fetched ahead instead.
template <typename T, typename Done>
void convolve_block(const Block<T>& b, const T* w, const T* bias, T* acc, int64_t outputs, bool keep, const T* next_w,
                    const Done& done) {
    const int64_t most = larger(1, kChunk / b.run), pieces = ceil_div(b.run, kChunk), runs = b.taps_h * b.taps_w;
    const int64_t step = b.taps_w == 1 ? b.pitch : b.tap_step;  // from one of a walk's runs to the next
    constexpr int64_t kMost = kTwoRows ? 2 * kRowPixels : kPixels;
    alignas(64) T first[kMost * kWidth<T>];  // what the sums of a tile start from
    for (int64_t i = 0; i < kMost; ++i) copy(first + i * kWidth<T>, bias, kWidth<T>);
    for (int64_t first_run = 0, next; first_run < runs; first_run = next) {
        const int64_t row = first_run / b.taps_w, tap = first_run % b.taps_w;
        next = first_run + smaller(most, b.taps_w == 1 ? runs - first_run : b.taps_w - tap);
        for (int64_t piece = 0; piece < pieces; ++piece) {
            const int64_t begin = b.run * piece / pieces, end = b.run * (piece + 1) / pieces;
            const Walk walk{next - first_run, end - begin, step, 1};
            const T* const weights = w + (first_run * b.run + begin) * kWidth<T>;
            const T* const origin = b.origin + row * b.pitch + tap * b.tap_step + begin;
            const bool starts = first_run == 0 && piece == 0, ends = next == runs && piece + 1 == pieces;
            const bool all = keep || !(starts && ends);
            for_tiles(b, origin, weights, next_w, walk, outputs, [&](int64_t from, int64_t to, const auto& make) {
                T* const sums = all ? acc + from * kWidth<T> : acc;
                make(starts ? first : sums, sums);
                if (ends) done(from, to, sums);
            });
        }
    }
}

// Rows of `cols` pixels that make about `pixels`, at most `most`.
inline int64_t rows_of_block(int64_t cols, int64_t most, int64_t pixels = kBlockPixels) {
    return smaller(most, larger(1, (pixels + cols / 2) / cols));
}

// conv2d's lines, `sets` times `lines`, in bands of up to `band`. Passing a block of filters over a band takes as long
// as it has lines, and `pass` lines for the filters' own sake.
struct Bands {
    int64_t sets, lines, band;
    double pass;
};

// The same cut more finely where that spreads the work more evenly over the threads, with the groups of blocks.
struct CutFor {
    int64_t bands, groups;
};
inline CutFor cut_for(const Bands& b, int64_t blocks, int64_t threads) {
    const int64_t least = ceil_div(b.lines, larger(1, b.band));
    CutFor best{};
    double best_time = 0;
    for (const int64_t bands : {least, least + 1, round_up(least, threads)}) {
        if (bands < 1 || bands > b.lines) continue;
        for (const int64_t groups : {int64_t{1}, groups_for(blocks, b.sets * bands, threads)}) {
            const double units = static_cast<double>(ceil_div(b.sets * bands * groups, threads));
            const double lines = static_cast<double>(ceil_div(b.lines, bands)) + b.pass;
            const double time = units * lines * static_cast<double>(ceil_div(blocks, groups));
            if (best.bands == 0 || time < best_time) best = {bands, groups}, best_time = time;
        }
    }
    return best;
}

// Packs `blocks` blocks of filters, `size` elements each, unless they are `ready`, and passes them over the bands. A
// unit of work is (set, band, group of blocks): take(state, set, lines of the band), then make_block(state, k, filters)
// for each block k of the group, which returns whether its results are finite. Returns whether all were.
template <typename T, typename PackBlock, typename Start, typename Take, typename MakeBlock>
bool for_blocks(const Bands& cut, int64_t blocks, int64_t size, const PackBlock& pack_block, const T* ready,
                int threads, const Start& start, const Take& take, const MakeBlock& make_block) {
    const CutFor in = cut_for(cut, blocks, threads);
    const Packed<T, PackBlock> packed(blocks, size, pack_block, ready, cut.sets * in.bands == 1, threads);
    return for_units(cut.sets, in.bands, in.groups, threads, start,
                     [&](auto& state, int64_t set, int64_t band, int64_t group, int thread) {
                         take(state, set, share(cut.lines, band, in.bands));
                         const Range own = share(blocks, group, in.groups);
                         bool finite = true;
                         for (int64_t k = own.begin; k < own.end; ++k)
                             finite &= make_block(state, k, packed.block(k, thread));
                         return finite;
                     });
}

// For lines that are single rows: bands of about `pixels` pixels of one image.
inline Bands row_bands(const Conv& s, int64_t pixels) {
    return {s.N, s.OH, rows_of_block(s.OW, s.OH, pixels), 6.0 / static_cast<double>(s.OW)};
}

// A step of pooling: the buffers hold rows [base, to), [from, to) are new, and pooled rows before row_end are complete.
struct Step {
    int64_t row_end, base, from, to;
};

// How the convolution's rows are made for pooling: up to `images` images and `lines` lines of `side` rows at a time.
struct Steps {
    int64_t images, lines, side;
    int64_t pooled_rows;  // a step ends with the last row that so many pooled ones need,
    int64_t step;         // or, where they are 0, after so many lines of an image
    int64_t rows;         // of a buffer
    bool whole;           // one step makes whole images

    // The step after `last` of a unit that pools rows up to `span_end`.
    Step next(const Conv& s, const Pool& pool, const Step& last, int64_t span_end) const {
        const auto window_end = [&](int64_t row) { return smaller(s.OH, row * pool.SH - pool.PH + pool.KH); };
        const int64_t keep = larger(0, last.row_end * pool.SH - pool.PH), kept = larger(0, last.to - keep);
        Step step{last.row_end, 0, kept ? last.to : keep / side * side, 0};
        step.base = step.from - kept;
        step.to = pooled_rows
                      ? window_end(smaller(last.row_end + pooled_rows, span_end) - 1)
                      : smaller(smaller(step.from / side + this->step, ceil_div(window_end(span_end - 1), side)) * side,
                                s.OH);
        while (step.row_end < span_end && window_end(step.row_end) <= step.to) ++step.row_end;
        return step;
    }
};

// For lines that are single rows: about `pixels` pixels a step.
inline Steps row_steps(const Conv& s, const Pool& pool, int64_t pixels) {
    const int64_t pooled = smaller(pool.OH, larger(1, pixels / (s.OW * pool.SH)));
    const int64_t rows = smaller(s.OH, (pooled - 1) * pool.SH + pool.KH);
    return {1, rows, 1, pooled, 0, rows, false};
}

// Where a block of output channels goes: `outputs` values a pixel; pixels, rows and images are step, pitch and image
// elements apart, and row first_row of image first_image begins at data.
template <typename T>
struct Target {
    T* data;
    int64_t image, pitch, step, outputs, first_image, first_row;
    T* row(int64_t n, int64_t h) const { return data + (n - first_image) * image + (h - first_row) * pitch; }
};

// The first `outputs` <= kWidth values of each pixel of acc to pixels `step` elements apart.
template <typename T>
ZF_INLINE void copy_pixels(T* to, int64_t step, const T* acc, int64_t pixels, int64_t outputs) {
    for (int64_t p = 0; p < pixels; ++p) copy_outputs(to + p * step, acc + p * kWidth<T>, outputs);
}

// max(0, v) of a row, NaN kept.
template <typename T>
ZF_INLINE void rectify_all(T* values, int64_t count) {
    for (int64_t i = 0; i < count; ++i) values[i] = values[i] < 0 ? 0 : values[i];
}

// What a vector of sums becomes, after bias and addend.
template <typename T>
ZF_INLINE Vec<T> finished(Vec<T> v, bool relu, T cap) {
    if (!relu) return v;
    v = v < 0 ? Vec<T>{} : v;
    return v > cap ? broadcast(cap) : v;
}

// What a block of a convolution's sums becomes: Epilogue's, the bias apart. `add` lies as the results do.
template <typename T>
struct Finish {
    const T *results, *add;  // null: nothing is added
    bool relu;
    T cap;

    ZF_INLINE Vec<T> vector(Vec<T> v, const T* to) const {
        if (add) v += load<Vec<T>>(add + (to - results));
        return finished(v, relu, cap);
    }
    ZF_INLINE T value(T v, const T* to) const {
        if (add) v += add[to - results];
        return !relu ? v : v < 0 ? 0 : v > cap ? cap : v;
    }
    // The `outputs` sums of a pixel, with their bias, to `to`, which may be `sums`.
    ZF_INLINE void pixel(T* to, const T* sums, int64_t outputs) const {
        constexpr int64_t kLanes = Lanes<T>::count;
        int64_t o = 0;
        for (; o + kLanes <= outputs; o += kLanes) store(to + o, vector(load<Vec<T>>(sums + o), to + o));
        if (o == outputs) return;
        if constexpr (kMasks) {
            Vec<T> v = load<Vec<T>>(sums + o);
            if (add) v += load_part<T>(add + (to + o - results), outputs - o);
            return store_part<T>(to + o, finished(v, relu, cap), outputs - o);
        }
        for (; o < outputs; ++o) to[o] = value(sums[o], to + o);
    }
    // The same for `count` pixels, kWidth sums each, to pixels `step` elements apart.
    ZF_INLINE void pixels(T* to, int64_t step, const T* sums, int64_t count, int64_t outputs) const {
        if (outputs < kWidth<T>) {
            for (int64_t p = 0; p < count; ++p) pixel(to + p * step, sums + p * kWidth<T>, outputs);
            return;
        }
        for (int64_t p = 0; p < count; ++p, to += step, sums += kWidth<T>)
            repeat<2>([&](auto v) {
                T* const at = to + v.at * Lanes<T>::count;
                store(at, vector(load<Vec<T>>(sums + v.at * Lanes<T>::count), at));
            });
    }
};

// A band of rows [begin, end) x columns [left, left + cols) of one image, zeros outside the map, that one thread fills
// row by row and keeps: the rows that two successive bands share are moved, not filled again.
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

// Rows of a map (N, H, W, C) whose pixels are `step` elements apart, rectified if asked: (n, h, left, cols, to) writes
// columns [left, left + cols) of row h of image n, zeros outside the map.
template <typename T>
struct MapRows {
    const T* map;
    int64_t H, W, C, step;
    bool rectify;
    void operator()(int64_t n, int64_t h, int64_t left, int64_t cols, T* to) const {
        const int64_t first = larger(0, -left), last = smaller(cols, W - left);
        if (h < 0 || h >= H || first >= last) return zero(to, cols * C);
        zero(to, first * C);
        zero(to + last * C, (cols - last) * C);
        const T* const from = map + ((n * H + h) * W + left + first) * step;
        if (step == C)
            copy(to + first * C, from, (last - first) * C);
        else
            for (int64_t p = 0; p < last - first; ++p) copy(to + (first + p) * C, from + p * step, C);
        if (rectify) rectify_all(to + first * C, (last - first) * C);
    }
};

// The map that a convolution reads, and the one that it makes.
template <typename T>
MapRows<T> input_rows(const Conv& s, const T* x) {
    return {x, s.H, s.W, s.C, s.XP, false};
}
template <typename T>
MapRows<T> output_rows(const Conv& s, const T* y, bool rectify) {
    return {y, s.OH, s.OW, s.K, s.YP, rectify};
}

// run(group's convolution, group, threads) for each group: all threads to each, or a group to a thread where there are
// as many as threads.
template <typename Run>
void for_groups(const Conv& s, int threads, const Run& run) {
    const Conv one = s.group();
    if (s.G < threads || s.G == 1) {
        for (int64_t g = 0; g < s.G; ++g) run(one, g, threads);
        return;
    }
    parallel_for(s.G, threads, [&](int64_t begin, int64_t end, int) {
        for (int64_t g = begin; g < end; ++g) run(one, g, 1);
    });
}

}  // namespace
}  // namespace zf
