// Matrix product tiles in shared memory: their layout, the warps' products, the arithmetic.
//
// A stage holds BM rows of A and BN rows of B, 64 bytes of the sum's axis (32 half-precision or 16 float32 elements) a
// row. Chunk c (16 bytes) of row r lies at r*64 + ((c ^ (r/2 % 4)) * 16): the 8 rows that one phase of ldmatrix, or of
// a warp's 16-byte loads, reads at one c then fall on all 32 banks, and so does what cp.async writes.
//
// Tensor cores: BM = 128, 4 warps as 2 x 2, each 64 x BN/2 of the product by m16n8k16 (k8 for TF32). A step of 32 bytes
// reads 4 + BN/32 ldmatrix.x4 for 4 * BN/16 products. TF32's fragments have the byte layout of half precision's, so one
// code serves all three.
//
// Ieee (float32 exactly as written, FFMA): BM = 128, 8 warps as 4 x 2, each 32 x BN/2, a thread 8 x BN/16: rows
// lane/8 + 4i of A and lane%8 + 8j of B, read as 4 elements of the sum at once.
#pragma once
#include <cstdint>
#include <type_traits>

#include "cuda/kernels.h"
#include "cuda/types.cuh"

namespace zf::cuda {

constexpr int kChunkBytes = 16;
constexpr int kRowBytes = 64;
constexpr int kRowChunks = kRowBytes / kChunkBytes;
constexpr int kTileRows = 128;  // BM

struct Bf16 {
    using T = BFloat16;
    static constexpr bool kTensorCores = true;
};
struct F16 {
    using T = Float16;
    static constexpr bool kTensorCores = true;
};
struct Tf32 {
    using T = float;
    static constexpr bool kTensorCores = true;
};
struct Ieee {
    using T = float;
    static constexpr bool kTensorCores = false;
};

// f(M{}) in the arithmetic that a call asks for.
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

template <class M>
constexpr int kThreads = M::kTensorCores ? 128 : 256;
template <class M>
constexpr int kBlocks = M::kTensorCores ? 2 : 1;  // an SM: up to 255 registers a thread in both cases
template <class M>
constexpr int kChunk = kChunkBytes / static_cast<int>(sizeof(typename M::T));  // elements

// 16 bytes made of element(0), element(1), ...; and element e of such bytes.
template <class T, class F>
__device__ __forceinline__ uint4 chunk_of(F element) {
    uint32_t word[4] = {};
#pragma unroll
    for (int e = 0; e < 16 / static_cast<int>(sizeof(T)); ++e) {
        if constexpr (sizeof(T) == 2) {
            word[e / 2] |= static_cast<uint32_t>(element(e).bits) << e % 2 * 16;
        } else {
            word[e] = __float_as_uint(element(e));
        }
    }
    return {word[0], word[1], word[2], word[3]};
}
template <class T>
__device__ __forceinline__ T element_of(const uint4& chunk, int e) {
    const uint32_t word[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
    if constexpr (sizeof(T) == 2) {
        return {static_cast<uint16_t>(word[e / 2] >> e % 2 * 16)};
    } else {
        return __uint_as_float(word[e]);
    }
}

// max(0, v) of each half of a word, NaN kept.
#ifdef __CUDACC__
template <typename T>
__device__ __forceinline__ uint32_t rectified_pair(uint32_t v) {
    uint32_t r;
    if constexpr (std::is_same_v<T, BFloat16>) {
        asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(v), "r"(0));
    } else {
        asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(r) : "r"(v), "r"(0));
    }
    return r;
}
#else
template <typename T>
uint32_t rectified_pair(uint32_t v) {
    T low{static_cast<uint16_t>(v)}, high{static_cast<uint16_t>(v >> 16)};
    return rounded_pair<T>(rectified(to_float(low)), rectified(to_float(high)));
}
#endif

// max(0, v) of the one or two elements in a register, NaN kept.
template <class M>
__device__ __forceinline__ uint32_t rectified_operand(uint32_t v) {
    if constexpr (sizeof(typename M::T) == 2) {
        return rectified_pair<typename M::T>(v);
    } else {
        return __float_as_uint(rectified(__uint_as_float(v)));
    }
}

__device__ __forceinline__ int tile_offset(int row, int chunk) {
    return row * kRowBytes + ((chunk ^ (row >> 1 & 3)) << 4);
}

// d += a * b, float32 operands rounded to TF32 (to nearest, ties away) first.
template <class M>
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if constexpr (sizeof(typename M::T) == 2) {
        mma_16x8x16<typename M::T>(d, a, b);
    } else {
        ptx::mma_m16n8k8_tf32(d, a, b);
    }
}

// The offset of chunk `chunk` of row `row` (a step of the sum) in a tile whose rows are kColumns elements of A's or B's
// other axis, as conv_weight_grad.cu has them. The 8 rows of half precision that ldmatrix reads at one chunk, and the 4
// rows of float32 that a TF32 fragment reads at two neighbouring chunks, fall on all banks.
constexpr int kColumns = 128;
template <class M>
__device__ __forceinline__ int column_tile_offset(int row, int chunk) {
    constexpr int kBytes = kColumns * sizeof(typename M::T);
    return row * kBytes + ((chunk ^ (sizeof(typename M::T) == 2 ? row & 7 : (row & 3) * 2)) << 4);
}

// One thread's part of the product of BM x BN. `kByColumns`: for the tiles that add_columns reads.
template <class M, int BM, int BN, bool kByColumns = false>
struct Accumulators {
    static constexpr int kTilesM = BM / 32, kTilesN = BN / 16;  // 16 x 8 tiles of a warp
    float value[kTilesM][kTilesN][4];

    // Calls visit(row of A, row of B, the values there and in B's next row, of_column(row of B)); of_column is called
    // once for all rows of A.
    template <class C, class F>
    __device__ __forceinline__ void each_pair(C of_column, F visit) const {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const int row = warp / 2 * (BM / 2) + lane / 4, col = warp % 2 * (BN / 2) + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < kTilesN; ++j) {
            const auto here = of_column(col + j * 8);
#pragma unroll
            for (int i = 0; i < kTilesM; ++i)
#pragma unroll
                for (int e = 0; e < 4; e += 2)
                    visit(row + i * 16 + e / 2 * 8, col + j * 8, value[i][j][e], value[i][j][e + 1], here);
        }
    }

    // Calls visit(row of B, the values there and in the next, of_row(row of A), of_column of both); of_row is called
    // once a row, of_column once a column.
    template <class R, class C, class F>
    __device__ __forceinline__ void each_in_rows(R of_row, C of_column, F visit) const {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const int first = warp / 2 * (BM / 2) + lane / 4, col = warp % 2 * (BN / 2) + lane % 4 * 2;
        float2 columns[kTilesN];
#pragma unroll
        for (int j = 0; j < kTilesN; ++j) columns[j] = {of_column(col + j * 8), of_column(col + j * 8 + 1)};
#pragma unroll
        for (int i = 0; i < kTilesM; ++i)
#pragma unroll
            for (int e = 0; e < 4; e += 2) {
                const auto row = of_row(first + i * 16 + e / 2 * 8);
#pragma unroll
                for (int j = 0; j < kTilesN; ++j) {
                    visit(col + j * 8, value[i][j][e], value[i][j][e + 1], row, columns[j]);
                }
            }
    }

    // Calls visit(row of A, row of B, value).
    template <class F>
    __device__ __forceinline__ void each(F visit) const {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const int row = warp / 2 * (BM / 2) + lane / 4, col = warp % 2 * (BN / 2) + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < kTilesM; ++i)
#pragma unroll
            for (int j = 0; j < kTilesN; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) visit(row + i * 16 + e / 2 * 8, col + j * 8 + e % 2, value[i][j][e]);
    }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < kTilesM; ++i)
#pragma unroll
            for (int j = 0; j < kTilesN; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) value[i][j][e] = 0.0f;
    }

    // How often add and add_columns call `between`, with 0, 1, ...
    static constexpr int kBetween = 2 * kTilesM;

    // Adds the product of one stage: a, b are its tiles in shared memory. `between` is called after every 16 rows of
    // the warp's product, for what is to be issued among the products rather than before them.
    template <bool kRectify, class F>
    __device__ __forceinline__ void add(const char* a, const char* b, F between) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const int a_row = warp / 2 * (BM / 2) + lane % 16, a_chunk = lane / 16;
        const int b_row = warp % 2 * (BN / 2) + lane % 8 + lane / 16 * 8, b_chunk = lane / 8 % 2;
#pragma unroll
        for (int step = 0; step < 2; ++step) {
            uint32_t fa[kTilesM][4], fb[kTilesN / 2][4];
#pragma unroll
            for (int j = 0; j < kTilesN / 2; ++j) {
                ptx::ldmatrix_x4(fb[j], b + tile_offset(b_row + j * 16, step * 2 + b_chunk));
            }
#pragma unroll
            for (int i = 0; i < kTilesM; ++i) {
                ptx::ldmatrix_x4(fa[i], a + tile_offset(a_row + i * 16, step * 2 + a_chunk));
            }
            if constexpr (kRectify) {
#pragma unroll
                for (int i = 0; i < kTilesM; ++i)
#pragma unroll
                    for (int e = 0; e < 4; ++e) fa[i][e] = rectified_operand<M>(fa[i][e]);
            }
            add_fragments(fa, fb, [&](int i) { between(step * kTilesM + i); });
        }
    }

    // The same of tiles that hold the sum's axis row by row: A[step][BM], B[step][BN] (column_tile_offset).
    template <class F>
    __device__ __forceinline__ void add_columns(const char* a, const char* b, F between) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const int m0 = warp / 2 * (BM / 2), n0 = warp % 2 * (BN / 2);
#pragma unroll
        for (int step = 0; step < 2; ++step) {
            uint32_t fa[kTilesM][4], fb[kTilesN / 2][4];
            if constexpr (sizeof(typename M::T) == 2) {
                const int row = step * 16 + lane % 8, matrix = lane / 8;
#pragma unroll
                for (int j = 0; j < kTilesN / 2; ++j) {
                    ptx::ldmatrix_x4_trans(
                        fb[j], b + column_tile_offset<M>(row + matrix % 2 * 8, n0 / 8 + j * 2 + matrix / 2));
                }
#pragma unroll
                for (int i = 0; i < kTilesM; ++i) {
                    ptx::ldmatrix_x4_trans(
                        fa[i], a + column_tile_offset<M>(row + matrix / 2 * 8, m0 / 8 + i * 2 + matrix % 2));
                }
            } else {
                const int row = step * 8 + lane % 4, col = lane / 4;
                const auto at = [&](const char* tile, int k, int m) {
                    return *reinterpret_cast<const uint32_t*>(tile + column_tile_offset<M>(k, m / 4) + m % 4 * 4);
                };
#pragma unroll
                for (int j = 0; j < kTilesN / 2; ++j)
#pragma unroll
                    for (int e = 0; e < 4; ++e) fb[j][e] = at(b, row + e % 2 * 4, n0 + j * 16 + e / 2 * 8 + col);
#pragma unroll
                for (int i = 0; i < kTilesM; ++i)
#pragma unroll
                    for (int e = 0; e < 4; ++e) fa[i][e] = at(a, row + e / 2 * 4, m0 + i * 16 + e % 2 * 8 + col);
            }
            add_fragments(fa, fb, [&](int i) { between(step * kTilesM + i); });
        }
    }

   private:
    template <class F>
    __device__ __forceinline__ void add_fragments(uint32_t (&fa)[kTilesM][4], uint32_t (&fb)[kTilesN / 2][4],
                                                  F after_row) {
        if constexpr (sizeof(typename M::T) == 4) {
#pragma unroll
            for (int i = 0; i < kTilesM; ++i)
#pragma unroll
                for (int e = 0; e < 4; ++e) fa[i][e] = ptx::to_tf32(__uint_as_float(fa[i][e]));
#pragma unroll
            for (int j = 0; j < kTilesN / 2; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) fb[j][e] = ptx::to_tf32(__uint_as_float(fb[j][e]));
        }
#pragma unroll
        for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
            for (int j = 0; j < kTilesN; ++j) {
                const uint32_t pair[2] = {fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]};
                multiply<M>(value[i][j], fa[i], pair);
            }
            after_row(i);
        }
    }
};

template <int BM, int BN, bool kByColumns>
struct Accumulators<Ieee, BM, BN, kByColumns> {
    static constexpr int kRows = BM / 16, kCols = BN / 16;
    float value[kRows][kCols];

    // Of the thread's i-th row and j-th column. By columns, four neighbours at a time lie in one chunk.
    static __device__ __forceinline__ int row_of(int i) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        return warp / 2 * (BM / 4) + (kByColumns ? (lane / 8 + i / 4 * 4) * 4 + i % 4 : lane / 8 + i * 4);
    }
    static __device__ __forceinline__ int col_of(int j) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        return warp % 2 * (BN / 2) + (kByColumns ? (lane % 8 + j / 4 * 8) * 4 + j % 4 : lane % 8 + j * 8);
    }

    template <class F>
    __device__ __forceinline__ void each(F visit) const {
#pragma unroll
        for (int i = 0; i < kRows; ++i)
#pragma unroll
            for (int j = 0; j < kCols; ++j) visit(row_of(i), col_of(j), value[i][j]);
    }

    // Calls visit(row of B, value, of_row(row of A), of_column(row of B)); each of the two once a row.
    template <class R, class C, class F>
    __device__ __forceinline__ void each_in_rows(R of_row, C of_column, F visit) const {
        float columns[kCols];
#pragma unroll
        for (int j = 0; j < kCols; ++j) columns[j] = of_column(col_of(j));
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
            const auto row = of_row(row_of(i));
#pragma unroll
            for (int j = 0; j < kCols; ++j) visit(col_of(j), value[i][j], row, columns[j]);
        }
    }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < kRows; ++i)
#pragma unroll
            for (int j = 0; j < kCols; ++j) value[i][j] = 0.0f;
    }

    static constexpr int kBetween = kRowChunks;

    template <bool kRectify, class F>
    __device__ __forceinline__ void add(const char* a, const char* b, F between) {
#pragma unroll
        for (int chunk = 0; chunk < kRowChunks; ++chunk) {
            float4 fa[kRows];
#pragma unroll
            for (int i = 0; i < kRows; ++i) {
                fa[i] = *reinterpret_cast<const float4*>(a + tile_offset(row_of(i), chunk));
                if constexpr (kRectify) {
                    fa[i] = {rectified(fa[i].x), rectified(fa[i].y), rectified(fa[i].z), rectified(fa[i].w)};
                }
            }
#pragma unroll
            for (int j = 0; j < kCols; ++j) {
                const float4 fb = *reinterpret_cast<const float4*>(b + tile_offset(col_of(j), chunk));
#pragma unroll
                for (int i = 0; i < kRows; ++i) {
                    float& d = value[i][j];
                    d = fmaf(fa[i].w, fb.w, fmaf(fa[i].z, fb.z, fmaf(fa[i].y, fb.y, fmaf(fa[i].x, fb.x, d))));
                }
            }
            between(chunk);
        }
    }

    template <class F>
    __device__ __forceinline__ void add_columns(const char* a, const char* b, F between) {
        static_assert(kByColumns && kRows % 4 == 0 && kCols % 4 == 0);
#pragma unroll
        for (int k = 0; k < kRowBytes / 4; ++k) {
            float fa[kRows], fb[kCols];
#pragma unroll
            for (int i = 0; i < kRows; i += 4) {
                const float4 v = *reinterpret_cast<const float4*>(a + column_tile_offset<Ieee>(k, row_of(i) / 4));
                fa[i] = v.x, fa[i + 1] = v.y, fa[i + 2] = v.z, fa[i + 3] = v.w;
            }
#pragma unroll
            for (int j = 0; j < kCols; j += 4) {
                const float4 v = *reinterpret_cast<const float4*>(b + column_tile_offset<Ieee>(k, col_of(j) / 4));
                fb[j] = v.x, fb[j + 1] = v.y, fb[j + 2] = v.z, fb[j + 3] = v.w;
            }
#pragma unroll
            for (int i = 0; i < kRows; ++i)
#pragma unroll
                for (int j = 0; j < kCols; ++j) value[i][j] = fmaf(fa[i], fb[j], value[i][j]);
            if (k % 4 == 3) between(k / 4);
        }
    }
};

}  // namespace zf::cuda
