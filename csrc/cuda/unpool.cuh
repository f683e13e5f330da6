// Unpooling by gathering, for kernels that unpool while they fill shared memory.
#pragma once
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
    if constexpr (sizeof(T) == 2) {
        return {rounded_pair<T>(sum[0], sum[1]), rounded_pair<T>(sum[2], sum[3]), rounded_pair<T>(sum[4], sum[5]),
                rounded_pair<T>(sum[6], sum[7])};
    } else {
        return {__float_as_uint(sum[0]), __float_as_uint(sum[1]), __float_as_uint(sum[2]), __float_as_uint(sum[3])};
    }
}

}  // namespace zf::cuda
