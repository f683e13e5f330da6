// The table of one instruction set.
#include "table.h"

#define ZF_QUOTE(name) #name
#define ZF_NAME(name) ZF_QUOTE(name)

namespace zf::ZF_ISA {
namespace {

template <typename T>
KernelsOf<T> all() {
    KernelsOf<T> kernels{};
    add_conv(kernels);
    add_conv_transpose(kernels);
    add_conv_weight_grad(kernels);
    add_max_pool(kernels);
    add_avg_pool(kernels);
    add_contrast_norm(kernels);
    add_linear(kernels);
    return kernels;
}

}  // namespace

const Kernels& kernels() {
    static const Kernels table{ZF_NAME(ZF_ISA), all<float>(), all<double>()};
    return table;
}

}  // namespace zf::ZF_ISA
