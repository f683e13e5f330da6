// One row of max-pooling, and of its adjoint, for standalone and fused kernels.
//
// Pooling: the first maximum in row-major order wins, NaN is the maximum, and the first NaN wins. A switch is the
// winner's tap kh*KW + kw in its own, uncut window. Unpooling is a gather: a pixel adds, in row-major order of windows,
// the values of the windows whose switch points at it.
#pragma once
#include "../window.h"
#include "kernels.h"
#include "simd.h"
#include "threads.h"

namespace zf {
namespace {

// The largest of the taps [h0, h1) x [w0, w1) of kVectors vectors of channels; `window` is tap (0, 0)'s address.
template <typename T, int kVectors>
ZF_INLINE void pool_window(const T* window, int64_t pitch, int64_t pixel, int64_t h0, int64_t h1, int64_t w0,
                           int64_t w1, int64_t KW, T* y, uint8_t* switches) {
    constexpr int kLanes = Lanes<T>::count;
    using Taps = Mask<T>;
    using Scalar = decltype(Taps{}[0] + 0);
    Vec<T> best[kVectors];
    Taps winner[kVectors];
    repeat<kVectors>([&](auto v) {
        best[v.at] = load<Vec<T>>(window + h0 * pitch + w0 * pixel + v.at * kLanes);
        winner[v.at] = Taps{} + static_cast<Scalar>(h0 * KW + w0);
    });
    for (int64_t h = h0; h < h1; ++h)
        for (int64_t w = w0; w < w1; ++w) {
            const Taps tap = Taps{} + static_cast<Scalar>(h * KW + w);
            repeat<kVectors>([&](auto v) {
                const Vec<T> x = load<Vec<T>>(window + h * pitch + w * pixel + v.at * kLanes);
                // Else x is greater, or is the first NaN.
                const Taps stays = (x <= best[v.at]) | (best[v.at] != best[v.at]);
                best[v.at] = stays ? best[v.at] : x;
                winner[v.at] = stays ? winner[v.at] : tap;
            });
        }
    repeat<kVectors>([&](auto v) {
        store(y + v.at * kLanes, best[v.at]);
        narrow<T>(switches + v.at * kLanes, winner[v.at]);
    });
}

// The same for a window of kSide x kSide taps that lies inside the map, if no NaN is there: else `nans` becomes true
// somewhere. (A sum is NaN where a term is; it costs one instruction a tap, asking for NaN at each choice three.)
template <typename T, int kVectors, int kSide>
ZF_INLINE void pool_whole_window(const T* window, int64_t pitch, int64_t pixel, T* y, uint8_t* switches,
                                 Mask<T>& nans) {
    constexpr int kLanes = Lanes<T>::count;
    using Scalar = decltype(Mask<T>{}[0] + 0);
    Vec<T> best[kVectors], sum[kVectors];
    Mask<T> winner[kVectors];
    repeat<kVectors>([&](auto v) {
        sum[v.at] = best[v.at] = load<Vec<T>>(window + v.at * kLanes);
        winner[v.at] = Mask<T>{};
    });
    repeat<kSide * kSide - 1>([&](auto i) {
        constexpr int kTap = i.at + 1;
        const Mask<T> tap = Mask<T>{} + static_cast<Scalar>(kTap);
        const T* const from = window + kTap / kSide * pitch + kTap % kSide * pixel;
        repeat<kVectors>([&](auto v) {
            const Vec<T> x = load<Vec<T>>(from + v.at * kLanes);
            const Mask<T> greater = x > best[v.at];
            best[v.at] = greater ? x : best[v.at];
            winner[v.at] = greater ? tap : winner[v.at];
            sum[v.at] += x;
        });
    });
    repeat<kVectors>([&](auto v) {
        nans |= sum[v.at] != sum[v.at];
        store(y + v.at * kLanes, best[v.at]);
        narrow<T>(switches + v.at * kLanes, winner[v.at]);
    });
}

template <typename T>
ZF_INLINE void pool_window_one(const T* window, int64_t pitch, int64_t pixel, int64_t h0, int64_t h1, int64_t w0,
                               int64_t w1, int64_t KW, T* y, uint8_t* switches) {
    T best = window[h0 * pitch + w0 * pixel];
    int64_t winner = h0 * KW + w0;
    for (int64_t h = h0; h < h1; ++h)
        for (int64_t w = w0; w < w1; ++w) {
            const T x = window[h * pitch + w * pixel];
            if (!(x <= best) && best == best) best = x, winner = h * KW + w;
        }
    *y = best;
    *switches = static_cast<uint8_t>(winner);
}

// As pool_row, with whole windows of kSide x kSide taps taken the faster way, if kSide is not 0. False where that met a
// NaN, and the row is of no use.
template <typename T, int kSide>
bool pool_row_by(const Pool& s, int64_t oh, const T* map, int64_t first_row, int64_t pitch, int64_t pixel,
                 int64_t channels, T* y, uint8_t* switches) {
    constexpr int kLanes = Lanes<T>::count;
    const int64_t h0 = first_tap(oh, s.SH, s.PH), h1 = end_tap(oh, s.KH, s.SH, s.PH, s.H);
    Mask<T> nans{};
    for (int64_t ow = 0; ow < s.OW; ++ow, y += s.C, switches += s.C) {
        const int64_t w0 = first_tap(ow, s.SW, s.PW), w1 = end_tap(ow, s.KW, s.SW, s.PW, s.W);
        const int64_t row = oh * s.SH - s.PH - first_row, col = ow * s.SW - s.PW;
        const T* window = map + row * pitch + col * pixel;
        const bool whole = kSide && h1 - h0 == kSide && w1 - w0 == kSide;
        int64_t c = 0;
        const auto vectors = [&](auto count) {
            for (; c + count.at * kLanes <= channels; c += count.at * kLanes)
                if (whole)
                    pool_whole_window<T, count.at, kSide>(window + c, pitch, pixel, y + c, switches + c, nans);
                else
                    pool_window<T, count.at>(window + c, pitch, pixel, h0, h1, w0, w1, s.KW, y + c, switches + c);
        };
        vectors(Index<4>{}), vectors(Index<2>{}), vectors(Index<1>{});
        for (; c < channels; ++c) pool_window_one(window + c, pitch, pixel, h0, h1, w0, w1, s.KW, y + c, switches + c);
    }
    bool good = true;
    for (int i = 0; i < kLanes; ++i) good &= nans[i] == 0;
    return good;
}

// Row `oh` of the pooled map for `channels` channels. Row h of the map lies at map + (h - first_row) * pitch, its
// pixels `pixel` elements apart; the results' pixels are s.C elements apart.
template <typename T>
void pool_row(const Pool& s, int64_t oh, const T* map, int64_t first_row, int64_t pitch, int64_t pixel,
              int64_t channels, T* y, uint8_t* switches) {
    bool done = false;
    if (s.KH == 3 && s.KW == 3) done = pool_row_by<T, 3>(s, oh, map, first_row, pitch, pixel, channels, y, switches);
    if (s.KH == 2 && s.KW == 2) done = pool_row_by<T, 2>(s, oh, map, first_row, pitch, pixel, channels, y, switches);
    if (!done) pool_row_by<T, 0>(s, oh, map, first_row, pitch, pixel, channels, y, switches);
}

// kVectors vectors of channels of what the switches of one window point at; `window` is tap (0, 0)'s address. All taps
// inside the map are read and one is kept, which beats a lookup a channel while they are few: neighbours in memory come
// in order.
template <typename T, int kVectors>
ZF_INLINE void pick_window(const T* window, int64_t pitch, int64_t pixel, int64_t h0, int64_t h1, int64_t w0,
                           int64_t w1, int64_t KW, const uint8_t* switches, T* y) {
    constexpr int kLanes = Lanes<T>::count;
    using Taps = Mask<T>;
    using Scalar = decltype(Taps{}[0] + 0);
    Vec<T> picked[kVectors];
    Taps winner[kVectors];
    repeat<kVectors>([&](auto v) {
        picked[v.at] = Vec<T>{};
        winner[v.at] = widen<T>(switches + v.at * kLanes);
    });
    for (int64_t h = h0; h < h1; ++h)
        for (int64_t w = w0; w < w1; ++w) {
            const Taps tap = Taps{} + static_cast<Scalar>(h * KW + w);
            repeat<kVectors>([&](auto v) {
                const Vec<T> x = load<Vec<T>>(window + h * pitch + w * pixel + v.at * kLanes);
                picked[v.at] = winner[v.at] == tap ? x : picked[v.at];
            });
        }
    repeat<kVectors>([&](auto v) { store(y + v.at * kLanes, picked[v.at]); });
}

// The same for a window of kSide x kSide taps that lies inside the map.
template <typename T, int kVectors, int kSide>
ZF_INLINE void pick_whole_window(const T* window, int64_t pitch, int64_t pixel, const uint8_t* switches, T* y) {
    constexpr int kLanes = Lanes<T>::count;
    using Scalar = decltype(Mask<T>{}[0] + 0);
    Vec<T> picked[kVectors];
    Mask<T> winner[kVectors];
    repeat<kVectors>([&](auto v) {
        picked[v.at] = load<Vec<T>>(window + v.at * kLanes);
        winner[v.at] = widen<T>(switches + v.at * kLanes);
    });
    repeat<kSide * kSide - 1>([&](auto i) {
        constexpr int kTap = i.at + 1;
        const Mask<T> tap = Mask<T>{} + static_cast<Scalar>(kTap);
        const T* const from = window + kTap / kSide * pitch + kTap % kSide * pixel;
        repeat<kVectors>(
            [&](auto v) { picked[v.at] = winner[v.at] == tap ? load<Vec<T>>(from + v.at * kLanes) : picked[v.at]; });
    });
    repeat<kVectors>([&](auto v) { store(y + v.at * kLanes, picked[v.at]); });
}

// To the nearest bfloat16, ties to even; NaN stays NaN.
ZF_INLINE float to_bfloat16(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
    bits = value == value ? rounded : bits;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

// To the nearest float16, ties to even, past 65504 to infinity; NaN stays NaN.
ZF_INLINE float to_float16(float value) {
    const float size = __builtin_fabsf(value);
    if (!(size >= 6.103515625e-05f)) {             // below 2^-14 float16 has the fixed step 2^-24,
        const float fixed = (size + 0.5f) - 0.5f;  // which is float32's step from 0.5 to 1
        return value == value ? __builtin_copysignf(fixed, value) : value;
    }
    if (size >= 65520.0f) return __builtin_copysignf(__builtin_inff(), value);
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    bits = (bits + 0xfff + ((bits >> 13) & 1)) & ~0x1fffu;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

ZF_INLINE void round_all(float* values, int64_t count, Rounding rounding) {
    if (rounding == kBfloat16)
        for (int64_t i = 0; i < count; ++i) values[i] = to_bfloat16(values[i]);
    else if (rounding == kFloat16)
        for (int64_t i = 0; i < count; ++i) values[i] = to_float16(values[i]);
}
ZF_INLINE void round_all(double*, int64_t, Rounding) {}

// The windows [oh0, oh1] x [ow0, ow1] that cover one pixel, and the tap at which window (0, 0) would see it.
struct Cover {
    int64_t oh0, oh1, ow0, ow1, tap;
};

// kVectors vectors of channels of one unpooled pixel; y and switches are at its first channel of window (0, 0).
template <typename T, int kVectors>
ZF_INLINE void unpool_pixel(const Pool& s, const Cover& over, const T* y, const uint8_t* switches, T* pixel) {
    constexpr int kLanes = Lanes<T>::count;
    using Taps = Mask<T>;
    using Scalar = decltype(Taps{}[0] + 0);
    Vec<T> sum[kVectors];
    repeat<kVectors>([&](auto v) { sum[v.at] = Vec<T>{}; });
    for (int64_t oh = over.oh0; oh <= over.oh1; ++oh)
        for (int64_t ow = over.ow0; ow <= over.ow1; ++ow) {
            const Taps tap = Taps{} + static_cast<Scalar>(over.tap - oh * s.SH * s.KW - ow * s.SW);
            const int64_t at = (oh * s.OW + ow) * s.C;
            repeat<kVectors>([&](auto v) {
                const Taps winner = widen<T>(switches + at + v.at * kLanes);
                sum[v.at] += winner == tap ? load<Vec<T>>(y + at + v.at * kLanes) : Vec<T>{};
            });
        }
    repeat<kVectors>([&](auto v) { store(pixel + v.at * kLanes, sum[v.at]); });
}

// kS pixels of one row, those whose last window is (oh, ow), all of whose windows exist; s.C must be whole vectors.
// Windows have kK x kK taps, kS apart; the row meets tap row kRow of window (oh, ow). y and switches are at window
// (oh, ow), `up` elements from those above. A window's values are read once for kS pixels.
template <typename T, int kK, int kS, int kRow>
ZF_INLINE void unpool_block(int64_t channels, int64_t up, const T* y, const uint8_t* switches, T* row, int64_t pixel) {
    constexpr int kLanes = Lanes<T>::count, kDown = (kK - kRow + kS - 1) / kS, kAcross = (kK + kS - 1) / kS;
    using Scalar = decltype(Mask<T>{}[0] + 0);
    for (int64_t c = 0; c < channels; c += kLanes) {
        Vec<T> sum[kS] = {};
        repeat<kDown * kAcross>([&](auto i) {  // in row-major order of windows
            constexpr int kUp = kDown - 1 - i.at / kAcross, kLeft = kAcross - 1 - i.at % kAcross;
            const int64_t at = c - kUp * up - kLeft * channels;
            const Vec<T> value = load<Vec<T>>(y + at);
            const Mask<T> winner = widen<T>(switches + at);
            repeat<kS>([&](auto j) {
                constexpr int kTap = (kRow + kUp * kS) * kK + j.at + kLeft * kS;
                if constexpr (j.at + kLeft * kS < kK)
                    sum[j.at] += winner == Mask<T>{} + static_cast<Scalar>(kTap) ? value : Vec<T>{};
            });
        });
        repeat<kS>([&](auto j) { store(row + j.at * pixel + c, sum[j.at]); });
    }
}

// Columns from `begin` on of row h of the unpooled map, by unpool_block: returns the column before which it ended. None
// if the row or the column is not of that kind.
template <typename T, int kK, int kS>
int64_t unpool_blocks(const Pool& s, int64_t h, int64_t begin, int64_t end, const T* y, const uint8_t* switches, T* row,
                      int64_t pixel) {
    const int64_t oh = (h + s.PH) / kS, tap_row = (h + s.PH) % kS, up = s.OW * s.C;
    int64_t ow = (begin + s.PW) / kS;
    const bool aligned = (begin + s.PW) % kS == 0 && s.C % Lanes<T>::count == 0;
    if (!aligned || oh >= s.OH || oh * kS + tap_row < kK - kS || ow * kS < kK - kS) return begin;
    const int64_t last = smaller(s.OW, (end + s.PW) / kS);
    for (; ow < last; ++ow, begin += kS, row += kS * pixel) {
        const T* const own = y + oh * up + ow * s.C;
        const uint8_t* const own_switches = switches + oh * up + ow * s.C;
        repeat<kS>([&](auto r) {
            if (r.at == tap_row) unpool_block<T, kK, kS, r.at>(s.C, up, own, own_switches, row, pixel);
        });
    }
    return begin;
}

// Row h of the unpooled map, columns [begin, end), `pixel` elements apart from `row` on. y and switches are one
// image's.
template <typename T>
void unpool_row(const Pool& s, int64_t h, int64_t begin, int64_t end, const T* y, const uint8_t* switches, T* row,
                int64_t pixel) {
    constexpr int kLanes = Lanes<T>::count;
    Cover over{first_window(h, s.KH, s.SH, s.PH), last_window(h, s.SH, s.PH, s.OH),
               first_window(begin, s.KW, s.SW, s.PW), last_window(begin, s.SW, s.PW, s.OW), 0};
    const bool square = s.KH == s.KW && s.SH == 2 && s.SW == 2;
    for (int64_t w = begin; w < end; ++w, row += pixel) {
        const int64_t from = w;
        if (square && s.KH == 3) w = unpool_blocks<T, 3, 2>(s, h, w, end, y, switches, row, pixel);
        if (square && s.KH == 2) w = unpool_blocks<T, 2, 2>(s, h, w, end, y, switches, row, pixel);
        row += (w - from) * pixel;
        if (w == end) break;
        // first_window and last_window of w, without their divisions.
        while (over.ow0 * s.SW + s.KW <= w + s.PW) ++over.ow0;
        while (over.ow1 + 1 < s.OW && (over.ow1 + 1) * s.SW <= w + s.PW) ++over.ow1;
        over.tap = (h + s.PH) * s.KW + w + s.PW;
        int64_t c = 0;
        for (; c + 4 * kLanes <= s.C; c += 4 * kLanes) unpool_pixel<T, 4>(s, over, y + c, switches + c, row + c);
        for (; c + kLanes <= s.C; c += kLanes) unpool_pixel<T, 1>(s, over, y + c, switches + c, row + c);
        for (; c < s.C; ++c) {
            T sum = 0;
            for (int64_t oh = over.oh0; oh <= over.oh1; ++oh)
                for (int64_t ow = over.ow0; ow <= over.ow1; ++ow) {
                    const int64_t at = (oh * s.OW + ow) * s.C + c;
                    if (switches[at] == over.tap - oh * s.SH * s.KW - ow * s.SW) sum += y[at];
                }
            row[c] = sum;
        }
    }
}

// Lowers `first` to the flat index of the first switch of the pooled rows [begin, end), numbered through all images,
// that points outside its window or outside the map; false if there is one.
inline bool switches_are_good(const Pool& s, const uint8_t* switches, int64_t begin, int64_t end, int64_t* first) {
    for (int64_t r = begin; r < end; ++r) {
        const int64_t oh = r % s.OH;
        const int64_t h0 = first_tap(oh, s.SH, s.PH), h1 = end_tap(oh, s.KH, s.SH, s.PH, s.H);
        for (int64_t ow = 0; ow < s.OW; ++ow) {
            const int64_t w0 = first_tap(ow, s.SW, s.PW), w1 = end_tap(ow, s.KW, s.SW, s.PW, s.W);
            const int64_t at = (r * s.OW + ow) * s.C;
            uint8_t largest = 0;
            for (int64_t c = 0; c < s.C; ++c) largest = switches[at + c] > largest ? switches[at + c] : largest;
            if (h0 == 0 && w0 == 0 && h1 == s.KH && w1 == s.KW && largest < s.KH * s.KW) continue;
            uint8_t inside[256] = {};  // by tap
            for (int64_t h = h0; h < h1; ++h)
                for (int64_t w = w0; w < w1; ++w) inside[h * s.KW + w] = 1;
            for (int64_t c = 0; c < s.C; ++c) {
                if (inside[switches[at + c]]) continue;
                int64_t seen = __atomic_load_n(first, __ATOMIC_RELAXED);
                while (at + c < seen &&
                       !__atomic_compare_exchange_n(first, &seen, at + c, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
                }
                return false;
            }
        }
    }
    return true;
}

// parallel_for over `count` units of what reads switches, with the check of all switches in the same pass: -1, or the
// flat index of the first bad one. A thread checks its share of the pooled rows before it begins, so where the units
// are these rows no body meets a bad switch; elsewhere it must be safe with them.
template <typename Body>
int64_t for_checked_switches(const Pool& s, const uint8_t* switches, int64_t count, int threads, const Body& body) {
    int64_t first = INT64_MAX;
    parallel_for(count, threads, [&](int64_t begin, int64_t end, int thread) {
        const int64_t rows = s.N * s.OH;
        if (switches_are_good(s, switches, rows * begin / count, rows * end / count, &first)) body(begin, end, thread);
    });
    return first == INT64_MAX ? -1 : first;
}

inline int64_t first_bad_switch(const Pool& s, const uint8_t* switches, int threads) {
    return for_checked_switches(s, switches, s.N * s.OH, threads, [](int64_t, int64_t, int) {});
}

}  // namespace
}  // namespace zf
