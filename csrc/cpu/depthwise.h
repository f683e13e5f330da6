// Convolutions of each channel by a filter of its own (groups == channels == maps), their input gradient and their
// weight gradient. Channels are the lanes: nothing is packed but the filters, as [tap][C], and no input is copied.
//
//   forward      y[p][c] = bias[c] + sum over taps of w[tap][c] * x[p's pixel under tap][c]
//   transposed   x[q][c] = sum over the taps that reach q of w[tap][c] * y[the tap's window][c]
//
// Both are sums of taps over pixels that lie anywhere, so one micro-kernel makes up to kPixels of them from a list of
// addresses: kPixels x 2 vectors of sums, for all channels. A list is made for each tile and serves C / 2 vectors.
// Rows that lie in the padding are left out, unless a filter is not finite (then 0 times it is NaN, as the reference
// says); columns that do are read from a row of zeros.
#pragma once
#include "conv_block.h"

namespace zf {
namespace {

template <typename T>
bool depthwise(const Conv& s) {
    return s.G > 1 && s.G == s.C && s.G == s.K && s.C >= Lanes<T>::count;
}

template <typename T>
bool all_are_finite(const T* values, int64_t count) {
    T sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += values[i] * 0;
    return sum == 0;
}

// to[tap][C], taps in ascending order.
template <typename T>
void pack_depthwise(const Conv& s, const T* w, T* to) {
    for (int64_t i = 0; i < s.KH; ++i)
        for (int64_t j = 0; j < s.KW; ++j, to += s.C)
            for (int64_t c = 0; c < s.C; ++c) to[c] = w[c * s.wk + i * s.wi + j * s.wj];
}

// What a tile sums: pixel t's tap n is w[n][c] * at[n * pixels + t][c].
template <typename T>
struct TapList {
    const T** at;
    const T** w;
    int64_t taps, pixels;
};

// out[t * step + c] = bias[c] + the sum, finished, for c in [c, end) as far as whole steps of kVectors vectors go;
// returns the first channel that is left. (Inlined, all counts in one function, sums would be kept in memory.)
template <typename T, int kCount, int kVectors>
__attribute__((noinline)) int64_t sum_taps(Index<kCount>, Index<kVectors>, const TapList<T>& list, const T* bias,
                                           const Finish<T>& finish, T* out, int64_t step, int64_t c, int64_t end) {
    constexpr int64_t kLanes = Lanes<T>::count;
    for (; c + kVectors * kLanes <= end; c += kVectors * kLanes) {
        Vec<T> sum[kCount * kVectors];
        repeat<kCount * kVectors>(
            [&](auto i) { sum[i.at] = bias ? load<Vec<T>>(bias + c + i.at % kVectors * kLanes) : Vec<T>{}; });
        const T* const* at = list.at;
        for (int64_t n = 0; n < list.taps; ++n, at += kCount) {
            Vec<T> w[kVectors];
            repeat<kVectors>([&](auto v) { w[v.at] = load<Vec<T>>(list.w[n] + c + v.at * kLanes); });
            repeat<kCount>([&](auto t) {
                const T* const pixel = at[t.at] + c;
                repeat<kVectors>(
                    [&](auto v) { add_product(sum[t.at * kVectors + v.at], w[v.at], pixel + v.at * kLanes); });
            });
        }
        repeat<kCount * kVectors>([&](auto i) {
            T* const to = out + i.at / kVectors * step + c + i.at % kVectors * kLanes;
            store(to, finish.vector(sum[i.at], to));
        });
    }
    return c;
}

// All channels [begin, end), at least a vector of them: the last vector may overlap the one before it.
template <typename T>
void sum_all_taps(const TapList<T>& list, const T* bias, const Finish<T>& finish, T* out, int64_t step,
                  Range channels) {
    with_count<kPixels>(list.pixels, [&](auto count) {
        int64_t c = sum_taps(count, Index<2>{}, list, bias, finish, out, step, channels.begin, channels.end);
        c = sum_taps(count, Index<1>{}, list, bias, finish, out, step, c, channels.end);
        const int64_t last = channels.end - Lanes<T>::count;
        if (c < channels.end) sum_taps(count, Index<1>{}, list, bias, finish, out, step, last, channels.end);
    });
}

// How both directions are cut: rows of images, and groups of channels where rows do not divide among the threads.
template <typename T>
struct DepthwiseUnits {
    const Conv& s;
    const int64_t rows, threads;
    // No group is smaller than two vectors.
    const int64_t groups = groups_for(larger(1, s.C / kWidth<T>), s.N* rows, threads);
    const int64_t list = s.KH * s.KW * (kPixels + 1);
    const PerThread<const T*> lists{threads, list};
    const PerThread<T> zeros{1, s.C};

    // body(list, n, row, channels) for each.
    template <typename Body>
    void run(const Body& body) const {
        zero(zeros.of(0), s.C);
        for_units(
            s.N, rows, groups, static_cast<int>(threads),
            [&](int thread) { return TapList<T>{lists.of(thread), lists.of(thread) + s.KH * s.KW * kPixels, 0, 0}; },
            [&](TapList<T>& own, int64_t n, int64_t row, int64_t group, int) {
                const Range part = share(ceil_div(s.C, Lanes<T>::count), group, groups);
                body(own, n, row, Range{part.begin * Lanes<T>::count, smaller(s.C, part.end * Lanes<T>::count)});
                return true;
            });
    }
};

template <typename T>
void depthwise_forward(const Conv& s, const T* x, const T* w, const T* ready, const Epilogue<T>& end, T* y,
                       int threads) {
    const PerThread<T> memory{1, ready ? 0 : s.KH * s.KW * s.C};
    if (!ready) pack_depthwise(s, w, memory.of(0));
    const T* const filters = ready ? ready : memory.of(0);
    const bool all_rows = !all_are_finite(filters, s.KH * s.KW * s.C);
    const DepthwiseUnits<T> units{s, s.OH, threads};
    const Finish<T> finish{y, end.add, end.relu, end.cap};
    const int64_t tiles = ceil_div(s.OW, kPixels);
    units.run([&](TapList<T>& list, int64_t n, int64_t oh, Range channels) {
        for (int64_t tile_at = 0; tile_at < tiles; ++tile_at) {
            const Range own = share(s.OW, tile_at, tiles);
            const T* const zeros = units.zeros.of(0);
            const T** at = list.at;
            list.taps = 0, list.pixels = own.size();
            for (int64_t i = 0; i < s.KH; ++i) {
                const int64_t h = oh * s.SH - s.PH + i * s.DH;
                const bool inside = h >= 0 && h < s.H;
                if (!inside && !all_rows) continue;
                const T* const row = x + (n * s.H + h) * s.W * s.XP;
                for (int64_t j = 0; j < s.KW; ++j, at += list.pixels) {
                    const int64_t left = own.begin * s.SW - s.PW + j * s.DW;
                    list.w[list.taps++] = filters + (i * s.KW + j) * s.C;
                    if (inside && left >= 0 && left + (list.pixels - 1) * s.SW < s.W) {
                        for (int64_t t = 0; t < list.pixels; ++t) at[t] = row + (left + t * s.SW) * s.XP;
                        continue;
                    }
                    for (int64_t t = 0; t < list.pixels; ++t) {
                        const int64_t col = left + t * s.SW;
                        at[t] = inside && col >= 0 && col < s.W ? row + col * s.XP : zeros;
                    }
                }
            }
            sum_all_taps(list, end.bias, finish, y + ((n * s.OH + oh) * s.OW + own.begin) * s.YP, s.YP, channels);
        }
    });
}

// False where a filter is not finite: it would spread to where no tap reaches.
template <typename T>
bool depthwise_transposed(const Conv& s, const T* y, const T* w, T* x, int threads) {
    const PerThread<T> memory{1, s.KH * s.KW * s.C};
    T* const filters = memory.of(0);
    pack_depthwise(s, w, filters);
    if (!all_are_finite(filters, s.KH * s.KW * s.C)) return false;
    const DepthwiseUnits<T> units{s, s.H, threads};
    const Finish<T> finish{x, nullptr, false, 0};
    units.run([&](TapList<T>& list, int64_t n, int64_t h, Range channels) {
        // Columns of one residue of the stride meet the same taps.
        for (int64_t residue = 0; residue < smaller(s.SW, s.W); ++residue) {
            const int64_t all = (s.W - residue + s.SW - 1) / s.SW, tiles = ceil_div(all, kPixels);
            for (int64_t tile_at = 0; tile_at < tiles; ++tile_at) {
                const Range own = share(all, tile_at, tiles);
                const int64_t first = residue + own.begin * s.SW;  // column
                const T** at = list.at;
                list.taps = 0, list.pixels = own.size();
                for (int64_t i = 0; i < s.KH; ++i) {
                    const int64_t down = h + s.PH - i * s.DH, oh = down / s.SH;
                    if (down < 0 || down % s.SH || oh >= s.OH) continue;
                    const T* const row = y + (n * s.OH + oh) * s.OW * s.YP;
                    for (int64_t j = 0; j < s.KW; ++j) {
                        const int64_t across = first + s.PW - j * s.DW;
                        if (floor_div(across, s.SW) * s.SW != across) continue;
                        const int64_t ow = floor_div(across, s.SW);
                        list.w[list.taps++] = filters + (i * s.KW + j) * s.C;
                        for (int64_t t = 0; t < list.pixels; ++t)
                            at[t] = ow + t >= 0 && ow + t < s.OW ? row + (ow + t) * s.YP : units.zeros.of(0);
                        at += list.pixels;
                    }
                }
                T* const to = x + ((n * s.H + h) * s.W + first) * s.XP;
                sum_all_taps<T>(list, nullptr, finish, to, s.SW * s.XP, channels);
            }
        }
    });
    return true;
}

// total[n] += sum over pixels p of g[p] * at[n][p * step], a vector each, for n < kCount.
template <typename T, int kCount>
__attribute__((noinline)) void add_row(Index<kCount>, const T* g, int64_t pixels, const T* const* at, int64_t step,
                                       T* total) {
    constexpr int64_t kLanes = Lanes<T>::count;
    Vec<T> sum[kCount];
    repeat<kCount>([&](auto n) { sum[n.at] = Vec<T>{}; });
    for (int64_t p = 0; p < pixels; ++p) {
        const Vec<T> v = load<Vec<T>>(g + p * kLanes);
        repeat<kCount>([&](auto n) { add_product(sum[n.at], v, at[n.at] + p * step); });
    }
    repeat<kCount>([&](auto n) { store(total + n.at * kLanes, load<Vec<T>>(total + n.at * kLanes) + sum[n.at]); });
}

// gw[c][0][i][j] = sum over n, oh, ow of g[n][oh][ow][c] * x[..][c]; gb[c] = sum of g. A unit of work is a vector of
// channels: for each image it copies them, padded, and passes over the rows of g, 12 taps at a time.
template <typename T>
void depthwise_weight_grad(const Conv& s, const T* x, const T* g, T* gw, T* gb, int threads) {
    constexpr int64_t kLanes = Lanes<T>::count;
    constexpr int kTogether = 12;
    const int64_t taps = s.KH * s.KW, Hp = (s.OH - 1) * s.SH + s.span_h(), Wp = (s.OW - 1) * s.SW + s.span_w();
    const PerThread<T> memory{threads, (Hp * Wp + s.OW + taps + 1) * kLanes};
    parallel_for(ceil_div(s.C, kLanes), threads, [&](int64_t begin, int64_t end, int thread) {
        T* const padded = memory.of(thread);
        T* const row = padded + Hp * Wp * kLanes;
        T* const totals = row + s.OW * kLanes;
        for (int64_t block = begin; block < end; ++block) {
            const int64_t c = block * kLanes, lanes = smaller(kLanes, s.C - c);
            zero(padded, Hp * Wp * kLanes), zero(row, (s.OW + taps + 1) * kLanes);
            for (int64_t n = 0; n < s.N; ++n) {
                for (int64_t h = 0; h < smaller(s.H, Hp - s.PH); ++h)
                    for (int64_t w = 0; w < smaller(s.W, Wp - s.PW); ++w)
                        copy(padded + ((h + s.PH) * Wp + w + s.PW) * kLanes, x + ((n * s.H + h) * s.W + w) * s.XP + c,
                             lanes);
                for (int64_t oh = 0; oh < s.OH; ++oh) {
                    for (int64_t ow = 0; ow < s.OW; ++ow)
                        copy(row + ow * kLanes, g + ((n * s.OH + oh) * s.OW + ow) * s.YP + c, lanes);
                    for (int64_t first = 0, next; first < taps; first = next) {
                        next = smaller(taps, first + kTogether);
                        const T* at[kTogether];
                        for (int64_t tap = first; tap < next; ++tap)
                            at[tap - first] =
                                padded + ((oh * s.SH + tap / s.KW * s.DH) * Wp + tap % s.KW * s.DW) * kLanes;
                        with_count<kTogether>(next - first, [&](auto count) {
                            add_row(count, row, s.OW, at, s.SW * kLanes, totals + first * kLanes);
                        });
                    }
                    Vec<T> sum = Vec<T>{};
                    for (int64_t ow = 0; ow < s.OW; ++ow) sum += load<Vec<T>>(row + ow * kLanes);
                    T* const bias = totals + taps * kLanes;
                    store(bias, load<Vec<T>>(bias) + sum);
                }
            }
            for (int64_t o = 0; o < lanes; ++o) {
                for (int64_t tap = 0; tap < taps; ++tap)
                    gw[(c + o) * s.wk + tap / s.KW * s.wi + tap % s.KW * s.wj] = totals[tap * kLanes + o];
                if (gb) gb[c + o] = totals[taps * kLanes + o];
            }
        }
    });
}

}  // namespace
}  // namespace zf
