// conv2d_relu_max_pool2d: a whole layer without its map.
//
// layer_kernel serves first layers (few channels) in half precision: convolution, bias, rectifier, rounding, pooling
// and switches in one kernel. Everything else is the composition of conv2d and max_pool2d over a map in the workspace;
// docs/design/cuda.md has the estimate behind that choice.
//
// A block makes a band of pooled rows of one image for a slice of 48 filters, PR pooled rows a step:
//
//   1. the input rows of the step's convolution rows are in shared memory: cp.async of 16 bytes, issued a step ahead;
//      images whose rows are no whole number of those are first copied with zeros behind each row;
//   2. 4 warps make the convolution rows in tiles of 16 pixels x 48 filters, m16n8k16, and write them, rectified and
//      rounded, to a ring of rows in shared memory; rows that two steps share are made once;
//   3. the threads pool from the ring, 4 maps each at a time.
//
// Filters live in registers for the whole band, as fragments (120 registers for 10 steps of k16): a tile costs 40
// four-byte shared loads for 60 products; with filters in shared memory it would cost three times that.
//
// A comes straight from the input rows, without im2col: an A register holds two neighbouring elements of a run (kw, c),
// which are neighbours in the row too. Pair p of pixel j lies at j*SW*C + 2p elements, a word if SW*C is even. A run
// that starts at an odd element begins one element early, and one of odd length ends one late: those elements belong to
// another pixel, may be NaN, and are masked. The order of the pairs is free as long as the filters have the same one,
// so pairs that need a mask come first, then the empty slots that fill the last step: only steps 0 and 1 mask.
//
// Shared memory: the ring, [(PR-1)*pool stride + pool height rows][OW] pixels of 112 bytes (48 filters and 16 bytes, so
// that the 8 pixels that a warp writes at once fall on different banks); then the input rows, with their padding.
//
// Pooling: a value is rectified and rounded, so its bits order as an integer, NaN (0x7fff) on top; value << 16 |
// 255 - tap in one word makes one integer maximum decide value and tap, the first tap winning.
//
// Bits: the same on every run. Sums are taken in another order than conv2d's, so values agree with the unfused pair
// within the type's bound; where the composition is used they are the same bits.
#include <algorithm>
#include <string>

#include "cuda/correlation.h"
#include "cuda/launch.h"
#include "cuda/pack.cuh"
#include "cuda/tile.cuh"

namespace zf::cuda {
namespace {

constexpr int kSlice = 48;
constexpr int kTilesN = kSlice / 8;
constexpr int kMostSteps = 10;   // of k16: what fits into registers
constexpr int kMaskedSteps = 2;  // the first ones
constexpr int kPixelBytes = kSlice * 2 + 16;
constexpr int kLayerThreads = 128;

// How the elements of a filter are distributed to slots, two to a slot, 8 slots a step.
struct Slots {
    int lead;   // 1: a run begins one element early
    int pairs;  // of a run
    int dead;   // pairs of a run that hold an element of another pixel
    int spare;  // empty slots
    int steps;
};

ZF_HOST_DEVICE static inline Slots slots_of(int KH, int KW, int C, int PW) {
    Slots s;
    s.lead = PW * C % 2;
    const int run = s.lead + KW * C;
    s.pairs = (run + 1) / 2;
    s.dead = s.pairs == 1 ? (run != 2 || s.lead) : s.lead + run % 2;
    s.steps = (KH * s.pairs + 7) / 8;
    s.spare = s.steps * 8 - KH * s.pairs;
    return s;
}

struct Slot {
    int kh, pair;
    uint32_t mask;  // of the halves that count
};

ZF_HOST_DEVICE static inline Slot slot_at(const Slots& s, int KH, int KW, int C, int index) {
    const bool first_dead = s.lead, last_dead = (s.lead + KW * C) % 2;
    if (index < KH * s.dead) {
        const int which = index % s.dead, pair = which == 0 && first_dead ? 0 : s.pairs - 1;
        uint32_t mask = 0xffffffffu;
        if (pair == 0 && first_dead) mask &= 0xffff0000u;
        if (pair == s.pairs - 1 && last_dead) mask &= 0x0000ffffu;
        return {index / s.dead, pair, mask};
    }
    index -= KH * s.dead;
    if (index < s.spare) return {0, 0, 0};
    index -= s.spare;
    const int alive = s.pairs - s.dead;
    return {index / alive, index % alive + first_dead, 0xffffffffu};
}

template <class T>
struct Layer {
    int64_t N;
    int H, W, C, K, OH, OW, KH, KW, SH, SW, PH, PW;
    int pool_OH, pool_OW, pool_KH, pool_KW, pool_SH, pool_SW, pool_PH, pool_PW;
    const T* x;
    const T* bias;
    const uint4* packed;
    const uint2* table;  // of every slot: its offset from a pixel's first element, its mask
    T* y;
    uint8_t* switches;
    Slots slots;
    int step_rows, band_rows;  // pooled rows
    int bands, slices;
    int ring_rows, left;  // rows of the ring; elements before an input row's first in shared memory
    int input_pitch;      // elements from one input row to the next there
    int input_rows;
    int source_pitch;    // and in x, a multiple of 8
    bool store_vectors;  // four maps of a pooled pixel can be written at once
};

constexpr int kTableBytes = kMostSteps * 8 * sizeof(uint2);

// The table of slots (made once a call, since every block would repeat its divisions), and the filters as fragments:
// word r % 4 of packed[slice][r / 4][lane] is register r = (step, tile of 8 filters, half) of every lane. One block a
// slice.
template <class T>
__global__ void __launch_bounds__(256)
    pack_fragments_kernel(Layer<T> p, const T* __restrict__ w, int64_t wk, int64_t wc, int64_t wi, int64_t wj,
                          uint2* table, uint32_t* packed) {
    constexpr int kRegisters = kMostSteps * kTilesN * 2;
    if (blockIdx.x == 0 && threadIdx.x < kMostSteps * 8) {
        const int index = threadIdx.x;
        const Slot slot = index < p.slots.steps * 8 ? slot_at(p.slots, p.KH, p.KW, p.C, index) : Slot{0, 0, 0};
        table[index] = {static_cast<uint32_t>(slot.kh * p.input_pitch + slot.pair * 2), slot.mask};
    }
    for (int at = threadIdx.x; at < kRegisters * 32; at += blockDim.x) {
        const int lane = at / 4 % 32, r = at / 128 * 4 + at % 4;
        const int step = r / (kTilesN * 2), tile = r / 2 % kTilesN, half = r % 2;
        const int k = static_cast<int>(blockIdx.x) * kSlice + tile * 8 + lane / 4;
        uint32_t word = 0;
        if (step < p.slots.steps && k < p.K) {
            const Slot slot = slot_at(p.slots, p.KH, p.KW, p.C, step * 8 + half * 4 + lane % 4);
            for (int i = 0; i < 2; ++i) {
                if ((slot.mask >> 16 * i & 1) == 0) continue;
                const int e = slot.pair * 2 + i - p.slots.lead;
                const T v = w[k * wk + e % p.C * wc + slot.kh * wi + e / p.C * wj];
                word |= static_cast<uint32_t>(v.bits) << 16 * i;
            }
        }
        packed[blockIdx.x * (kRegisters * 32) + at] = word;
    }
}

// kSteps: the number of steps, known to the compiler; 0: p.slots.steps, up to kMostSteps.
template <class M, int kSteps>
__global__ void __launch_bounds__(kLayerThreads, 2) layer_kernel(Layer<typename M::T> p) {
    using T = typename M::T;
    constexpr int kUnrolled = kSteps > 0 ? kSteps : kMostSteps;
    char* const ring = ptx::shared_memory<char>();
    T* const input = reinterpret_cast<T*>(ring + p.ring_rows * p.OW * kPixelBytes);

    const int t = threadIdx.x, lane = t % 32, warp = t / 32, g = lane / 4, q = lane % 4;
    const int slice = static_cast<int>(blockIdx.x % p.slices), band = static_cast<int>(blockIdx.x / p.slices % p.bands);
    const int64_t image = blockIdx.x / p.slices / p.bands;
    const T* const x = p.x + image * p.H * p.source_pitch;

    uint32_t filters[kUnrolled][kTilesN][2];
#pragma unroll
    for (int i = 0; i < kUnrolled * kTilesN / 2; ++i) {
        const uint4 v = p.packed[(slice * (kMostSteps * kTilesN / 2) + i) * 32 + lane];
        filters[i / (kTilesN / 2)][i % (kTilesN / 2) * 2][0] = v.x;
        filters[i / (kTilesN / 2)][i % (kTilesN / 2) * 2][1] = v.y;
        filters[i / (kTilesN / 2)][i % (kTilesN / 2) * 2 + 1][0] = v.z;
        filters[i / (kTilesN / 2)][i % (kTilesN / 2) * 2 + 1][1] = v.w;
    }
    float bias[kTilesN][2];
#pragma unroll
    for (int j = 0; j < kTilesN; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const int k = slice * kSlice + j * 8 + q * 2 + e;
            bias[j][e] = p.bias != nullptr && k < p.K ? to_float(p.bias[k]) : 0.0f;
        }
    int offsets[kUnrolled][2];  // in elements, from a pixel's first
    uint32_t masks[kMaskedSteps][2];
#pragma unroll
    for (int s = 0; s < kUnrolled; ++s)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint2 slot = p.table[s * 8 + half * 4 + q];
            offsets[s][half] = static_cast<int>(slot.x);
            if (s < kMaskedSteps) masks[s][half] = slot.y;
        }

    // Input rows of convolution rows [from, to): row from*SH - PH first. Rows outside the map become zeros.
    const auto load = [&](int from, int to) {
        const int first = from * p.SH - p.PH, rows = (to - 1 - from) * p.SH + p.KH;
        const int chunks = p.source_pitch / 8;
        for (int at = t; at < rows * chunks; at += kLayerThreads) {
            const int row = at / chunks, e = at % chunks * 8, h = first + row;
            const bool inside = static_cast<unsigned>(h) < static_cast<unsigned>(p.H);
            const T* source = inside ? x + static_cast<int64_t>(h) * p.source_pitch + e : p.x;
            ptx::cp_async<16>(input + row * p.input_pitch + p.left + e, source, inside ? 16 : 0);
        }
        ptx::cp_async_commit();
    };

    const int tiles_row = (p.OW + 15) / 16, pixel = p.SW * p.C;
    const auto convolve = [&](int from, int to) {
        for (int tile = warp; tile < (to - from) * tiles_row; tile += kLayerThreads / 32) {
            const int row = tile / tiles_row, col = tile % tiles_row * 16 + g;
            const T* low = input + row * p.SH * p.input_pitch + p.left - p.PW * p.C - p.slots.lead + col * pixel;
            const T* high = low + 8 * pixel;
            float sums[kTilesN][4];
#pragma unroll
            for (int j = 0; j < kTilesN; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) sums[j][e] = bias[j][e % 2];
#pragma unroll
            for (int s = 0; s < kUnrolled; ++s) {
                if (kSteps == 0 && s >= p.slots.steps) break;
                uint32_t a[4] = {*reinterpret_cast<const uint32_t*>(low + offsets[s][0]),
                                 *reinterpret_cast<const uint32_t*>(high + offsets[s][0]),
                                 *reinterpret_cast<const uint32_t*>(low + offsets[s][1]),
                                 *reinterpret_cast<const uint32_t*>(high + offsets[s][1])};
                if (s < kMaskedSteps) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) a[e] &= masks[s][e / 2];
                }
#pragma unroll
                for (int j = 0; j < kTilesN; ++j) multiply<M>(sums[j], a, filters[s][j]);
            }
            char* to_low = ring + ((from + row) % p.ring_rows * p.OW + col) * kPixelBytes + q * 4;
            char* to_high = to_low + 8 * kPixelBytes;
#pragma unroll
            for (int j = 0; j < kTilesN; ++j) {
                const uint32_t first = rectified_pair<T>(rounded_pair<T>(sums[j][0], sums[j][1]));
                const uint32_t second = rectified_pair<T>(rounded_pair<T>(sums[j][2], sums[j][3]));
                if (col < p.OW) *reinterpret_cast<uint32_t*>(to_low + j * 16) = first & 0x7fff7fffu;
                if (col + 8 < p.OW) *reinterpret_cast<uint32_t*>(to_high + j * 16) = second & 0x7fff7fffu;
            }
        }
    };

    // Pooled rows [from, to), four maps of a pixel a thread.
    const auto pool = [&](int from, int to) {
        constexpr int kQuads = kSlice / 4;
        for (int at = t; at < (to - from) * p.pool_OW * kQuads; at += kLayerThreads) {
            const int quad = at % kQuads, j = at / kQuads % p.pool_OW, i = from + at / kQuads / p.pool_OW;
            const int top = i * p.pool_SH - p.pool_PH, left = j * p.pool_SW - p.pool_PW;
            uint32_t best[4] = {0, 0, 0, 0};
            const auto see = [&](const char* pixel, uint32_t place) {
                const uint2 v = *reinterpret_cast<const uint2*>(pixel);
                const uint32_t rank = 255 - place;
                best[0] = max(best[0], v.x << 16 | rank);
                best[1] = max(best[1], (v.x & 0xffff0000u) | rank);
                best[2] = max(best[2], v.y << 16 | rank);
                best[3] = max(best[3], (v.y & 0xffff0000u) | rank);
            };
            const int h0 = max(0, -top), h1 = min(p.pool_KH, p.OH - top);
            const int w0 = max(0, -left), w1 = min(p.pool_KW, p.OW - left);
            const char* const maps = ring + quad * 8;
            if (h0 == 0 && w0 == 0 && h1 == 3 && w1 == 3 && p.pool_KW == 3) {
#pragma unroll
                for (int h = 0; h < 3; ++h) {
                    const char* row = maps + ((top + h) % p.ring_rows * p.OW + left) * kPixelBytes;
#pragma unroll
                    for (int w = 0; w < 3; ++w) see(row + w * kPixelBytes, h * 3 + w);
                }
            } else {
                for (int h = h0; h < h1; ++h) {
                    const char* row = maps + ((top + h) % p.ring_rows * p.OW + left) * kPixelBytes;
                    for (int w = w0; w < w1; ++w) see(row + w * kPixelBytes, h * p.pool_KW + w);
                }
            }
            const int k = slice * kSlice + quad * 4;
            const int64_t out = ((image * p.pool_OH + i) * p.pool_OW + j) * p.K + k;
            if (p.store_vectors) {
                if (k >= p.K) continue;
                *reinterpret_cast<uint2*>(p.y + out) =
                    uint2{best[0] >> 16 | (best[1] & 0xffff0000u), best[2] >> 16 | (best[3] & 0xffff0000u)};
                const uint32_t ranks = (best[0] & 255) | (best[1] & 255) << 8 | (best[2] & 255) << 16 | best[3] << 24;
                *reinterpret_cast<uint32_t*>(p.switches + out) = ~ranks;
            } else {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    if (k + e >= p.K) break;
                    p.y[out + e] = T{static_cast<uint16_t>(best[e] >> 16)};
                    p.switches[out + e] = static_cast<uint8_t>(255 - (best[e] & 255));
                }
            }
        }
    };

    const int begin = band * p.band_rows, end = min(p.pool_OH, begin + p.band_rows);
    // The convolution rows that pooled rows [i, min(i + step_rows, end)) need beyond those before `made`.
    const auto first_row = [&](int i, int made) { return max(made, i * p.pool_SH - p.pool_PH); };
    const auto end_row = [&](int i) {
        return min(p.OH, (min(end, i + p.step_rows) - 1) * p.pool_SH - p.pool_PH + p.pool_KH);
    };
    for (int at = t; at < p.input_rows * p.input_pitch / 8; at += kLayerThreads) {
        reinterpret_cast<uint4*>(input)[at] = uint4{};
    }
    __syncthreads();
    int from = first_row(begin, 0), to = end_row(begin);
    if (from < to) load(from, to);
    for (int i = begin; i < end; i += p.step_rows) {
        ptx::cp_async_wait<0>();
        __syncthreads();
        if (from < to) convolve(from, to);
        __syncthreads();
        const int next = i + p.step_rows;
        from = first_row(next, to);
        if (next < end) {
            to = end_row(next);
            if (from < to) load(from, to);
        }
        pool(i, min(end, next));
    }
}

// The layer as the kernel takes it, without the pointers; step_rows 0: the kernel does not serve it.
template <class T>
Layer<T> layer_of(const Call& call, const Conv& p, const Pool& pool) {
    Layer<T> o{};
    const Correlation sizes = forward_of(p);
    o.N = p.N, o.H = sizes.H, o.W = sizes.W, o.C = sizes.C, o.K = sizes.K, o.OH = sizes.OH, o.OW = sizes.OW;
    o.KH = sizes.KH, o.KW = sizes.KW, o.SH = sizes.SH, o.SW = sizes.SW, o.PH = sizes.PH, o.PW = sizes.PW;
    o.pool_OH = static_cast<int>(pool.OH), o.pool_OW = static_cast<int>(pool.OW);
    o.pool_KH = static_cast<int>(pool.KH), o.pool_KW = static_cast<int>(pool.KW);
    o.pool_SH = static_cast<int>(pool.SH), o.pool_SW = static_cast<int>(pool.SW);
    o.pool_PH = static_cast<int>(pool.PH), o.pool_PW = static_cast<int>(pool.PW);
    if (p.KH * p.KW * p.C > kMostSteps * 16 || p.SW * p.C % 2 != 0) return o;
    o.slots = slots_of(o.KH, o.KW, o.C, o.PW);
    if (o.slots.steps > kMostSteps || o.KH * o.slots.dead + o.slots.spare > kMaskedSteps * 8) return o;
    o.slices = static_cast<int>(ceil_div(p.K, kSlice));
    o.source_pitch = static_cast<int>(round_up(p.W * p.C, 8));
    o.left = static_cast<int>(round_up(p.PW * p.C + o.slots.lead, 8));
    const int64_t first = o.left - p.PW * p.C - o.slots.lead;
    const int64_t reach = first + (round_up(p.OW, 16) - 1) * p.SW * p.C + o.slots.pairs * 2;
    const int64_t pitch = round_up(larger(o.left + p.W * p.C, reach), 8);
    for (int rows = 2; rows >= 1; --rows) {
        const int64_t ring = (rows - 1) * pool.SH + pool.KH, input = (ring - 1) * p.SH + p.KH;
        if (ring * p.OW * kPixelBytes + input * pitch * 2 > kMostShared) continue;
        o.step_rows = rows;
        o.ring_rows = static_cast<int>(ring), o.input_rows = static_cast<int>(input),
        o.input_pitch = static_cast<int>(pitch);
        break;
    }
    if (o.step_rows == 0) return o;
    // The fewest bands among those that finish in the fewest row-times.
    const int64_t slots = int64_t{multiprocessors(call.device)} * 2;
    int64_t least = INT64_MAX;
    for (int64_t bands = 1; bands <= ceil_div(pool.OH, o.step_rows); ++bands) {
        const int64_t height = round_up(ceil_div(pool.OH, bands), o.step_rows), count = ceil_div(pool.OH, height);
        const int64_t time =
            ceil_div(p.N * count * o.slices, slots) * (height * pool.SH + larger(0, pool.KH - pool.SH));
        if (time < least) {
            least = time;
            o.band_rows = static_cast<int>(height), o.bands = static_cast<int>(count);
        }
    }
    if (p.N * o.bands * o.slices > INT32_MAX) o.step_rows = 0;
    return o;
}

// Bytes of the table and the packed filters; behind them lies what `padded_bytes` says, the rows of x that are padded
// to whole chunks.
int64_t filter_bytes(const Conv& p) {
    return round_up(kTableBytes + ceil_div(p.K, kSlice) * kMostSteps * kTilesN * 2 * 32 * 4, 256);
}
int64_t padded_bytes(const Conv& p) { return p.W * p.C % 8 == 0 ? 0 : p.N * p.H * round_up(p.W * p.C, 8) * 2; }

template <class M>
void layer_in(const Call& call, const Conv& p, const Pool& pool, const void* x, const void* w, const void* bias,
              void* y, uint8_t* switches, void* workspace) {
    using T = typename M::T;
    Layer<T> o = layer_of<T>(call, p, pool);
    check_start("conv2d_relu_max_pool2d", p, x);
    o.x = static_cast<const T*>(x), o.bias = static_cast<const T*>(bias), o.y = static_cast<T*>(y);
    o.switches = switches, o.table = static_cast<const uint2*>(workspace);
    auto* const packed = reinterpret_cast<uint32_t*>(static_cast<char*>(workspace) + kTableBytes);
    o.packed = reinterpret_cast<const uint4*>(packed);
    if (p.W * p.C % 8 != 0) {
        void* const rows = static_cast<char*>(workspace) + filter_bytes(p);
        pad_runs(call, p, x, p.N * p.H, static_cast<int>(p.W * p.C), o.source_pitch, rows);
        o.x = static_cast<const T*>(rows);
    }
    o.store_vectors = p.K % 4 == 0 && aligned(8, y) && aligned(4, switches);
    launch(call, p, {"pack_fragments", static_cast<unsigned>(o.slices), 256}, pack_fragments_kernel<T>, o,
           static_cast<const T*>(w), p.wk, p.wc, p.wi, p.wj, static_cast<uint2*>(workspace), packed);
    const std::size_t shared =
        std::size_t(o.ring_rows) * o.OW * kPixelBytes + std::size_t(o.input_rows) * o.input_pitch * 2;
    const Grid grid{"conv2d_relu_max_pool2d", static_cast<unsigned>(p.N * o.bands * o.slices), kLayerThreads, shared};
    if (o.slots.steps == kMostSteps) {
        launch(call, p, grid, layer_kernel<M, kMostSteps>, o);
    } else {
        launch(call, p, grid, layer_kernel<M, 0>, o);
    }
}

bool fused_layer(const Call& call, const Conv& p, const Pool& pool) {
    return call.dtype != kFloat32 && p.N > 0 && layer_of<BFloat16>(call, p, pool).step_rows > 0;
}

}  // namespace

void conv2d_relu_max_pool2d(const Call& call, const Conv& p, const Pool& pool, const void* x, const void* w,
                            const void* bias, void* y, uint8_t* switches, void* workspace) {
    if (!fused_layer(call, p, pool)) {
        conv2d(call, p, x, w, bias, workspace, true, static_cast<char*>(workspace) + map_bytes(call, p));
        max_pool2d(call, pool, workspace, y, switches);
    } else if (call.dtype == kBFloat16) {
        layer_in<Bf16>(call, p, pool, x, w, bias, y, switches, workspace);
    } else {
        layer_in<F16>(call, p, pool, x, w, bias, y, switches, workspace);
    }
}

int64_t conv2d_relu_max_pool2d_workspace(const Call& call, const Conv& p, const Pool& pool) {
    if (!fused_layer(call, p, pool)) return map_bytes(call, p) + conv2d_workspace(call, p);
    return filter_bytes(p) + padded_bytes(p);
}

}  // namespace zf::cuda
