// The transposed convolution of maps that are mostly 0 (unpooled ones are, and rectified ones by half): each value that
// is not 0 adds its filter to the pixels under its window, and the others cost nothing.
//
//   x[n][oh*SH - PH + i][ow*SW - PW + j][c] += y[n][oh][ow][k] * w[k][c][i][j]      for each y[n][oh][ow][k] != 0
//
// Rows of y are made densely, in the thread's memory, and reduced to lists, a pixel each, of values and their filters'
// offsets. A panel is up to kSlots vectors of elements (i, j, c) of all filters, [K][slots][lanes]: for each pixel the
// vectors of x that it meets are loaded, take the products of the pixel's list, and are stored. One value costs a
// broadcast and `slots` multiply-adds whose other factor is in memory, in L2 for most: 32 bytes a cycle there are half
// of the direct kernel's rate, so this pays where fewer than about 4 of 10 values are left, or where windows overhang
// a small map and the direct kernels would multiply the padding.
//
// With many channels a panel is one tap's (i, j) blocks of kWidth channels; with few (C <= kWidth / 2) it is whole tap
// rows, KW * C elements each, and pads the last vector with zeros, which leave what lies there as it is. Where a pixel
// has many values, filters are read as they lie instead, in chunks of channels, and a pixel's sums [C][KH][KW] are
// added to x: that is 2 cycles an element of them, and spares what a small map would feel, the packing.
//
// Rows of y are taken in groups of about kBlockPixels pixels, numbered within the image, panel by panel: every element
// of x sums in the same order however the work was cut.
#pragma once
#include "conv_block.h"

namespace zf {
namespace {

constexpr int64_t kSlots = 12;  // accumulators; with the value and a load they fill the 16 registers of AVX2

// In what vectors of elements the filters are cut.
template <typename T>
struct Panels {
    static constexpr int64_t kLanes = Lanes<T>::count;
    static constexpr int64_t kBlocks = kSlots * kLanes / kWidth<T>;  // of channels, in a panel

    const int64_t C, K, KH, KW;
    const bool runs;       // a panel is tap rows
    const int64_t row;     // vectors of a tap row
    const int64_t slots;   // of a panel; the last may have fewer
    const int64_t pieces;  // panels a tap; of runs: one
    const int64_t taps;    // a piece's panels

    // `groups`: into how many pieces, at least, the blocks of channels shall be cut.
    Panels(const Conv& s, int64_t groups)
        : C(s.C),
          K(s.K),
          KH(s.KH),
          KW(s.KW),
          runs(by_runs(s)),
          row(run_vectors(s)),
          slots(runs ? kSlots / row * row
                     : ceil_div(blocks(s), larger(groups, ceil_div(blocks(s), kBlocks))) * kWidth<T> / kLanes),
          pieces(runs ? 1 : ceil_div(round_up(s.C, kWidth<T>), slots * kLanes)),
          taps(runs ? ceil_div(s.KH * row, slots) : s.KH * s.KW) {}

    static bool by_runs(const Conv& s) { return s.C <= kWidth<T> / 2; }
    static int64_t run_vectors(const Conv& s) { return ceil_div(s.KW * s.C, kLanes); }
    static int64_t blocks(const Conv& s) { return ceil_div(s.C, kWidth<T>); }
    static bool serve(const Conv& s) {
        return (!by_runs(s) || run_vectors(s) <= kSlots) && s.K * kSlots * kLanes < INT32_MAX;
    }
    // Vectors of a filter.
    static int64_t vectors(const Conv& s) {
        return by_runs(s) ? s.KH * run_vectors(s) : s.KH * s.KW * blocks(s) * kWidth<T> / kLanes;
    }

    int64_t pitch() const { return slots * kLanes; }  // elements from one filter to the next
    int64_t elements() const { return pieces * taps * K * pitch(); }
    const T* filters(const T* packed, int64_t piece, int64_t tap) const {
        return packed + (piece * taps + tap) * K * pitch();
    }
    // Of panel (piece, tap): how many slots, the tap row of a slot, and its first element in that row's KW * C.
    int64_t count(int64_t piece, int64_t tap) const {
        const int64_t left = runs ? KH * row - tap * slots : (round_up(C, kWidth<T>) - piece * pitch()) / kLanes;
        return smaller(slots, left);
    }
    int64_t tap_row(int64_t tap, int64_t slot) const { return runs ? (tap * slots + slot) / row : tap / KW; }
    int64_t element(int64_t piece, int64_t tap, int64_t slot) const {
        return runs ? slot % row * kLanes : tap % KW * C + piece * pitch() + slot * kLanes;
    }

    // Packs all filters; false if one of their elements is not finite.
    bool pack_all(const Conv& s, const T* w, T* to, int threads) const {
        bool finite = true;
        if (runs) {
            const int64_t rows = slots / row;
            zero(to, elements());
            parallel_for(K, threads, [&](int64_t begin, int64_t end, int) {
                T sum = 0;
                for (int64_t k = begin; k < end; ++k)
                    for (int64_t i = 0; i < KH; ++i) {
                        T* const filter_row = to + (i / rows * K + k) * pitch() + i % rows * row * kLanes;
                        const T* const from = w + k * s.wk + i * s.wi;
                        for (int64_t j = 0; j < KW; ++j)
                            for (int64_t c = 0; c < C; ++c) {
                                filter_row[j * C + c] = from[j * s.wj + c * s.wc];
                                sum += from[j * s.wj + c * s.wc] * 0;
                            }
                    }
                if (sum != 0) __atomic_store_n(&finite, false, __ATOMIC_RELAXED);
            });
            return finite;
        }
        const Table table(K, s.wk, KH, s.wi, KW, s.wj,
                          [&](int64_t k, int64_t i, int64_t j) { return ((i * KW + j) * K + k) * pitch(); });
        parallel_for(blocks(s), threads, [&](int64_t begin, int64_t end, int) {
            Vec<T> sum{};
            for (int64_t b = begin; b < end; ++b) {
                const int64_t first = b * kWidth<T>, outputs = smaller(kWidth<T>, C - first);
                T* const block = to + first / pitch() * taps * K * pitch() + first % pitch();
                if (outputs < kWidth<T>)
                    for (int64_t f = 0; f < taps * K; ++f) zero(block + f * pitch(), kWidth<T>);
                pack(table, block, w + first * s.wc, outputs, s.wc);
                for (int64_t f = 0; f < taps * K; ++f)
                    for (int64_t o = 0; o < kWidth<T>; o += kLanes) sum += load<Vec<T>>(block + f * pitch() + o) * 0;
            }
            if (!is_zero<T>(sum)) __atomic_store_n(&finite, false, __ATOMIC_RELAXED);
        });
        return finite;
    }
};

// Whether filters are read as they lie, by the values that a pixel is expected to have.
template <typename T>
bool as_they_lie(const Conv& s, double nonzeros) {
    return s.wj == 1 && s.wi == s.KW && s.wc == s.KH * s.KW && s.wk == s.C * s.wc && s.K * s.wk < INT32_MAX &&
           s.C % kWidth<T> == 0 && nonzeros >= 64 * static_cast<double>(s.OH * s.OW);
}

// What it takes for an image with `nonzeros` values that are not 0, in cycles as measured with AVX2: a vector of a
// product; a value looked at; a vector of x loaded and stored for each pixel, or an element of its sums added; a
// filter's element packed.
template <typename T>
double nonzero_cycles(const Conv& s, double nonzeros) {
    const double pixels = static_cast<double>(s.OH * s.OW), values = static_cast<double>(s.K);
    if (as_they_lie<T>(s, nonzeros)) {
        const double elements = static_cast<double>(s.C * s.KH * s.KW);
        return elements * (1.1 / Lanes<T>::count * nonzeros + 2 * pixels) + pixels * values;
    }
    const double vectors = static_cast<double>(Panels<T>::vectors(s));
    return vectors * (1.1 * nonzeros + 3 * smaller(pixels, nonzeros)) + pixels * values +
           0.7 * values * Lanes<T>::count * vectors;
}

// The values that are not 0 of a group of pixels, in ascending order of channels: pixel p has [from(p), from(p + 1)) of
// value[] and of offset[], its filter's, `pitch` elements after the last one's.
template <typename T>
class Nonzeros {
   public:
    static constexpr int kLanes = Lanes<T>::count;
    T* const value;
    int32_t* const offset;

    // Of up to `pixels` pixels, in `memory` of bytes(s, pixels) bytes.
    Nonzeros(const Conv& s, int64_t pixels, int64_t pitch, char* memory)
        : value(reinterpret_cast<T*>(memory)),
          offset(reinterpret_cast<int32_t*>(memory + aligned(values(s, pixels), sizeof(T)))),
          s_(s),
          pitch_(pitch),
          row_(value + round_up(pixels * s.K + kLanes, 16)),
          from_(reinterpret_cast<int64_t*>(reinterpret_cast<char*>(offset) +
                                           aligned(pixels * s.K + kLanes, sizeof(int32_t)))) {
        for (int i = 0; i < kLanes; ++i) lanes_[i] = static_cast<int32_t>(i * pitch);
    }

    static std::size_t bytes(const Conv& s, int64_t pixels) {
        return aligned(values(s, pixels), sizeof(T)) + aligned(pixels * s.K + kLanes, sizeof(int32_t)) +
               aligned(pixels + 1, sizeof(int64_t));
    }

    // Rows [oh, oh_end) of images [n, n_end).
    template <typename FillRow>
    void take(int64_t n, int64_t n_end, int64_t oh, int64_t oh_end, const FillRow& fill_row) {
        int64_t count = 0, pixel = 0;
        for (; n < n_end; ++n)
            for (int64_t r = oh; r < oh_end; ++r) {
                fill_row(n, r, 0, s_.OW, row_);
                for (int64_t ow = 0; ow < s_.OW; ++ow) {
                    from_[pixel++] = count;
                    count += list(row_ + ow * s_.K, value + count, offset + count);
                }
            }
        from_[pixel] = count;
        int64_t i = 0;
        for (; i + kLanes <= count; i += kLanes) seen_ += load<Vec<T>>(value + i) * 0;
        for (; i < count; ++i) seen_[0] += value[i] * 0;
    }

    const int64_t* from(int64_t pixel) const { return from_ + pixel; }
    // Whether all values seen were finite.
    bool finite() const { return is_zero<T>(seen_); }

   private:
    static std::size_t aligned(int64_t count, std::size_t size) {
        return (static_cast<std::size_t>(count) * size + 63) / 64 * 64;
    }
    static int64_t values(const Conv& s, int64_t pixels) {  // the lists', and a row of pixels
        return round_up(pixels * s.K + kLanes, 16) + s.OW * s.K;
    }

    int64_t list(const T* pixel, T* values, int32_t* offsets) {
        int64_t count = 0, k = 0;
        for (; k + kLanes <= s_.K; k += kLanes) {
            count += compress(load<Vec<T>>(pixel + k), static_cast<int32_t>(k * pitch_), lanes_, values + count,
                              offsets + count);
        }
        for (; k < s_.K; ++k) {
            values[count] = pixel[k], offsets[count] = static_cast<int32_t>(k * pitch_);
            count += pixel[k] != 0;
        }
        return count;
    }

    const Conv& s_;
    const int64_t pitch_;
    T* const row_;
    int64_t* const from_;
    int32_t lanes_[kLanes];  // a vector's offsets
    Vec<T> seen_{};
};

// to[i][at + lanes] = sum over n < nonzeros of value[n] * filters[offset[n] + i * lanes + lanes], for i < kCount; added
// to what is there unless kFresh.
template <bool kFresh, typename T, int kCount>
void add_products(Index<kCount>, const int32_t* offset, const T* value, int64_t nonzeros, const T* filters,
                  T* const* to, int64_t at) {
    constexpr int kLanes = Lanes<T>::count;
    Vec<T> sum[kCount];
    repeat<kCount>([&](auto i) { sum[i.at] = kFresh ? Vec<T>{} : load<Vec<T>>(to[i.at] + at); });
    for (int64_t n = 0; n < nonzeros; ++n) {
        const T* const filter = filters + offset[n];
        const Vec<T> v = broadcast(value[n]);
        repeat<kCount>([&](auto i) { add_product(sum[i.at], v, filter + i.at * kLanes); });
    }
    repeat<kCount>([&](auto i) { store(to[i.at] + at, sum[i.at]); });
}

template <bool kFresh, typename T>
ZF_INLINE void add_products(int64_t count, const int32_t* offset, const T* value, int64_t nonzeros, const T* filters,
                            T* const* to, int64_t at) {
    with_count<kSlots>(count, [&](auto n) { add_products<kFresh>(n, offset, value, nonzeros, filters, to, at); });
}

// How y is cut, which the filters' layout has no part in: units of work have `images` images, and take `rows` rows of
// each at a time.
struct Cut {
    int64_t images, sets, rows, pixels;
    Cut(const Conv& s, int threads)
        : images(larger(1, smaller(kBlockPixels / (s.OH * s.OW), s.N / threads))),
          sets(ceil_div(s.N, images)),
          rows(rows_of_block(s.OW, s.OH)),
          pixels(images * rows * s.OW) {}
};

// Zeros in channels [c, c_end) of rows [top, bottom) of image n.
template <typename T>
void zero_rows(const Conv& s, T* x, int64_t n, int64_t top, int64_t bottom, int64_t c, int64_t c_end) {
    T* const pixels = x + (n * s.H + top) * s.W * s.C;
    if (c_end - c == s.C) return zero(pixels, (bottom - top) * s.W * s.C);
    for (int64_t p = 0; p < (bottom - top) * s.W; ++p) zero(pixels + p * s.C + c, c_end - c);
}

// With packed filters. False, and x is of no use, where a value or a weight is not finite: what is left out here would
// make NaN of it. A unit of work is (images, band of rows of x, group of panels' pieces).
template <typename T, typename FillRow>
bool scatter_packed(const Conv& s, const T* w, T* x, int threads, const FillRow& fill_row) {
    constexpr int64_t kLanes = Lanes<T>::count;
    const Cut cut(s, threads);
    const bool alone = s.C % kWidth<T> == 0;  // blocks of channels share no vector of x
    const Panels<T> panels(s, alone ? groups_for(Panels<T>::blocks(s), cut.sets, threads) : 1);
    const Scratch packed(static_cast<std::size_t>(panels.elements()) * sizeof(T));
    if (!panels.pack_all(s, w, packed.as<T>(), threads)) return false;

    const int64_t groups = alone ? groups_for(panels.pieces, cut.sets, threads) : 1, pitch = s.W * s.C;
    const int64_t bands = smaller(s.H, ceil_div(threads, larger(1, cut.sets * groups)));
    const int64_t phases = panels.runs ? ceil_div(s.KW, s.SW) : 1;
    const int64_t beside = round_up(pitch, 16);  // where rows outside the band are added
    const std::size_t own =
        static_cast<std::size_t>(beside + kSlots * kLanes) * sizeof(T) + Nonzeros<T>::bytes(s, cut.pixels);
    const Scratch memory(static_cast<std::size_t>(threads) * own);
    bool finite = true;
    parallel_for(cut.sets * bands * groups, threads, [&](int64_t begin, int64_t end, int thread) {
        T* const outside = reinterpret_cast<T*>(memory.as<char>() + static_cast<std::size_t>(thread) * own);
        T* const edge = outside + beside;
        Nonzeros<T> nonzeros(s, cut.pixels, panels.pitch(), reinterpret_cast<char*>(edge + kSlots * kLanes));
        zero(outside, beside);
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t group = unit % groups, b = unit / groups % bands, set = unit / groups / bands;
            const int64_t first_image = s.N * set / cut.sets, end_image = s.N * (set + 1) / cut.sets;
            const int64_t top = s.H * b / bands, bottom = s.H * (b + 1) / bands;
            const int64_t first_piece = panels.pieces * group / groups;
            const int64_t end_piece = panels.pieces * (group + 1) / groups;
            for (int64_t n = first_image; n < end_image; ++n)
                zero_rows(s, x, n, top, bottom, groups == 1 ? 0 : first_piece * panels.pitch(),
                          groups == 1 ? s.C : smaller(s.C, end_piece * panels.pitch()));
            const int64_t last = last_window(bottom - 1, s.SH, s.PH, s.OH);
            for (int64_t oh = first_window(top, s.KH, s.SH, s.PH), next; oh <= last; oh = next) {
                next = smaller(last + 1, (oh / cut.rows + 1) * cut.rows);
                nonzeros.take(first_image, end_image, oh, next, fill_row);
                const int64_t rows = next - oh, all_rows = (end_image - first_image) * rows;
                for (int64_t panel = first_piece * panels.taps; panel < end_piece * panels.taps; ++panel) {
                    const int64_t piece = panel / panels.taps, tap = panel % panels.taps;
                    const T* const filters = panels.filters(packed.as<T>(), piece, tap);
                    const int64_t slots = panels.count(piece, tap);
                    const int64_t first = panels.element(piece, tap, 0);
                    const int64_t past = panels.element(piece, tap, slots - 1) + kLanes;
                    for (int64_t r = 0; r < all_rows; ++r) {
                        T *to[kSlots], *at_edge[kSlots];
                        bool met = false;
                        const int64_t n = first_image + r / rows, h0 = (oh + r % rows) * s.SH - s.PH;
                        for (int64_t i = 0; i < slots; ++i) {
                            const int64_t h = h0 + panels.tap_row(tap, i);
                            const bool inside = h >= top && h < bottom;
                            met |= inside;
                            to[i] = (inside ? x + (n * s.H + h) * pitch : outside) + panels.element(piece, tap, i);
                            at_edge[i] = edge + i * kLanes;
                        }
                        if (!met) continue;
                        const auto pixel = [&](int64_t ow) {
                            const int64_t from = *nonzeros.from(r * s.OW + ow);
                            const int64_t count = *nonzeros.from(r * s.OW + ow + 1) - from;
                            const int64_t at = (ow * s.SW - s.PW) * s.C;
                            if (count == 0 || at + past <= 0 || at + first >= pitch) return;
                            const bool whole = at + first >= 0 && at + past <= pitch;
                            if (!whole) zero(edge, slots * kLanes);
                            add_products<false>(slots, nonzeros.offset + from, nonzeros.value + from, count, filters,
                                                whole ? to : at_edge, whole ? at : 0);
                            for (int64_t i = 0; i < slots && !whole; ++i) {
                                const int64_t e = at + panels.element(piece, tap, i);
                                const int64_t lanes = smaller(kLanes, pitch - e);
                                for (int64_t l = larger(0, -e); l < lanes; ++l) to[i][at + l] += at_edge[i][l];
                            }
                        };
                        // Neighbours overlap where panels are tap rows, and a load that meets two stores waits for
                        // both.
                        for (int64_t phase = 0; phase < phases; ++phase)
                            for (int64_t ow = phase; ow < s.OW; ow += phases) pixel(ow);
                    }
                }
            }
        }
        if (!nonzeros.finite()) __atomic_store_n(&finite, false, __ATOMIC_RELAXED);
    });
    return finite;
}

// The same with filters as they lie, [K][C][KH][KW]. A unit of work is (images, group of chunks of channels).
template <typename T, typename FillRow>
bool scatter_plain(const Conv& s, const T* w, T* x, int threads, const FillRow& fill_row) {
    constexpr int64_t kLanes = Lanes<T>::count;
    const Cut cut(s, threads);
    const int64_t taps = s.KH * s.KW, filter = s.C * taps;
    const int64_t blocks = s.C / kWidth<T>, chunk_blocks = ceil_div(kSlots * kLanes, taps * kWidth<T>);
    const int64_t chunks = ceil_div(blocks, chunk_blocks), groups = groups_for(chunks, cut.sets, threads);
    const int64_t most = ceil_div(blocks, chunks) * kWidth<T> * taps;  // elements of a chunk
    const auto first_channel = [&](int64_t chunk) { return blocks * chunk / chunks * kWidth<T>; };
    const std::size_t own =
        static_cast<std::size_t>(round_up(cut.pixels * most, 16)) * sizeof(T) + Nonzeros<T>::bytes(s, cut.pixels);
    const Scratch memory(static_cast<std::size_t>(threads) * own);
    bool finite = true;
    parallel_for(s.K, threads, [&](int64_t begin, int64_t end, int) {
        Vec<T> sum{};
        for (int64_t e = begin * filter; e < end * filter; e += kLanes) sum += load<Vec<T>>(w + e) * 0;
        if (!is_zero<T>(sum)) __atomic_store_n(&finite, false, __ATOMIC_RELAXED);
    });
    if (!finite) return false;
    parallel_for(cut.sets * groups, threads, [&](int64_t begin, int64_t end, int thread) {
        T* const sums = reinterpret_cast<T*>(memory.as<char>() + static_cast<std::size_t>(thread) * own);
        Nonzeros<T> nonzeros(s, cut.pixels, filter, reinterpret_cast<char*>(sums + round_up(cut.pixels * most, 16)));
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t group = unit % groups, set = unit / groups;
            const int64_t first_image = s.N * set / cut.sets, end_image = s.N * (set + 1) / cut.sets;
            const int64_t first_chunk = chunks * group / groups, end_chunk = chunks * (group + 1) / groups;
            for (int64_t n = first_image; n < end_image; ++n)
                zero_rows(s, x, n, 0, s.H, first_channel(first_chunk), first_channel(end_chunk));
            for (int64_t oh = 0, next; oh < s.OH; oh = next) {
                next = smaller(s.OH, oh + cut.rows);
                nonzeros.take(first_image, end_image, oh, next, fill_row);
                const int64_t rows = next - oh, pixels = (end_image - first_image) * rows * s.OW;
                for (int64_t chunk = first_chunk; chunk < end_chunk; ++chunk) {
                    const int64_t c = first_channel(chunk), c_end = first_channel(chunk + 1);
                    const int64_t vectors = (c_end - c) * taps / kLanes, parts = ceil_div(vectors, kSlots);
                    for (int64_t part = 0; part < parts; ++part) {
                        const int64_t slots = vectors * (part + 1) / parts - vectors * part / parts;
                        const int64_t e = vectors * part / parts * kLanes;
                        for (int64_t p = 0; p < pixels; ++p) {
                            const int64_t from = *nonzeros.from(p), count = *nonzeros.from(p + 1) - from;
                            T* to[kSlots];
                            for (int64_t i = 0; i < slots; ++i) to[i] = sums + p * most + e + i * kLanes;
                            add_products<true>(slots, nonzeros.offset + from, nonzeros.value + from, count,
                                               w + c * taps + e, to, 0);
                        }
                    }
                    for (int64_t p = 0; p < pixels; ++p) {
                        const int64_t n = first_image + p / (rows * s.OW), h0 = (oh + p / s.OW % rows) * s.SH - s.PH;
                        const int64_t w0 = p % s.OW * s.SW - s.PW;
                        if (*nonzeros.from(p) == *nonzeros.from(p + 1)) continue;
                        for (int64_t i = larger(0, -h0); i < smaller(s.KH, s.H - h0); ++i)
                            for (int64_t j = larger(0, -w0); j < smaller(s.KW, s.W - w0); ++j) {
                                T* const pixel = x + ((n * s.H + h0 + i) * s.W + w0 + j) * s.C + c;
                                const T* const sum = sums + p * most + i * s.KW + j;
                                for (int64_t o = 0; o < c_end - c; ++o) pixel[o] += sum[o * taps];
                            }
                    }
                }
            }
        }
        if (!nonzeros.finite()) __atomic_store_n(&finite, false, __ATOMIC_RELAXED);
    });
    return finite;
}

template <typename T, typename FillRow>
bool scatter_nonzeros(const Conv& s, const T* w, T* x, double nonzeros, int threads, const FillRow& fill_row) {
    return as_they_lie<T>(s, nonzeros) ? scatter_plain(s, w, x, threads, fill_row)
                                       : scatter_packed(s, w, x, threads, fill_row);
}

}  // namespace
}  // namespace zf
