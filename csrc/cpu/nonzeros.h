// The transposed convolution of maps that are mostly 0 (unpooled ones are, and rectified ones by half): each value that
// is not 0 adds its filter to the pixels under its window; the others cost nothing.
//
//   x[n][oh*SH - PH + i][ow*SW - PW + j][c] += y[n][oh][ow][k] * w[k][c][i][j]      for each y[n][oh][ow][k] != 0
//
// Rows of y are reduced to lists, for each pixel its values and their filters' offsets, and multiplied by
//   PanelScatter, with filters packed in panels [K][slots][lanes] of up to kSlots vectors of elements (i, j, c): for
//   each pixel the vectors of x that a panel meets are loaded, take the products of the list, and are stored. With many
//   channels a panel is blocks of kWidth channels of one tap (i, j); with few it is whole tap rows of KW * C elements;
//   or PlainScatter, with filters as they lie: a pixel's sums [C][KH][KW] are made and then added to x.
// Rows of y are taken in groups of about kBlockPixels pixels, numbered within the image, so every element of x sums in
// the same order however the work was cut. Both return false where a value or a weight is not finite, since a skipped
// zero would have made NaN of it; x is then undefined.
#pragma once
#include "conv_block.h"

namespace zf {
namespace {

constexpr int64_t kSlots = 12;  // accumulators; with the value and a load they fill the 16 registers of AVX2

// How filters are cut into panels.
template <typename T>
struct Panels {
    static constexpr int64_t kLanes = Lanes<T>::count;
    static constexpr int64_t kBlocks = kSlots * kLanes / kWidth<T>;  // of channels, in a panel

    const Conv& s;
    const int64_t groups;                    // into how many pieces, at least, the blocks of channels are cut
    const bool runs = few_channels<T>(s.C);  // a panel is tap rows
    const int64_t row = run_vectors(s);      // vectors of a tap row
    const int64_t piece_blocks = ceil_div(blocks(s), larger(groups, ceil_div(blocks(s), kBlocks)));
    const int64_t slots = runs ? kSlots / row * row : piece_blocks * kWidth<T> / kLanes;  // the last may have fewer
    const int64_t pieces = runs ? 1 : ceil_div(round_up(s.C, kWidth<T>), slots* kLanes);
    const int64_t taps = runs ? ceil_div(s.KH * row, slots) : s.KH * s.KW;  // panels of a piece

    static int64_t run_vectors(const Conv& s) { return ceil_div(s.KW * s.C, kLanes); }
    static int64_t blocks(const Conv& s) { return ceil_div(s.C, kWidth<T>); }
    static bool possible(const Conv& s) {
        return (!few_channels<T>(s.C) || run_vectors(s) <= kSlots) && s.K * kSlots * kLanes < INT32_MAX;
    }
    static int64_t vectors(const Conv& s) {  // of a filter
        return few_channels<T>(s.C) ? s.KH * run_vectors(s) : s.KH * s.KW * blocks(s) * kWidth<T> / kLanes;
    }

    int64_t pitch() const { return slots * kLanes; }  // elements from one filter to the next
    int64_t elements() const { return pieces * taps * s.K * pitch(); }
    const T* filters(const T* packed, int64_t piece, int64_t tap) const {
        return packed + (piece * taps + tap) * s.K * pitch();
    }
    // Of panel (piece, tap): how many slots, the tap row of a slot, and its first element in that row's KW * C.
    int64_t count(int64_t piece, int64_t tap) const {
        const int64_t left = runs ? s.KH * row - tap * slots : (round_up(s.C, kWidth<T>) - piece * pitch()) / kLanes;
        return smaller(slots, left);
    }
    int64_t tap_row(int64_t tap, int64_t slot) const { return runs ? (tap * slots + slot) / row : tap / s.KW; }
    int64_t element(int64_t piece, int64_t tap, int64_t slot) const {
        return runs ? slot % row * kLanes : tap % s.KW * s.C + piece * pitch() + slot * kLanes;
    }

    // False if an element is not finite.
    bool pack_all(const T* w, T* to, int threads) const {
        if (runs) {
            zero(to, elements());
            return all_finite(s.K, threads, [&](int64_t begin, int64_t end, int) {
                T sum = 0;
                for (int64_t k = begin; k < end; ++k) sum += pack_runs(w, to, k);
                return sum == 0;
            });
        }
        const Table table(s.K, s.wk, s.KH, s.wi, s.KW, s.wj,
                          [&](int64_t k, int64_t i, int64_t j) { return ((i * s.KW + j) * s.K + k) * pitch(); });
        return all_finite(blocks(s), threads, [&](int64_t begin, int64_t end, int) {
            Vec<T> sum{};
            for (int64_t b = begin; b < end; ++b) sum += pack_block(table, w, to, b);
            return is_zero<T>(sum);
        });
    }

   private:
    // Filter k as tap rows; returns the sum of its elements times 0.
    T pack_runs(const T* w, T* to, int64_t k) const {
        const int64_t rows = slots / row;
        T sum = 0;
        for (int64_t i = 0; i < s.KH; ++i) {
            T* const filter_row = to + (i / rows * s.K + k) * pitch() + i % rows * row * kLanes;
            const T* const from = w + k * s.wk + i * s.wi;
            for (int64_t j = 0; j < s.KW; ++j)
                for (int64_t c = 0; c < s.C; ++c) {
                    filter_row[j * s.C + c] = from[j * s.wj + c * s.wc];
                    sum += from[j * s.wj + c * s.wc] * 0;
                }
        }
        return sum;
    }

    // Block b of channels of all filters; returns the sum of their elements times 0.
    Vec<T> pack_block(const Table& table, const T* w, T* to, int64_t b) const {
        const int64_t first = b * kWidth<T>, outputs = smaller(kWidth<T>, s.C - first);
        T* const block = to + first / pitch() * taps * s.K * pitch() + first % pitch();
        if (outputs < kWidth<T>)
            for (int64_t f = 0; f < taps * s.K; ++f) zero(block + f * pitch(), kWidth<T>);
        pack(table, block, w + first * s.wc, outputs, s.wc);
        Vec<T> sum{};
        for (int64_t f = 0; f < taps * s.K; ++f)
            for (int64_t o = 0; o < kWidth<T>; o += kLanes) sum += load<Vec<T>>(block + f * pitch() + o) * 0;
        return sum;
    }
};

// Whether PlainScatter can read the filters: torch's contiguous layout, whole blocks of channels.
template <typename T>
bool plain_filters_possible(const Conv& s) {
    return s.wj == 1 && s.wi == s.KW && s.wc == s.KH * s.KW && s.wk == s.C * s.wc && s.K * s.wk < INT32_MAX &&
           s.C % kWidth<T> == 0;
}

// The values that are not 0 of a group of pixels, in ascending order of channels. Pixel p has elements [begin(p),
// begin(p + 1)) of value[] and of offset[], its filter's, where a filter is `pitch` elements.
template <typename T>
struct Nonzeros {
    static constexpr int kLanes = Lanes<T>::count;
    // Each thread's memory for the lists of up to `pixels` pixels, and for a row of pixels.
    struct Memory {
        const Conv& s;
        const int64_t pixels, threads;
        const int64_t most = round_up(pixels * s.K + kLanes, 16);  // values; the last vector may end past the lists
        const PerThread<T> values{threads, most + round_up(s.OW * s.K, 16)};
        const PerThread<int32_t> offsets{threads, most};
        const PerThread<int64_t> begins{threads, round_up(pixels + 1, 8)};
    };

    Nonzeros(const Memory& memory, int thread, int64_t pitch) : memory_(memory), thread_(thread), pitch_(pitch) {
        for (int i = 0; i < kLanes; ++i) lanes_[i] = static_cast<int32_t>(i * pitch);
    }

    template <typename FillRow>
    void take(Range images, Range rows, const FillRow& fill_row) {
        int64_t count = 0, pixel = 0;
        for (int64_t n = images.begin; n < images.end; ++n)
            for (int64_t oh = rows.begin; oh < rows.end; ++oh) {
                fill_row(n, oh, 0, s_.OW, row_);
                for (int64_t ow = 0; ow < s_.OW; ++ow) {
                    begin_[pixel++] = count;
                    count += list(row_ + ow * s_.K, value + count, offset + count);
                }
            }
        begin_[pixel] = count;
        int64_t i = 0;
        for (; i + kLanes <= count; i += kLanes) seen_ += load<Vec<T>>(value + i) * 0;
        for (; i < count; ++i) seen_[0] += value[i] * 0;
    }

    Range of(int64_t pixel) const { return {begin_[pixel], begin_[pixel + 1]}; }
    bool finite() const { return is_zero<T>(seen_); }

    int64_t list(const T* pixel, T* values, int32_t* offsets) {
        int64_t count = 0, k = 0;
        for (; k + kLanes <= s_.K; k += kLanes)
            count += compress(load<Vec<T>>(pixel + k), static_cast<int32_t>(k * pitch_), lanes_, values + count,
                              offsets + count);
        for (; k < s_.K; ++k) {
            values[count] = pixel[k], offsets[count] = static_cast<int32_t>(k * pitch_);
            count += pixel[k] != 0;
        }
        return count;
    }

    const Memory& memory_;
    const int64_t thread_, pitch_;
    const Conv& s_ = memory_.s;
    T* const row_ = memory_.values.of(thread_) + memory_.most;
    int64_t* const begin_ = memory_.begins.of(thread_);
    T* const value = memory_.values.of(thread_);
    int32_t* const offset = memory_.offsets.of(thread_);
    int32_t lanes_[kLanes];  // a vector's offsets
    Vec<T> seen_{};
};

// to[i][at + lanes] = sum over n of value[n] * filters[offset[n] + i * lanes + lanes], for i < kCount; added to what is
// there unless kFresh. (Inlined, all counts in one function, it is 1.15 times as slow.)
template <bool kFresh, typename T, int kCount>
__attribute__((noinline)) void add_products(Index<kCount>, const int32_t* offset, const T* value, int64_t nonzeros,
                                            const T* filters, T* const* to, int64_t at) {
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
ZF_INLINE void add_products(int64_t slots, const Nonzeros<T>& nonzeros, Range list, const T* filters, T* const* to,
                            int64_t at) {
    with_count<kSlots>(slots, [&](auto n) {
        add_products<kFresh>(n, nonzeros.offset + list.begin, nonzeros.value + list.begin, list.size(), filters, to,
                             at);
    });
}

// How y is cut: a unit of work has up to `images` images, and takes `rows` rows of each at a time.
struct Cut {
    const Conv& s;
    const int threads;
    const int64_t images = larger(1, smaller(kBlockPixels / (s.OH * s.OW), s.N / threads));
    const int64_t sets = ceil_div(s.N, images), rows = rows_of_block(s.OW, s.OH), pixels = images * rows * s.OW;
};

// Zeros in `channels` of rows `rows` of `images` of x.
template <typename T>
void zero_rows(const Conv& s, T* x, Range images, Range rows, Range channels) {
    for (int64_t n = images.begin; n < images.end; ++n) {
        T* const pixels = x + (n * s.H + rows.begin) * s.W * s.C;
        const int64_t count = rows.size() * s.W;
        if (channels.size() == s.C)
            zero(pixels, count * s.C);
        else
            for (int64_t p = 0; p < count; ++p) zero(pixels + p * s.C + channels.begin, channels.size());
    }
}

template <typename T>
struct PanelScatter {
    static constexpr int64_t kLanes = Lanes<T>::count;

    PanelScatter(const Panels<T>& panels, const T* packed, T* x, T* memory, const Nonzeros<T>& nonzeros)
        : panels_(panels), packed_(packed), x_(x), outside_(memory), nonzeros_(nonzeros) {
        zero(outside_, beside(s_));
        for (int64_t i = 0; i < kSlots; ++i) at_edge_[i] = edge_ + i * kLanes;
    }
    static int64_t elements(const Conv& s) { return beside(s) + kSlots * kLanes; }
    // Adds the panels of `pieces` to rows `band` of x, `rows` rows of y at a time.
    template <typename FillRow>
    bool add(Range images, Range band, Range pieces, int64_t rows, const FillRow& fill_row) {
        const int64_t last = last_window(band.end - 1, s_.SH, s_.PH, s_.OH);
        for (int64_t oh = first_window(band.begin, s_.KH, s_.SH, s_.PH), next; oh <= last; oh = next) {
            next = smaller(last + 1, (oh / rows + 1) * rows);
            nonzeros_.take(images, {oh, next}, fill_row);
            for (int64_t panel = pieces.begin * panels_.taps; panel < pieces.end * panels_.taps; ++panel)
                add_panel(images, band, {oh, next}, panel / panels_.taps, panel % panels_.taps);
        }
        return nonzeros_.finite();
    }

   private:
    static int64_t beside(const Conv& s) { return round_up(s.W * s.C, 16); }
    void add_panel(Range images, Range band, Range rows, int64_t piece, int64_t tap) {
        filters_ = panels_.filters(packed_, piece, tap);
        slots_ = panels_.count(piece, tap);
        for (int64_t i = 0; i < slots_; ++i) element_[i] = panels_.element(piece, tap, i);
        // Neighbours overlap where panels are tap rows, and a load that meets two stores waits for both.
        const int64_t phases = panels_.runs ? ceil_div(s_.KW, s_.SW) : 1;
        int64_t pixel = 0;  // the row's first
        for (int64_t n = images.begin; n < images.end; ++n)
            for (int64_t oh = rows.begin; oh < rows.end; ++oh, pixel += s_.OW) {
                if (!aim(n, oh * s_.SH - s_.PH, band, tap)) continue;
                for (int64_t phase = 0; phase < phases; ++phase)
                    for (int64_t ow = phase; ow < s_.OW; ow += phases) add_pixel(ow, nonzeros_.of(pixel + ow));
            }
    }

    // Points each slot at its row of x, or at outside_ where that is not in the band; false if none is.
    bool aim(int64_t n, int64_t h0, Range band, int64_t tap) {
        bool met = false;
        for (int64_t i = 0; i < slots_; ++i) {
            const int64_t h = h0 + panels_.tap_row(tap, i);
            const bool inside = h >= band.begin && h < band.end;
            met |= inside;
            to_[i] = (inside ? x_ + (n * s_.H + h) * s_.W * s_.C : outside_) + element_[i];
        }
        return met;
    }

    ZF_INLINE void add_pixel(int64_t ow, Range list) {
        const int64_t pitch = s_.W * s_.C, at = (ow * s_.SW - s_.PW) * s_.C;
        const int64_t first = at + element_[0], past = at + element_[slots_ - 1] + kLanes;
        if (list.size() == 0 || past <= 0 || first >= pitch) return;
        if (first >= 0 && past <= pitch) return add_products<false>(slots_, nonzeros_, list, filters_, to_, at);
        zero(edge_, slots_ * kLanes);
        add_products<false>(slots_, nonzeros_, list, filters_, at_edge_, 0);
        for (int64_t i = 0; i < slots_; ++i) {
            const int64_t e = at + element_[i], lanes = smaller(kLanes, pitch - e);
            for (int64_t l = larger(0, -e); l < lanes; ++l) to_[i][at + l] += at_edge_[i][l];
        }
    }

    const Panels<T>& panels_;
    const Conv& s_ = panels_.s;
    const T* const packed_;
    T *const x_, *const outside_, *const edge_ = outside_ + beside(s_);  // outside_: a row of x that nobody reads
    Nonzeros<T> nonzeros_;
    const T* filters_ = nullptr;
    int64_t slots_ = 0, element_[kSlots];
    T *to_[kSlots], *at_edge_[kSlots];
};

template <typename T>
struct PlainScatter {
    static constexpr int64_t kLanes = Lanes<T>::count;

    PlainScatter(const Conv& s, const T* w, T* x, T* sums, const Nonzeros<T>& nonzeros)
        : s_(s), w_(w), x_(x), sums_(sums), nonzeros_(nonzeros) {}
    static int64_t elements(const Conv& s, int64_t pixels) { return round_up(pixels * most_elements(s), 16); }
    // Chunks are whole blocks of channels, with at least kSlots vectors of a filter.
    static int64_t chunks(const Conv& s) {
        return ceil_div(s.C / kWidth<T>, ceil_div(kSlots * kLanes, s.KH * s.KW * kWidth<T>));
    }
    static Range channels(const Conv& s, Range own) {
        const int64_t blocks = s.C / kWidth<T>, count = chunks(s);
        return {blocks * own.begin / count * kWidth<T>, blocks * own.end / count * kWidth<T>};
    }

    // Adds to the channels of `chunks` of x, `rows` rows of y at a time.
    template <typename FillRow>
    bool add(Range images, Range, Range chunks, int64_t rows, const FillRow& fill_row) {
        for (int64_t oh = 0, next; oh < s_.OH; oh = next) {
            next = smaller(s_.OH, oh + rows);
            nonzeros_.take(images, {oh, next}, fill_row);
            for (int64_t chunk = chunks.begin; chunk < chunks.end; ++chunk) {
                const Range own = channels(s_, {chunk, chunk + 1});
                multiply(images.size() * (next - oh) * s_.OW, own);
                spread(images, {oh, next}, own);
            }
        }
        return nonzeros_.finite();
    }

   private:
    static int64_t most_elements(const Conv& s) {  // of a chunk
        return ceil_div(s.C / kWidth<T>, chunks(s)) * kWidth<T> * s.KH * s.KW;
    }

    // sums_[pixel] = the pixel's values times their filters, for `channels`, in parts of up to kSlots vectors.
    void multiply(int64_t pixels, Range channels) {
        const int64_t vectors = channels.size() * taps_ / kLanes, parts = ceil_div(vectors, kSlots);
        for (int64_t part = 0; part < parts; ++part) {
            const Range slots = share(vectors, part, parts);
            const T* const filters = w_ + channels.begin * taps_ + slots.begin * kLanes;
            for (int64_t p = 0; p < pixels; ++p) {
                T* to[kSlots];
                for (int64_t i = 0; i < slots.size(); ++i) to[i] = sums_ + p * most_ + (slots.begin + i) * kLanes;
                add_products<true>(slots.size(), nonzeros_, nonzeros_.of(p), filters, to, 0);
            }
        }
    }

    // Adds the pixels' sums to the pixels of x under their windows.
    void spread(Range images, Range rows, Range channels) {
        int64_t pixel = 0;
        for (int64_t n = images.begin; n < images.end; ++n)
            for (int64_t oh = rows.begin; oh < rows.end; ++oh)
                for (int64_t ow = 0; ow < s_.OW; ++ow, ++pixel)
                    if (nonzeros_.of(pixel).size())
                        add_sums(sums_ + pixel * most_, x_ + n * s_.H * s_.W * s_.C + channels.begin,
                                 oh * s_.SH - s_.PH, ow * s_.SW - s_.PW, channels.size());
    }

    // A pixel's sums to image x, whose window begins at (h0, w0).
    ZF_INLINE void add_sums(const T* sums, T* x, int64_t h0, int64_t w0, int64_t channels) const {
        const int64_t taps = taps_;
        for (int64_t i = larger(0, -h0); i < smaller(s_.KH, s_.H - h0); ++i)
            for (int64_t j = larger(0, -w0); j < smaller(s_.KW, s_.W - w0); ++j) {
                T* const to = x + ((h0 + i) * s_.W + w0 + j) * s_.C;
                const T* const sum = sums + i * s_.KW + j;
                for (int64_t o = 0; o < channels; ++o) to[o] += sum[o * taps];
            }
    }

    const Conv& s_;
    const int64_t taps_ = s_.KH * s_.KW, most_ = most_elements(s_);
    const T* const w_;
    T *const x_, *const sums_;
    Nonzeros<T> nonzeros_;
};

// A unit of work is (images, one of `bands` bands of rows of x, group of the `parts` parts of the channels).
// start(thread) makes a PanelScatter or a PlainScatter; channels(parts) are the channels of some parts.
template <typename T, typename Start, typename Channels, typename FillRow>
bool scatter_by(const Cut& cut, T* x, int64_t bands, int64_t parts, int64_t groups, const Start& start,
                const Channels& channels, const FillRow& fill_row) {
    return for_units(cut.sets, bands, groups, cut.threads, start,
                     [&](auto& scatter, int64_t set, int64_t b, int64_t group, int) {
                         const Range images = share(cut.s.N, set, cut.sets), band = share(cut.s.H, b, bands);
                         const Range own = share(parts, group, groups);
                         zero_rows(cut.s, x, images, band, channels(own));
                         return scatter.add(images, band, own, cut.rows, fill_row);
                     });
}

// Blocks of channels share no vector of x?
template <typename T>
bool blocks_alone(const Conv& s) {
    return s.C % kWidth<T> == 0;
}

// How filters are cut for y cut so: as many pieces as the threads need.
template <typename T>
Panels<T> panels_of(const Conv& s, const Cut& cut) {
    return {s, blocks_alone<T>(s) ? groups_for(Panels<T>::blocks(s), cut.sets, cut.threads) : 1};
}

// `ready`: null, or what pack_all of the same panels made of w.
template <typename T, typename FillRow>
bool scatter_nonzeros(const Conv& s, const T* w, const T* ready, T* x, int threads, const FillRow& fill_row) {
    const Cut cut{s, threads};
    const bool alone = blocks_alone<T>(s);
    const Panels<T> panels = panels_of<T>(s, cut);
    const Scratch own(ready ? 0 : static_cast<std::size_t>(panels.elements()) * sizeof(T));
    if (!ready && !panels.pack_all(w, own.as<T>(), threads)) return false;
    const T* const packed = ready ? ready : own.as<T>();
    const int64_t groups = alone ? groups_for(panels.pieces, cut.sets, threads) : 1;
    const int64_t bands = smaller(s.H, ceil_div(threads, larger(1, cut.sets * groups)));
    const PerThread<T> memory{threads, PanelScatter<T>::elements(s)};
    const typename Nonzeros<T>::Memory lists{s, cut.pixels, threads};
    const auto start = [&](int thread) {
        return PanelScatter<T>(panels, packed, x, memory.of(thread), {lists, thread, panels.pitch()});
    };
    const auto channels = [&](Range pieces) {
        return Range{pieces.begin * panels.pitch(), smaller(s.C, pieces.end * panels.pitch())};
    };
    return scatter_by(cut, x, bands, panels.pieces, groups, start, channels, fill_row);
}

// `known`: null, unless the filters are known to be finite.
template <typename T, typename FillRow>
bool scatter_nonzeros_plain(const Conv& s, const T* w, const T* known, T* x, int threads, const FillRow& fill_row) {
    const Cut cut{s, threads};
    const int64_t filter = s.C * s.KH * s.KW, chunks = PlainScatter<T>::chunks(s);
    const bool finite = known || all_finite(s.K, threads, [&](int64_t begin, int64_t end, int) {
                            Vec<T> sum{};
                            for (int64_t e = begin * filter; e < end * filter; e += Lanes<T>::count)
                                sum += load<Vec<T>>(w + e) * 0;
                            return is_zero<T>(sum);
                        });
    if (!finite) return false;
    const PerThread<T> sums{threads, PlainScatter<T>::elements(s, cut.pixels)};
    const typename Nonzeros<T>::Memory lists{s, cut.pixels, threads};
    const auto start = [&](int thread) { return PlainScatter<T>(s, w, x, sums.of(thread), {lists, thread, filter}); };
    const auto channels = [&](Range own) { return PlainScatter<T>::channels(s, own); };
    return scatter_by(cut, x, 1, chunks, groups_for(chunks, cut.sets, threads), start, channels, fill_row);
}

}  // namespace
}  // namespace zf
