// One row of unpooling, for the standalone and the fused kernels: a gather. A pixel adds, in row-major order of
// windows, the values of the windows whose switch points at it.
#pragma once
#include "../window.h"
#include "kernels.h"
#include "simd.h"

namespace zf {
namespace {

// The windows [oh0, oh1] x [ow0, ow1] that cover one pixel, and the tap at which window (0, 0) would see it.
struct Cover {
    int64_t oh0, oh1, ow0, ow1, tap;
};

// kVectors vectors of channels of one unpooled pixel; y and switches are at its first channel of window (0, 0).
template <typename T, int kVectors>
ZF_INLINE void unpool_pixel(const Pool& s, const Cover& over, const T* y, const uint8_t* switches, T* pixel) {
    constexpr int kLanes = Lanes<T>::count;
    Vec<T> sum[kVectors];
    repeat<kVectors>([&](auto v) { sum[v.at] = Vec<T>{}; });
    for (int64_t oh = over.oh0; oh <= over.oh1; ++oh)
        for (int64_t ow = over.ow0; ow <= over.ow1; ++ow) {
            const Mask<T> tap = all_lanes<T>(over.tap - oh * s.SH * s.KW - ow * s.SW);
            const int64_t at = (oh * s.OW + ow) * s.C;
            repeat<kVectors>([&](auto v) {
                const Mask<T> winner = widen<T>(switches + at + v.at * kLanes);
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
    for (int64_t c = 0; c < channels; c += kLanes) {
        Vec<T> sum[kS] = {};
        repeat<kDown * kAcross>([&](auto i) {  // in row-major order of windows
            constexpr int kUp = kDown - 1 - i.at / kAcross, kLeft = kAcross - 1 - i.at % kAcross;
            const int64_t at = c - kUp * up - kLeft * channels;
            const Vec<T> value = load<Vec<T>>(y + at);
            const Mask<T> winner = widen<T>(switches + at);
            repeat<kS>([&](auto j) {
                constexpr int kTap = (kRow + kUp * kS) * kK + j.at + kLeft * kS;
                if constexpr (j.at + kLeft * kS < kK) sum[j.at] += winner == all_lanes<T>(kTap) ? value : Vec<T>{};
            });
        });
        repeat<kS>([&](auto j) { store(row + j.at * pixel + c, sum[j.at]); });
    }
}

// Columns from `begin` on of row h of the unpooled map, by unpool_block: returns the column after the last. That is
// `begin` where unpool_block's conditions do not hold.
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

}  // namespace
}  // namespace zf
