// Winograd's filtering along one axis: 6 products make m outputs of a row of r taps, m + r = 7, for each tap row.
//
//   y[ow .. ow + m) = A^T [ sum over tap rows i and channels c of (G w_ic) * (B^T x_ic) ]      x_ic: 6 inputs of a row
//
// with winograd_points.h's A, B and G. A stride along the row is folded into channels first: KW taps and stride SW are
// ceil(KW/SW) taps and stride 1 over positions of SW * C elements. Tap rows are summed as they are, so KH and SH are
// free. It is for few channels, where winograd.h's products are too short to be worth their transforms.
//
// The rows of input under a band of output rows are kept as [point][position of m][row][SW * C]: the KH * SW * C
// factors of a product are neighbours, and a tile (kEvenTile outputs' one point) is one unbroken run. Filters
// are transformed as they are packed.
#pragma once
#include "winograd.h"

namespace zf {
namespace {

// A forward kernel, with conv.cpp's interface.
template <typename T>
struct WinogradRows {
    using V = Vec<T>;
    static constexpr int kLanes = Lanes<T>::count;
    static constexpr int64_t kPoints = 6, kBandPixels = 448;

    WinogradRows(const Conv& s, int64_t rows, T* memory) : s_(s), plane_(plane(s, rows)), points_(memory) {}
    static Bands bands(const Conv& s) { return row_bands(s, kBandPixels); }
    static Steps steps(const Conv& s, const Pool& pool) { return row_steps(s, pool, kBandPixels); }
    static int64_t elements(const Conv& s, int64_t rows) {
        return round_up(kPoints * (plane(s, rows) + kEvenTile * kWidth<T>)+row_columns(s) * s.C + kLanes, 16);
    }

    // Packs a block's filters, [taps][KH][SW][C], as their points, [6][KH][SW][C].
    struct Packer {
        const FilterPacker<T> plain;
        const int64_t taps, tap, size;
        void operator()(int64_t b, T* to) const {
            const Scratch memory(static_cast<std::size_t>(plain.size) * sizeof(T));
            T* const filters = memory.as<T>();
            plain(b, filters);
            with_taps(taps, [&](auto count) {
                for (int64_t o = 0; o < tap; o += kLanes) {
                    V g[count.at], z[kPoints];
                    repeat<count.at>([&](auto i) { g[i.at] = load<V>(filters + i.at * tap + o); });
                    filter_to_points<count.at>(g, 1, z, 1);
                    repeat<kPoints>([&](auto i) { store(to + i.at * tap + o, z[i.at]); });
                }
            });
        }
    };
    static Packer packer(const Conv& s, const T* w) {
        const int64_t tap = depth(s) * kWidth<T>;
        const auto row = [&](int64_t c, int64_t i, int64_t j) {
            return (((j / s.SW * s.KH + i) * s.SW + j % s.SW) * s.C + c) * kWidth<T>;
        };
        return {{{w ? s.C : 0, s.wc, s.KH, s.wi, s.KW, s.wj, row}, taps(s) * tap, w, s.K, s.wk},
                taps(s),
                tap,
                kPoints * tap};
    }

    // Transforms the input under these output rows, of one image.
    void take(const T* x, Range lines) {
        n_ = lines.begin / s_.OH, from_ = lines.begin % s_.OH, rows_ = lines.size();
        const int64_t in_rows = (rows_ - 1) * s_.SH + s_.KH, run = s_.SW * s_.C, step = (7 - taps(s_)) * run;
        const int64_t pitch = position_pitch(s_, in_rows), cols = row_columns(s_);
        const MapRows<T> map = input_rows(s_, x);
        for (int64_t r = 0; r < in_rows; ++r) {
            map(n_, from_ * s_.SH - s_.PH + r, -s_.PW, cols, row_);
            // A run may end inside a vector, whose rest is overwritten with the next row.
            for (int64_t t = 0; t < positions(s_); ++t)
                for (int64_t e = 0; e < run; e += kLanes) {
                    V v[kPoints];
                    repeat<kPoints>([&](auto i) { v[i.at] = load<V>(row_ + t * step + i.at * run + e); });
                    to_points(v[0], v[1], v[2], v[3], v[4], v[5]);
                    T* const to_row = points_ + t * pitch + r * run + e;
                    repeat<kPoints>([&](auto i) { store(to_row + i.at * plane_, v[i.at]); });
                }
        }
        pitch_ = pitch;
    }

    bool make(const T* filters, const T* bias, const Finish<T>& finish, const Target<T>& target) {
        bool sound = true;
        with_taps(taps(s_), [&](auto taps) {
            sound = make_taps<taps.at>(filters, bias, finish, target.row(n_, from_), target.step, target.outputs);
        });
        return sound;
    }

   private:
    static int64_t taps(const Conv& s) { return ceil_div(s.KW, s.SW); }
    static int64_t depth(const Conv& s) { return s.KH * s.SW * s.C; }
    static int64_t positions(const Conv& s) { return ceil_div(s.OW, 7 - taps(s)); }
    static int64_t row_columns(const Conv& s) { return (positions(s) * (7 - taps(s)) + taps(s) - 1) * s.SW; }
    // From one position to the next; the last row's last vector may end kLanes - 1 elements past it.
    static int64_t position_pitch(const Conv& s, int64_t in_rows) { return in_rows * s.SW * s.C + kLanes; }
    static int64_t plane(const Conv& s, int64_t rows) {
        return odd_lines<T>(positions(s) * position_pitch(s, (rows - 1) * s.SH + s.KH));
    }

    // out[row * OW + col][step] = bias + correlation, finished: the first `outputs` of a block of output channels.
    // False if they are not sound.
    template <int kTapsOf>
    bool make_taps(const T* filters, const T* bias, const Finish<T>& finish, T* out, int64_t step, int64_t outputs) {
        constexpr int kSide = 7 - kTapsOf;
        const Walk walk{1, depth(s_), 0, 1};
        const int64_t across = positions(s_), down = s_.SH * s_.SW * s_.C, filter_plane = depth(s_) * kWidth<T>;
        const int64_t vectors = outputs <= kLanes ? 1 : 2;
        Seen<T> seen;
        // The tiles (row_of[i], position_of[i]), i < count; in two rows of neighbours where tile_rows makes them.
        const auto make = [&](int64_t count, const int64_t* row_of, const int64_t* position_of) {
            const auto point = [&](int64_t i) { return points_ + position_of[i] * pitch_ + row_of[i] * down; };
            for (int64_t i = 0; i < count; ++i) {
                const int64_t left = position_of[i] * kSide, end = smaller(left + kSide, s_.OW);
                for (int64_t c = left; c < end; ++c)
                    __builtin_prefetch(out + (row_of[i] * s_.OW + c) * step, 1);  // 8% of conv1 at N = 1
            }
            const T* at[kEvenTile];
            for (int64_t i = 0; i < count; ++i) at[i] = point(i);
            for (int64_t z = 0; z < kPoints; ++z) {
                const T* const w = filters + z * filter_plane;
                T* const sums = sums_ + z * kEvenTile * kWidth<T>;
                if constexpr (kTwoRows) {
                    const TwoRows<T> rows{at[0] + z * plane_, at[(count + 1) / 2 % count] + z * plane_, pitch_};
                    tile_rows(count, vectors, rows, walk, w, w + filter_plane, kZeros<T>, sums);
                } else {
                    tile(count, at, walk, w, kZeros<T>, sums);
                    for (int64_t i = 0; i < count; ++i) at[i] += plane_;
                }
            }
            for (int64_t i = 0; i < count; ++i) {
                const int64_t left = position_of[i] * kSide, width = s_.OW - left;
                T* const pixels = out + (row_of[i] * s_.OW + left) * step;
                for (int64_t o = 0; o < outputs; o += kLanes) {
                    const T* const from = sums_ + i * kWidth<T> + o;
                    const V b = load<V>(bias + o);
                    V z[kPoints], y[kSide];
                    repeat<kPoints>([&](auto j) { z[j.at] = load<V>(from + j.at * kEvenTile * kWidth<T>); });
                    from_points<kTapsOf>(z, 1, y, 1);
                    repeat<kSide>([&](auto j) {
                        const V v = y[j.at] * T(1.0 / 6) + b;
                        seen.add(v);
                        T* const to = pixels + j.at * step + o;
                        if (j.at >= width) return;
                        if (outputs - o >= kLanes)
                            store(to, finish.vector(v, to));
                        else
                            for (int64_t k = 0; k < outputs - o; ++k) to[k] = finish.value(v[k], to + k);
                    });
                }
            }
        };
        int64_t row_of[kEvenTile], position_of[kEvenTile];
        if constexpr (kTwoRows) {
            for_row_tiles(rows_, across, [&](int64_t from, int64_t to, int64_t r0, int64_t t0, int64_t r1, int64_t t1) {
                const int64_t half = (to - from + 1) / 2;
                for (int64_t i = 0; i < to - from; ++i) {
                    row_of[i] = i < half ? r0 : r1;
                    position_of[i] = i < half ? t0 + i : t1 + i - half;
                }
                make(to - from, row_of, position_of);
            });
            return seen.sound();
        }
        const int64_t tiles = rows_ * across, parts = ceil_div(tiles, kPixels);
        for (int64_t part = 0, r = 0, t = 0, first = 0; part < parts; ++part) {
            const int64_t last = tiles * (part + 1) / parts;
            for (int64_t i = 0; i < last - first; ++i) {
                row_of[i] = r, position_of[i] = t;
                if (++t == across) t = 0, ++r;
            }
            make(last - first, row_of, position_of);
            first = last;
        }
        return seen.sound();
    }

    const Conv& s_;
    const int64_t plane_;
    T *const points_, *const sums_ = points_ + kPoints * plane_, *const row_ = sums_ + kPoints * kEvenTile * kWidth<T>;
    int64_t n_ = 0, from_ = 0, rows_ = 0, pitch_ = 0;
};

}  // namespace
}  // namespace zf
