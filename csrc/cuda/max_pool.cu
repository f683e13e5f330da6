// Max-pooling with switches, its adjoint (unpooling) and the adjoint's gradient. All wait for memory: a thread moves V
// neighbouring maps, 16 bytes where C and alignment allow, and what windows share comes from L1 and L2.
//
// Grids: x runs over rows of the result (image * rows + row), y over pieces of a row, a thread over its (pixel, maps)
// places; both axes wrap, so no size is too large. Neighbouring threads take neighbouring maps.
#include "cuda/launch.h"
#include "cuda/pack.cuh"
#include "cuda/window_max.cuh"

namespace zf::cuda {
namespace {

constexpr int kThreads = 256;

// The grid for `rows` rows of `places` places.
Grid rows_of_places(const char* name, int64_t rows, int64_t places) {
    const int64_t threads = smaller(kThreads, round_up(places, 32));
    const int64_t pieces = smaller(ceil_div(places, threads), 65535);
    return {name, dim3(static_cast<unsigned>(smaller(rows, INT32_MAX)), static_cast<unsigned>(pieces)),
            dim3(static_cast<unsigned>(threads))};
}

// Calls body(row, place) for what is this thread's of rows x places.
template <typename Body>
__device__ __forceinline__ void for_places(int64_t rows, int64_t places, const Body& body) {
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x)
        for (int64_t place = int64_t{blockIdx.y} * blockDim.x + threadIdx.x; place < places;
             place += int64_t{gridDim.y} * blockDim.x)
            body(row, place);
}

// A thread: window (oh, ow) of image n, maps c ... c + V - 1. kWindow as in window_max.
template <typename T, int V, int kWindow>
__global__ void __launch_bounds__(kThreads)
    max_pool2d_kernel(Pool s, const T* __restrict__ x, T* __restrict__ y, uint8_t* __restrict__ switches) {
    const int64_t vectors = s.C / V;
    for_places(s.N * s.OH, s.OW * vectors, [&](int64_t row, int64_t place) {
        const int64_t ow = place / vectors, c = place % vectors * V;
        const auto best = window_max<T, V, kWindow>(s, x + row / s.OH * s.H * s.W * s.C + c, row % s.OH, ow);
        const int64_t at = (row * s.OW + ow) * s.C + c;
        best.values().store(y + at);
        places(best).store(switches + at);
    });
}

// Adds to `sum` what window (oh, ow), at `at`, sends to its tap.
template <typename T, int V>
__device__ __forceinline__ void receive(const Pack<T, V>& y, const Bytes<V>& switches, uint32_t tap, float (&sum)[V]) {
#pragma unroll
    for (int i = 0; i < V; ++i)
        if (switches[i] == tap) sum[i] += y[i];
}

// A thread: pixel (h, w) of image n, maps c ... c + V - 1; it looks at the windows that cover the pixel, in order.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    max_unpool2d_kernel(Pool s, const T* __restrict__ y, const uint8_t* __restrict__ switches, T* __restrict__ x) {
    const int64_t vectors = s.C / V;
    for_places(s.N * s.H, s.W * vectors, [&](int64_t row, int64_t place) {
        const int64_t h = row % s.H, w = place / vectors, c = place % vectors * V;
        const int64_t image = row / s.H * s.OH * s.OW * s.C + c;
        float sum[V] = {};
        const int64_t last_h = last_window(h, s.SH, s.PH, s.OH), last_w = last_window(w, s.SW, s.PW, s.OW);
        for (int64_t oh = first_window(h, s.KH, s.SH, s.PH); oh <= last_h; ++oh)
            for (int64_t ow = first_window(w, s.KW, s.SW, s.PW); ow <= last_w; ++ow) {
                const int64_t tap = (h + s.PH - oh * s.SH) * s.KW + w + s.PW - ow * s.SW;
                const int64_t at = image + (oh * s.OW + ow) * s.C;
                receive<T, V>(Pack<T, V>::load(y + at), Bytes<V>::load(switches + at), static_cast<uint32_t>(tap), sum);
            }
        Pack<T, V>::rounded(sum).store(x + (row * s.W + w) * s.C + c);
    });
}

// 3x3 windows at stride 2. A thread: the four pixels at the padded map's (2i, 2j) ... (2i + 1, 2j + 1), which windows
// (i-1, j-1) ... (i, j) cover: four loads instead of the nine that the pixels would make one by one.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    max_unpool2d_3x3s2_kernel(Pool s, const T* __restrict__ y, const uint8_t* __restrict__ switches,
                              T* __restrict__ x) {
    const int64_t vectors = s.C / V, rows = ceil_div(s.H + s.PH, 2), columns = ceil_div(s.W + s.PW, 2);
    for_places(s.N * rows, columns * vectors, [&](int64_t row, int64_t place) {
        const int64_t n = row / rows, i = row % rows, j = place / vectors, c = place % vectors * V;
        float sum[4][V] = {};
#pragma unroll
        for (int a = 0; a < 2; ++a)
#pragma unroll
            for (int b = 0; b < 2; ++b) {
                const int64_t oh = i - 1 + a, ow = j - 1 + b;
                if (oh < 0 || oh >= s.OH || ow < 0 || ow >= s.OW) continue;
                const int64_t at = ((n * s.OH + oh) * s.OW + ow) * s.C + c;
                const auto values = Pack<T, V>::load(y + at);
                const auto taps = Bytes<V>::load(switches + at);
                // Seen from window (i-1, .) pixel row 2i is its row 2; window i has both pixel rows, as 0 and 1.
#pragma unroll
                for (int dh = 0; dh <= a; ++dh)
#pragma unroll
                    for (int dw = 0; dw <= b; ++dw)
                        receive<T, V>(values, taps, (a ? dh : 2) * 3 + (b ? dw : 2), sum[2 * dh + dw]);
            }
#pragma unroll
        for (int pixel = 0; pixel < 4; ++pixel) {
            const int64_t h = 2 * i - s.PH + pixel / 2, w = 2 * j - s.PW + pixel % 2;
            if (h < 0 || h >= s.H || w < 0 || w >= s.W) continue;
            Pack<T, V>::rounded(sum[pixel]).store(x + ((n * s.H + h) * s.W + w) * s.C + c);
        }
    });
}

// A thread: window (oh, ow) of image n, map c.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    max_unpool2d_backward_kernel(Pool s, const T* __restrict__ g, const uint8_t* __restrict__ switches,
                                 T* __restrict__ gy) {
    for_places(s.N * s.OH, s.OW * s.C, [&](int64_t row, int64_t place) {
        const int64_t ow = place / s.C, c = place % s.C, at = row * s.OW * s.C + place, tap = switches[at];
        const int64_t h = row % s.OH * s.SH - s.PH + tap / s.KW, w = ow * s.SW - s.PW + tap % s.KW;
        const bool inside = tap < s.KH * s.KW && h >= 0 && h < s.H && w >= 0 && w < s.W;
        gy[at] = inside ? g[((row / s.OH * s.H + h) * s.W + w) * s.C + c] : rounded<T>(0.0f);
    });
}

// 3x3 windows. A thread: window (oh, ow), maps c ... c + V - 1; it reads the window whole, for nine accesses of 16 bytes
// ask the caches for less than eight of single elements, each in another place.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    max_unpool2d_backward_3x3_kernel(Pool s, const T* __restrict__ g, const uint8_t* __restrict__ switches,
                                     T* __restrict__ gy) {
    const int64_t vectors = s.C / V;
    for_places(s.N * s.OH, s.OW * vectors, [&](int64_t row, int64_t place) {
        const int64_t ow = place / vectors, c = place % vectors * V, at = (row * s.OW + ow) * s.C + c;
        const int64_t top = row % s.OH * s.SH - s.PH, left = ow * s.SW - s.PW;
        const T* const image = g + row / s.OH * s.H * s.W * s.C + c;
        const auto taps = Bytes<V>::load(switches + at);
        float sum[V] = {};
#pragma unroll
        for (int tap = 0; tap < 9; ++tap) {
            const int64_t h = top + tap / 3, w = left + tap % 3;
            if (h < 0 || h >= s.H || w < 0 || w >= s.W) continue;
            const auto values = Pack<T, V>::load(image + (h * s.W + w) * s.C);
#pragma unroll
            for (int i = 0; i < V; ++i)
                if (taps[i] == static_cast<uint32_t>(tap)) sum[i] = values[i];
        }
        Pack<T, V>::rounded(sum).store(gy + at);
    });
}

bool is_3x3(const Pool& s) { return s.KH == 3 && s.KW == 3; }

// Can all three arrays be moved a vector of T at a time?
template <typename T, typename... Maps>
bool vectors_fit(const Pool& s, const uint8_t* switches, Maps... maps) {
    return s.C % kVector<T> == 0 && aligned(16, maps...) && aligned(kVector<T>, switches);
}

template <typename T, int V, int kWindow>
void queue_max_pool2d(const Call& call, const Pool& s, const void* x, void* y, uint8_t* switches) {
    launch(call, s, rows_of_places("max_pool2d", s.N * s.OH, s.OW * (s.C / V)), max_pool2d_kernel<T, V, kWindow>, s,
           static_cast<const T*>(x), static_cast<T*>(y), switches);
}

}  // namespace

void max_pool2d(const Call& call, const Pool& s, const void* x, void* y, uint8_t* switches) {
    if (s.N == 0) return;
    with_type(call.dtype, [&](auto type) {
        using T = decltype(type);
        if (!vectors_fit<T>(s, switches, x, y)) return queue_max_pool2d<T, 1, 0>(call, s, x, y, switches);
        const auto queue = is_3x3(s) ? queue_max_pool2d<T, kVector<T>, 3> : queue_max_pool2d<T, kVector<T>, 0>;
        queue(call, s, x, y, switches);
    });
}

void max_unpool2d(const Call& call, const Pool& s, const void* y, const uint8_t* switches, void* x) {
    if (s.N == 0) return;
    with_type(call.dtype, [&](auto type) {
        using T = decltype(type);
        constexpr int V = kVector<T>;
        const auto queue = [&](auto kernel, int64_t rows, int64_t places) {
            launch(call, s, rows_of_places("max_unpool2d", rows, places), kernel, s, static_cast<const T*>(y), switches,
                   static_cast<T*>(x));
        };
        if (!vectors_fit<T>(s, switches, x, y)) return queue(max_unpool2d_kernel<T, 1>, s.N * s.H, s.W * s.C);
        if (is_3x3(s) && s.SH == 2 && s.SW == 2)
            return queue(max_unpool2d_3x3s2_kernel<T, V>, s.N * ceil_div(s.H + s.PH, 2),
                         ceil_div(s.W + s.PW, 2) * (s.C / V));
        queue(max_unpool2d_kernel<T, V>, s.N * s.H, s.W * (s.C / V));
    });
}

void max_unpool2d_backward(const Call& call, const Pool& s, const void* g, const uint8_t* switches, void* gy) {
    if (s.N == 0) return;
    with_type(call.dtype, [&](auto type) {
        using T = decltype(type);
        constexpr int V = kVector<T>;
        const bool vectors = is_3x3(s) && vectors_fit<T>(s, switches, g, gy);
        launch(call, s, rows_of_places("max_unpool2d_backward", s.N * s.OH, s.OW * (vectors ? s.C / V : s.C)),
               vectors ? max_unpool2d_backward_3x3_kernel<T, V> : max_unpool2d_backward_kernel<T>, s,
               static_cast<const T*>(g), switches, static_cast<T*>(gy));
    });
}

}  // namespace zf::cuda
