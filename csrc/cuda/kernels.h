// The CUDA backend's entry points. No header of the CUDA toolkit is needed to include this one.
//
// Every pointer is to device memory of `Call::device`; maps are dense channels-last arrays x[n][h][w][c] with c
// contiguous, of the type `Call::dtype`. Weights and their gradients are read and written through strides (Conv::wk
// ...), so that both of torch's memory formats serve without a copy. Elements are void* because the type is chosen at
// run time. Maps may start at any multiple of their element's size; 16-byte alignment is used where it is found. Only
// what conv2d and conv2d_relu_max_pool2d (x), conv_transpose2d (y), conv2d_weight_grad (x, g) and that of the pooled
// map (x) filter must begin at a multiple of 16 bytes.
//
// A function X with a workspace takes at least X_workspace(...) bytes of device memory, aligned to 256, whose content
// is undefined afterwards; where that is 0 bytes, the pointer may be null. Everything is queued on `Call::stream` and
// nothing waits, so every function can be captured in a CUDA graph. Sizes of 0 (N = 0) launch nothing, except that a
// gradient summed over no image is written as 0. Results are the same bits on every call: no float atomics.
//
// Throws std::runtime_error naming the kernel, its sizes and the CUDA runtime's own words where a launch is refused.
// Shapes were checked in Python; a switch that points outside its window or the map is ignored (kernels that add at it
// add nothing, kernels that read at it read 0), and never leads to an access outside an array.
#pragma once
#include <cstdint>

#include "problem.h"

namespace zf::cuda {

enum DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// Where and in what arithmetic: sums are float32; `tf32` lets float32 convolutions round their operands to TF32.
struct Call {
    int device;
    std::uintptr_t stream;  // cudaStream_t
    DType dtype;
    bool tf32;
};

// y[n][i][j][k] = bias[k] + sum over c,kh,kw of w[k][c][kh][kw] x[n][i*SH + kh - PH][j*SW + kw - PW][c]; relu: then
// max(0, y), NaN kept. bias may be null.
void conv2d(const Call&, const Conv&, const void* x, const void* w, const void* bias, void* y, bool relu,
            void* workspace);
int64_t conv2d_workspace(const Call&, const Conv&);

// The adjoint of conv2d without bias, onto x (N, C, H, W), of y or, if rectify, of max(0, y).
void conv_transpose2d(const Call&, const Conv&, const void* y, const void* w, void* x, bool rectify, void* workspace);
int64_t conv_transpose2d_workspace(const Call&, const Conv&);

// gw (through the strides) and gb[k] (unless null) of conv2d, from x and the gradient g of y.
void conv2d_weight_grad(const Call&, const Conv&, const void* x, const void* g, void* gw, void* gb, void* workspace);
int64_t conv2d_weight_grad_workspace(const Call&, const Conv&);

// y = the first maximum of each window in row-major order (NaN is the maximum), switches = its place kh*KW + kw.
void max_pool2d(const Call&, const Pool&, const void* x, void* y, uint8_t* switches);

// x[n][h][w][c] = the sum, in the order of the windows, of y over those whose switch points at (h, w).
void max_unpool2d(const Call&, const Pool&, const void* y, const uint8_t* switches, void* x);

// gy[n][i][j][c] = g (on the map of H x W) at the pixel that the switch of window (i, j) points at.
void max_unpool2d_backward(const Call&, const Pool&, const void* g, const uint8_t* switches, void* gy);

// y = d * (k + alpha/size * sum of d^2 over the window of maps)^-beta, d = x, or x less its window's mean if centred.
void contrast_norm(const Call&, const Norm&, const void* x, void* y);
void contrast_norm_backward(const Call&, const Norm&, const void* g, const void* x, void* gx);

// max_pool2d, and contrast_norm of what it gives, rounded to the type in between: y, switches and normalized are as of
// the two calls. Norm::P and Norm::C are those of y.
void max_pool2d_contrast_norm(const Call&, const Pool&, const Norm&, const void* x, void* y, uint8_t* switches,
                              void* normalized);

// conv2d with relu, rounded to the type, and max_pool2d of it; Pool's H x W is Conv's OH x OW, its C is Conv's K.
void conv2d_relu_max_pool2d(const Call&, const Conv&, const Pool&, const void* x, const void* w, const void* bias,
                            void* y, uint8_t* switches, void* workspace);
int64_t conv2d_relu_max_pool2d_workspace(const Call&, const Conv&, const Pool&);

// conv2d_weight_grad of max_unpool2d(g): g (N, K, pooled size) is the gradient of the pooled map, masked to where that
// is positive.
void conv2d_relu_max_pool2d_weight_grad(const Call&, const Conv&, const Pool&, const void* x, const void* g,
                                        const uint8_t* switches, void* gw, void* gb, void* workspace);
int64_t conv2d_relu_max_pool2d_weight_grad_workspace(const Call&, const Conv&, const Pool&);

// conv_transpose2d of max_unpool2d(y), rounded to the type in between, rectified if asked.
void max_unpool2d_relu_conv_transpose2d(const Call&, const Conv&, const Pool&, const void* y, const uint8_t* switches,
                                        const void* w, void* x, bool rectify, void* workspace);
int64_t max_unpool2d_relu_conv_transpose2d_workspace(const Call&, const Conv&, const Pool&);

}  // namespace zf::cuda
