// Convolutions of each channel by a filter of its own (groups == channels == maps), their input gradient and their
// weight gradient. Channels are the lanes: nothing is packed but the filters, as [tap][C], and no input is copied.
//
//   forward      y[p][c] = bias[c] + sum over taps of w[tap][c] * x[p's pixel under tap][c]
//   transposed   x[q][c] = sum over the taps that reach q of w[tap][c] * y[the tap's window][c]
//
// Both are sums of taps over pixels that lie anywhere, so one micro-kernel makes up to kPixels of them from a list of
// addresses: kPixels x 2 vectors of sums, for all channels. A list is made for each tile and serves C / 2 vectors; the
// pixels of a forward row that need no padding have a list of one address a tap (even_taps.h).
// Rows that lie in the padding are left out, unless a filter is not finite (then 0 times it is NaN, as the reference
// says); columns that do are read from a row of zeros.
#pragma once
#include <limits>

#include "conv_block.h"
#include "even_taps.h"

namespace zf {
namespace {

template <typename T>
bool depthwise(const Conv& s) {
    return s.G > 1 && s.G == s.C && s.G == s.K && s.C >= Lanes<T>::count;
}

template <typename T>
bool all_are_finite(const T* values, int64_t count) {
    constexpr int64_t kLanes = Lanes<T>::count;
    Vec<T> sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * kLanes <= count; i += 4 * kLanes)
        repeat<4>([&](auto v) { sums[v.at] += load<Vec<T>>(values + i + v.at * kLanes) * 0; });
    T sum = 0;
    for (; i < count; ++i) sum += values[i] * 0;
    return sum == 0 && is_zero<T>(sums[0] + sums[1] + sums[2] + sums[3]);
}

// to[tap][C], taps in ascending order.
template <typename T>
void pack_depthwise(const Conv& s, const T* w, T* to) {
    for (int64_t i = 0; i < s.KH; ++i)
        for (int64_t j = 0; j < s.KW; ++j, to += s.C)
            for (int64_t c = 0; c < s.C; ++c) to[c] = w[c * s.wk + i * s.wi + j * s.wj];
}

// What a tile sums: pixel t's tap n is w[n][c] * at[n * pixels + t][c]. Pixel t is column cols[t] of a row of results.
template <typename T>
struct TapList {
    const T** at;
    const T** w;
    int64_t taps = 0, pixels = 0;
    int64_t cols[kPixels] = {};
};

// sums[pixel][kVectors vectors] = bias[c] + the sum of each pixel's taps, for the channels from c on. In assembly where
// there is FMA: from intrinsics GCC 12 stores all sums at every tap.
#if defined(ZF_REGISTER)
// clang-format off
#define ZF_LANES_START_1(i, lo, hi) "vmovups (%[x]), " ZF_REGISTER(lo) "\n\t"
#define ZF_LANES_START_2(i, lo, hi)  \
    ZF_LANES_START_1(i, lo, hi)      \
    "vmovups " ZF_TEXT(ZF_BYTES) "(%[x]), " ZF_REGISTER(hi) "\n\t"
#define ZF_LANES_WEIGHT_1 "vmovups (%[x],%[c]), " ZF_W0 "\n\t"
#define ZF_LANES_WEIGHT_2 ZF_LANES_WEIGHT_1 "vmovups " ZF_TEXT(ZF_BYTES) "(%[x],%[c]), " ZF_W1 "\n\t"
#define ZF_LANES_1(s, i, lo, hi)            \
    "mov 8*" #i "(%[at]), %[x]\n\t"         \
    "vfmadd231p" s " (%[x],%[c]), " ZF_W0 ", " ZF_REGISTER(lo) "\n\t"
#define ZF_LANES_2(s, i, lo, hi) \
    ZF_LANES_1(s, i, lo, hi)     \
    "vfmadd231p" s " " ZF_TEXT(ZF_BYTES) "(%[x],%[c]), " ZF_W1 ", " ZF_REGISTER(hi) "\n\t"
#define ZF_LANES_1_float(i, lo, hi) ZF_LANES_1("s", i, lo, hi)
#define ZF_LANES_2_float(i, lo, hi) ZF_LANES_2("s", i, lo, hi)
#define ZF_LANES_1_double(i, lo, hi) ZF_LANES_1("d", i, lo, hi)
#define ZF_LANES_2_double(i, lo, hi) ZF_LANES_2("d", i, lo, hi)
#define ZF_LANES_END_1(i, lo, hi) "vmovups " ZF_REGISTER(lo) ", " ZF_TEXT(ZF_BYTES) "*" #i "(%[x])\n\t"
#define ZF_LANES_END_2(i, lo, hi) ZF_STORE_TO_X(lo) ZF_STORE_TO_X(hi)
#define ZF_STORE_TO_X(n) "vmovups " ZF_REGISTER(n) ", " ZF_TEXT(ZF_BYTES) "*" #n "(%[x])\n\t"
#define ZF_LANES_OF(T, count, vectors)                                                                            \
    inline void sum_lanes(Index<count>, Index<vectors>, const TapList<T>& list, const T* bias, int64_t c, T* sums) { \
        int64_t x, left = list.taps;                                                                              \
        const T* const* at = list.at;                                                                             \
        const T* const* w = list.w;                                                                               \
        asm volatile(                                                                                             \
            "mov %[bias], %[x]\n\t"                                                                               \
            ZF_EACH_##count(ZF_LANES_START_##vectors)                                                             \
            "test %[left], %[left]\n\t"                                                                           \
            "jz 2f\n\t"                                                                                           \
            ".p2align 5\n\t"                                                                                      \
            "1:\n\t"                                                                                              \
            "mov (%[w]), %[x]\n\t"                                                                                \
            ZF_LANES_WEIGHT_##vectors                                                                             \
            ZF_EACH_##count(ZF_LANES_##vectors##_##T)                                                             \
            "add $8*" #count ", %[at]\n\t"                                                                        \
            "add $8, %[w]\n\t"                                                                                    \
            "dec %[left]\n\t"                                                                                     \
            "jnz 1b\n\t"                                                                                          \
            "2:\n\t"                                                                                              \
            "mov %[sums], %[x]\n\t"                                                                               \
            ZF_EACH_##count(ZF_LANES_END_##vectors)                                                               \
            : [x] "=&r"(x), [at] "+r"(at), [w] "+r"(w), [left] "+r"(left)                                         \
            : [c] "r"(c * static_cast<int64_t>(sizeof(T))), [bias] "r"(bias + c), [sums] "r"(sums)                \
            : "memory", "cc", ZF_CLOBBERED);                                                                      \
    }
#define ZF_LANES(count) \
    ZF_LANES_OF(float, count, 1)  \
    ZF_LANES_OF(float, count, 2)  \
    ZF_LANES_OF(double, count, 1) \
    ZF_LANES_OF(double, count, 2)
// clang-format on
ZF_LANES(1)
ZF_LANES(2)
ZF_LANES(3)
ZF_LANES(4)
ZF_LANES(5)
ZF_LANES(6)
#if defined(__AVX512F__)
ZF_LANES(7)
ZF_LANES(8)
#endif
#else
template <typename T, int kCount, int kVectors>
void sum_lanes(Index<kCount>, Index<kVectors>, const TapList<T>& list, const T* bias, int64_t c, T* sums) {
    constexpr int64_t kLanes = Lanes<T>::count;
    Vec<T> sum[kCount * kVectors];
    repeat<kCount * kVectors>([&](auto i) { sum[i.at] = load<Vec<T>>(bias + c + i.at % kVectors * kLanes); });
    const T* const* at = list.at;
    for (int64_t n = 0; n < list.taps; ++n, at += kCount) {
        Vec<T> w[kVectors];
        repeat<kVectors>([&](auto v) { w[v.at] = load<Vec<T>>(list.w[n] + c + v.at * kLanes); });
        repeat<kCount * kVectors>([&](auto i) {
            sum[i.at] += load<Vec<T>>(at[i.at / kVectors] + c + i.at % kVectors * kLanes) * w[i.at % kVectors];
        });
    }
    repeat<kCount * kVectors>([&](auto i) { store(sums + i.at * kLanes, sum[i.at]); });
}
#endif

// out[cols[t] * step + c] = bias[c] + the sum, finished, for c in [c, end) as far as whole steps of kVectors vectors
// go; returns the first channel that is left.
template <typename T, int kCount, int kVectors>
int64_t sum_taps(Index<kCount> count, Index<kVectors> vectors, const TapList<T>& list, const T* bias,
                 const Finish<T>& finish, T* out, int64_t step, int64_t c, int64_t end) {
    constexpr int64_t kLanes = Lanes<T>::count;
    alignas(64) T sums[kCount * kVectors * kLanes];
    for (; c + kVectors * kLanes <= end; c += kVectors * kLanes) {
        sum_lanes(count, vectors, list, bias, c, sums);
        for (int64_t t = 0; t < kCount; ++t)
            repeat<kVectors>([&](auto v) {
                T* const to = out + list.cols[t] * step + c + v.at * kLanes;
                store(to, finish.vector(load<Vec<T>>(sums + (t * kVectors + v.at) * kLanes), to));
            });
    }
    return c;
}

template <typename T>
void sum_all_taps(const TapList<T>& list, const T* bias, const Finish<T>& finish, T* out, int64_t step,
                  Range channels) {
    with_count<kPixels>(list.pixels, [&](auto count) {
        for_lanes<T>(channels.begin, channels.end, [&](auto vectors, int64_t c, int64_t end) {
            return sum_taps(count, vectors, list, bias, finish, out, step, c, end);
        });
    });
}

// How both directions are cut: rows of images, and groups of channels where rows do not divide among the threads.
template <typename T>
struct DepthwiseUnits {
    const Conv& s;
    const int64_t rows, threads;
    // No group is smaller than two vectors.
    const int64_t most = larger(1, s.C / kWidth<T>), groups = groups_for(most, s.N* rows, threads);
    const int64_t list = s.KH * s.KW * (kPixels + 1);
    const PerThread<const T*> lists{threads, list};
    const PerThread<T> zeros{1, s.C};  // a pixel beside the map, and no bias

    // body(list, n, row, channels) for each.
    template <typename Body>
    void run(const Body& body) const {
        zero(zeros.of(0), s.C);
        for_units(
            s.N, rows, groups, static_cast<int>(threads),
            [&](int thread) { return TapList<T>{lists.of(thread), lists.of(thread) + s.KH * s.KW * kPixels}; },
            [&](TapList<T>& own, int64_t n, int64_t row, int64_t group, int) {
                const Range part = share(ceil_div(s.C, Lanes<T>::count), group, groups);
                body(own, n, row, Range{part.begin * Lanes<T>::count, smaller(s.C, part.end * Lanes<T>::count)});
                return true;
            });
    }
};

// The columns of a row of results whose windows lie inside the map's columns.
inline Range inner_columns(const Conv& s) {
    const int64_t begin = smaller(ceil_div(s.PW, s.SW), s.OW);
    return {begin, larger(begin, smaller(s.OW, floor_div(s.W + s.PW - s.span_w(), s.SW) + 1))};
}

// A row of results.
template <typename T>
struct DepthwiseRow {
    const Conv& s;
    const T* image;
    int64_t oh;
    const T *filters, *zeros, *bias;
    bool all_rows;  // those in the padding too

    // tap(i, row) for each row of taps: the map's row under it, null in the padding.
    template <typename Tap>
    void for_rows(const Tap& tap) const {
        for (int64_t i = 0; i < s.KH; ++i) {
            const int64_t h = oh * s.SH - s.PH + i * s.DH;
            const bool inside = h >= 0 && h < s.H;
            if (inside || all_rows) tap(i, inside ? image + h * s.W * s.XP : nullptr);
        }
    }
    // The taps of list.cols, which lie anywhere.
    void fill(TapList<T>& list) const {
        const T** at = list.at;
        list.taps = 0;
        for_rows([&](int64_t i, const T* row) {
            for (int64_t j = 0; j < s.KW; ++j, at += list.pixels) {
                list.w[list.taps++] = filters + (i * s.KW + j) * s.C;
                for (int64_t t = 0; t < list.pixels; ++t) {
                    const int64_t col = list.cols[t] * s.SW - s.PW + j * s.DW;
                    at[t] = row && col >= 0 && col < s.W ? row + col * s.XP : zeros;
                }
            }
        });
    }
    // Those of inner columns, `out` being the row's results.
    EvenTaps<T> even(const TapList<T>& memory, Range cols, const Finish<T>& finish, T* out) const {
        constexpr T kAll = std::numeric_limits<T>::infinity();
        EvenTaps<T> taps{memory.at, memory.w, 0, cols.size(), s.SW * s.XP, bias, out + cols.begin * s.YP, s.YP};
        taps.least = finish.relu ? 0 : -kAll, taps.most = finish.relu ? finish.cap : kAll;
        for_rows([&](int64_t i, const T* row) {
            for (int64_t j = 0; j < s.KW; ++j) {
                taps.at[taps.taps] = row + (cols.begin * s.SW - s.PW + j * s.DW) * s.XP;
                taps.w[taps.taps++] = filters + (i * s.KW + j) * s.C;
            }
        });
        return taps;
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
    const T *const zeros = units.zeros.of(0), *const bias = end.bias ? end.bias : zeros;
    const Finish<T> finish{y, end.add, end.relu, end.cap};
    const Range inner = kEvenPixels > 0 && !all_rows && !end.add ? inner_columns(s) : Range{0, 0};
    const int64_t tiles = ceil_div(inner.size(), larger(1, kEvenPixels));
    const int64_t others = s.OW - inner.size(), lists = ceil_div(others, kPixels);
    units.run([&](TapList<T>& list, int64_t n, int64_t oh, Range channels) {
        const DepthwiseRow<T> row{s, x + n * s.H * s.W * s.XP, oh, filters, zeros, bias, all_rows};
        T* const out = y + (n * s.OH + oh) * s.OW * s.YP;
        for (int64_t tile_at = 0; tile_at < tiles; ++tile_at) {
            const Range own = share(inner.size(), tile_at, tiles);
            const Range cols{inner.begin + own.begin, inner.begin + own.end};
            sum_all_even_taps(row.even(list, cols, finish, out), channels);
        }
        for (int64_t list_at = 0; list_at < lists; ++list_at) {
            const Range own = share(others, list_at, lists);
            list.pixels = own.size();
            for (int64_t t = 0; t < list.pixels; ++t) {
                const int64_t col = own.begin + t;
                list.cols[t] = col < inner.begin ? col : col + inner.size();
            }
            row.fill(list);
            sum_all_taps(list, bias, finish, out, s.YP, channels);
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
                for (int64_t t = 0; t < list.pixels; ++t) list.cols[t] = t;
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
                sum_all_taps(list, units.zeros.of(0), finish, to, s.SW * s.XP, channels);
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
