// conv2d_weight_grad, and conv2d_relu_max_pool2d_weight_grad, which takes the gradient of the pooled map.
//
//     gw[k][c][kh][kw] = sum over n, i, j of g[n][i][j][k] * x[n][i*SH + kh - PH][j*SW + kw - PW][c]
//     gb[k]            = sum over n, i, j of g[n][i][j][k]
//
// weight_grad_kernel: a matrix product, rows the filters, columns the runs (kh, (kw, c)) of correlation.h, summed over
// pixels. A block makes BM filters x BN columns over one range of pixels and writes float32 partial sums; finish_kernel
// adds the ranges in their order and writes gw in its own type and strides. Two stages in a fixed order: no atomics,
// the same bits on every run.
//
//   Stage    64 bytes of the sum's axis: 32 pixels (half precision) or 16, each 128 elements of g and 128 of a run of
//   x,
//            as they lie in memory. ldmatrix.trans turns half-precision fragments; TF32's are read as 4-byte words
//            (tile.cuh). 4 stages of cp.async, as in conv.cu: 64 KiB, two blocks an SM.
//   Loader   a thread copies the same chunk of columns for pixels p, p + R, p + 2R, ... for ever, so its tap and
//   channel
//            are found once, and the pixel is advanced by additions.
//   Copies   16 bytes where C (for g: K) is a multiple of a chunk and the map lies on 16 bytes, else element by
//   element. Pooled   g is gathered from the pooled gradient by the switches while it is copied into shared memory: the
//   sum, in
//            the windows' order, over those that point at the pixel, rounded to the type as max_unpool2d rounds it. The
//            map of the convolution's gradient (297 MB for conv1 at N=128 in bfloat16) exists nowhere.
//   Tiles    128 x 128, or 96 x 96 where that wastes less: conv1 has 96 filters and 7 runs of 24.
//   Ranges   as many as fill two waves of two blocks an SM, of at least 8 stages each.
//
// Arithmetic on an H200 at N=128 in bfloat16: conv1's operands, unpooled, would be 297 MB + 39 MB (78 microseconds at
// 4.3 TB/s); pooled, 74 + 37 + 39 MB (35), twice over for its two column tiles less what L2 keeps. conv2-5 are bound by
// the products, as forward. The bias gradient reads g once more: 44 MB, 10 microseconds for conv2.
#include <algorithm>

#include "cuda/correlation.h"
#include "cuda/launch.h"
#include "cuda/tile.cuh"
#include "cuda/unpool.cuh"

namespace zf::cuda {
namespace {

constexpr int kStages = 4;
constexpr int kBiasRanges = 128, kBiasThreads = 256, kBiasChannels = 32;

template <class T>
struct WeightGrad {
    int64_t N;
    int H, W, C, K, OH, OW, KH, KW, SH, SW, PH, PW;
    const T* x;
    const T* g;               // (N, OH, OW, K), or the pooled gradient
    const uint8_t* switches;  // null: g is not pooled
    Window pool;
    float* sums;  // [range][K][KH][run], then the bias's [range][K]
    int run;
    int tiles_n;
    int64_t pixels, range;  // of the whole map; of one block, a multiple of a stage
    bool copy_x, copy_g;    // which serve 16-byte copies
};

// A pixel of the convolution's map, and how to get to the one `step` further on without dividing.
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

template <class M, int BM, int BN>
__global__ void __launch_bounds__(kThreads<M>, kBlocks<M>) weight_grad_kernel(WeightGrad<typename M::T> p) {
    using T = typename M::T;
    constexpr int kSum = kRowChunks * kChunk<M>;  // pixels a stage
    constexpr int kTileChunks = kColumns / kChunk<M>, kLoadRows = kThreads<M> / kTileChunks, kLoads = kSum / kLoadRows;
    constexpr int kTileBytes = kSum * kColumns * sizeof(T);
    char* stages = ptx::shared_memory<char>();

    const int t = threadIdx.x, chunk = t % kTileChunks;
    const int m = static_cast<int>(blockIdx.x) / p.tiles_n * BM + chunk * kChunk<M>;
    const int n = static_cast<int>(blockIdx.x) % p.tiles_n * BN + chunk * kChunk<M>;
    const int64_t begin = blockIdx.y * p.range, first = begin + t / kTileChunks;
    int left = static_cast<int>(smaller(p.range, p.pixels - begin)) - t / kTileChunks;  // after the thread's next pixel

    const bool loads_a = chunk < BM / kChunk<M> && m < p.K;
    const int kh = n / p.run, e = n % p.run, row_elements = p.W * p.C, run_elements = p.KW * p.C;
    const bool loads_b = chunk < BN / kChunk<M> && kh < p.KH;
    Pixel at(first, p.OH, p.OW);
    const Pixel step(kLoadRows, p.OH, p.OW);
    const T* g = p.g + first * p.K + m;

    auto load = [&](int stage) {
        char* a = stages + stage * 2 * kTileBytes;
#pragma unroll
        for (int load = 0; load < kLoads; ++load) {
            char* to = a + column_tile_offset<M>(t / kTileChunks + load * kLoadRows, chunk);
            const bool inside = left > 0 && loads_a;
            if (p.switches != nullptr) {
                *reinterpret_cast<uint4*>(to) =
                    inside ? unpooled(p.pool, p.g, p.switches, p.K, p.copy_g, at.image,
                                      windows_over(at.i, p.pool.OH, p.pool.KH, p.pool.SH, p.pool.PH),
                                      windows_over(at.j, p.pool.OW, p.pool.KW, p.pool.SW, p.pool.PW), at.i, at.j, m)
                           : uint4{};
            } else if (p.copy_g) {
                ptx::cp_async<16>(to, inside ? g : p.g, inside ? 16 : 0);
            } else {
                *reinterpret_cast<uint4*>(to) = chunk_of<T>([&](int i) { return inside && m + i < p.K ? g[i] : T{}; });
            }
            to += kTileBytes;
            const int h = at.i * p.SH + kh - p.PH, from_e = (at.j * p.SW - p.PW) * p.C + e;
            const bool inside_h = left > 0 && loads_b && static_cast<unsigned>(h) < static_cast<unsigned>(p.H);
            const T* from = p.x + (at.image * p.H + h) * row_elements + from_e;
            if (p.copy_x) {
                const bool whole = inside_h && static_cast<unsigned>(from_e) < static_cast<unsigned>(row_elements);
                ptx::cp_async<16>(to, whole ? from : p.x, whole ? 16 : 0);
            } else {
                *reinterpret_cast<uint4*>(to) = chunk_of<T>([&](int i) {
                    const bool there = inside_h && e + i < run_elements &&
                                       static_cast<unsigned>(from_e + i) < static_cast<unsigned>(row_elements);
                    return there ? from[i] : T{};
                });
            }
            g += static_cast<int64_t>(kLoadRows) * p.K;
            left -= kLoadRows;
            at.advance(step, p.OH, p.OW);
        }
    };

    Accumulators<M, BM, BN, true> sums;
    sums.clear();
    const int steps = static_cast<int>(ceil_div(smaller(p.range, p.pixels - begin), kSum));
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) {
        if (s < steps) load(s);
        ptx::cp_async_commit();
    }
    for (int s = 0; s < steps; ++s) {
        ptx::cp_async_wait<kStages - 2>();
        __syncthreads();
        if (s + kStages - 1 < steps) load((s + kStages - 1) % kStages);
        ptx::cp_async_commit();
        const char* a = stages + s % kStages * 2 * kTileBytes;
        sums.add_columns(a, a + kTileBytes);
    }
    ptx::cp_async_wait<0>();

    const int columns = p.KH * p.run;
    const int m0 = static_cast<int>(blockIdx.x) / p.tiles_n * BM, n0 = static_cast<int>(blockIdx.x) % p.tiles_n * BN;
    float* out = p.sums + (static_cast<int64_t>(blockIdx.y) * p.K + m0) * columns + n0;
    sums.each([&](int row, int col, float v) {
        if (m0 + row < p.K && n0 + col < columns) out[static_cast<int64_t>(row) * columns + col] = v;
    });
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
#pragma unroll 4
        for (int64_t at = blockIdx.y * range + warp; at < end; at += kWarps) {
            const float v = to_float(p.g[at * p.K + k]);
            if (p.switches == nullptr) {
                sum += v;
            } else {
                const Window& q = p.pool;
                const int s = p.switches[at * p.K + k], i = static_cast<int>(at / width % height);
                const int h = i * q.SH - q.PH + s / q.KW, w = static_cast<int>(at % width) * q.SW - q.PW + s % q.KW;
                const bool inside = s < q.KH * q.KW && static_cast<unsigned>(h) < static_cast<unsigned>(p.OH) &&
                                    static_cast<unsigned>(w) < static_cast<unsigned>(p.OW);
                sum += inside ? v : 0.0f;
            }
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
        const int e = static_cast<int>(at % p.run), kh = static_cast<int>(at / p.run % p.KH);
        const int64_t k = at / p.run / p.KH;
        if (e >= p.KW * p.C) return;
#pragma unroll 4
        for (int64_t r = 0; r < ranges; ++r) sum += p.sums[r * count + at];
        gw[k * wk + e % p.C * wc + kh * wi + e / p.C * wj] = rounded<T>(sum);
    } else if (gb != nullptr && at - count < p.K) {
        const int64_t k = at - count;
        if (p.N > 0) {
#pragma unroll 4
            for (int r = 0; r < kBiasRanges; ++r) sum += bias_sums[r * p.K + k];
        }
        gb[k] = rounded<T>(sum);
    }
}

// The tiling of one problem, and what it needs.
struct Plan {
    bool small;  // 96 x 96 tiles
    int run;
    int64_t tiles_m, tiles_n, pixels, range, ranges, sums;
};

template <class M>
Plan plan_of(const Call& call, const Conv& p) {
    constexpr int kSum = kRowChunks * kChunk<M>;
    Plan plan;
    plan.run = static_cast<int>(round_up(p.KW * p.C, kChunk<M>));
    const int64_t columns = p.KH * plan.run;
    plan.small =
        M::kTensorCores && round_up(p.K, 96) * round_up(columns, 96) < round_up(p.K, 128) * round_up(columns, 128);
    const int tile = plan.small ? 96 : 128;
    plan.tiles_m = ceil_div(p.K, tile);
    plan.tiles_n = ceil_div(columns, tile);
    plan.pixels = p.N * p.OH * p.OW;
    const int64_t blocks = int64_t{multiprocessors(call.device)} * 2 * kBlocks<M>;
    const int64_t most = ceil_div(plan.pixels, 8 * kSum);
    // A range's pixels are counted in 32 bits, and a grid has at most 65535 of them.
    plan.ranges =
        larger(ceil_div(plan.pixels, int64_t{1} << 30), smaller(most, blocks / (plan.tiles_m * plan.tiles_n)));
    plan.ranges = smaller(larger(plan.ranges, plan.pixels > 0), 65535);
    plan.range = plan.ranges == 0 ? kSum : round_up(ceil_div(plan.pixels, plan.ranges), kSum);
    plan.ranges = ceil_div(plan.pixels, plan.range);
    plan.sums = plan.ranges * p.K * columns;
    return plan;
}

template <class M>
void weight_grad_in(const Call& call, const Conv& p, const Pool* pool, const char* name, const void* x, const void* g,
                    const uint8_t* switches, void* gw, void* gb, void* workspace) {
    using T = typename M::T;
    const auto aligned = [](const void* at, int bytes) { return reinterpret_cast<uintptr_t>(at) % bytes == 0; };
    const Plan plan = plan_of<M>(call, p);
    const Correlation sizes = forward_of(p);
    WeightGrad<T> o{};
    o.N = p.N, o.H = sizes.H, o.W = sizes.W, o.C = sizes.C, o.K = sizes.K, o.OH = sizes.OH, o.OW = sizes.OW;
    o.KH = sizes.KH, o.KW = sizes.KW, o.SH = sizes.SH, o.SW = sizes.SW, o.PH = sizes.PH, o.PW = sizes.PW;
    o.x = static_cast<const T*>(x), o.g = static_cast<const T*>(g), o.switches = switches;
    o.sums = static_cast<float*>(workspace), o.run = plan.run, o.tiles_n = static_cast<int>(plan.tiles_n);
    o.pixels = plan.pixels, o.range = plan.range;
    o.copy_x = p.C % kChunk<M> == 0 && aligned(x, kChunkBytes);
    o.copy_g = p.K % kChunk<M> == 0 && aligned(g, kChunkBytes) && aligned(switches, kChunk<M>);
    if (pool != nullptr) {
        o.pool = window_of(*pool);
    }
    float* bias_sums = o.sums + plan.sums;
    if (plan.ranges > 0) {
        const dim3 blocks(static_cast<unsigned>(plan.tiles_m * plan.tiles_n), static_cast<unsigned>(plan.ranges));
        constexpr std::size_t kShared = kStages * 2 * kRowChunks * kChunk<M> * kColumns * sizeof(T);
        const Grid grid{name, blocks, kThreads<M>, kShared};
        if constexpr (M::kTensorCores) {
            if (plan.small) {
                launch(call, p, grid, weight_grad_kernel<M, 96, 96>, o);
            } else {
                launch(call, p, grid, weight_grad_kernel<M, 128, 128>, o);
            }
        } else {
            launch(call, p, grid, weight_grad_kernel<M, 128, 128>, o);
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

template <class F>
auto with_math(const Call& call, F f) {
    switch (call.dtype) {
        case kBFloat16:
            return f(Bf16{});
        case kFloat16:
            return f(F16{});
        default:
            return call.tf32 ? f(Tf32{}) : f(Ieee{});
    }
}

}  // namespace

void conv2d_weight_grad(const Call& call, const Conv& p, const void* x, const void* g, void* gw, void* gb,
                        void* workspace) {
    with_math(call, [&](auto math) {
        weight_grad_in<decltype(math)>(call, p, nullptr, "conv2d_weight_grad", x, g, nullptr, gw, gb, workspace);
    });
}

int64_t conv2d_weight_grad_workspace(const Call& call, const Conv& p) {
    const int64_t sums = with_math(call, [&](auto math) { return plan_of<decltype(math)>(call, p).sums; });
    return (sums + kBiasRanges * p.K) * static_cast<int64_t>(sizeof(float));
}

void conv2d_relu_max_pool2d_weight_grad(const Call& call, const Conv& p, const Pool& pool, const void* x, const void* g,
                                        const uint8_t* switches, void* gw, void* gb, void* workspace) {
    with_math(call, [&](auto math) {
        weight_grad_in<decltype(math)>(call, p, &pool, "conv2d_relu_max_pool2d_weight_grad", x, g, switches, gw, gb,
                                       workspace);
    });
}

int64_t conv2d_relu_max_pool2d_weight_grad_workspace(const Call& call, const Conv& p, const Pool&) {
    return conv2d_weight_grad_workspace(call, p);
}

}  // namespace zf::cuda
