// Winograd's minimal filtering for convolutions: 6 x 6 products make m x m outputs of r x r taps, m + r = 7.
//
//   Y = A^T [ sum over channels of (G g G^T) * (B^T d B) ] A          d: 6 x 6 inputs, g: r x r taps, Y: m x m outputs
//
// for the points 0, 1, -1, 2, -2 and infinity. B does not depend on r, so one kernel serves r = 2, 3, 4, 5. Strides
// are folded into channels: K x K taps and stride S are ceil(K/S) taps and stride 1 over pixels of S*S*C elements. A
// transposed convolution has the S*S phases among its outputs instead.
//
// A unit of work is some rows of tiles, of one image or of many, times some blocks of kWidth outputs:
//   B^T d B of its tiles, for all channels                  [36][tiles][pitch]      about 2 MiB, L3
//   and for each block and kDepth channels G g G^T          [36][kDepth][kWidth]    288 KiB at AVX2, L2
//   and 36 products of matrices, by tile.h                  [36][tiles][kWidth]
//   and the transform back, which hands runs of output pixels to the caller.
// Of very few tiles few_tiles.h makes the products, and no transformed filter is written to memory.
// A NaN or an infinity spreads over its tile, and products below the smallest normal number lose digits that the sums
// need: products() says when its results are not sound, and the caller starts over with the direct kernel.
#pragma once
#include <limits>

#include "conv_block.h"
#include "few_tiles.h"

namespace zf {
namespace {

// float64 is for checking: direct sums only.
template <typename T>
constexpr bool kWinograd = sizeof(T) == sizeof(float);
constexpr int64_t kDepth = 128;

// A correlation of stride 1 with taps x taps taps over positions of `depth` elements, to `outputs` elements a position.
struct Grid {
    int64_t taps;
    int64_t SH, SW, C;   // an input position is SH x SW pixels of C channels
    int64_t top, left;   // the map's pixel at which position (0, 0)'s window begins
    int64_t rows, cols;  // output positions of an image
    int64_t outputs;
    bool dilated;  // then there is no such correlation

    int64_t side() const { return 7 - taps; }
    int64_t depth() const { return SH * SW * C; }
    int64_t tile_rows() const { return ceil_div(rows, side()); }
    int64_t tile_cols() const { return ceil_div(cols, side()); }
};

// A convolution as Winograd's kernel sees it.
inline Grid forward_grid(const Conv& s) {
    return {ceil_div(s.KH, s.SH), s.SH, s.SW, s.C, -s.PH, -s.PW, s.OH, s.OW, s.K, s.dilated()};
}

// A transposed one: a position of y makes SH x SW pixels of x, C channels each.
inline Grid transposed_grid(const Conv& s) {
    const int64_t top = floor_div(s.PH, s.SH), left = floor_div(s.PW, s.SW), before = ceil_div(s.KH, s.SH) - 1;
    const int64_t rows = floor_div(s.H - 1 + s.PH, s.SH) + 1 - top, cols = floor_div(s.W - 1 + s.PW, s.SW) + 1 - left;
    return {before + 1, 1, 1, s.K, top - before, left - before, rows, cols, s.SH * s.SW * s.C, s.dilated()};
}

// What results must be: finite, and not all below kLeast yet not 0. What is a million times the smallest number that a
// product of a tile could be rounded to loses nothing.
template <typename T>
struct Seen {
    static constexpr decltype(Mask<T>{}[0] + 0) kSign = std::numeric_limits<decltype(Mask<T>{}[0] + 0)>::max();
    static constexpr decltype(Mask<T>{}[0] + 0) kLeast = sizeof(T) == 4 ? 16 << 23 : 0;  // 2^-111, whose bits these are
    Vec<T> not_finite{};                                                                 // 0, or NaN
    Mask<T> bits{};  // of all values: below kLeast only if each of them is

    ZF_INLINE void add(Vec<T> v) { not_finite += v * 0, bits |= (Mask<T>)v; }
    bool sound() const {
        auto all = bits[0];
        for (int i = 1; i < Lanes<T>::count; ++i) all |= bits[i];
        all &= kSign;
        return is_zero<T>(not_finite) && (all == 0 || all >= kLeast);
    }
};

// Whether no filter is as large as kLeast and one is not 0: transformed, they would lose digits. Ends at the first.
template <typename T>
bool filters_are_tiny(const Conv& s, const T* w) {
    const T least = static_cast<T>(3.9e-34);
    bool zeros = true;
    for (int64_t k = 0; k < s.K; ++k)
        for (int64_t c = 0; c < s.C; ++c)
            for (int64_t i = 0; i < s.KH; ++i)
                for (int64_t j = 0; j < s.KW; ++j) {
                    const T v = w[k * s.wk + c * s.wc + i * s.wi + j * s.wj];
                    if (!(v < least && v > -least)) return false;
                    zeros &= v == 0;
                }
    return !zeros;
}

// call(Index<taps>{}) for 2 <= taps <= 5.
template <typename Call>
ZF_INLINE void with_taps(int64_t taps, const Call& call) {
    with_count<4>(taps - 1, [&](auto less) { call(Index<less.at + 1>{}); });
}

// At least `elements`, in an odd number of cache lines: 36 planes a power of two apart would fall into one set of L1
// (measured: the transform of filters 5 times slower).
template <typename T>
int64_t odd_lines(int64_t elements) {
    constexpr int64_t kLine = 64 / sizeof(T);
    return (ceil_div(elements, kLine) | 1) * kLine;
}

// B^T d B of tiles, [chunk of channels][36][tile][chunk]; a chunk's 36 products read one contiguous stretch of memory.
template <typename T>
struct InputTiles {
    using V = Vec<T>;
    static constexpr int kLanes = Lanes<T>::count;

    const Grid grid;
    const int64_t tiles, chunk = chunk_of(grid);  // channels of a chunk

    InputTiles(const Grid& of, int64_t count, T* memory) : grid(of), tiles(count), data_(memory) {}
    static int64_t elements(const Grid& grid, int64_t tiles) {
        const int64_t chunk = chunk_of(grid);
        return ceil_div(grid.depth(), chunk) * kTaps * odd_lines<T>(tiles * chunk);
    }

    // Of plane z: tile t's value of channel c.
    const T* at(int64_t z, int64_t t, int64_t c) const {
        return data_ + (c / chunk * kTaps + z) * plane_ + t * chunk + c % chunk;
    }

    // What a thread reads the map through: a row of tiles, padded.
    static Band<T> band(const Grid& grid, T* memory) {
        return {memory, grid.SW * (grid.tile_cols() * grid.side() + grid.taps - 1), grid.C};
    }
    static int64_t band_elements(const Grid& grid) {
        return round_up(6 * grid.SH * band(grid, nullptr).pitch() + kLanes, 16);
    }

    // Transforms row `row` of tiles, numbered through all images, into tiles `first` and on. `fill_row(n, h, left,
    // cols, to)` writes columns [left, left + cols) of row h of image n, zeros outside the map. A position's SW * C
    // elements of one of its SH rows are one run; a run that is no whole number of vectors ends in the next one's
    // elements, which are overwritten in turn.
    template <typename FillRow>
    void take_row(Band<T>& band, int64_t row, int64_t first, const FillRow& fill_row) {
        const int64_t n = row / grid.tile_rows(), top = grid.top + row % grid.tile_rows() * grid.side() * grid.SH;
        band.require(n, top, top + 6 * grid.SH,
                     [&](int64_t image, int64_t h, T* to) { fill_row(image, h, grid.left, band.cols, to); });
        const int64_t run = grid.SW * grid.C, down = grid.SH * band.pitch();
        for (int64_t t = 0; t < grid.tile_cols(); ++t)
            for (int64_t phase = 0; phase < grid.SH; ++phase)
                for (int64_t e = 0; e < run; e += kLanes) {
                    const T* const from = band.data + phase * band.pitch() + t * grid.side() * run + e;
                    T* const to = const_cast<T*>(at(0, first + t, phase * run + e));
                    V d[kTaps];
                    repeat<6>([&](auto j) {
                        V v[6];
                        repeat<6>([&](auto i) { v[i.at] = load<V>(from + i.at * down + j.at * run); });
                        to_points(v[0], v[1], v[2], v[3], v[4], v[5]);
                        repeat<6>([&](auto i) { d[i.at * 6 + j.at] = v[i.at]; });
                    });
                    repeat<6>([&](auto i) {
                        V* const r = d + i.at * 6;
                        to_points(r[0], r[1], r[2], r[3], r[4], r[5]);
                        repeat<6>([&](auto j) { store(to + (i.at * 6 + j.at) * plane_, r[j.at]); });
                    });
                }
    }

   private:
    // Whole vectors, unless a run of elements ends inside one: then all channels are one chunk.
    static int64_t chunk_of(const Grid& grid) {
        if (grid.SW * grid.C % kLanes) return round_up(grid.depth(), kLanes) + kLanes;
        return ceil_div(grid.depth() / kLanes, ceil_div(grid.depth(), kDepth)) * kLanes;
    }

    const int64_t plane_ = odd_lines<T>(tiles * chunk);
    T* const data_;
};

// One thread's share of a convolution on a Grid: memory, and the four stages.
template <typename T>
struct Winograd {
    using V = Vec<T>;
    static constexpr int kLanes = Lanes<T>::count;

    // `memory` has elements(grid, tile_rows) elements; units have up to that many rows of tiles.
    Winograd(const Grid& grid, int64_t tile_rows, T* memory)
        : g_(grid),
          band_(InputTiles<T>::band(grid, memory)),
          inputs_(grid, tile_rows * tile_cols_, memory + InputTiles<T>::band_elements(grid)),
          filters_(memory + InputTiles<T>::band_elements(grid) + InputTiles<T>::elements(grid, inputs_.tiles)) {}
    static int64_t elements(const Grid& grid, int64_t tile_rows) {
        const InputTiles<T> inputs(grid, tile_rows * grid.tile_cols(), nullptr);
        return InputTiles<T>::band_elements(grid) + InputTiles<T>::elements(grid, inputs.tiles) +
               kTaps * (filter_plane(grid, inputs) + odd_lines<T>(batch(grid, inputs) * kWidth<T>));
    }

    // Rows of tiles that a unit should have: 2 MiB of inputs, at least 16 tiles, at most 96; but a whole image where
    // that is up to twice as much, since one image then divides evenly among threads (conv2 on two: 1.2 times as fast).
    static int64_t rows_of_unit(const Grid& grid) {
        const int64_t image = grid.tile_rows() * grid.tile_cols();
        const int64_t wanted = (2 << 20) / (kTaps * grid.depth() * static_cast<int64_t>(sizeof(T)));
        const int64_t tiles = larger(16, smaller(96, wanted));
        if (tiles < image && image <= smaller(96, 2 * tiles)) return grid.tile_rows();
        return larger(1, tiles / grid.tile_cols());
    }

    // All rows of tiles of `images` images, cut into units.
    static Bands bands(const Grid& grid, int64_t images) {
        const int64_t rows = images * grid.tile_rows();
        return {1, rows, smaller(rows, rows_of_unit(grid)), 8.0 / static_cast<double>(grid.tile_cols())};
    }

    // Transforms these rows of tiles, numbered through all images.
    template <typename FillRow>
    void take(Range rows, const FillRow& fill_row) {
        rows_ = rows;
        for (int64_t row = rows.begin; row < rows.end; ++row)
            inputs_.take_row(band_, row, (row - rows.begin) * tile_cols_, fill_row);
        if (few()) gather_points(filters_);
    }

    // One block of outputs: `filters` is [taps][taps][depth][kWidth]. Calls put(n, row, col, cols, values) for each run
    // of `cols` output positions of a row, kWidth values each, bias added. False if they are not sound.
    template <typename Put>
    bool products(const T* filters, const T* bias, const Put& put) {
        const int64_t tiles = rows_.size() * tile_cols_, depth = g_.depth();
        bool sound = true;
        with_taps(g_.taps, [&](auto taps) {
            for (int64_t begin = 0; begin < depth; begin += inputs_.chunk) {
                const int64_t end = smaller(begin + inputs_.chunk, depth);
                if (few()) {
                    add_few_tiles<taps.at>(FewTiles<T>{filters, filters_, depth, tiles, sums_, sum_plane_}, begin, end);
                    if (end == depth) sound &= transform_outputs<taps.at>(0, tiles, bias, put);
                    continue;
                }
                transform_filters<taps.at>(filters, begin, end);
                for (int64_t t = 0; t < tiles; t += batch_) {
                    const int64_t t_end = smaller(t + batch_, tiles);
                    multiply(t, t_end, begin, end);
                    if (end == depth) sound &= transform_outputs<taps.at>(t, t_end, bias, put);
                }
            }
        });
        return sound;
    }

   private:
    // Whether few_tiles.h makes the products: then the memory of transformed filters has the points of the inputs.
    bool few() const { return rows_.size() * tile_cols_ <= kFewTiles && kFewTiles * g_.depth() <= filter_plane_; }
    // The inputs' points in the order that few_tiles.h reads them in.
    void gather_points(T* to) const {
        constexpr int64_t kStep = 6 * kFewTiles;
        const int64_t depth = g_.depth(), tiles = rows_.size() * tile_cols_;
        if (tiles < kFewTiles) zero(to, kTaps * kFewTiles * depth);
        for (int64_t z = 0; z < kTaps; ++z)
            for (int64_t t = 0; t < tiles; ++t)
                for (int64_t begin = 0; begin < depth; begin += inputs_.chunk) {
                    const T* const from = inputs_.at(z, t, begin);
                    T* const own = to + (z / 6 * depth + begin) * kStep + z % 6 * kFewTiles + t;
                    const int64_t channels = smaller(inputs_.chunk, depth - begin);
                    for (int64_t c = 0; c < channels; ++c) own[c * kStep] = from[c];
                }
    }

    static int64_t filter_plane(const Grid& grid, const InputTiles<T>& inputs) {
        return odd_lines<T>(smaller(inputs.chunk, grid.depth()) * kWidth<T>);
    }
    // Tiles whose sums are made and used before the next ones': few enough for L1, unless chunks are added up.
    static int64_t batch(const Grid& grid, const InputTiles<T>& inputs) {
        return grid.depth() > inputs.chunk ? inputs.tiles : smaller(inputs.tiles, kEvenTile);
    }

    template <int kTapsOf>
    void transform_filters(const T* filters, int64_t begin, int64_t end) {
        const int64_t tap = g_.depth() * kWidth<T>;
        for (int64_t o = begin * kWidth<T>; o < end * kWidth<T>; o += kLanes) {
            V g[kTapsOf * kTapsOf], columns[6 * kTapsOf], z[6];
            repeat<kTapsOf * kTapsOf>([&](auto i) { g[i.at] = load<V>(filters + i.at * tap + o); });
            repeat<kTapsOf>([&](auto j) { filter_to_points<kTapsOf>(g + j.at, kTapsOf, columns + j.at, kTapsOf); });
            repeat<6>([&](auto i) {
                filter_to_points<kTapsOf>(columns + i.at * kTapsOf, 1, z, 1);
                T* const to = filters_ + i.at * 6 * filter_plane_ + o - begin * kWidth<T>;
                repeat<6>([&](auto j) { store(to + j.at * filter_plane_, z[j.at]); });
            });
        }
    }

    // The 36 products of the chunk [begin, end) of channels for tiles [first, last), whose sums lie from sums_ on. Each
    // chunk is summed apart: sums of parts lose less to rounding than one long sum.
    void multiply(int64_t first, int64_t last, int64_t begin, int64_t end) {
        const Walk walk{1, end - begin, 0, 1};
        const int64_t parts = ceil_div(last - first, kEvenTile);
        alignas(64) T partial[kEvenTile * kWidth<T>];
        for (int64_t z = 0; z < kTaps; ++z) {
            for (int64_t part = 0, t = 0; part < parts; ++part) {
                const int64_t t_end = (last - first) * (part + 1) / parts, count = t_end - t;
                T* const sums = sums_ + z * sum_plane_ + t * kWidth<T>;
                tile_even(count, inputs_.at(z, first + t, begin), inputs_.chunk, walk, filters_ + z * filter_plane_,
                          kZeros<T>, begin ? partial : sums);
                if (begin)
                    for (int64_t i = 0; i < count * kWidth<T>; ++i) sums[i] += partial[i];
                t = t_end;
            }
        }
    }

    template <int kTapsOf, typename Put>
    bool transform_outputs(int64_t first, int64_t last, const T* bias, const Put& put) {
        constexpr int kSide = 7 - kTapsOf;
        alignas(64) T values[kSide * kSide * kWidth<T>];
        Seen<T> seen;
        for (int64_t t = first; t < last; ++t) {
            for (int64_t o = 0; o < kWidth<T>; o += kLanes) {
                const T* const from = sums_ + (t - first) * kWidth<T> + o;
                const V b = load<V>(bias + o);
                V rows[6 * kSide];
                repeat<6>([&](auto i) {
                    V z[6];
                    repeat<6>([&](auto j) { z[j.at] = load<V>(from + (i.at * 6 + j.at) * sum_plane_); });
                    from_points<kTapsOf>(z, 1, rows + i.at * kSide, 1);
                });
                repeat<kSide>([&](auto j) {
                    V y[kSide];
                    from_points<kTapsOf>(rows + j.at, kSide, y, 1);
                    repeat<kSide>([&](auto i) {
                        const V v = y[i.at] * T(1.0 / 36) + b;
                        seen.add(v);
                        store(values + (i.at * kSide + j.at) * kWidth<T> + o, v);
                    });
                });
            }
            const int64_t row = rows_.begin + t / tile_cols_, n = row / g_.tile_rows();
            const int64_t top = row % g_.tile_rows() * kSide, left = t % tile_cols_ * kSide;
            const int64_t height = smaller(kSide, g_.rows - top), width = smaller(kSide, g_.cols - left);
            for (int64_t i = 0; i < height; ++i) put(n, top + i, left, width, values + i * kSide * kWidth<T>);
        }
        return seen.sound();
    }

    const Grid g_;
    const int64_t tile_cols_ = g_.tile_cols();
    Band<T> band_;
    InputTiles<T> inputs_;
    const int64_t filter_plane_ = filter_plane(g_, inputs_), batch_ = batch(g_, inputs_);
    const int64_t sum_plane_ = odd_lines<T>(batch_ * kWidth<T>);
    T *const filters_, *const sums_ = filters_ + kTaps * filter_plane_;
    Range rows_{};
};

// A forward convolution's filters as rows of a block for Winograd's kernel: [taps][taps][SH][SW][C]. Empty unless they
// are `wanted`.
template <typename T>
Table winograd_table(const Conv& s, bool wanted = true) {
    const int64_t taps = ceil_div(s.KH, s.SH);
    return Table(wanted ? s.C : 0, s.wc, s.KH, s.wi, s.KW, s.wj, [=](int64_t c, int64_t i, int64_t j) {
        const int64_t tap = i / s.SH * taps + j / s.SW, phase = i % s.SH * s.SW + j % s.SW;
        return ((tap * s.SH * s.SW + phase) * s.C + c) * kWidth<T>;
    });
}

}  // namespace
}  // namespace zf
