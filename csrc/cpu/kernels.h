// The table of CPU kernels, one per instruction set.
//
// Every pointer is to a dense channels-last array: x[n][h][w][c] with c contiguous. Weights alone are read and written
// through strides, so that both of torch's memory formats work without a copy. Sizes and strides are in elements.
// `threads` is the number of threads to use; 1 runs on the caller alone. Shapes were checked in Python.
#pragma once
#include <cstdint>

#include "../problem.h"

namespace zf {

// The type to which a convolution's value is rounded before a pooling window compares it. Sums are always in T.
enum Rounding : int { kNone = 0, kBfloat16 = 1, kFloat16 = 2 };

// What can compute a convolution, its transpose or its weight gradient. choose.h decides among them.
enum class Kernel : int {
    kDirect,         // conv_block.h; conv_weight_grad.cpp
    kScatter,        // conv_transpose.cpp, for few channels
    kTiles,          // Winograd's filtering along two axes, winograd.h
    kRows,           // and along one, winograd_rows.h
    kNonzeros,       // transposed: only the values that are not 0, with packed filters, nonzeros.h
    kNonzerosPlain,  // the same with filters as they lie
    kDepthwise,      // a channel each, depthwise.h
};

// Which kernels float32 convolutions may use. kExact: no Winograd. kFastest: whatever costs least by choose.h. The
// others are for tests: Winograd's tiles, Winograd's rows, or transposed kNonzeros wherever these are possible, and
// direct sums elsewhere. Python passes these numbers.
enum class Mode : int { kExact, kFastest, kTiles, kRows, kNonzeros };
// mode() is read by the thread that calls a kernel; for one that asked for it, it is kExact whatever was set.
Mode mode();
void set_mode(Mode);
bool exact_in_this_thread();
void set_exact_in_thread(bool);

struct Choice {
    Kernel forward, transposed, weight_grad;
};

// What becomes of a convolution's sums v: v + bias[k] + add (an array as the result's; both may be null), and then, if
// relu, max(0, .) and min(., cap).
template <typename T>
struct Epilogue {
    const T* bias;
    const T* add;
    bool relu;
    T cap;
};

// How many elements a convolution's packed filters have, and a number that tells layouts of as many apart.
struct PackedSize {
    int64_t elements, layout;
};

// The functions that return int64_t check the switches: -1 when each points into its own window and into the map;
// otherwise the flat index of the first that does not, and the result is then undefined.
template <typename T>
struct KernelsOf {
    // `packed`: null, or what pack_filters made of w, which is then not packed again.
    void (*conv2d)(const Conv&, const T* x, const T* w, const T* packed, const Epilogue<T>&, T* y, int threads);
    // The elements of w packed for this convolution's kernel, choose's, in the present mode; written unless `to` is
    // null.
    int64_t (*pack_filters)(const Conv&, const T* w, T* to, int threads);
    // `packed`: null, or what pack_transposed made of w for such a call.
    void (*conv_transpose2d)(const Conv&, const T* y, const T* w, const T* packed, T* x, bool rectify, int threads);
    // w packed for the kernel of that call, of y with at most `most` values an image that are not 0; no elements where
    // there is nothing to keep: no such kernel, or filters that are not finite.
    PackedSize (*pack_transposed)(const Conv&, const T* w, int64_t most, bool rectify, T* to, int threads);
    void (*conv2d_weight_grad)(const Conv&, const T* x, const T* g, T* gw, T* gb, int threads);
    // switches, here and in conv2d_relu_max_pool2d: null where nobody asks for them.
    void (*max_pool2d)(const Pool&, const T* x, T* y, uint8_t* switches, int threads);
    int64_t (*max_unpool2d)(const Pool&, const T* y, const uint8_t* switches, T* x, int threads);
    int64_t (*max_unpool2d_backward)(const Pool&, const T* g, const uint8_t* switches, T* gy, int threads);
    void (*avg_pool2d)(const Pool&, const T* x, T* y, bool padded, int threads);
    void (*avg_pool2d_backward)(const Pool&, const T* g, T* gx, bool padded, int threads);
    void (*contrast_norm)(const Norm&, const T* x, T* y, int threads);
    void (*contrast_norm_backward)(const Norm&, const T* g, const T* x, T* gx, int threads);
    void (*conv2d_relu_max_pool2d)(const Conv&, const Pool&, const T* x, const T* w, const T* packed, const T* bias,
                                   T* y, uint8_t* switches, Rounding, int threads);
    int64_t (*max_unpool2d_relu_conv_transpose2d)(const Conv&, const Pool&, const T* y, const uint8_t* switches,
                                                  const T* w, const T* packed, T* x, bool rectify, Rounding,
                                                  int threads);
    void (*linear)(const Linear&, const T* x, const T* w, const T* bias, T* y, int threads);
    // What computes a convolution in that mode; for the transposed one, `most` and `rectify` are choose.h's.
    Choice (*choose)(const Conv&, int64_t most, bool rectify, Mode);
};

struct Kernels {
    const char* name;  // "baseline" (SSE2 or NEON), "avx2", "avx512"
    KernelsOf<float> f32;
    KernelsOf<double> f64;
};

// Compiled once for each instruction set, from the same sources: ZF_ISA is the name, the compiler's flags do the rest.
namespace baseline {
const Kernels& kernels();
}
namespace avx2 {
const Kernels& kernels();
}
namespace avx512 {
const Kernels& kernels();
}

// dispatch.cpp: the tables that this processor can run, slowest first, ended by a null pointer; the one with that name,
// null if none; and the one in use.
const Kernels* const* usable_kernels();
const Kernels* find_kernels(const char* name);
const Kernels& active_kernels();
void use_kernels(const Kernels&);

}  // namespace zf
