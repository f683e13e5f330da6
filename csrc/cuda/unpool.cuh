// Unpooling by gathering, for kernels that unpool while they fill shared memory.
#pragma once
#include "cuda/pack.cuh"
#include "cuda/tile.cuh"
#include "problem.h"
#include "window.h"

namespace zf::cuda {

// Pool's sizes in 32 bits: kernels divide by strides, and a 64-bit division costs several times as much.
struct Window {
    int OH, OW, KH, KW, SH, SW, PH, PW;
};

inline Window window_of(const Pool& p) {
    return {static_cast<int>(p.OH), static_cast<int>(p.OW), static_cast<int>(p.KH), static_cast<int>(p.KW),
            static_cast<int>(p.SH), static_cast<int>(p.SW), static_cast<int>(p.PH), static_cast<int>(p.PW)};
}

// The windows that cover a position along one axis: [first, last].
struct Span {
    int first, last;
};

__device__ __forceinline__ Span windows_over(int position, int count, int kernel, int stride, int padding) {
    const int before = position + padding - kernel;  // the last position that window 0 would have to begin after
    const int first =
        before < 0 ? 0 : static_cast<int>(static_cast<unsigned>(before) / static_cast<unsigned>(stride)) + 1;
    const int last = static_cast<int>(static_cast<unsigned>(position + padding) / static_cast<unsigned>(stride));
    return {first, last < count ? last : count - 1};
}

// 16 bytes of values, rounded to T.
template <typename T>
__device__ __forceinline__ uint4 rounded_chunk(const float (&v)[16 / sizeof(T)]) {
    if constexpr (sizeof(T) == 2) {
        return {rounded_pair<T>(v[0], v[1]), rounded_pair<T>(v[2], v[3]), rounded_pair<T>(v[4], v[5]),
                rounded_pair<T>(v[6], v[7])};
    } else {
        return {__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3])};
    }
}

// Channels k ... of pixel (h, w) of max_unpool2d's result, 16 bytes of them: the sum, in the windows' order, of y over
// those windows whose switch points at the pixel, rounded to T. `rows`, `cols` are the windows over h and w; y and the
// switches are (N, OH, OW, K). `vectors`: K is a multiple of 16 bytes, y lies on 16 and the switches on as many bytes.
template <typename T>
__device__ __forceinline__ uint4 unpooled(const Window& q, const T* __restrict__ y,
                                          const uint8_t* __restrict__ switches, int K, bool vectors, int64_t image,
                                          Span rows, Span cols, int h, int w, int k) {
    constexpr int kCount = 16 / static_cast<int>(sizeof(T));
    float sum[kCount] = {};
    for (int i = rows.first; i <= rows.last; ++i) {
        for (int j = cols.first; j <= cols.last; ++j) {
            const uint32_t here = (h + q.PH - i * q.SH) * q.KW + w + q.PW - j * q.SW;
            const int64_t from = ((image * q.OH + i) * q.OW + j) * K + k;
            uint4 values;
            uint32_t places[kCount / 4] = {};
            if (vectors) {
                values = *reinterpret_cast<const uint4*>(y + from);
#pragma unroll
                for (int e = 0; e < kCount / 4; ++e) {
                    places[e] = *reinterpret_cast<const uint32_t*>(switches + from + e * 4);
                }
            } else {
                values = chunk_of<T>([&](int e) { return k + e < K ? y[from + e] : T{}; });
#pragma unroll
                for (int e = 0; e < kCount; ++e) {
                    if (k + e < K) places[e / 4] |= uint32_t{switches[from + e]} << e % 4 * 8;
                }
            }
#pragma unroll
            for (int e = 0; e < kCount; ++e) {
                if ((places[e / 4] >> e % 4 * 8 & 255) == here) sum[e] += to_float(element_of<T>(values, e));
            }
        }
    }
    return rounded_chunk<T>(sum);
}

// Whether unpooled_pair and unpooled_square serve a pooling, whose maps allow vectors (see unpooled).
inline bool pairs_fit(const Pool& p, bool vectors) {
    return vectors && p.KH == 3 && p.KW == 3 && p.SH == 2 && p.SW == 2;
}

// The one or two rows of windows of 3x3 at stride 2 that cover row h, in their order: where they begin in y and the
// switches, and the number of the tap that lies in row h and the windows' first column.
template <typename T>
struct PairRows {
    const T* y[2];
    const uint8_t* switches[2];
    uint32_t tap[2];
    bool there[2];

    __device__ __forceinline__ PairRows(const Window& q, const T* maps, const uint8_t* places, int K, int64_t image,
                                        int h) {
        const int row = h + q.PH;
        const bool odd = row & 1;  // the middle of its one window, else the last row of one and the first of the next
#pragma unroll
        for (int a = 0; a < 2; ++a) {
            const int i = (row >> 1) - 1 + a;
            there[a] = !(odd && a == 0) && i >= 0 && i < q.OH;
            tap[a] = odd ? 3 : a == 0 ? 6 : 0;
            const int64_t from = there[a] ? (image * q.OH + i) * q.OW * K : 0;
            y[a] = maps + from, switches[a] = places + from;
        }
    }
};

// `unpooled` for 3x3 windows at stride 2 and two neighbouring pixels of a row, those at the padded map's columns 2j and
// 2j + 1, which windows j - 1 and j cover: the first both, the second window j alone. So a row that two rows of windows
// cover takes four loads for two pixels, another two, where `unpooled` takes six and three and asks for every window
// where it lies. Pixels outside the map may get what a window's overhang was given.
template <typename T>
__device__ __forceinline__ void unpooled_pair(const Window& q, const PairRows<T>& rows, int K, int j, int k,
                                              uint4 (&pixels)[2]) {
    constexpr int kCount = 16 / static_cast<int>(sizeof(T));
    float sum[2][kCount] = {};
#pragma unroll
    for (int a = 0; a < 2; ++a) {
        if (!rows.there[a]) continue;
#pragma unroll
        for (int b = 0; b < 2; ++b) {
            const int column = j - 1 + b, from = column * K + k;
            if (static_cast<unsigned>(column) >= static_cast<unsigned>(q.OW)) continue;
            const uint4 values = *reinterpret_cast<const uint4*>(rows.y[a] + from);
            const auto places = Bytes<kCount>::load(rows.switches[a] + from);
#pragma unroll
            for (int e = 0; e < kCount; ++e) {
                const uint32_t place = places[e];
                const float value = to_float(element_of<T>(values, e));
                if (place == rows.tap[a] + (b == 0 ? 2 : 0)) sum[0][e] += value;
                if (b == 1 && place == rows.tap[a] + 1) sum[1][e] += value;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) pixels[i] = rounded_chunk<T>(sum[i]);
}

// `unpooled` for 3x3 windows at stride 2 and four pixels, those at the padded map's rows 2i and 2i + 1 and columns 2j
// and 2j + 1; `rows` are those over the first. Windows (i - 1, j - 1) ... (i, j) cover them: four loads for four
// pixels, where two calls of unpooled_pair take six. Pixels outside the map may get what a window's overhang was given.
template <typename T>
__device__ __forceinline__ void unpooled_square(const Window& q, const PairRows<T>& rows, int K, int j, int k,
                                                uint4 (&pixels)[2][2]) {
    constexpr int kCount = 16 / static_cast<int>(sizeof(T));
    float sum[2][2][kCount] = {};
#pragma unroll
    for (int a = 0; a < 2; ++a) {
        if (!rows.there[a]) continue;
#pragma unroll
        for (int b = 0; b < 2; ++b) {
            const int column = j - 1 + b, from = column * K + k;
            if (static_cast<unsigned>(column) >= static_cast<unsigned>(q.OW)) continue;
            const uint4 values = *reinterpret_cast<const uint4*>(rows.y[a] + from);
            const auto places = Bytes<kCount>::load(rows.switches[a] + from);
#pragma unroll
            for (int e = 0; e < kCount; ++e) {
                const uint32_t byte = 255u << e % 4 * 8;
                const float value = to_float(element_of<T>(values, e));
                // Window row i - 1 has only the first row of the four, as its row 2; window row i has both, as its rows
                // 0 and 1; columns alike.
#pragma unroll
                for (int h = 0; h <= a; ++h)
#pragma unroll
                    for (int w = 0; w <= b; ++w) {
                        const uint32_t taps = ((a ? h : 2) * 3 + (b ? w : 2)) * 0x01010101u;
                        const float here = ((places.words[e / 4] ^ taps) & byte) == 0 ? value : 0.0f;
                        // The first window over a pixel has nothing to add to.
                        sum[h][w][e] = a == h && b == w ? here : sum[h][w][e] + here;
                    }
            }
        }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int w = 0; w < 2; ++w) pixels[h][w] = rounded_chunk<T>(sum[h][w]);
}

// Walks a block's threads over `count` columns of `chunks` chunks each without dividing at every step.
struct Walk {
    int column, chunk, columns_a_step, chunks_a_step, chunks;

    __device__ __forceinline__ Walk(int thread, int threads, int chunks)
        : column(thread / chunks),
          chunk(thread - column * chunks),
          columns_a_step(threads / chunks),
          chunks_a_step(threads - columns_a_step * chunks),
          chunks(chunks) {}
    __device__ __forceinline__ void next() {
        column += columns_a_step;
        chunk += chunks_a_step;
        if (chunk >= chunks) chunk -= chunks, ++column;
    }
};

}  // namespace zf::cuda
