// The choice of instruction set. Compiled without any instruction set's flags.
#include <cstring>

#include "kernels.h"

namespace zf {
namespace {

struct Usable {
    const Kernels* tables[4] = {};
    Usable() {
        int count = 0;
        tables[count++] = &baseline::kernels();
#if defined(ZF_HAVE_AVX2)
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
            tables[count++] = &avx2::kernels();
#endif
#if defined(ZF_HAVE_AVX512)
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
            tables[count++] = &avx512::kernels();
#endif
    }
};

const Kernels* active = nullptr;
WinogradMode mode = kWhereItPays;

}  // namespace

const Kernels* const* usable_kernels() {
    static const Usable usable;
    return usable.tables;
}

const Kernels& active_kernels() {
    if (!active)
        for (const Kernels* const* k = usable_kernels(); *k; ++k) active = *k;
    return *active;
}

WinogradMode winograd_mode() { return mode; }
void set_winograd_mode(WinogradMode wanted) { mode = wanted; }

bool use_kernels(const char* name) {
    for (const Kernels* const* k = usable_kernels(); *k; ++k)
        if (std::strcmp((*k)->name, name) == 0) {
            active = *k;
            return true;
        }
    return false;
}

}  // namespace zf
