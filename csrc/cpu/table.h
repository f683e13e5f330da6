// Each source file of kernels ends with ZF_ADD(name, entries), which fills its entries of the table.
#pragma once
#include "kernels.h"

#define ZF_ADD(name, entries)                    \
    template <typename T>                        \
    void add_##name(KernelsOf<T>& table) {       \
        entries;                                 \
    }                                            \
    template void add_##name(KernelsOf<float>&); \
    template void add_##name(KernelsOf<double>&);

namespace zf::ZF_ISA {

template <typename T>
void add_conv(KernelsOf<T>&);
template <typename T>
void add_conv_transpose(KernelsOf<T>&);
template <typename T>
void add_conv_weight_grad(KernelsOf<T>&);
template <typename T>
void add_max_pool(KernelsOf<T>&);
template <typename T>
void add_avg_pool(KernelsOf<T>&);
template <typename T>
void add_contrast_norm(KernelsOf<T>&);
template <typename T>
void add_linear(KernelsOf<T>&);

}  // namespace zf::ZF_ISA
