// Max-pooling with switches, its adjoint (unpooling) and the adjoint's gradient. A unit of work is one row of one
// image.
#include "max_pool_row.h"
#include "table.h"

namespace zf {
namespace ZF_ISA {
namespace {

// y[n][oh][ow][c] = the largest x in window (oh, ow); switches: its tap kh*KW + kw.
template <typename T>
void max_pool2d(const Pool& s, const T* x, T* y, uint8_t* switches, int threads) {
    parallel_for(s.N * s.OH, threads, [&](int64_t begin, int64_t end, int) {
        for (int64_t r = begin; r < end; ++r) {
            const int64_t at = r * s.OW * s.C;
            pool_row(s, r % s.OH, x + r / s.OH * s.H * s.W * s.C, 0, s.W * s.C, s.C, s.C, y + at, switches + at);
        }
    });
}

// x[n][h][w][c] = sum of y over the windows that cover (h, w) and whose switch points at it.
template <typename T>
int64_t max_unpool2d(const Pool& s, const T* y, const uint8_t* switches, T* x, int threads) {
    return for_checked_switches(s, switches, s.N * s.H, threads, [&](int64_t begin, int64_t end, int) {
        for (int64_t r = begin; r < end; ++r) {
            const int64_t image = r / s.H * s.OH * s.OW * s.C;
            unpool_row(s, r % s.H, 0, s.W, y + image, switches + image, x + r * s.W * s.C, s.C);
        }
    });
}

// gy[n][oh][ow][c] = g at the pixel that the switch of window (oh, ow) points at.
template <typename T>
int64_t max_unpool2d_backward(const Pool& s, const T* g, const uint8_t* switches, T* gy, int threads) {
    constexpr int kLanes = Lanes<T>::count;
    constexpr int64_t kFewTaps = 16;
    const int64_t pitch = s.W * s.C;
    int64_t offset[256];  // of a tap from its window's first element
    for (int64_t tap = 0; tap < s.KH * s.KW; ++tap) offset[tap] = tap / s.KW * pitch + tap % s.KW * s.C;
    return for_checked_switches(s, switches, s.N * s.OH, threads, [&](int64_t begin, int64_t end, int) {
        for (int64_t r = begin; r < end; ++r) {
            const int64_t oh = r % s.OH, row = r / s.OH * s.H + oh * s.SH - s.PH;
            const int64_t h0 = first_tap(oh, s.SH, s.PH), h1 = end_tap(oh, s.KH, s.SH, s.PH, s.H);
            for (int64_t ow = 0; ow < s.OW; ++ow) {
                const int64_t w0 = first_tap(ow, s.SW, s.PW), w1 = end_tap(ow, s.KW, s.SW, s.PW, s.W);
                const T* const window = g + (row * s.W + ow * s.SW - s.PW) * s.C;
                const uint8_t* const own = switches + (r * s.OW + ow) * s.C;
                T* const to = gy + (r * s.OW + ow) * s.C;
                int64_t c = 0;
                if (s.KH == 3 && s.KW == 3 && h1 - h0 == 3 && w1 - w0 == 3)
                    for (; c + 4 * kLanes <= s.C; c += 4 * kLanes)
                        pick_whole_window<T, 4, 3>(window + c, pitch, s.C, own + c, to + c);
                if (s.KH * s.KW <= kFewTaps) {
                    for (; c + 4 * kLanes <= s.C; c += 4 * kLanes)
                        pick_window<T, 4>(window + c, pitch, s.C, h0, h1, w0, w1, s.KW, own + c, to + c);
                    for (; c + kLanes <= s.C; c += kLanes)
                        pick_window<T, 1>(window + c, pitch, s.C, h0, h1, w0, w1, s.KW, own + c, to + c);
                }
                for (; c < s.C; ++c) to[c] = window[c + offset[own[c]]];
            }
        }
    });
}

}  // namespace

template <typename T>
void add_max_pool(KernelsOf<T>& kernels) {
    kernels.max_pool2d = max_pool2d<T>;
    kernels.max_unpool2d = max_unpool2d<T>;
    kernels.max_unpool2d_backward = max_unpool2d_backward<T>;
}
template void add_max_pool(KernelsOf<float>&);
template void add_max_pool(KernelsOf<double>&);

}  // namespace ZF_ISA
}  // namespace zf
