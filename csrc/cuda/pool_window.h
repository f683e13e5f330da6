// A pooling problem as kernels take it: sizes in 32 bits, since the GPU divides 64 bits in a subroutine of some 70
// instructions and a stack frame. Offsets of elements stay 64 bits wide.
#pragma once
#include <stdexcept>

#include "cuda/launch.h"

namespace zf::cuda {

struct PoolWindow {
    int N, C, H, W, OH, OW;
    int KH, KW, SH, SW, PH, PW;

    explicit PoolWindow(const Pool& s) {
        constexpr int64_t kLargest = 1 << 30;  // leaves room for a padding and a stride
        const auto size = [&](int64_t value) {
            if (value > kLargest)
                throw std::runtime_error("the CUDA pooling kernels take sizes up to 2^30, got " + describe(s));
            return static_cast<int>(value);
        };
        N = size(s.N), C = size(s.C), H = size(s.H), W = size(s.W), OH = size(s.OH), OW = size(s.OW);
        KH = size(s.KH), KW = size(s.KW), PH = size(s.PH), PW = size(s.PW);
        // A longer stride than the map has no second window to lead to.
        SH = size(smaller(s.SH, kLargest)), SW = size(smaller(s.SW, kLargest));
        (void)size(s.N * larger(s.H, s.OH));  // rows are numbered through all images
    }
};

// A grid over `rows` rows of `places` places each, `threads` of a row to a block, so that a block never divides by
// anything but its row's number of blocks.
struct Rows {
    Grid grid;
    int blocks_a_row;

    Rows(const char* name, const Pool& s, int rows, int64_t places, int threads, std::size_t shared = 0)
        : grid{name, dim3(), dim3(static_cast<unsigned>(threads)), shared} {
        const int64_t blocks = ceil_div(places, threads);
        if (places > INT32_MAX - threads || blocks * rows > INT32_MAX)
            throw std::runtime_error("the CUDA pooling kernels' grid is too small for " + describe(s));
        blocks_a_row = static_cast<int>(blocks);
        grid.blocks = dim3(static_cast<unsigned>(blocks * rows));
    }
};

}  // namespace zf::cuda
