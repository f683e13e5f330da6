// Each source file of kernels fills its own entries of the table.
#pragma once
#include "kernels.h"

namespace zf {
namespace ZF_ISA {

template <typename T>
void add_conv(KernelsOf<T>&);
template <typename T>
void add_conv_transpose(KernelsOf<T>&);
template <typename T>
void add_conv_weight_grad(KernelsOf<T>&);
template <typename T>
void add_max_pool(KernelsOf<T>&);
template <typename T>
void add_contrast_norm(KernelsOf<T>&);
template <typename T>
void add_linear(KernelsOf<T>&);

}  // namespace ZF_ISA
}  // namespace zf
