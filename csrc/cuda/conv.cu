// conv2d, and the correlation kernel that conv_transpose.cu uses too.
//
// correlation_kernel is an implicit matrix product. A: result pixels x (kh, kw, c), gathered from the source map while
// it is copied into shared memory. B: packed filters (correlation.h). A block makes 128 pixels of one residue class (in
// the order n, i, j) x BN channels; tile.cuh has the tiles and the warps' part. The sum's axis is walked 64 bytes at a
// time, 4 stages deep, with cp.async: a stage is copied three stages before it is used, among the products of the stage
// at hand, and one barrier a stage both publishes what has arrived and frees the buffer that was read last.
//
//   Source   16-byte copies where C is a multiple of a chunk (8 half, 4 float32): a chunk is then wholly inside or
//            outside the map. Half types with another multiple of 4 channels take two copies of 8 bytes. A run's chunk
//            is contiguous memory, and lies inside the map where its element offset in the row does, so no tap and no
//            channel is ever divided out.
//   Tile     BN = 128, 96 or 64, whichever pads K the least.
//   Shared   4 stages x (128 + BN) x 64 bytes: 64 KiB for BN = 128, two blocks an SM. A half-precision result is turned
//            through the same memory into 16-byte stores; its rows there are 16 bytes longer, so that the 8 rows that a
//            warp writes at once fall on different banks.
//   Blocks   the tiles of one pixel range follow each other: all but the first read its source from L2.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda/correlation.h"
#include "cuda/launch.h"
#include "cuda/pack.cuh"
#include "cuda/tile.cuh"

namespace zf::cuda {
namespace {

constexpr int kStages = 4;

// A correlation whose source has zeros up to a multiple of 4 channels: C counts them, `channels` those that it has.
struct Padded : Correlation {
    int channels;

    explicit Padded(const Correlation& p) : Correlation(p), channels(p.C) { C = round_up(p.C, 4); }
};

// One block packs one filter of one residue class; consecutive threads write consecutive elements.
template <class T>
__global__ void __launch_bounds__(256) pack_kernel(Padded p, const T* __restrict__ w, T* __restrict__ packed) {
    constexpr int kChunkElements = kChunkBytes / sizeof(T);
    const int index = blockIdx.x / p.K, k = blockIdx.x % p.K;
    const ResidueClass r = class_of(p, index, kChunkElements);
    const int row = r.taps_h * r.run, hop_h = p.transposed ? -p.SH : 1, hop_w = p.transposed ? -p.SW : 1;
    // The tap of run 0: the last of its residue where the order is reversed.
    const int first_h = p.transposed ? index / p.SW + (r.taps_h - 1) * p.SH : 0;
    const int first_w = p.transposed ? index % p.SW + (r.taps_w - 1) * p.SW : 0;
    T* out = packed + r.packed + static_cast<int64_t>(k) * row;
    for (int e = threadIdx.x; e < row; e += blockDim.x) {
        const int i = e / r.run, j = e % r.run / p.C, c = e % r.run % p.C;
        const int64_t at = k * p.w_out + c * p.w_in + (first_h + i * hop_h) * p.w_h + (first_w + j * hop_w) * p.w_w;
        out[e] = j < r.taps_w && c < p.channels ? w[at] : T{};
    }
}

// Four elements of a padded run a thread; Bits: an unsigned integer of the elements' size.
template <class Bits>
__global__ void __launch_bounds__(256)
    pad_kernel(const Bits* __restrict__ from, int64_t runs, int length, int pitch, Bits* __restrict__ to) {
    const int pieces = pitch / 4;
    const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, run = pieces == 1 ? at : at / pieces;
    if (run >= runs) return;
    const int first = static_cast<int>(at - run * pieces) * 4;
    const Bits* const source = from + run * length + first;
    uint32_t v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = first + i < length ? source[i] : 0;
    if constexpr (sizeof(Bits) == 2) {
        *reinterpret_cast<uint2*>(to + at * 4) = uint2{v[0] | v[1] << 16, v[2] | v[3] << 16};
    } else {
        *reinterpret_cast<uint4*>(to + at * 4) = uint4{v[0], v[1], v[2], v[3]};
    }
}

template <class T>
struct Operands {
    const T* source;
    const T* packed;
    const T* bias;
    T* result;
    bool relu;
    bool store_chunks;  // the result can be written 16 bytes at a time
    int64_t tiles_m;    // a residue class
    int tiles_n;
};

template <class M, int BN>
constexpr int correlation_shared = kTileRows * sizeof(int64_t) + kStages * (kTileRows + BN) * kRowBytes;

// kCopy: the bytes that the source is copied by, 16 or 8. kRectify: its values are rectified.
template <class M, int BN, int kCopy, bool kRectify>
__global__ void __launch_bounds__(kThreads<M>, kBlocks<M>) correlation_kernel(Padded p, Operands<typename M::T> o) {
    using T = typename M::T;
    constexpr int kLoadRows = kThreads<M> / kRowChunks, kLoadsA = kTileRows / kLoadRows;
    constexpr int kLoadsB = (BN + kLoadRows - 1) / kLoadRows;
    constexpr int kStep = kRowChunks * kChunk<M>;
    // The first element of each result pixel (-1: no such pixel), then the stages.
    int64_t* result_at = ptx::shared_memory<int64_t>();
    char* stages = reinterpret_cast<char*>(result_at + kTileRows);

    const int t = threadIdx.x;
    const int64_t tile_m = blockIdx.x / o.tiles_n;
    const int n0 = static_cast<int>(blockIdx.x % o.tiles_n) * BN;
    const ResidueClass r = class_of(p, static_cast<int>(tile_m / o.tiles_m), kChunk<M>);
    const int64_t m0 = tile_m % o.tiles_m * kTileRows;
    const int64_t pixels = r.rows <= 0 || r.cols <= 0 ? 0 : p.N * r.rows * r.cols;
    if (m0 >= pixels) return;

    // This thread copies chunk `chunk` of rows t/4, t/4 + kLoadRows, ...
    const int chunk = t % kRowChunks;
    const int row_elements = p.W * p.C, total = r.taps_h * r.run, run_elements = r.taps_w * p.C;
    const T* source[kLoadsA];  // of the row's first tap, which may lie outside the map
    int from_h[kLoadsA], from_e[kLoadsA];
#pragma unroll
    for (int i = 0; i < kLoadsA; ++i) {
        const int row = t / kRowChunks + i * kLoadRows;
        const int64_t m = m0 + row, image = m / (static_cast<int64_t>(r.rows) * r.cols);
        const int64_t rest = m - image * r.rows * r.cols;
        const int a = static_cast<int>(rest / r.cols), b = static_cast<int>(rest - static_cast<int64_t>(a) * r.cols);
        from_h[i] = m < pixels ? a * r.step_h + r.from_h : -(1 << 30);
        from_e[i] = (b * r.step_w + r.from_w) * p.C;
        source[i] = o.source + (image * p.H + from_h[i]) * row_elements + from_e[i];
        if (chunk == 0) {
            const int64_t at = (image * p.OH + r.to_h + a * r.hop_h) * p.OW + r.to_w + b * r.hop_w;
            result_at[row] = m < pixels ? at * p.K : -1;
        }
    }
    const T* filters = o.packed + r.packed;
    int k = chunk * kChunk<M>, kh = 0, e = k;  // e: the offset in run kh of what this thread copies next
    while (kh < r.taps_h && e >= r.run) e -= r.run, ++kh;

    // Part `part` of what the thread copies into the stage that begins at `to`. Past the sum's end these are zeros.
    const auto load = [&](char* to, int part) {
        if (part < kLoadsA) {
            const int i = part, row = t / kRowChunks + i * kLoadRows;
            const bool inside_h = kh < r.taps_h && static_cast<unsigned>(from_h[i] + kh) < static_cast<unsigned>(p.H);
            const T* from = source[i] + static_cast<int64_t>(kh) * row_elements + e;
            char* const there = to + tile_offset(row, chunk);
            constexpr int kElements = kCopy / static_cast<int>(sizeof(T));
#pragma unroll
            for (int j = 0; j < kChunk<M>; j += kElements) {
                // Of two parts of a chunk the second may lie behind the run's last tap.
                const bool inside = inside_h && (j == 0 || e + j < run_elements) &&
                                    static_cast<unsigned>(from_e[i] + e + j) < static_cast<unsigned>(row_elements);
                ptx::cp_async<kCopy>(there + j * sizeof(T), from + j, inside ? kCopy : 0);
            }
        } else if (part < kLoadsA + kLoadsB) {
            const int row = t / kRowChunks + (part - kLoadsA) * kLoadRows;
            if (BN % kLoadRows != 0 && row >= BN) return;
            const bool inside = n0 + row < p.K && k < total;
            const T* from = filters + static_cast<int64_t>(n0 + row) * total + k;
            ptx::cp_async<16>(to + kTileRows * kRowBytes + tile_offset(row, chunk), from, inside ? 16 : 0);
        }
    };
    const auto advance = [&] {
        k += kStep;
        e += kStep;
        while (kh < r.taps_h && e >= r.run) e -= r.run, ++kh;
    };
    constexpr int kStageBytes = (kTileRows + BN) * kRowBytes;

    Accumulators<M, kTileRows, BN> sums;
    static_assert(kLoadsA + kLoadsB <= decltype(sums)::kBetween);
    sums.clear();
    const int steps = (total + kStep - 1) / kStep;
#pragma unroll 1  // unrolling would only make three copies of the loader
    for (int s = 0; s < kStages - 1; ++s) {
#pragma unroll
        for (int part = 0; part < kLoadsA + kLoadsB; ++part) load(stages + s * kStageBytes, part);
        ptx::cp_async_commit();
        advance();
    }
    for (int s = 0; s < steps; ++s) {
        ptx::cp_async_wait<kStages - 2>();
        __syncthreads();
        char* const next = stages + (s + kStages - 1) % kStages * kStageBytes;
        const char* const a = stages + s % kStages * kStageBytes;
        sums.template add<kRectify>(a, a + kTileRows * kRowBytes, [&](int part) { load(next, part); });
        ptx::cp_async_commit();
        advance();
    }
    ptx::cp_async_wait<0>();
    __syncthreads();

    if constexpr (sizeof(T) == 2) {
        constexpr int kPitch = BN + kChunk<M>;
        static_assert(kTileRows * kPitch * sizeof(T) <= kStages * (kTileRows + BN) * kRowBytes);
        T* out = reinterpret_cast<T*>(stages);
        const auto bias_of = [&](int col) {
            const auto at = [&](int k) { return o.bias != nullptr && k < p.K ? to_float(o.bias[k]) : 0.0f; };
            return float2{at(n0 + col), at(n0 + col + 1)};
        };
        sums.each_pair(bias_of, [&](int row, int col, float low, float high, float2 bias) {
            const uint32_t pair = rounded_pair<T>(low + bias.x, high + bias.y);
            *reinterpret_cast<uint32_t*>(out + row * kPitch + col) = o.relu ? rectified_pair<T>(pair) : pair;
        });
        __syncthreads();
        for (int at = t; at < kTileRows * (BN / kChunk<M>); at += kThreads<M>) {
            const int row = at / (BN / kChunk<M>), col = at % (BN / kChunk<M>)*kChunk<M>;
            if (result_at[row] < 0) continue;
            T* to = o.result + result_at[row] + n0 + col;
            const T* from = out + row * kPitch + col;
            if (o.store_chunks) {
                if (n0 + col < p.K) *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
            } else {
                for (int j = 0; j < kChunk<M> && n0 + col + j < p.K; ++j) to[j] = from[j];
            }
        }
    } else {
        // A quad's (TF32) or 8 lanes' (Ieee) stores make a whole sector of 32 bytes as they are.
        const auto to_of = [&](int row) { return result_at[row] < 0 ? nullptr : o.result + result_at[row] + n0; };
        const auto bias_of = [&](int col) { return o.bias != nullptr && n0 + col < p.K ? o.bias[n0 + col] : 0.0f; };
        const auto finished = [&](float v) { return o.relu ? rectified(v) : v; };
        if constexpr (M::kTensorCores) {
            sums.each_in_rows(to_of, bias_of, [&](int col, float low, float high, float* to, float2 bias) {
                if (to == nullptr) return;
                if (n0 + col < p.K) to[col] = finished(low + bias.x);
                if (n0 + col + 1 < p.K) to[col + 1] = finished(high + bias.y);
            });
        } else {
            sums.each_in_rows(to_of, bias_of, [&](int col, float v, float* to, float bias) {
                if (to != nullptr && n0 + col < p.K) to[col] = finished(v + bias);
            });
        }
    }
}

dim3 blocks_of(int64_t count) {
    if (count > 0x7fffffff)
        throw std::runtime_error("a CUDA grid has at most 2^31 - 1 blocks, got " + std::to_string(count));
    return dim3(static_cast<unsigned>(count));
}

template <class M, int BN>
void launch_correlation(const Call& call, const Conv& sizes, const Padded& p, const char* name, bool rectify,
                        Operands<typename M::T> o) {
    o.tiles_n = static_cast<int>(ceil_div(p.K, BN));
    const int64_t rows = p.transposed ? ceil_div(p.OH, p.SH) : p.OH, cols = p.transposed ? ceil_div(p.OW, p.SW) : p.OW;
    o.tiles_m = ceil_div(p.N * rows * cols, kTileRows);
    const int64_t blocks = o.tiles_m * classes_of(p) * o.tiles_n;
    const Grid grid{name, blocks_of(blocks), kThreads<M>, correlation_shared<M, BN>};
    if constexpr (sizeof(typename M::T) == 2) {
        if (p.C % kChunk<M> != 0) {
            launch(call, sizes, grid,
                   rectify ? correlation_kernel<M, BN, 8, true> : correlation_kernel<M, BN, 8, false>, p, o);
            return;
        }
    }
    launch(call, sizes, grid, rectify ? correlation_kernel<M, BN, 16, true> : correlation_kernel<M, BN, 16, false>, p,
           o);
}

// Where the padded source begins in the workspace, behind the filters.
int64_t filter_bytes(const Padded& p, std::size_t element) {
    const int64_t size = static_cast<int64_t>(element);
    return round_up(packed_filters(p, static_cast<int>(kChunkBytes / size)) * size, 256);
}

template <class M>
void correlate_in(const Call& call, const Conv& sizes, const Padded& p, const char* name, const void* source,
                  const void* w, const void* bias, void* result, bool relu, bool rectify, void* workspace) {
    using T = typename M::T;
    Operands<T> o{static_cast<const T*>(source),
                  static_cast<const T*>(workspace),
                  static_cast<const T*>(bias),
                  static_cast<T*>(result),
                  relu,
                  p.K % kChunk<M> == 0 && aligned(kChunkBytes, result),
                  0,
                  0};
    launch(call, sizes, {"pack_filters", blocks_of(static_cast<int64_t>(classes_of(p)) * p.K), 256}, pack_kernel<T>, p,
           static_cast<const T*>(w), static_cast<T*>(workspace));
    if (p.C != p.channels) {
        void* const padded = static_cast<char*>(workspace) + filter_bytes(p, sizeof(T));
        pad_runs(call, sizes, source, p.N * p.H * p.W, p.channels, p.C, padded);
        o.source = static_cast<const T*>(padded);
    }
    const auto padded = [&](int64_t bn) { return round_up(p.K, bn); };
    if (padded(128) <= padded(96) && padded(128) <= padded(64)) {
        launch_correlation<M, 128>(call, sizes, p, name, rectify, o);
    } else if (padded(96) <= padded(64)) {
        launch_correlation<M, 96>(call, sizes, p, name, rectify, o);
    } else {
        launch_correlation<M, 64>(call, sizes, p, name, rectify, o);
    }
}

}  // namespace

void correlate(const Call& call, const Conv& sizes, const Correlation& p, const char* name, const void* source,
               const void* w, const void* bias, void* result, bool relu, bool rectify, void* workspace) {
    if (p.N == 0) return;
    check_start(name, sizes, source);
    with_math(call, [&](auto math) {
        correlate_in<decltype(math)>(call, sizes, Padded(p), name, source, w, bias, result, relu, rectify, workspace);
    });
}

int64_t correlate_workspace(const Call& call, const Correlation& plain) {
    const Padded p(plain);
    const int64_t bytes = call.dtype == kFloat32 ? 4 : 2, map = p.N * p.H * p.W * p.C * bytes;
    return filter_bytes(p, static_cast<std::size_t>(bytes)) + (p.C != p.channels ? map : 0);
}

void pad_runs(const Call& call, const Conv& sizes, const void* from, int64_t runs, int length, int pitch, void* to) {
    const Grid grid{"pad", blocks_of(ceil_div(runs * (pitch / 4), 256)), 256};
    if (call.dtype == kFloat32) {
        launch(call, sizes, grid, pad_kernel<uint32_t>, static_cast<const uint32_t*>(from), runs, length, pitch,
               static_cast<uint32_t*>(to));
    } else {
        launch(call, sizes, grid, pad_kernel<uint16_t>, static_cast<const uint16_t*>(from), runs, length, pitch,
               static_cast<uint16_t*>(to));
    }
}

namespace {

// A size as an int: rows of a map and extents must have fewer than 2^31 elements; the map itself may have more.
int narrow(int64_t size) {
    if (size > (int64_t{1} << 30)) {
        throw std::runtime_error("the CUDA kernels take extents and rows of up to 2^30 elements, got " +
                                 std::to_string(size));
    }
    return static_cast<int>(size);
}

Correlation sizes_of(const Conv& p) {
    const int64_t most = round_up(std::max(p.C, p.K), 4);
    narrow((p.W + p.PW + p.KW) * most);
    narrow((p.OW + p.KW) * most);
    narrow(p.KH * p.KW * (most + 8));
    narrow(p.SH * p.SW);
    Correlation c{};
    c.N = p.N;
    c.KH = narrow(p.KH), c.KW = narrow(p.KW), c.SH = narrow(p.SH), c.SW = narrow(p.SW);
    c.PH = narrow(p.PH), c.PW = narrow(p.PW);
    c.w_h = p.wi, c.w_w = p.wj;
    return c;
}

}  // namespace

Correlation forward_of(const Conv& p) {
    Correlation c = sizes_of(p);
    c.H = narrow(p.H), c.W = narrow(p.W), c.C = narrow(p.C);
    c.OH = narrow(p.OH), c.OW = narrow(p.OW), c.K = narrow(p.K);
    c.w_out = p.wk, c.w_in = p.wc;
    return c;
}

Correlation adjoint_of(const Conv& p) {
    Correlation c = sizes_of(p);
    c.H = narrow(p.OH), c.W = narrow(p.OW), c.C = narrow(p.K);
    c.OH = narrow(p.H), c.OW = narrow(p.W), c.K = narrow(p.C);
    c.w_out = p.wc, c.w_in = p.wk;
    c.transposed = true;
    return c;
}

void conv2d(const Call& call, const Conv& p, const void* x, const void* w, const void* bias, void* y, bool relu,
            void* workspace) {
    correlate(call, p, forward_of(p), "conv2d", x, w, bias, y, relu, false, workspace);
}

int64_t conv2d_workspace(const Call& call, const Conv& p) { return correlate_workspace(call, forward_of(p)); }

}  // namespace zf::cuda
