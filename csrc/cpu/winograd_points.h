// The transforms of Winograd's filtering by six points along one axis: 0, 1, -1, 2, -2 and infinity (winograd.h).
#pragma once
#include "simd.h"

namespace zf {
namespace {

constexpr int64_t kTaps = 36;  // points of a tile, along both axes

// B^T of six values.
template <typename V>
ZF_INLINE void to_points(V& a, V& b, V& c, V& d, V& e, V& f) {
    const V p = e - 4 * c, q = d - 4 * b, s = e - c, t = 2 * (d - b);
    a = 4 * a - 5 * c + e, f = 4 * b - 5 * d + f;
    b = p + q, c = p - q, d = s + t, e = s - t;
}

// 6 G of kTapsOf values, `step` apart; points 1 and 2 with the other sign, 3 and 4 four times. from_points takes it
// back: what is left are products with powers of two, which are exact, so that it rounds the same wherever it is
// inlined.
template <int kTapsOf, typename V>
ZF_INLINE void filter_to_points(const V* g, int step, V* z, int z_step) {
    using S = decltype(g[0][0] + 0);
    V even = g[0], even_2 = g[0], odd = g[step], odd_2 = g[step];
    if constexpr (kTapsOf > 2) even += g[2 * step], even_2 += 4 * g[2 * step];
    if constexpr (kTapsOf > 3) odd += g[3 * step], odd_2 += 4 * g[3 * step];
    if constexpr (kTapsOf > 4) even += g[4 * step], even_2 += 16 * g[4 * step];
    z[0] = g[0] * S(1.5);
    z[z_step] = even + odd, z[2 * z_step] = even - odd;
    z[3 * z_step] = even_2 + 2 * odd_2, z[4 * z_step] = even_2 - 2 * odd_2;
    z[5 * z_step] = g[(kTapsOf - 1) * step] * S(6);
}

// 6 A^T of six values, `step` apart, to 7 - kTapsOf, with the points of a filter as filter_to_points makes them.
template <int kTapsOf, typename V>
ZF_INLINE void from_points(const V* z, int step, V* y, int y_step) {
    using S = decltype(z[0][0] + 0);
    const V p = z[step] + z[2 * step], q = z[step] - z[2 * step];
    const V r = z[3 * step] + z[4 * step], s = z[3 * step] - z[4 * step], last = z[5 * step];
    y[0] = S(0.25) * r - p + z[0];
    if constexpr (kTapsOf == 5) y[y_step] = S(0.5) * s - q + last;
    if constexpr (kTapsOf < 5) y[y_step] = S(0.5) * s - q;
    if constexpr (kTapsOf == 4) y[2 * y_step] = r - p + last;
    if constexpr (kTapsOf < 4) y[2 * y_step] = r - p;
    if constexpr (kTapsOf == 3) y[3 * y_step] = 2 * s - q + last;
    if constexpr (kTapsOf < 3) y[3 * y_step] = 2 * s - q, y[4 * y_step] = 4 * r - p + last;
}

}  // namespace
}  // namespace zf
