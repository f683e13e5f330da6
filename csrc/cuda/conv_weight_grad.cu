// conv2d_weight_grad, and conv2d_relu_max_pool2d_weight_grad, which takes the gradient of the pooled map.
//
//     gw[k][c][kh][kw] = sum over n, i, j of g[n][i][j][k] * x[n][i*SH + kh - PH][j*SW + kw - PW][c]
//     gb[k]            = sum over n, i, j of g[n][i][j][k]
//
// Both kernels make a matrix product: rows are filters, columns the runs (kh, (kw, c)) of correlation.h, summed over
// pixels. A block sums over one range of them and writes float32 partial sums; finish_kernel adds the ranges in order
// and writes gw in its own type and strides. Two stages in a fixed order: no atomics, the same bits on every run.
//
// weight_grad_kernel, for any sizes:
//
//   Stage    64 bytes of the sum's axis: 32 pixels (half precision) or 16, each 128 elements of g and 128 of a run of
//            x, as they lie in memory. ldmatrix.trans turns half-precision fragments; TF32's are read as 4-byte words
//            (tile.cuh). 4 stages of cp.async, as in conv.cu: 64 KiB, two blocks an SM.
//   Loader   a thread always copies the same chunk of columns, for pixels p, p + R, p + 2R, ...: its tap and channel
//            are computed once, and the pixel is advanced by additions.
//   Copies   16 bytes, or of x in half precision, where C is another multiple of 4, two of 8. A source whose channels
//            are no multiple of 4, or a gradient whose are none of a chunk, is first copied into the workspace with
//            zeros behind them; the zeros' columns are dropped at the end.
//   Ranges   as many as fill two waves of two blocks an SM, of at least 8 stages each.
//
// first_layer_kernel, for few channels in half precision (runs of 176 columns at most): a block walks convolution rows,
// of one image after the other, with all columns of 96 filters in registers (4 warps as 2 x 2, each 48 x 88: 132 sums a
// thread). In shared memory it holds
//
//   g        [pixels][96], two rows: while the warps multiply one, they fetch the next, copied, or gathered from the
//            pooled gradient by the switches (unpool.cuh). Training the first layer thus needs only the pooled map and
//            the switches, and each value is gathered once.
//   x        [input row][pixel][run], a ring of KH + SH rows: each input row is spread into its pixels' runs once, for
//            all the rows that need it. A run that starts at an odd element begins one earlier, so that the spreading
//            moves whole words; that column's result is dropped.
//
// Rows there are an odd number of 16 bytes long, so that ldmatrix's 8 rows fall on different banks. A pooled gradient
// that first_layer_kernel does not serve is unpooled into the workspace first.
#include <algorithm>

#include "cuda/correlation.h"
#include "cuda/launch.h"
#include "cuda/pack.cuh"
#include "cuda/tile.cuh"
#include "cuda/unpool.cuh"

namespace zf::cuda {
namespace {

constexpr int kStages = 4;
constexpr int kBiasRanges = 256, kBiasThreads = 256, kBiasChannels = 32;

template <class T>
struct WeightGrad {
    int64_t N;
    int H, W, C, K, OH, OW, KH, KW, SH, SW, PH, PW;
    int channels;  // those of C that are not zeros behind them
    int filters;   // elements from a pixel of g to the next: K, and zeros
    const T* x;
    const T* g;               // (N, OH, OW, filters), or the pooled gradient
    const uint8_t* switches;  // null: g is not pooled
    Window pool;
    float* sums;    // [range][K][KH][run], then the bias's [range][K]
    int run, lead;  // elements of a run with its zeros; elements of it before the first tap's
    int tiles_n;
    int64_t range;  // pixels (first_layer_kernel: rows) of a block
    bool copy_g;    // first_layer_kernel: g allows 16-byte copies
    bool copy_x;    // first_layer_kernel: the rows of x are whole words
    int pitch_g;    // first_layer_kernel: pixels of a row in shared memory
};

// A pixel of the convolution's map, which advances by `step` without dividing.
struct Pixel {
    int64_t image;
    int i, j;

    __device__ __forceinline__ Pixel(int64_t at, int OH, int OW) {
        const int64_t size = static_cast<int64_t>(OH) * OW;
        image = at / size;
        const int64_t rest = at - image * size;
        i = static_cast<int>(rest / OW);
        j = static_cast<int>(rest - static_cast<int64_t>(i) * OW);
    }
    __device__ __forceinline__ void advance(const Pixel& step, int OH, int OW) {
        j += step.j;
        if (j >= OW) j -= OW, ++i;
        i += step.i;
        if (i >= OH) i -= OH, ++image;
        image += step.image;
    }
};

// kCopy: the bytes that x is copied by, 16 or 8.
template <class M, int BM, int BN, int kCopy>
__global__ void __launch_bounds__(kThreads<M>, kBlocks<M>) weight_grad_kernel(WeightGrad<typename M::T> p) {
    using T = typename M::T;
    constexpr int kSum = kRowChunks * kChunk<M>;  // pixels a stage
    constexpr int kTileChunks = kColumns / kChunk<M>, kLoadRows = kThreads<M> / kTileChunks, kLoads = kSum / kLoadRows;
    constexpr int kTileBytes = kSum * kColumns * sizeof(T);
    char* stages = ptx::shared_memory<char>();

    const int t = threadIdx.x, chunk = t % kTileChunks;
    const int m = static_cast<int>(blockIdx.x) / p.tiles_n * BM + chunk * kChunk<M>;
    const int n = static_cast<int>(blockIdx.x) % p.tiles_n * BN + chunk * kChunk<M>;
    const int64_t pixels = p.N * p.OH * p.OW, begin = blockIdx.y * p.range, first = begin + t / kTileChunks;
    int left = static_cast<int>(smaller(p.range, pixels - begin)) - t / kTileChunks;  // after the thread's next pixel

    const bool loads_a = chunk < BM / kChunk<M> && m < p.K;
    const int kh = n / p.run, e = n % p.run, row_elements = p.W * p.C;
    const bool loads_b = chunk < BN / kChunk<M> && kh < p.KH;
    Pixel at(first, p.OH, p.OW);
    const Pixel step(kLoadRows, p.OH, p.OW);
    const T* g = p.g + first * p.filters + m;

    // Part `part` of what the thread copies into the stage that begins at `stage`. Past the range's end these are
    // zeros.
    const auto load = [&](char* stage, int part) {
        if (part >= kLoads) return;
        char* to = stage + column_tile_offset<M>(t / kTileChunks + part * kLoadRows, chunk);
        const bool inside = left > 0 && loads_a;
        const int h = at.i * p.SH + kh - p.PH, from_e = (at.j * p.SW - p.PW) * p.C + e;
        const bool inside_h = left > 0 && loads_b && static_cast<unsigned>(h) < static_cast<unsigned>(p.H);
        const T* from = p.x + (at.image * p.H + h) * row_elements + from_e;
        ptx::cp_async<16>(to, g, inside ? 16 : 0);
        constexpr int kElements = kCopy / static_cast<int>(sizeof(T));
#pragma unroll
        for (int i = 0; i < kChunk<M>; i += kElements) {
            // What lies behind the run's last tap is another pixel's, and sums of a column that is dropped.
            const bool there = inside_h && static_cast<unsigned>(from_e + i) < static_cast<unsigned>(row_elements);
            ptx::cp_async<kCopy>(to + kTileBytes + i * sizeof(T), from + i, there ? kCopy : 0);
        }
        g += static_cast<int64_t>(kLoadRows) * p.filters;
        left -= kLoadRows;
        at.advance(step, p.OH, p.OW);
    };

    Accumulators<M, BM, BN, true> sums;
    static_assert(kLoads <= decltype(sums)::kBetween);
    // Among TF32's products, whose operands are rounded besides, the copies' addresses do not fit into registers.
    constexpr bool kAmong = sizeof(T) == 2 || !M::kTensorCores;
    sums.clear();
    const int steps = static_cast<int>(ceil_div(smaller(p.range, pixels - begin), kSum));
#pragma unroll 1  // unrolling would only make three copies of the loader
    for (int s = 0; s < kStages - 1; ++s) {
#pragma unroll
        for (int part = 0; part < kLoads; ++part) load(stages + s * 2 * kTileBytes, part);
        ptx::cp_async_commit();
    }
    for (int s = 0; s < steps; ++s) {
        ptx::cp_async_wait<kStages - 2>();
        __syncthreads();
        char* const next = stages + (s + kStages - 1) % kStages * 2 * kTileBytes;
        const char* const a = stages + s % kStages * 2 * kTileBytes;
        if constexpr (!kAmong) {
#pragma unroll 1
            for (int part = 0; part < kLoads; ++part) load(next, part);
        }
        sums.add_columns(a, a + kTileBytes, [&](int part) {
            if constexpr (kAmong) load(next, part);
        });
        ptx::cp_async_commit();
    }
    ptx::cp_async_wait<0>();

    const int columns = p.KH * p.run;
    const int m0 = static_cast<int>(blockIdx.x) / p.tiles_n * BM, n0 = static_cast<int>(blockIdx.x) % p.tiles_n * BN;
    float* out = p.sums + (static_cast<int64_t>(blockIdx.y) * p.K + m0) * columns + n0;
    sums.each([&](int row, int col, float v) {
        if (m0 + row < p.K && n0 + col < columns) out[static_cast<int64_t>(row) * columns + col] = v;
    });
}

constexpr int kFirstThreads = 128;
constexpr int kFirstFilters = 96, kFirstTiles = 11;  // filters of a block; tiles of 8 columns of a warp
constexpr int kFirstPitch = kFirstFilters + 8;       // elements from a pixel of g to the next

// kPairs: the gradient is pooled, by a pooling that unpooled_pair serves.
template <class M, bool kPairs>
__global__ void __launch_bounds__(kFirstThreads, 2) first_layer_kernel(WeightGrad<typename M::T> p) {
    using T = typename M::T;
    const int pixels = p.pitch_g, ring_rows = p.KH + p.SH, slot_elements = pixels * p.run;
    T* const g_rows = ptx::shared_memory<T>();
    T* const ring = g_rows + 2 * pixels * kFirstPitch;

    const int t = threadIdx.x, lane = t % 32, warp = t / 32, matrix = lane / 8;
    const int k0 = static_cast<int>(blockIdx.y) * kFirstFilters;
    const int64_t begin = blockIdx.x * p.range, end = smaller(p.N * p.OH, begin + p.range);

    // Row i of an image's gradient, filters k0 ...; 0 past its end.
    const auto fetch_g = [&](int64_t image, int i, T* to) {
        constexpr int kChunks = kFirstFilters / 8;
        const Window& q = p.pool;
        if constexpr (kPairs) {
            const int before = q.PW & 1;  // 1: the first pixel is the second of its pair
            const PairRows<T> over(q, p.g, p.switches, p.K, image, i);
            Walk at(t, kFirstThreads, kChunks);
            for (; at.column < (pixels + before + 1) / 2; at.next()) {
                const int j = at.column * 2 - before, k = k0 + at.chunk * 8;
                uint4 pair[2] = {};
                if (j < p.OW && k < p.K) {
                    unpooled_pair(q, over, p.K, (j + q.PW) >> 1, k, pair);
                }
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    if (static_cast<unsigned>(j + e) >= static_cast<unsigned>(pixels)) continue;
                    *reinterpret_cast<uint4*>(to + (j + e) * kFirstPitch + at.chunk * 8) =
                        j + e < p.OW ? pair[e] : uint4{};
                }
            }
            return;
        }
        const Span over = p.switches != nullptr ? windows_over(i, q.OH, q.KH, q.SH, q.PH) : Span{0, -1};
        for (int at = t; at < pixels * kChunks; at += kFirstThreads) {
            const int j = at / kChunks, k = k0 + at % kChunks * 8;
            T* const there = to + j * kFirstPitch + at % kChunks * 8;
            const bool inside = j < p.OW && k < p.K;
            if (p.switches != nullptr) {
                uint4 v{};
                if (inside) {
                    v = unpooled(q, p.g, p.switches, p.K, p.copy_g, image, over,
                                 windows_over(j, q.OW, q.KW, q.SW, q.PW), i, j, k);
                }
                *reinterpret_cast<uint4*>(there) = v;
                continue;
            }
            const T* from = p.g + ((image * p.OH + i) * p.OW + j) * p.K + k;
            if (p.copy_g) {
                ptx::cp_async<16>(there, inside ? from : p.g, inside ? 16 : 0);
            } else {
                *reinterpret_cast<uint4*>(there) =
                    chunk_of<T>([&](int e) { return inside && k + e < p.K ? from[e] : T{}; });
            }
        }
    };

    // Input rows [from, to) of an image into their slots of the ring, each pixel's run beside the next one's.
    const auto spread_x = [&](int64_t image, int from, int to) {
        const int chunks = p.run / 8, row_elements = p.W * p.C, slot = pixels * chunks;
        for (int at = t; at < (to - from) * slot; at += kFirstThreads) {
            const int h = from + at / slot, j = at % slot / chunks, e = at % chunks * 8;
            const int place = (j * p.SW - p.PW) * p.C - p.lead + e;
            const bool inside = static_cast<unsigned>(h) < static_cast<unsigned>(p.H) && j < p.OW;
            const T* const source = p.x + (image * p.H + h) * row_elements + place;
            uint4 v;
            if (p.copy_x) {
                uint32_t word[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const bool there =
                        inside && static_cast<unsigned>(place + 2 * i) < static_cast<unsigned>(row_elements);
                    word[i] = there ? *reinterpret_cast<const uint32_t*>(source + 2 * i) : 0;
                }
                v = {word[0], word[1], word[2], word[3]};
            } else {
                v = chunk_of<T>([&](int i) {
                    return inside && static_cast<unsigned>(place + i) < static_cast<unsigned>(row_elements) ? source[i]
                                                                                                            : T{};
                });
            }
            *reinterpret_cast<uint4*>(ring + (h + p.PH) % ring_rows * slot_elements + j * p.run + e) = v;
        }
    };

    float sums[3][kFirstTiles][4] = {};
    const T* const a_lane =
        g_rows + (lane % 8 + matrix / 2 * 8) * kFirstPitch + warp / 2 * (kFirstFilters / 2) + matrix % 2 * 8;
    const int run_tiles = p.run / 8, columns = p.KH * run_tiles, pixel = (lane % 8 + matrix % 2 * 8) * p.run;

    int64_t image = begin / p.OH;
    int i = static_cast<int>(begin - image * p.OH);
    bool fresh = true;  // the image's input rows are not in the ring yet
    if (begin < end) fetch_g(image, i, g_rows);
    for (int64_t row = begin; row < end; ++row) {
        if (fresh) {
            __syncthreads();  // the last image's rows have been read
            spread_x(image, i * p.SH - p.PH, i * p.SH - p.PH + p.KH);
            fresh = false;
        }
        ptx::cp_async_commit();
        ptx::cp_async_wait<0>();
        __syncthreads();
        const int buffer = static_cast<int>(row - begin) % 2, top = i * p.SH;
        if (++i == p.OH) i = 0, ++image, fresh = true;
        if (row + 1 < end) {
            fetch_g(image, i, g_rows + (1 - buffer) * pixels * kFirstPitch);
            if (!fresh) {
                const int first = i * p.SH - p.PH;
                spread_x(image, max(first, first - p.SH + p.KH), first + p.KH);
            }
        }
        const T* b_lane[(kFirstTiles + 1) / 2];
#pragma unroll
        for (int j = 0; j < (kFirstTiles + 1) / 2; ++j) {
            int column = warp % 2 * kFirstTiles + j * 2 + matrix / 2;
            if (column >= columns) column = 0;
            b_lane[j] = ring + (top + column / run_tiles) % ring_rows * slot_elements + column % run_tiles * 8 + pixel;
        }
#pragma unroll 1
        for (int k = 0; k < pixels; k += 16) {
            uint32_t fa[3][4];
#pragma unroll
            for (int m = 0; m < 3; ++m) {
                ptx::ldmatrix_x4_trans(fa[m], a_lane + (buffer * pixels + k) * kFirstPitch + m * 16);
            }
#pragma unroll
            for (int j = 0; j < kFirstTiles; j += 2) {
                uint32_t fb[4];
                ptx::ldmatrix_x4_trans(fb, b_lane[j / 2] + k * p.run);
#pragma unroll
                for (int half = 0; half < 2 && j + half < kFirstTiles; ++half) {
                    const uint32_t pair[2] = {fb[half * 2], fb[half * 2 + 1]};
#pragma unroll
                    for (int m = 0; m < 3; ++m) multiply<M>(sums[m][j + half], fa[m], pair);
                }
            }
        }
    }

    float* const out = p.sums + static_cast<int64_t>(blockIdx.x) * p.K * (p.KH * p.run);
#pragma unroll
    for (int m = 0; m < 3; ++m)
#pragma unroll
        for (int j = 0; j < kFirstTiles; ++j)
#pragma unroll
            for (int v = 0; v < 4; ++v) {
                const int k = k0 + warp / 2 * (kFirstFilters / 2) + m * 16 + v / 2 * 8 + lane / 4;
                const int tile = warp % 2 * kFirstTiles + j;
                if (k < p.K && tile < columns) {
                    out[static_cast<int64_t>(k) * (p.KH * p.run) + tile * 8 + lane % 4 * 2 + v % 2] = sums[m][j][v];
                }
            }
}

// Sums of g over a range of its pixels: a block has 32 channels (blockIdx.x) of one range (blockIdx.y), a warp every
// 8th pixel, a lane a channel. A pooled gradient counts once, where its switch points into the map.
template <class T>
__global__ void __launch_bounds__(kBiasThreads) bias_grad_kernel(WeightGrad<T> p, float* sums) {
    constexpr int kWarps = kBiasThreads / kBiasChannels;
    float* partial = ptx::shared_memory<float>();
    const int lane = threadIdx.x % kBiasChannels, warp = threadIdx.x / kBiasChannels;
    const int k = static_cast<int>(blockIdx.x) * kBiasChannels + lane;
    const int height = p.switches != nullptr ? p.pool.OH : p.OH, width = p.switches != nullptr ? p.pool.OW : p.OW;
    const int64_t pixels = p.N * height * width, range = ceil_div(pixels, kBiasRanges);
    const int64_t end = smaller(pixels, (blockIdx.y + 1) * range);
    float sum = 0.0f;
    if (k < p.K) {
        Pixel place(blockIdx.y * range + warp, height, width);
        const Pixel step(kWarps, height, width);
#pragma unroll 8
        for (int64_t at = blockIdx.y * range + warp; at < end; at += kWarps) {
            float v = to_float(p.g[at * p.K + k]);
            if (p.switches != nullptr) {
                const Window& q = p.pool;
                const unsigned s = p.switches[at * p.K + k], kernel_w = q.KW;
                const int h = place.i * q.SH - q.PH + static_cast<int>(s / kernel_w);
                const int w = place.j * q.SW - q.PW + static_cast<int>(s % kernel_w);
                const bool inside = static_cast<int>(s) < q.KH * q.KW &&
                                    static_cast<unsigned>(h) < static_cast<unsigned>(p.OH) &&
                                    static_cast<unsigned>(w) < static_cast<unsigned>(p.OW);
                v = inside ? v : 0.0f;
                place.advance(step, height, width);
            }
            sum += v;
        }
    }
    partial[threadIdx.x] = sum;
    __syncthreads();
    if (warp == 0 && k < p.K) {
        for (int i = 1; i < kWarps; ++i) sum += partial[i * kBiasChannels + lane];
        sums[static_cast<int64_t>(blockIdx.y) * p.K + k] = sum;
    }
}

// One thread an element of the filters' runs, then one a bias: adds the ranges' sums in order.
template <class T>
__global__ void __launch_bounds__(256) finish_kernel(WeightGrad<T> p, int64_t ranges, const float* bias_sums,
                                                     int64_t wk, int64_t wc, int64_t wi, int64_t wj, T* gw, T* gb) {
    const int64_t count = static_cast<int64_t>(p.K) * p.KH * p.run, at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    float sum = 0.0f;
    if (at < count) {
        const int e = static_cast<int>(at % p.run) - p.lead, kh = static_cast<int>(at / p.run % p.KH);
        const int64_t k = at / p.run / p.KH;
        if (e < 0 || e >= p.KW * p.C || e % p.C >= p.channels) return;
#pragma unroll 16
        for (int64_t r = 0; r < ranges; ++r) sum += p.sums[r * count + at];
        gw[k * wk + e % p.C * wc + kh * wi + e / p.C * wj] = rounded<T>(sum);
    } else if (gb != nullptr && at - count < p.K) {
        const int64_t k = at - count;
        if (p.N > 0) {
#pragma unroll 16
            for (int r = 0; r < kBiasRanges; ++r) sum += bias_sums[r * p.K + k];
        }
        gb[k] = rounded<T>(sum);
    }
}

// The tiling of one problem, and the memory that it needs.
struct Plan {
    bool first_layer;    // first_layer_kernel serves it
    int64_t C, filters;  // of x and g as the kernel reads them, with zeros behind them
    int run, lead, pitch_g;
    int64_t tiles_m, tiles_n, range, ranges, sums;  // sums: their number
    std::size_t shared;
};

template <class M>
Plan plan_of(const Call& call, const Conv& p) {
    const int64_t slots = int64_t{multiprocessors(call.device)} * kBlocks<M>;
    Plan plan{};
    plan.C = p.C, plan.filters = p.K;
    if constexpr (sizeof(typename M::T) == 2) {
        const bool words = p.SW * p.C % 2 == 0 && p.W * p.C % 2 == 0;
        plan.lead = words ? static_cast<int>(p.PW * p.C % 2) : 0;
        plan.run = static_cast<int>(round_up(plan.lead + p.KW * p.C, 8));
        plan.pitch_g = static_cast<int>(round_up(p.OW, 16));
        const int64_t elements = plan.pitch_g * (2 * kFirstPitch + (p.KH + p.SH) * plan.run);
        plan.first_layer = plan.run % 16 == 8 && p.KH * plan.run <= 2 * kFirstTiles * 8 && elements * 2 <= kMostShared;
        plan.shared = static_cast<std::size_t>(elements) * 2;
        plan.tiles_m = ceil_div(p.K, kFirstFilters);
        plan.tiles_n = 1;
        const int64_t rows = p.N * p.OH;
        plan.range = larger(1, ceil_div(rows, larger(1, slots / plan.tiles_m)));
        plan.ranges = ceil_div(rows, plan.range);
    }
    if (!plan.first_layer) {
        constexpr int kSum = kRowChunks * kChunk<M>;
        plan.C = round_up(p.C, 4), plan.filters = round_up(p.K, kChunk<M>);
        plan.lead = 0;
        plan.run = static_cast<int>(round_up(p.KW * plan.C, kChunk<M>));
        plan.shared = kStages * 2 * kSum * kColumns * sizeof(typename M::T);
        plan.tiles_m = ceil_div(p.K, kColumns);
        plan.tiles_n = ceil_div(p.KH * plan.run, kColumns);
        const int64_t pixels = p.N * p.OH * p.OW;
        const int64_t most = ceil_div(pixels, 8 * kSum), wanted = 2 * slots / (plan.tiles_m * plan.tiles_n);
        // A range's pixels are counted in 32 bits, and a grid has at most 65535 of them.
        plan.ranges = larger(ceil_div(pixels, int64_t{1} << 30), smaller(most, wanted));
        plan.ranges = smaller(larger(plan.ranges, pixels > 0), 65535);
        plan.range = plan.ranges == 0 ? kSum : round_up(ceil_div(pixels, plan.ranges), kSum);
        plan.ranges = ceil_div(pixels, plan.range);
    }
    plan.sums = plan.ranges * p.K * p.KH * plan.run;
    return plan;
}

// The workspace: the sums, and of what is padded a copy of x and of g.
int64_t sums_bytes(const Plan& plan, const Conv& p) {
    return round_up((plan.sums + kBiasRanges * p.K) * static_cast<int64_t>(sizeof(float)), 256);
}
int64_t padded_x_bytes(const Call& call, const Plan& plan, const Conv& p) {
    return plan.C == p.C ? 0 : round_up(p.N * p.H * p.W * plan.C * (call.dtype == kFloat32 ? 4 : 2), 256);
}
int64_t workspace_of(const Call& call, const Plan& plan, const Conv& p) {
    const int64_t g = plan.filters == p.K ? 0 : p.N * p.OH * p.OW * plan.filters * (call.dtype == kFloat32 ? 4 : 2);
    return sums_bytes(plan, p) + padded_x_bytes(call, plan, p) + g;
}

// `o` with copies of its maps in the workspace where the plan has zeros behind their channels.
template <class T>
WeightGrad<T> padded_maps(const Call& call, const Plan& plan, const Conv& p, WeightGrad<T> o, void* workspace) {
    char* const x = static_cast<char*>(workspace) + sums_bytes(plan, p);
    char* const g = x + padded_x_bytes(call, plan, p);
    if (plan.C != p.C) {
        pad_runs(call, p, o.x, p.N * p.H * p.W, o.channels, o.C, x);
        o.x = reinterpret_cast<const T*>(x);
    }
    if (plan.filters != p.K) {
        pad_runs(call, p, o.g, p.N * p.OH * p.OW, o.K, o.filters, g);
        o.g = reinterpret_cast<const T*>(g);
    }
    return o;
}

template <class M>
auto weight_grad_kernel_of(const Plan& plan) {
    if constexpr (sizeof(typename M::T) == 2) {
        if (plan.C % kChunk<M> != 0) return weight_grad_kernel<M, kColumns, kColumns, 8>;
    }
    return weight_grad_kernel<M, kColumns, kColumns, 16>;
}

template <class M>
void weight_grad_in(const Call& call, const Conv& p, const Pool* pool, const char* name, const void* x, const void* g,
                    const uint8_t* switches, void* gw, void* gb, void* workspace) {
    using T = typename M::T;
    check_start(name, p, x);
    const Plan plan = plan_of<M>(call, p);
    const Correlation sizes = forward_of(p);
    WeightGrad<T> o{};
    o.N = p.N, o.H = sizes.H, o.W = sizes.W, o.C = sizes.C, o.K = sizes.K, o.OH = sizes.OH, o.OW = sizes.OW;
    o.KH = sizes.KH, o.KW = sizes.KW, o.SH = sizes.SH, o.SW = sizes.SW, o.PH = sizes.PH, o.PW = sizes.PW;
    o.channels = o.C, o.C = static_cast<int>(plan.C), o.filters = static_cast<int>(plan.filters);
    o.x = static_cast<const T*>(x), o.g = static_cast<const T*>(g), o.switches = switches;
    if (pool != nullptr) o.pool = window_of(*pool);
    o.sums = static_cast<float*>(workspace), o.run = plan.run, o.lead = plan.lead, o.pitch_g = plan.pitch_g;
    o.tiles_n = static_cast<int>(plan.tiles_n), o.range = plan.range;
    o.copy_g = p.K % kChunk<M> == 0 && aligned(kChunkBytes, g) && aligned(kChunk<M>, switches);
    float* bias_sums = o.sums + plan.sums;
    if (plan.ranges > 0) {
        if constexpr (sizeof(T) == 2) {
            if (plan.first_layer) {
                o.copy_x = p.SW * p.C % 2 == 0 && p.W * p.C % 2 == 0;
                const dim3 blocks(static_cast<unsigned>(plan.ranges), static_cast<unsigned>(plan.tiles_m));
                const bool pairs = pool != nullptr && pairs_fit(*pool, o.copy_g);
                launch(call, p, {name, blocks, kFirstThreads, plan.shared},
                       pairs ? first_layer_kernel<M, true> : first_layer_kernel<M, false>, o);
            }
        }
        if (!plan.first_layer) {
            const dim3 blocks(static_cast<unsigned>(plan.tiles_m * plan.tiles_n), static_cast<unsigned>(plan.ranges));
            launch(call, p, {name, blocks, kThreads<M>, plan.shared}, weight_grad_kernel_of<M>(plan),
                   padded_maps(call, plan, p, o, workspace));
        }
        if (gb != nullptr) {
            const dim3 ranges(static_cast<unsigned>(ceil_div(p.K, kBiasChannels)), kBiasRanges);
            launch(call, p, {"bias_grad", ranges, kBiasThreads, kBiasThreads * sizeof(float)}, bias_grad_kernel<T>, o,
                   bias_sums);
        }
    }
    const int64_t results = p.K * p.KH * plan.run + p.K;
    launch(call, p, {"weight_grad_finish", static_cast<unsigned>(ceil_div(results, 256)), 256}, finish_kernel<T>, o,
           plan.ranges, bias_sums, p.wk, p.wc, p.wi, p.wj, static_cast<T*>(gw), static_cast<T*>(gb));
}

}  // namespace

void conv2d_weight_grad(const Call& call, const Conv& p, const void* x, const void* g, void* gw, void* gb,
                        void* workspace) {
    with_math(call, [&](auto math) {
        check_start("conv2d_weight_grad", p, g);
        weight_grad_in<decltype(math)>(call, p, nullptr, "conv2d_weight_grad", x, g, nullptr, gw, gb, workspace);
    });
}

int64_t conv2d_weight_grad_workspace(const Call& call, const Conv& p) {
    return with_math(call, [&](auto math) { return workspace_of(call, plan_of<decltype(math)>(call, p), p); });
}

void conv2d_relu_max_pool2d_weight_grad(const Call& call, const Conv& p, const Pool& pool, const void* x, const void* g,
                                        const uint8_t* switches, void* gw, void* gb, void* workspace) {
    const char* const name = "conv2d_relu_max_pool2d_weight_grad";
    with_math(call, [&](auto math) {
        using M = decltype(math);
        if (p.N == 0 || plan_of<M>(call, p).first_layer) {
            weight_grad_in<M>(call, p, &pool, name, x, g, switches, gw, gb, workspace);
        } else {
            void* const rest = static_cast<char*>(workspace) + map_bytes(call, p);
            max_unpool2d(call, pool, g, switches, workspace);
            weight_grad_in<M>(call, p, nullptr, name, x, workspace, nullptr, gw, gb, rest);
        }
    });
}

int64_t conv2d_relu_max_pool2d_weight_grad_workspace(const Call& call, const Conv& p, const Pool&) {
    return with_math(call, [&](auto math) {
        const Plan plan = plan_of<decltype(math)>(call, p);
        return (plan.first_layer ? 0 : map_bytes(call, p)) + workspace_of(call, plan, p);
    });
}

}  // namespace zf::cuda
