// max_unpool2d_relu_conv_transpose2d: the deconvnet's layer without its unpooled map.
//
// layer_reversed_kernel serves first layers (few channels C, narrow enough K) in half precision: unpooling by switches,
// rectifier and transposed convolution in one kernel. Everything else is the composition of max_unpool2d and
// conv_transpose2d over a map in the workspace; docs/design/cuda.md has the estimate behind that choice.
//
// Result row h = r*SH + rh - PH and column w = s*SW + rw - PW: a residue class (rh, rw) of each group of rows r and of
// columns s. Window row i gives group r = i + a its taps kh = a*SH + rh; window column s - b gives group s its taps
// kw = b*SW + rw. So there is one matrix product for each window row i, and two of them are made at once:
//
//     rows      64 groups of columns s, a pixel of either unpooled row each
//     columns   (a; rh, rw, c): for 7x7 stride 2 and 3 channels 4 groups of up to 12, in tiles of 8: 2, 2, 2 and 1
//     sum       (b, k): 4 taps x 96 maps; the pixel moves by one for each b, and no im2col is needed
//
// The sums of group a belong to row group i + a, so they stay in registers from window row to window row: after rows i
// and i + 1 the groups of these numbers are finished and written, and the others move down by two. No result is ever
// added to in memory: no atomics, the same bits on every run. Pairs of window rows begin where those of the padded
// pooled map do, whatever the band, so a result's sum has its terms in an order that depends on its row's parity alone.
//
// A block makes a band of row groups of one image for 64 column groups: 4 warps, 16 groups each, of both rows; so each
// fragment of the filters serves two. It holds the packed filters (56 rows of b*k, 44 KB for conv1) and two pairs of
// unpooled rows of 67 pixels (56 KB): while the warps multiply one pair, they gather the next from the pooled map and
// the switches, 16 bytes of maps a thread, summed in the windows' order, rounded to the type as max_unpool2d rounds it,
// rectified. A band starts (KH-1)/SH window rows early. Rows in shared memory are 16 bytes longer than a multiple of
// 32, so that ldmatrix's 8 rows fall on different banks.
#include <algorithm>

#include "cuda/correlation.h"
#include "cuda/launch.h"
#include "cuda/pack.cuh"
#include "cuda/tile.cuh"
#include "cuda/unpool.cuh"

namespace zf::cuda {
namespace {

constexpr int kThreadsReversed = 128;
constexpr int kGroups = 4;  // of rows that one window row adds to
constexpr int kTiles = 7;   // of 8 columns: 2 a group, 1 for the last
constexpr int kPixels = 64;
constexpr int kRows = 2;  // window rows at once

template <class T>
struct Reversed {
    int64_t N;
    int H, W, C, K, OH, OW, KH, KW, SH, SW, PH, PW;
    Window pool;
    const T* y;
    const uint8_t* switches;
    const T* packed;  // [8 * kTiles][filter_pitch]
    T* x;
    bool rectify, vectors;
    int channels, taps;             // K and zeros up to a multiple of 16; window columns a pixel's sum runs over (b)
    int pixel_pitch, filter_pitch;  // elements from a pixel, a filter row, to the next in shared memory
    int first_r, end_r, first_s;    // groups of rows, of columns
    int band_rows, bands, column_blocks;
};

// Row n of the packed filters: column n of the product. One block a row.
template <class T>
__global__ void __launch_bounds__(128) pack_columns_kernel(Reversed<T> p, const T* __restrict__ w, int64_t wk,
                                                           int64_t wc, int64_t wi, int64_t wj, T* packed) {
    const int n = blockIdx.x, col = n % 16;
    const int kh = n / 16 * p.SH + col / (p.SW * p.C), rw = col / p.C % p.SW, c = col % p.C;
    for (int at = threadIdx.x; at < p.filter_pitch; at += blockDim.x) {
        const int kw = at / p.channels * p.SW + rw, k = at % p.channels;
        const bool there = col < p.SH * p.SW * p.C && kh < p.KH && kw < p.KW && at / p.channels < p.taps && k < p.K;
        packed[n * p.filter_pitch + at] = there ? w[k * wk + c * wc + kh * wi + kw * wj] : T{};
    }
}

// kSquares: the pooling is one that unpooled_square serves.
template <class M, bool kSquares>
__global__ void __launch_bounds__(kThreadsReversed, 2) layer_reversed_kernel(Reversed<typename M::T> p) {
    using T = typename M::T;
    T* const filters = ptx::shared_memory<T>();
    T* const rows = filters + 8 * kTiles * p.filter_pitch;
    const int row_elements = (kPixels + p.taps - 1) * p.pixel_pitch;

    const int t = threadIdx.x, lane = t % 32, warp = t / 32;
    const int block = static_cast<int>(blockIdx.x % (p.column_blocks * p.bands));
    const int64_t image = blockIdx.x / (p.column_blocks * p.bands);
    const int first_s = p.first_s + block % p.column_blocks * kPixels;
    const int begin = p.first_r + block / p.column_blocks * p.band_rows, end = min(p.end_r, begin + p.band_rows);

    for (int at = t; at < 8 * kTiles * p.filter_pitch / 8; at += kThreadsReversed) {
        ptx::cp_async<16>(filters + at * 8, p.packed + at * 8);
    }
    ptx::cp_async_commit();

    // Window rows i and i + 1. Pixel b of an unpooled row in shared memory is window column first_s - (taps - 1) + b;
    // outside the map it is 0.
    const auto inside = [&](int i) { return static_cast<unsigned>(i) < static_cast<unsigned>(p.OH); };
    const auto rectified_chunk = [&](uint4 v) {
        if (!p.rectify) return v;
        return uint4{rectified_pair<T>(v.x), rectified_pair<T>(v.y), rectified_pair<T>(v.z), rectified_pair<T>(v.w)};
    };
    const auto gather = [&](int i, T* pair) {
        const int chunks = p.channels / 8, first = first_s - (p.taps - 1), count = kPixels + p.taps - 1;
        if constexpr (kSquares) {
            const int before = (first + p.pool.PW) & 1;  // 1: the first pixel is the second of its square
            const PairRows<T> over(p.pool, p.y, p.switches, p.K, image, i);
            Walk at(t, kThreadsReversed, chunks);
            for (; at.column < (count + before + 1) / 2; at.next()) {
                const int pixel = at.column * 2 - before, k = at.chunk * 8, j = first + pixel;
                uint4 square[kRows][2] = {};
                if (j + 1 >= 0 && j < p.OW && k < p.K) {
                    unpooled_square(p.pool, over, p.K, (j + p.pool.PW) >> 1, k, square);
                }
#pragma unroll
                for (int h = 0; h < kRows; ++h)
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        if (static_cast<unsigned>(pixel + e) >= static_cast<unsigned>(count)) continue;
                        const bool there = inside(i + h) && static_cast<unsigned>(j + e) < static_cast<unsigned>(p.OW);
                        *reinterpret_cast<uint4*>(pair + h * row_elements + (pixel + e) * p.pixel_pitch + k) =
                            there ? rectified_chunk(square[h][e]) : uint4{};
                    }
            }
            return;
        }
#pragma unroll 1
        for (int h = 0; h < kRows; ++h) {
            const Span over = windows_over(i + h, p.pool.OH, p.pool.KH, p.pool.SH, p.pool.PH);
            for (int at = t; at < count * chunks; at += kThreadsReversed) {
                const int pixel = at / chunks, k = at % chunks * 8, j = first + pixel;
                uint4 v{};
                if (inside(i + h) && static_cast<unsigned>(j) < static_cast<unsigned>(p.OW) && k < p.K) {
                    const Span cols = windows_over(j, p.pool.OW, p.pool.KW, p.pool.SW, p.pool.PW);
                    v = rectified_chunk(
                        unpooled(p.pool, p.y, p.switches, p.K, p.vectors, image, over, cols, i + h, j, k));
                }
                *reinterpret_cast<uint4*>(pair + h * row_elements + pixel * p.pixel_pitch + k) = v;
            }
        }
    };

    // Where this lane's columns of a finished group go, in rows and elements from the group's first pixel.
    int to_h[4], to_e[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
        const int col = e / 2 * 8 + lane % 4 * 2 + e % 2;
        to_h[e] = col < p.SH * p.SW * p.C ? col / (p.SW * p.C) - p.PH : -(1 << 30);
        to_e[e] = (col / p.C % p.SW - p.PW) * p.C + col % p.C;
    }

    // A column whose tap does not exist (kh >= KH in the last group, kw >= KW at the last b) has filters of 0, but 0
    // times inf or NaN is NaN. Bit 2j + e of `no_row`, `no_last` marks the lane's column e of tile j as one. The first
    // kind is set to 0 after every row, the second gets back its value from before the last b.
    uint32_t no_row = 0, no_last = 0;
#pragma unroll
    for (int j = 0; j < kTiles; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const int col = j % 2 * 8 + lane % 4 * 2 + e;
            if (j / 2 * p.SH + col / (p.SW * p.C) >= p.KH) no_row |= 1u << (j * 2 + e);
            if ((p.taps - 1) * p.SW + col / p.C % p.SW >= p.KW) no_last |= 1u << (j * 2 + e);
        }
    const bool keeps = p.KW % p.SW != 0;

    float sums[kRows][kTiles][4] = {};  // the first row's begin with what earlier rows have added to its groups
    const T* const a_lane = rows + (warp * 16 + lane % 16 + p.taps - 1) * p.pixel_pitch + lane / 16 * 8;
    const T* const b_lane = filters + (lane % 8 + lane / 16 * 8) * p.filter_pitch + lane / 8 % 2 * 8;
    const T* const b_last = filters + (48 + lane % 8) * p.filter_pitch + lane / 8 % 2 * 8;
    const auto any_inside = [&](int i) { return inside(i) || inside(i + 1); };

    int start = begin - (p.KH - 1) / p.SH;
    start -= (start + p.pool.PH) & 1;
    if (any_inside(start)) gather(start, rows);
    ptx::cp_async_wait<0>();
    for (int i = start; i < end; i += kRows) {
        __syncthreads();
        const int buffer = (i - start) / kRows % 2;
        if (i + kRows < end && any_inside(i + kRows)) {
            gather(i + kRows, rows + (1 - buffer) * kRows * row_elements);
        }
        if (any_inside(i)) {
            float kept[kRows][kTiles][4];
            for (int b = 0; b < p.taps; ++b) {
                if (keeps && b == p.taps - 1) {
#pragma unroll
                    for (int m = 0; m < kRows; ++m)
#pragma unroll
                        for (int j = 0; j < kTiles; ++j)
#pragma unroll
                            for (int e = 0; e < 4; ++e) kept[m][j][e] = sums[m][j][e];
                }
                const T* a_tap = a_lane + buffer * kRows * row_elements - b * p.pixel_pitch;
                const T* b_tap = b_lane + b * p.channels;
                const T* last_tap = b_last + b * p.channels;
                const T *a_rows[kRows], *b_tiles[kTiles / 2];  // addresses that the loop only has to add k to
#pragma unroll
                for (int m = 0; m < kRows; ++m) a_rows[m] = a_tap + m * row_elements;
#pragma unroll
                for (int j = 0; j < kTiles / 2; ++j) b_tiles[j] = b_tap + j * 16 * p.filter_pitch;
#pragma unroll 2
                for (int k = 0; k < p.channels; k += 16) {
                    uint32_t fa[kRows][4], fb[kTiles / 2][4], last[2];
#pragma unroll
                    for (int m = 0; m < kRows; ++m) ptx::ldmatrix_x4(fa[m], a_rows[m] + k);
#pragma unroll
                    for (int j = 0; j < kTiles / 2; ++j) ptx::ldmatrix_x4(fb[j], b_tiles[j] + k);
                    ptx::ldmatrix_x2(last, last_tap + k);
#pragma unroll
                    for (int m = 0; m < kRows; ++m) {
#pragma unroll
                        for (int j = 0; j < kTiles - 1; ++j) {
                            const uint32_t pair[2] = {fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]};
                            multiply<M>(sums[m][j], fa[m], pair);
                        }
                        multiply<M>(sums[m][kTiles - 1], fa[m], last);
                    }
                }
            }
#pragma unroll
            for (int m = 0; m < kRows; ++m)
#pragma unroll
                for (int j = 0; j < kTiles; ++j)
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        if (keeps && (no_last >> (j * 2 + e % 2) & 1)) sums[m][j][e] = kept[m][j][e];
                        if (no_row >> (j * 2 + e % 2) & 1) sums[m][j][e] = 0.0f;
                    }
        }
        // Both rows' sums in the tiles of groups i, i + 1, ..., the second row's one group further.
        const auto total = [&](int j, int e) {
            const float second = j >= 2 && j - 2 < kTiles ? sums[1][j - 2][e] : 0.0f;
            return j < kTiles ? sums[0][j][e] + second : second;
        };
#pragma unroll
        for (int group = 0; group < kRows; ++group) {
            if (i + group < begin || i + group >= end) continue;
#pragma unroll
            for (int v = 0; v < 8; ++v) {
                const int column = v / 4 * 2 + v % 2, s = first_s + warp * 16 + v / 2 % 2 * 8 + lane / 4;
                const int h = (i + group) * p.SH + to_h[column], e = s * p.SW * p.C + to_e[column];
                if (static_cast<unsigned>(h) < static_cast<unsigned>(p.H) &&
                    static_cast<unsigned>(e) < static_cast<unsigned>(p.W * p.C)) {
                    p.x[(image * p.H + h) * (p.W * p.C) + e] = rounded<T>(total(group * 2 + v / 4, v % 4));
                }
            }
        }
#pragma unroll
        for (int j = 0; j < kTiles; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) sums[0][j][e] = total(j + 2 * kRows, e);
#pragma unroll
        for (int j = 0; j < kTiles; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) sums[1][j][e] = 0.0f;
    }
}

// The layer as the kernel takes it, without the pointers; bands 0: the kernel does not serve it.
template <class T>
Reversed<T> reversed_of(const Call& call, const Conv& p, const Pool& pool) {
    Reversed<T> o{};
    const Correlation sizes = forward_of(p);
    o.N = p.N, o.H = sizes.H, o.W = sizes.W, o.C = sizes.C, o.K = sizes.K, o.OH = sizes.OH, o.OW = sizes.OW;
    o.KH = sizes.KH, o.KW = sizes.KW, o.SH = sizes.SH, o.SW = sizes.SW, o.PH = sizes.PH, o.PW = sizes.PW;
    o.pool = window_of(pool);
    const int64_t columns = p.SH * p.SW * p.C;  // of a group of rows
    if (columns > 16 || p.KH > kGroups * p.SH) return o;
    if (p.KH > (kGroups - 1) * p.SH && (p.KH - (kGroups - 1) * p.SH) * p.SW * p.C > 8) return o;
    const int64_t channels = round_up(p.K, 16), taps = ceil_div(p.KW, p.SW);
    const int64_t elements = 8 * kTiles * (taps * channels + 8) + 2 * kRows * (kPixels + taps - 1) * (channels + 8);
    if (elements * 2 > kMostShared) return o;
    o.channels = static_cast<int>(channels), o.taps = static_cast<int>(taps);
    o.pixel_pitch = o.channels + 8, o.filter_pitch = o.taps * o.channels + 8;
    o.first_r = o.PH / o.SH, o.end_r = (o.H - 1 + o.PH) / o.SH + 1;
    o.first_s = o.PW / o.SW;
    const int groups = o.end_r - o.first_r, groups_s = (o.W - 1 + o.PW) / o.SW + 1 - o.first_s;
    o.column_blocks = static_cast<int>(ceil_div(groups_s, kPixels));
    // The fewest bands among those that finish in the fewest row-times.
    const int64_t slots = int64_t{multiprocessors(call.device)} * 2;
    int64_t least = INT64_MAX;
    for (int bands = 1; bands <= groups; ++bands) {
        const int64_t height = ceil_div(groups, bands), count = ceil_div(groups, height);
        const int64_t time = ceil_div(p.N * count * o.column_blocks, slots) * (height + (p.KH - 1) / p.SH);
        if (time < least) {
            least = time;
            o.band_rows = static_cast<int>(height), o.bands = static_cast<int>(count);
        }
    }
    if (p.N * o.bands * o.column_blocks > INT32_MAX) o.bands = 0;
    return o;
}

template <class M>
void reversed_in(const Call& call, const Conv& p, const Pool& pool, const void* y, const uint8_t* switches,
                 const void* w, void* x, bool rectify, void* workspace) {
    using T = typename M::T;
    Reversed<T> o = reversed_of<T>(call, p, pool);
    o.y = static_cast<const T*>(y), o.switches = switches, o.packed = static_cast<const T*>(workspace);
    o.x = static_cast<T*>(x), o.rectify = rectify;
    o.vectors = p.K % 8 == 0 && aligned(16, y) && aligned(8, switches);
    launch(call, p, {"pack_columns", 8 * kTiles, 128}, pack_columns_kernel<T>, o, static_cast<const T*>(w), p.wk, p.wc,
           p.wi, p.wj, static_cast<T*>(workspace));
    const std::size_t shared = 2 * (std::size_t(8 * kTiles) * o.filter_pitch +
                                    std::size_t(2 * kRows) * (kPixels + o.taps - 1) * o.pixel_pitch);
    const unsigned blocks = static_cast<unsigned>(p.N * o.bands * o.column_blocks);
    launch(call, p, {"max_unpool2d_relu_conv_transpose2d", blocks, kThreadsReversed, shared},
           pairs_fit(pool, o.vectors) ? layer_reversed_kernel<M, true> : layer_reversed_kernel<M, false>, o);
}

bool fused_layer(const Call& call, const Conv& p, const Pool& pool) {
    return call.dtype != kFloat32 && p.N > 0 && reversed_of<BFloat16>(call, p, pool).bands > 0;
}

}  // namespace

void max_unpool2d_relu_conv_transpose2d(const Call& call, const Conv& p, const Pool& pool, const void* y,
                                        const uint8_t* switches, const void* w, void* x, bool rectify,
                                        void* workspace) {
    if (!fused_layer(call, p, pool)) {
        max_unpool2d(call, pool, y, switches, workspace);
        conv_transpose2d(call, p, workspace, w, x, rectify, static_cast<char*>(workspace) + map_bytes(call, p));
    } else if (call.dtype == kBFloat16) {
        reversed_in<Bf16>(call, p, pool, y, switches, w, x, rectify, workspace);
    } else {
        reversed_in<F16>(call, p, pool, y, switches, w, x, rectify, workspace);
    }
}

int64_t max_unpool2d_relu_conv_transpose2d_workspace(const Call& call, const Conv& p, const Pool& pool) {
    if (!fused_layer(call, p, pool)) return map_bytes(call, p) + conv_transpose2d_workspace(call, p);
    return int64_t{8 * kTiles} * reversed_of<BFloat16>(call, p, pool).filter_pitch * 2;
}

}  // namespace zf::cuda
