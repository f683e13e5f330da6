// Max-pooling with switches, unpooling (its adjoint) and unpooling's gradient. A unit of work is one row of one image.
#include "max_pool_row.h"
#include "switches.h"
#include "table.h"
#include "threads.h"
#include "unpool_row.h"

namespace zf::ZF_ISA {
namespace {

// y[n][oh][ow][c] = the largest x in window (oh, ow); switches, if not null: its tap kh*KW + kw.
template <typename T>
void max_pool2d(const Pool& s, const T* x, T* y, uint8_t* switches, int threads) {
    parallel_for(s.N * s.OH, threads, [&](int64_t begin, int64_t end, int) {
        for (int64_t r = begin; r < end; ++r) {
            const Window<T> map{x + r / s.OH * s.H * s.W * s.C, s.W * s.C, s.C};
            pool_row(s, r % s.OH, map, 0, s.C, r * s.OW * s.C, y, switches);
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
    int64_t offset[256];  // of a tap from its window's first element
    for (int64_t tap = 0; tap < s.KH * s.KW; ++tap) offset[tap] = (tap / s.KW * s.W + tap % s.KW) * s.C;
    return for_checked_switches(s, switches, s.N * s.OH, threads, [&](int64_t begin, int64_t end, int) {
        for (int64_t r = begin; r < end; ++r) {
            const int64_t at = r * s.OW * s.C;
            pick_row(s, r % s.OH, g + r / s.OH * s.H * s.W * s.C, offset, switches + at, gy + at);
        }
    });
}

}  // namespace

ZF_ADD(max_pool, table.max_pool2d = max_pool2d<T>; table.max_unpool2d = max_unpool2d<T>;
       table.max_unpool2d_backward = max_unpool2d_backward<T>)

}  // namespace zf::ZF_ISA
