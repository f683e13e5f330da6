// Average pooling and its adjoint. A unit of work is one row of one image; where the one window is the whole map, a
// part of its pixels and of its channels.
#include "pack.h"
#include "table.h"

namespace zf::ZF_ISA {
namespace {

// The pixels [begin, end) of the map that a window covers along one axis, and how many it counts.
struct Span {
    int64_t begin, end, counted;
};

// Of window o. Padding, if it counts, counts up to `padding` pixels beyond the map: what overhangs that does not.
inline Span span(int64_t o, int64_t kernel, int64_t stride, int64_t padding, int64_t size, bool padded) {
    const int64_t first = o * stride - padding, last = smaller(first + kernel, size + padding);
    const int64_t begin = larger(0, first), end = smaller(last, size);
    return {begin, end, padded ? last - first : end - begin};
}
inline Span rows_of(const Pool& s, int64_t oh, bool padded) { return span(oh, s.KH, s.SH, s.PH, s.H, padded); }
inline Span cols_of(const Pool& s, int64_t ow, bool padded) { return span(ow, s.KW, s.SW, s.PW, s.W, padded); }

// Calls vectors(Index<n>{}, c) for n vectors of channels from c on, until all C are done; the last of them may be done
// twice. one(c) for each channel where C is less than a vector.
template <typename T, typename Vectors, typename One>
ZF_INLINE void for_channels(int64_t C, const Vectors& vectors, const One& one) {
    constexpr int64_t kLanes = Lanes<T>::count;
    int64_t c = 0;
    for (; c + 4 * kLanes <= C; c += 4 * kLanes) vectors(Index<4>{}, c);
    for (; c + kLanes <= C; c += kLanes) vectors(Index<1>{}, c);
    if (c == C) return;
    if (C >= kLanes) return vectors(Index<1>{}, C - kLanes);
    for (; c < C; ++c) one(c);
}

// to = the sum over `rows` x `cols` pixels of kVectors vectors, times `share`; kSide x kSide pixels unless that is 0.
template <int kVectors, int kSide, typename T>
ZF_INLINE void average(const T* from, int64_t pitch, int64_t pixel, int64_t rows, int64_t cols, T share, T* to) {
    constexpr int kLanes = Lanes<T>::count;
    Vec<T> sum[kVectors];
    repeat<kVectors>([&](auto v) { sum[v.at] = load<Vec<T>>(from + v.at * kLanes); });
    const auto add = [&](const T* at) {
        repeat<kVectors>([&](auto v) { sum[v.at] += load<Vec<T>>(at + v.at * kLanes); });
    };
    if constexpr (kSide > 0) {
        repeat<kSide * kSide - 1>([&](auto i) {
            constexpr int kTap = i.at + 1;
            add(from + kTap / kSide * pitch + kTap % kSide * pixel);
        });
    } else {
        for (int64_t w = 1; w < cols; ++w) add(from + w * pixel);
        for (int64_t h = 1; h < rows; ++h)
            for (int64_t w = 0; w < cols; ++w) add(from + h * pitch + w * pixel);
    }
    const Vec<T> shares = broadcast(share);  // a division takes as long as loading four vectors from memory
    repeat<kVectors>([&](auto v) { store(to + v.at * kLanes, sum[v.at] * shares); });
}

// Row oh of image x to y, windows of kSide x kSide pixels that lie inside the map the faster way.
template <int kSide, typename T>
void average_row(const Pool& s, int64_t oh, const T* x, bool padded, T* y) {
    const Span rows = rows_of(s, oh, padded);
    const int64_t pitch = s.W * s.C, height = rows.end - rows.begin;
    for (int64_t ow = 0; ow < s.OW; ++ow, y += s.C) {
        const Span cols = cols_of(s, ow, padded);
        const int64_t width = cols.end - cols.begin;
        const T* const from = x + rows.begin * pitch + cols.begin * s.C;
        const T share = T(1) / static_cast<T>(rows.counted * cols.counted);
        const bool whole = kSide && height == kSide && width == kSide;
        const auto vectors = [&](auto n, int64_t c) {
            if (whole)
                average<n.at, kSide>(from + c, pitch, s.C, height, width, share, y + c);
            else
                average<n.at, 0>(from + c, pitch, s.C, height, width, share, y + c);
        };
        for_channels<T>(s.C, vectors, [&](int64_t c) {
            T sum = 0;
            for (int64_t h = 0; h < height; ++h)
                for (int64_t w = 0; w < width; ++w) sum += from[h * pitch + w * s.C + c];
            y[c] = sum * share;
        });
    }
}

// sums[c] of `channels` channels, over `pixels` pixels of x, C apart: eight pixels at a time, so that both the pixels
// and the sums are read in order.
template <typename T>
void sum_pixels(const T* x, int64_t pixels, int64_t C, int64_t channels, T* sums) {
    constexpr int kAtOnce = 8, kLanes = Lanes<T>::count;
    zero(sums, channels);
    for (int64_t p = 0, next; p < pixels; p = next) {
        next = smaller(p + kAtOnce, pixels);
        const T* const from = x + p * C;
        with_count<kAtOnce>(next - p, [&](auto n) {
            int64_t c = 0;
            for (; c + kLanes <= channels; c += kLanes) {
                Vec<T> sum = load<Vec<T>>(from + c);
                repeat<n.at - 1>([&](auto i) { sum += load<Vec<T>>(from + (i.at + 1) * C + c); });
                store(sums + c, load<Vec<T>>(sums + c) + sum);
            }
            for (; c < channels; ++c) {
                T sum = from[c];
                repeat<n.at - 1>([&](auto i) { sum += from[(i.at + 1) * C + c]; });
                sums[c] += sum;
            }
        });
    }
}

// The mean over whole maps. Large ones are cut into kParts, whatever the number of threads, so that two threads need
// not read the same pixels.
template <typename T>
void average_maps(const Pool& s, const T* x, T count, T* y, int threads) {
    constexpr int64_t kLarge = 512, kParts = 4;  // pixels
    const int64_t pixels = s.H * s.W, parts = pixels < kLarge ? 1 : kParts, blocks = ceil_div(s.C, kWidth<T>);
    const int64_t groups = groups_for(blocks, s.N * parts, threads);
    const PerThread<T> sums{parts == 1 ? 0 : s.N * kParts, round_up(s.C, 16)};
    for_units(
        s.N, parts, groups, threads, [](int) { return 0; },
        [&](int, int64_t n, int64_t part, int64_t group, int) {
            const Range own = share(pixels, part, parts), block = share(blocks, group, groups);
            const int64_t first = block.begin * kWidth<T>, last = smaller(s.C, block.end * kWidth<T>);
            T* const to = (parts == 1 ? y + n * s.C : sums.of(n * kParts + part)) + first;
            sum_pixels(x + (n * pixels + own.begin) * s.C + first, own.size(), s.C, last - first, to);
            for (int64_t c = 0; parts == 1 && c < last - first; ++c) to[c] /= count;
            return true;
        });
    for (int64_t n = 0; parts > 1 && n < s.N; ++n) {
        const T *const a = sums.of(n * kParts), *const b = a + sums.each, *const c = b + sums.each;
        const T* const d = c + sums.each;
        for (int64_t i = 0; i < s.C; ++i) y[n * s.C + i] = (a[i] + b[i] + (c[i] + d[i])) / count;
    }
}

// y[n][oh][ow][c] = the mean of x over window (oh, ow); the pixels of padding are counted, as zeros, if `padded`.
template <typename T>
void avg_pool2d(const Pool& s, const T* x, T* y, bool padded, int threads) {
    if (s.OH == 1 && s.OW == 1) {
        const Span rows = rows_of(s, 0, padded), cols = cols_of(s, 0, padded);
        if (rows.begin == 0 && rows.end == s.H && cols.begin == 0 && cols.end == s.W)
            return average_maps(s, x, static_cast<T>(rows.counted * cols.counted), y, threads);
    }
    parallel_for(s.N * s.OH, threads, [&](int64_t begin, int64_t end, int) {
        for (int64_t r = begin; r < end; ++r) {
            const T* const image = x + r / s.OH * s.H * s.W * s.C;
            T* const row = y + r * s.OW * s.C;
            if (s.KH == 2 && s.KW == 2)
                average_row<2>(s, r % s.OH, image, padded, row);
            else if (s.KH == 3 && s.KW == 3)
                average_row<3>(s, r % s.OH, image, padded, row);
            else
                average_row<0>(s, r % s.OH, image, padded, row);
        }
    });
}

// gx[n][h][w][c] = the sum over the windows that cover (h, w) of g, each divided by what its window counts.
template <typename T>
void avg_pool2d_backward(const Pool& s, const T* g, T* gx, bool padded, int threads) {
    constexpr int kLanes = Lanes<T>::count;
    parallel_for(s.N * s.H, threads, [&](int64_t begin, int64_t end, int) {
        for (int64_t r = begin; r < end; ++r) {
            const T* const image = g + r / s.H * s.OH * s.OW * s.C;
            const int64_t h = r % s.H;
            const Range down{first_window(h, s.KH, s.SH, s.PH), last_window(h, s.SH, s.PH, s.OH) + 1};
            T* to = gx + r * s.W * s.C;
            for (int64_t w = 0; w < s.W; ++w, to += s.C) {
                const Range across{first_window(w, s.KW, s.SW, s.PW), last_window(w, s.SW, s.PW, s.OW) + 1};
                // The windows in order: the first is written, the others are added to it.
                const auto windows = [&](const auto& one) {
                    for (int64_t oh = down.begin; oh < down.end; ++oh)
                        for (int64_t ow = across.begin; ow < across.end; ++ow) {
                            const int64_t counted = rows_of(s, oh, padded).counted * cols_of(s, ow, padded).counted;
                            one(image + (oh * s.OW + ow) * s.C, T(1) / static_cast<T>(counted));
                        }
                };
                const auto vectors = [&](auto n, int64_t c) {
                    Vec<T> sum[n.at] = {};
                    windows([&](const T* from, T share) {
                        const Vec<T> shares = broadcast(share);
                        repeat<n.at>([&](auto v) { sum[v.at] += load<Vec<T>>(from + c + v.at * kLanes) * shares; });
                    });
                    repeat<n.at>([&](auto v) { store(to + c + v.at * kLanes, sum[v.at]); });
                };
                for_channels<T>(s.C, vectors, [&](int64_t c) {
                    T sum = 0;
                    windows([&](const T* from, T share) { sum += from[c] * share; });
                    to[c] = sum;
                });
            }
        }
    });
}

}  // namespace

ZF_ADD(avg_pool, table.avg_pool2d = avg_pool2d<T>; table.avg_pool2d_backward = avg_pool2d_backward<T>)

}  // namespace zf::ZF_ISA
