// Convolutions one after another whose maps between them are never whole: y = conv_n(... conv_1(x)).
//
// A unit of work is (image, span of the last map's rows). Its thread goes down the span in bands: of each map between
// it makes the rows that the band needs and does not hold yet, into scratch memory that stays in L2, where the map
// itself would go out to memory and come back. Only the first band of a span makes rows that another span makes too. A
// value is made of the same sums as by the convolution alone, for a band's rows are a convolution of their own.
#pragma once
#include <vector>

#include "kernels.h"
#include "units.h"

namespace zf {

template <typename T>
struct Stage {
    Conv s;
    const T *w, *packed, *bias;
    bool relu;
    T cap;
};

namespace {

constexpr int64_t kHeldBytes = 768 << 10;  // of the rows that a thread holds, about: most of L2

// Rows `out` of a convolution as one of their own, and the rows of its input that they read.
inline Conv of_rows(Conv s, Range out, Range* in) {
    const int64_t top = out.begin * s.SH - s.PH, end = (out.end - 1) * s.SH - s.PH + s.span_h();
    *in = {larger(0, top), larger(larger(0, top), smaller(s.H, end))};
    s.N = 1, s.PH = in->begin - top, s.H = in->size(), s.OH = out.size();
    return s;
}

// Rows of a map of one image.
template <typename T>
struct HeldRows {
    T* data;
    int64_t pitch;
    Range rows{0, 0};
    // Moves what is held of [begin, ...) to the front; returns the first row that is missing.
    int64_t keep(int64_t begin) {
        const int64_t from = begin < rows.begin || begin > rows.end ? rows.end : begin;
        const int64_t held = rows.end - from;
        if (held && from > rows.begin)
            __builtin_memmove(data, data + (from - rows.begin) * pitch,
                              static_cast<std::size_t>(held * pitch) * sizeof(T));
        rows = {begin, begin + held};
        return rows.end;
    }
    T* row(int64_t h) const { return data + (h - rows.begin) * pitch; }
};

template <typename T>
void conv2d_chain(const KernelsOf<T>& k, const std::vector<Stage<T>>& stages, const T* x, const T* add, T* y,
                  int threads) {
    const std::size_t count = stages.size();
    const Conv &first = stages.front().s, &last = stages.back().s;
    // Of the rows that `rows` rows of the last map need, those of each map between, and their elements together.
    std::vector<int64_t> most(count);
    const auto elements = [&](int64_t rows) {
        int64_t all = 0;
        for (std::size_t i = count; i-- > 1;) {
            const Conv& s = stages[i].s;
            rows = smaller(s.H, (rows - 1) * s.SH + s.span_h());
            most[i - 1] = rows;
            all += round_up(rows * s.W * s.C, 16);
        }
        return all;
    };
    const int64_t parts = smaller(last.OH, ceil_div(threads, larger(1, last.N)));
    int64_t band = ceil_div(last.OH, parts);
    while (band > 1 && elements(band) * static_cast<int64_t>(sizeof(T)) > kHeldBytes) --band;
    const int64_t each = elements(band);
    const PerThread<T> memory{threads, each};
    parallel_for(last.N * parts, threads, [&](int64_t begin, int64_t end, int thread) {
        std::vector<HeldRows<T>> held(count);
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t n = unit / parts;
            const Range span = share(last.OH, unit % parts, parts);
            T* at = memory.of(thread);
            for (std::size_t i = 0; i + 1 < count; ++i) {
                const Conv& s = stages[i].s;
                held[i] = {at, s.OW * s.K};
                at += round_up(most[i] * s.OW * s.K, 16);
            }
            for (int64_t to, from = span.begin; from < span.end; from = to) {
                to = smaller(span.end, from + band);
                std::vector<Range> rows(count);
                rows[count - 1] = {from, to};
                for (std::size_t i = count; i-- > 1;) of_rows(stages[i].s, rows[i], &rows[i - 1]);
                for (std::size_t i = 0; i < count; ++i) {
                    const Stage<T>& stage = stages[i];
                    const bool ends = i + 1 == count;
                    Range out = rows[i], in{};
                    if (!ends) out.begin = held[i].keep(out.begin), held[i].rows.end = out.end;
                    if (out.size() <= 0) continue;
                    const Conv s = of_rows(stage.s, out, &in);
                    const int64_t of_y = (n * last.OH + out.begin) * last.OW * last.YP;
                    const T* const source =
                        i == 0 ? x + (n * first.H + in.begin) * first.W * first.XP : held[i - 1].row(in.begin);
                    const Epilogue<T> finish{stage.bias, ends && add ? add + of_y : nullptr, stage.relu, stage.cap};
                    k.conv2d(s, source, stage.w, stage.packed, finish, ends ? y + of_y : held[i].row(out.begin), 1);
                }
            }
        }
    });
}

}  // namespace
}  // namespace zf
