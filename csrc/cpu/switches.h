// The check that every switch points into its own window and into the map.
#pragma once
#include <cstdint>

#include "../window.h"
#include "kernels.h"
#include "threads.h"

namespace zf {
namespace {

// The first of C switches of window (oh, ow) that points outside the window or the map; C when all are good.
inline int64_t first_bad_channel(const Pool& s, const uint8_t* switches, int64_t oh, int64_t ow) {
    const int64_t h0 = first_tap(oh, s.SH, s.PH), h1 = end_tap(oh, s.KH, s.SH, s.PH, s.H);
    const int64_t w0 = first_tap(ow, s.SW, s.PW), w1 = end_tap(ow, s.KW, s.SW, s.PW, s.W);
    uint8_t largest = 0;
    for (int64_t c = 0; c < s.C; ++c) largest = switches[c] > largest ? switches[c] : largest;
    if (h0 == 0 && w0 == 0 && h1 == s.KH && w1 == s.KW && largest < s.KH * s.KW) return s.C;
    uint8_t inside[256] = {};  // by tap
    for (int64_t h = h0; h < h1; ++h)
        for (int64_t w = w0; w < w1; ++w) inside[h * s.KW + w] = 1;
    for (int64_t c = 0; c < s.C; ++c)
        if (!inside[switches[c]]) return c;
    return s.C;
}

// The flat index of the first bad switch of the pooled rows [begin, end), numbered through all images, or INT64_MAX.
inline int64_t first_bad_switch(const Pool& s, const uint8_t* switches, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
        for (int64_t ow = 0; ow < s.OW; ++ow) {
            const int64_t at = (r * s.OW + ow) * s.C, c = first_bad_channel(s, switches + at, r % s.OH, ow);
            if (c < s.C) return at + c;
        }
    return INT64_MAX;
}

// parallel_for over `count` units of work that read switches, with the check of all switches in the same pass: -1, or
// the flat index of the first bad one. A thread checks its share of the pooled rows before it begins. Where the units
// are these rows, no body meets a bad switch; elsewhere a body must be safe with one.
template <typename Body>
int64_t for_checked_switches(const Pool& s, const uint8_t* switches, int64_t count, int threads, const Body& body) {
    int64_t first = INT64_MAX;
    parallel_for(count, threads, [&](int64_t begin, int64_t end, int thread) {
        const int64_t rows = s.N * s.OH;
        const int64_t bad = first_bad_switch(s, switches, rows * begin / count, rows * end / count);
        if (bad == INT64_MAX) return body(begin, end, thread);
        int64_t seen = __atomic_load_n(&first, __ATOMIC_RELAXED);
        while (bad < seen &&
               !__atomic_compare_exchange_n(&first, &seen, bad, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
        }
    });
    return first == INT64_MAX ? -1 : first;
}

inline int64_t first_bad_switch(const Pool& s, const uint8_t* switches, int threads) {
    return for_checked_switches(s, switches, s.N * s.OH, threads, [](int64_t, int64_t, int) {});
}

}  // namespace
}  // namespace zf
