// Max-pooling with switches, its adjoint (unpooling) and the adjoint's gradient. All are bound by memory: a thread
// moves V neighbouring maps, 16 bytes where C and alignment allow, and what windows share comes from L1 and L2.
//
// A block works in one row of one image's result; a thread has one (pixel, maps) position in it, neighbouring threads
// neighbouring maps.
#include "cuda/launch.h"
#include "cuda/pack.cuh"
#include "cuda/pool_window.h"
#include "cuda/window_max.cuh"

namespace zf::cuda {
namespace {

// The second launch bound (blocks a multiprocessor) keeps ptxas from spilling for the sake of more blocks.
constexpr int kThreads = 256;

// Threads of a block for rows of `places` positions.
int threads_for(int64_t places) { return static_cast<int>(smaller(kThreads, round_up(places, 32))); }

// Where a thread works: its row of rows x places, and its pixel and first map there.
struct Place {
    int row, pixel, c;
    __device__ __forceinline__ Place(int blocks_a_row, int vectors, int V) {
        row = static_cast<int>(blockIdx.x) / blocks_a_row;
        const int place = (static_cast<int>(blockIdx.x) - row * blocks_a_row) * static_cast<int>(blockDim.x) +
                          static_cast<int>(threadIdx.x);
        pixel = place / vectors;
        c = (place - pixel * vectors) * V;
    }
};

// A thread: window (oh, ow) of image n, maps c ... c + V - 1. kWindow as in window_max.
template <typename T, int V, int kWindow>
__global__ void __launch_bounds__(kThreads, 3)
    max_pool2d_kernel(PoolWindow s, int blocks_a_row, const T* __restrict__ x, T* __restrict__ y,
                      uint8_t* __restrict__ switches) {
    const Place at(blocks_a_row, s.C / V, V);
    if (at.pixel >= s.OW) return;
    const int n = at.row / s.OH, oh = at.row - n * s.OH;
    const auto best = window_max<T, V, kWindow>(s, x + int64_t{n} * s.H * s.W * s.C + at.c, oh, at.pixel);
    const int64_t to = (int64_t{at.row} * s.OW + at.pixel) * s.C + at.c;
    best.values().store(y + to);
    places(best).store(switches + to);
}

// Adds to `sum` those of a window's values whose switch is `tap`.
template <typename T, int V>
__device__ __forceinline__ void receive(const Pack<T, V>& y, const Bytes<V>& switches, int tap, float (&sum)[V]) {
#pragma unroll
    for (int i = 0; i < V; ++i)
        if (switches[i] == static_cast<uint32_t>(tap)) sum[i] += y[i];
}

// A thread: pixel (h, w) of image n, maps c ... c + V - 1; it looks at the windows that cover the pixel, in order.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads, 3)
    max_unpool2d_kernel(PoolWindow s, int blocks_a_row, const T* __restrict__ y, const uint8_t* __restrict__ switches,
                        T* __restrict__ x) {
    const Place at(blocks_a_row, s.C / V, V);
    if (at.pixel >= s.W) return;
    const int n = at.row / s.H, h = at.row - n * s.H, w = at.pixel;
    float sum[V] = {};
    const int last_h = last_window(h, s.SH, s.PH, s.OH), last_w = last_window(w, s.SW, s.PW, s.OW);
    for (int oh = first_window(h, s.KH, s.SH, s.PH); oh <= last_h; ++oh)
        for (int ow = first_window(w, s.KW, s.SW, s.PW); ow <= last_w; ++ow) {
            const int tap = (h + s.PH - oh * s.SH) * s.KW + w + s.PW - ow * s.SW;
            const int64_t from = ((int64_t{n} * s.OH + oh) * s.OW + ow) * s.C + at.c;
            receive<T, V>(Pack<T, V>::load(y + from), Bytes<V>::load(switches + from), tap, sum);
        }
    Pack<T, V>::rounded(sum).store(x + (int64_t{at.row} * s.W + w) * s.C + at.c);
}

// 3x3 windows at stride 2. A thread: the four pixels at the padded map's (2i, 2j) ... (2i + 1, 2j + 1), which windows
// (i-1, j-1) ... (i, j) cover: four loads instead of the nine that the pixels would make one by one.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads, 3)
    max_unpool2d_3x3s2_kernel(PoolWindow s, int blocks_a_row, const T* __restrict__ y,
                              const uint8_t* __restrict__ switches, T* __restrict__ x) {
    const Place at(blocks_a_row, s.C / V, V);
    const int rows = (s.H + s.PH + 1) / 2;
    const int n = at.row / rows, i = at.row - n * rows, j = at.pixel;
    if (2 * j >= s.W + s.PW) return;
    float sum[4][V] = {};
#pragma unroll
    for (int a = 0; a < 2; ++a)
#pragma unroll
        for (int b = 0; b < 2; ++b) {
            const int oh = i - 1 + a, ow = j - 1 + b;
            if (oh < 0 || oh >= s.OH || ow < 0 || ow >= s.OW) continue;
            const int64_t from = ((int64_t{n} * s.OH + oh) * s.OW + ow) * s.C + at.c;
            const auto values = Pack<T, V>::load(y + from);
            // Window row i-1 has only the pixels' first row, as its row 2; window row i has both, as its rows 0 and 1.
            const auto taps = Bytes<V>::load(switches + from);
#pragma unroll
            for (int dh = 0; dh <= a; ++dh)
#pragma unroll
                for (int dw = 0; dw <= b; ++dw)
                    receive<T, V>(values, taps, (a ? dh : 2) * 3 + (b ? dw : 2), sum[2 * dh + dw]);
        }
#pragma unroll
    for (int pixel = 0; pixel < 4; ++pixel) {
        const int h = 2 * i - s.PH + pixel / 2, w = 2 * j - s.PW + pixel % 2;
        if (h < 0 || h >= s.H || w < 0 || w >= s.W) continue;
        Pack<T, V>::rounded(sum[pixel]).store(x + ((int64_t{n} * s.H + h) * s.W + w) * s.C + at.c);
    }
}

// A thread: window (oh, ow) of image n, map c.
template <typename T>
__global__ void __launch_bounds__(kThreads, 3)
    max_unpool2d_backward_kernel(PoolWindow s, int blocks_a_row, const T* __restrict__ g,
                                 const uint8_t* __restrict__ switches, T* __restrict__ gy) {
    const Place at(blocks_a_row, s.C, 1);
    if (at.pixel >= s.OW) return;
    const int64_t to = (int64_t{at.row} * s.OW + at.pixel) * s.C + at.c;
    const int n = at.row / s.OH, tap = switches[to], kh = tap / s.KW;
    const int h = (at.row - n * s.OH) * s.SH - s.PH + kh, w = at.pixel * s.SW - s.PW + tap - kh * s.KW;
    const bool inside = kh < s.KH && h >= 0 && h < s.H && w >= 0 && w < s.W;
    gy[to] = inside ? g[((int64_t{n} * s.H + h) * s.W + w) * s.C + at.c] : rounded<T>(0.0f);
}

// 3x3 windows. A thread: window (oh, ow), maps c ... c + V - 1; it reads the whole window: nine accesses of 16 bytes
// ask the caches for less than eight single elements, each in another line.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads, 3)
    max_unpool2d_backward_3x3_kernel(PoolWindow s, int blocks_a_row, const T* __restrict__ g,
                                     const uint8_t* __restrict__ switches, T* __restrict__ gy) {
    const Place at(blocks_a_row, s.C / V, V);
    if (at.pixel >= s.OW) return;
    const int64_t to = (int64_t{at.row} * s.OW + at.pixel) * s.C + at.c;
    const int n = at.row / s.OH, top = (at.row - n * s.OH) * s.SH - s.PH, left = at.pixel * s.SW - s.PW;
    const auto taps = Bytes<V>::load(switches + to);
    float picked[V] = {};
#pragma unroll
    for (int tap = 0; tap < 9; ++tap) {
        const int h = top + tap / 3, w = left + tap % 3;
        if (h < 0 || h >= s.H || w < 0 || w >= s.W) continue;
        const auto values = Pack<T, V>::load(g + ((int64_t{n} * s.H + h) * s.W + w) * s.C + at.c);
#pragma unroll
        for (int i = 0; i < V; ++i)
            if (taps[i] == static_cast<uint32_t>(tap)) picked[i] = values[i];
    }
    Pack<T, V>::rounded(picked).store(gy + to);
}

bool is_3x3(const Pool& s) { return s.KH == 3 && s.KW == 3; }

// Whether the maps and the switches can be moved a vector of T at a time.
template <typename T, typename... Maps>
bool vectors_fit(const Pool& s, const uint8_t* switches, Maps... maps) {
    return s.C % kVector<T> == 0 && aligned(16, maps...) && aligned(kVector<T>, switches);
}

}  // namespace

void max_pool2d(const Call& call, const Pool& s, const void* x, void* y, uint8_t* switches) {
    if (s.N == 0) return;
    with_type(call.dtype, [&](auto type) {
        using T = decltype(type);
        const auto queue = [&](auto kernel, int V) {
            const int64_t places = s.OW * (s.C / V);
            const PoolWindow window(s);
            const Rows rows("max_pool2d", s, window.N * window.OH, places, threads_for(places));
            launch(call, s, rows.grid, kernel, window, rows.blocks_a_row, static_cast<const T*>(x), static_cast<T*>(y),
                   switches);
        };
        constexpr int V = kVector<T>;
        if (!vectors_fit<T>(s, switches, x, y)) return queue(max_pool2d_kernel<T, 1, 0>, 1);
        queue(is_3x3(s) ? max_pool2d_kernel<T, V, 3> : max_pool2d_kernel<T, V, 0>, V);
    });
}

void max_unpool2d(const Call& call, const Pool& s, const void* y, const uint8_t* switches, void* x) {
    if (s.N == 0) return;
    with_type(call.dtype, [&](auto type) {
        using T = decltype(type);
        const PoolWindow window(s);
        const auto queue = [&](auto kernel, int64_t rows_an_image, int64_t places) {
            const Rows rows("max_unpool2d", s, static_cast<int>(s.N * rows_an_image), places, threads_for(places));
            launch(call, s, rows.grid, kernel, window, rows.blocks_a_row, static_cast<const T*>(y), switches,
                   static_cast<T*>(x));
        };
        constexpr int V = kVector<T>;
        if (!vectors_fit<T>(s, switches, x, y)) return queue(max_unpool2d_kernel<T, 1>, s.H, s.W * s.C);
        if (is_3x3(s) && s.SH == 2 && s.SW == 2)
            return queue(max_unpool2d_3x3s2_kernel<T, V>, (s.H + s.PH + 1) / 2, (s.W + s.PW + 1) / 2 * (s.C / V));
        queue(max_unpool2d_kernel<T, V>, s.H, s.W * (s.C / V));
    });
}

void max_unpool2d_backward(const Call& call, const Pool& s, const void* g, const uint8_t* switches, void* gy) {
    if (s.N == 0) return;
    with_type(call.dtype, [&](auto type) {
        using T = decltype(type);
        constexpr int V = kVector<T>;
        const bool vectors = is_3x3(s) && vectors_fit<T>(s, switches, g, gy);
        const int64_t places = s.OW * (vectors ? s.C / V : s.C);
        const PoolWindow window(s);
        const Rows rows("max_unpool2d_backward", s, window.N * window.OH, places, threads_for(places));
        launch(call, s, rows.grid, vectors ? max_unpool2d_backward_3x3_kernel<T, V> : max_unpool2d_backward_kernel<T>,
               window, rows.blocks_a_row, static_cast<const T*>(g), switches, static_cast<T*>(gy));
    });
}

}  // namespace zf::cuda
