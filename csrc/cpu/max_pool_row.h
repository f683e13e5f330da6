// One row of max-pooling, for the standalone and the fused kernels, and one row of what its switches pick from a map of
// the input's size (the gradient of unpooling).
//
// The first maximum in row-major order wins; NaN is the maximum, and the first NaN wins. A switch is the winner's tap
// kh*KW + kw in its own, uncut window. Where nobody asks for switches (null), maxima alone are made: a third of the
// instructions of a whole window are then left out.
#pragma once
#include "../window.h"
#include "kernels.h"
#include "simd.h"

namespace zf {
namespace {

// The taps [h0, h1) x [w0, w1) of one window that lie inside the map, and the window's width KW.
struct Taps {
    int64_t h0, h1, w0, w1, KW;
    // Whether all taps of a window of side x side lie inside.
    bool whole(int64_t side) const { return h1 - h0 == side && w1 - w0 == side; }
};

inline Taps taps_of(const Pool& s, int64_t oh, int64_t ow) {
    return {first_tap(oh, s.SH, s.PH), end_tap(oh, s.KH, s.SH, s.PH, s.H), first_tap(ow, s.SW, s.PW),
            end_tap(ow, s.KW, s.SW, s.PW, s.W), s.KW};
}

// A window, or a map: its tap, or pixel, (h, w) lies at first[h * pitch + w * pixel].
template <typename T>
struct Window {
    const T* first;
    int64_t pitch, pixel;
    const T* tap(int64_t h, int64_t w) const { return first + h * pitch + w * pixel; }
};

// The maxima of kVectors vectors of channels over the taps inside the map, and their taps if kSwitches.
template <typename T, int kVectors, bool kSwitches>
ZF_INLINE void pool_window(const Window<T>& window, const Taps& taps, T* y, uint8_t* switches) {
    constexpr int kLanes = Lanes<T>::count;
    Vec<T> best[kVectors];
    Mask<T> winner[kVectors];
    repeat<kVectors>([&](auto v) {
        best[v.at] = load<Vec<T>>(window.tap(taps.h0, taps.w0) + v.at * kLanes);
        winner[v.at] = all_lanes<T>(taps.h0 * taps.KW + taps.w0);
    });
    for (int64_t h = taps.h0; h < taps.h1; ++h)
        for (int64_t w = taps.w0; w < taps.w1; ++w) {
            const Mask<T> tap = all_lanes<T>(h * taps.KW + w);
            repeat<kVectors>([&](auto v) {
                const Vec<T> x = load<Vec<T>>(window.tap(h, w) + v.at * kLanes);
                // Otherwise x is greater, or is the first NaN.
                const Mask<T> stays = (x <= best[v.at]) | (best[v.at] != best[v.at]);
                best[v.at] = stays ? best[v.at] : x;
                if constexpr (kSwitches) winner[v.at] = stays ? winner[v.at] : tap;
            });
        }
    repeat<kVectors>([&](auto v) {
        store(y + v.at * kLanes, best[v.at]);
        if constexpr (kSwitches) narrow<T>(switches + v.at * kLanes, winner[v.at]);
    });
}

// The same for a window of kSide x kSide taps inside the map; `nans` becomes true somewhere if a NaN is there. (A sum
// is NaN where a term is: one instruction a tap, where a test at each choice takes three.)
template <typename T, int kVectors, int kSide, bool kSwitches>
ZF_INLINE void pool_whole_window(const Window<T>& window, T* y, uint8_t* switches, Mask<T>& nans) {
    constexpr int kLanes = Lanes<T>::count;
    Vec<T> best[kVectors], sum[kVectors];
    Mask<T> winner[kVectors];
    repeat<kVectors>([&](auto v) {
        sum[v.at] = best[v.at] = load<Vec<T>>(window.first + v.at * kLanes);
        winner[v.at] = Mask<T>{};
    });
    repeat<kSide * kSide - 1>([&](auto i) {
        constexpr int kTap = i.at + 1;
        const Mask<T> tap = all_lanes<T>(kTap);
        const T* const from = window.tap(kTap / kSide, kTap % kSide);
        repeat<kVectors>([&](auto v) {
            const Vec<T> x = load<Vec<T>>(from + v.at * kLanes);
            const Mask<T> greater = x > best[v.at];
            best[v.at] = greater ? x : best[v.at];
            if constexpr (kSwitches) winner[v.at] = greater ? tap : winner[v.at];
            sum[v.at] += x;
        });
    });
    repeat<kVectors>([&](auto v) {
        nans |= sum[v.at] != sum[v.at];
        store(y + v.at * kLanes, best[v.at]);
        if constexpr (kSwitches) narrow<T>(switches + v.at * kLanes, winner[v.at]);
    });
}

// pool_window for one channel.
template <typename T>
ZF_INLINE void pool_window_one(const Window<T>& window, const Taps& taps, T* y, uint8_t* switches) {
    T best = *window.tap(taps.h0, taps.w0);
    int64_t winner = taps.h0 * taps.KW + taps.w0;
    for (int64_t h = taps.h0; h < taps.h1; ++h)
        for (int64_t w = taps.w0; w < taps.w1; ++w) {
            const T x = *window.tap(h, w);
            if (!(x <= best) && best == best) best = x, winner = h * taps.KW + w;
        }
    *y = best;
    if (switches) *switches = static_cast<uint8_t>(winner);
}

// As pool_row, with whole windows of kSide x kSide taps taken the faster way, unless kSide is 0. False where that met a
// NaN; the row is then undefined.
template <typename T, int kSide, bool kSwitches>
bool pool_row_by(const Pool& s, int64_t oh, const Window<T>& map, int64_t first_row, int64_t channels, T* y,
                 uint8_t* switches) {
    constexpr int kLanes = Lanes<T>::count;
    Mask<T> nans{};
    for (int64_t ow = 0; ow < s.OW; ++ow, y += s.C) {
        const Taps taps = taps_of(s, oh, ow);
        const auto marks = [&](int64_t c) { return kSwitches ? switches + ow * s.C + c : nullptr; };
        Window<T> window{map.tap(oh * s.SH - s.PH - first_row, ow * s.SW - s.PW), map.pitch, map.pixel};
        const bool whole = kSide && taps.whole(kSide);
        int64_t c = 0;
        const auto vectors = [&](auto count) {
            for (; c + count.at * kLanes <= channels; c += count.at * kLanes, window.first += count.at * kLanes)
                if (whole)
                    pool_whole_window<T, count.at, kSide, kSwitches>(window, y + c, marks(c), nans);
                else
                    pool_window<T, count.at, kSwitches>(window, taps, y + c, marks(c));
        };
        vectors(Index<4>{}), vectors(Index<2>{}), vectors(Index<1>{});
        for (; c < channels; ++c, ++window.first) pool_window_one(window, taps, y + c, marks(c));
    }
    bool good = true;
    for (int i = 0; i < kLanes; ++i) good &= nans[i] == 0;
    return good;
}

// Row `oh` of the pooled map for `channels` channels of `map`, which begins with row `first_row`; the results' pixels
// are s.C elements apart. `at` is the first result's place in all_y and in all_switches, if those are not null.
template <typename T>
void pool_row(const Pool& s, int64_t oh, const Window<T>& map, int64_t first_row, int64_t channels, int64_t at,
              T* all_y, uint8_t* all_switches) {
    const auto make = [&](auto marked) {
        constexpr bool kSwitches = marked.at;
        T* const y = all_y + at;
        uint8_t* const switches = kSwitches ? all_switches + at : nullptr;
        bool done = false;
        if (s.KH == 3 && s.KW == 3) done = pool_row_by<T, 3, kSwitches>(s, oh, map, first_row, channels, y, switches);
        if (s.KH == 2 && s.KW == 2) done = pool_row_by<T, 2, kSwitches>(s, oh, map, first_row, channels, y, switches);
        if (!done) pool_row_by<T, 0, kSwitches>(s, oh, map, first_row, channels, y, switches);
    };
    all_switches ? make(Index<1>{}) : make(Index<0>{});
}

// What the switches of one window pick, for kVectors vectors of channels. All taps inside the map are read and one is
// kept: neighbours in memory are then read in order.
template <typename T, int kVectors>
ZF_INLINE void pick_window(const Window<T>& window, const Taps& taps, const uint8_t* switches, T* y) {
    constexpr int kLanes = Lanes<T>::count;
    Vec<T> picked[kVectors];
    Mask<T> winner[kVectors];
    repeat<kVectors>([&](auto v) {
        picked[v.at] = Vec<T>{};
        winner[v.at] = widen<T>(switches + v.at * kLanes);
    });
    for (int64_t h = taps.h0; h < taps.h1; ++h)
        for (int64_t w = taps.w0; w < taps.w1; ++w) {
            const Mask<T> tap = all_lanes<T>(h * taps.KW + w);
            repeat<kVectors>([&](auto v) {
                const Vec<T> x = load<Vec<T>>(window.tap(h, w) + v.at * kLanes);
                picked[v.at] = winner[v.at] == tap ? x : picked[v.at];
            });
        }
    repeat<kVectors>([&](auto v) { store(y + v.at * kLanes, picked[v.at]); });
}

// The same for a window of kSide x kSide taps inside the map.
template <typename T, int kVectors, int kSide>
ZF_INLINE void pick_whole_window(const Window<T>& window, const uint8_t* switches, T* y) {
    constexpr int kLanes = Lanes<T>::count;
    Vec<T> picked[kVectors];
    Mask<T> winner[kVectors];
    repeat<kVectors>([&](auto v) {
        picked[v.at] = load<Vec<T>>(window.first + v.at * kLanes);
        winner[v.at] = widen<T>(switches + v.at * kLanes);
    });
    repeat<kSide * kSide - 1>([&](auto i) {
        constexpr int kTap = i.at + 1;
        const Mask<T> tap = all_lanes<T>(kTap);
        const T* const from = window.tap(kTap / kSide, kTap % kSide);
        repeat<kVectors>(
            [&](auto v) { picked[v.at] = winner[v.at] == tap ? load<Vec<T>>(from + v.at * kLanes) : picked[v.at]; });
    });
    repeat<kVectors>([&](auto v) { store(y + v.at * kLanes, picked[v.at]); });
}

// Row `oh` of what the switches pick from one image g (H, W, C) to y; offset[tap] is a tap's distance from its window's
// first element. Good switches only.
template <typename T>
void pick_row(const Pool& s, int64_t oh, const T* g, const int64_t* offset, const uint8_t* switches, T* y) {
    constexpr int kLanes = Lanes<T>::count;
    constexpr int64_t kFewTaps = 16;  // up to which reading all taps beats a lookup for each channel
    for (int64_t ow = 0; ow < s.OW; ++ow, y += s.C, switches += s.C) {
        const Taps taps = taps_of(s, oh, ow);
        const T* const first = g + ((oh * s.SH - s.PH) * s.W + ow * s.SW - s.PW) * s.C;
        const auto window = [&](int64_t c) { return Window<T>{first + c, s.W * s.C, s.C}; };
        int64_t c = 0;
        if (s.KH == 3 && s.KW == 3 && taps.whole(3))
            for (; c + 4 * kLanes <= s.C; c += 4 * kLanes) pick_whole_window<T, 4, 3>(window(c), switches + c, y + c);
        if (s.KH * s.KW <= kFewTaps) {
            for (; c + 4 * kLanes <= s.C; c += 4 * kLanes) pick_window<T, 4>(window(c), taps, switches + c, y + c);
            for (; c + kLanes <= s.C; c += kLanes) pick_window<T, 1>(window(c), taps, switches + c, y + c);
        }
        for (; c < s.C; ++c) y[c] = first[c + offset[switches[c]]];
    }
}

}  // namespace
}  // namespace zf
