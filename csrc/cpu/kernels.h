// The table of CPU kernels, one per instruction set.
//
// Every pointer is to a dense channels-last array: x[n][h][w][c] with c contiguous. Weights are the exception: they are
// read and written through strides (in elements), so that both of torch's memory formats serve without a copy.
// Sizes are in elements, int64_t. `threads` is the number of threads to use; 1 runs on the caller alone.
// A kernel checks nothing but what its contract says: shapes were checked once, in Python.
#pragma once
#include <cstdint>

#include "../problem.h"

namespace zf {

// To which type a convolution's value is rounded before a pooling window compares it (the accumulation is in T).
enum Rounding : int { kNone = 0, kBfloat16 = 1, kFloat16 = 2 };

// The functions that return int64_t check the switches: -1 when each points into its own window and into the map, else
// the flat index of the first that does not, and the result is of no use.
template <typename T>
struct KernelsOf {
    void (*conv2d)(const Conv&, const T* x, const T* w, const T* bias, T* y, bool relu, int threads);
    void (*conv_transpose2d)(const Conv&, const T* y, const T* w, T* x, bool rectify, int threads);
    void (*conv2d_weight_grad)(const Conv&, const T* x, const T* g, T* gw, T* gb, int threads);
    void (*max_pool2d)(const Pool&, const T* x, T* y, uint8_t* switches, int threads);
    int64_t (*max_unpool2d)(const Pool&, const T* y, const uint8_t* switches, T* x, int threads);
    int64_t (*max_unpool2d_backward)(const Pool&, const T* g, const uint8_t* switches, T* gy, int threads);
    void (*contrast_norm)(const Norm&, const T* x, T* y, int threads);
    void (*contrast_norm_backward)(const Norm&, const T* g, const T* x, T* gx, int threads);
    void (*conv2d_relu_max_pool2d)(const Conv&, const Pool&, const T* x, const T* w, const T* bias, T* y,
                                   uint8_t* switches, Rounding, int threads);
    int64_t (*max_unpool2d_relu_conv_transpose2d)(const Conv&, const Pool&, const T* y, const uint8_t* switches,
                                                  const T* w, T* x, bool rectify, Rounding, int threads);
    void (*linear)(const Linear&, const T* x, const T* w, const T* bias, T* y, int threads);
};

struct Kernels {
    const char* name;  // "baseline", "avx2", "avx512", "neon"
    KernelsOf<float> f32;
    KernelsOf<double> f64;
};

// Compiled once an instruction set, from the same sources: ZF_ISA is the name, the compiler's flags do the rest.
namespace baseline {
const Kernels& kernels();
}
namespace avx2 {
const Kernels& kernels();
}
namespace avx512 {
const Kernels& kernels();
}

// dispatch.cpp: the tables that this processor can run, slowest first, ended by a null pointer; and the one in use.
const Kernels* const* usable_kernels();
const Kernels& active_kernels();
// False when no usable table has that name.
bool use_kernels(const char* name);

// Whether float32 convolutions go by Winograd's kernels: never, where they are faster, wherever the one of two axes
// (winograd.h) can, wherever the one of one axis (winograd_rows.h) can. And the last, for the tests: never, but
// transposed ones by nonzeros.h wherever it can.
enum WinogradMode : int { kNever, kWhereItPays, kWhereItCan, kRowsWhereItCan, kNonzerosWhereItCan };
WinogradMode winograd_mode();
void set_winograd_mode(WinogradMode);

}  // namespace zf
