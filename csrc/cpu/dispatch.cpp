// The choice of instruction set, and of a mode. Compiled without any instruction set's flags.
#include <cstring>

#include "kernels.h"

namespace zf {
namespace {

struct Usable {
    const Kernels* tables[4] = {&baseline::kernels()};
    Usable() {
        [[maybe_unused]] int count = 1;
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
Mode active_mode = Mode::kFastest;
thread_local bool exact_in_thread = false;

}  // namespace

const Kernels* const* usable_kernels() {
    static const Usable usable;
    return usable.tables;
}

const Kernels* find_kernels(const char* name) {
    const Kernels* const* k = usable_kernels();
    while (*k && std::strcmp((*k)->name, name) != 0) ++k;
    return *k;
}

const Kernels& active_kernels() {
    if (!active)
        for (const Kernels* const* k = usable_kernels(); *k; ++k) active = *k;
    return *active;
}

void use_kernels(const Kernels& kernels) { active = &kernels; }
Mode mode() { return exact_in_thread ? Mode::kExact : active_mode; }
void set_mode(Mode mode) { active_mode = mode; }
bool exact_in_this_thread() { return exact_in_thread; }
void set_exact_in_thread(bool exact) { exact_in_thread = exact; }

}  // namespace zf
