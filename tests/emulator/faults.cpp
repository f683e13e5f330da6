// Small kernels, each wrong on purpose in one way, and right ones, which the emulator must tell apart. Run by run.py.
//
//     faults NAME      exits 0 when the kernel's results are right; says what is wrong otherwise
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "cuda/launch.h"
#include "cuda/ptx.cuh"

namespace {

using zf::cuda::Call;
using zf::cuda::Grid;
using namespace zf::cuda;

constexpr int kThreads = 64;

// y[i] = x[kThreads - 1 - i] through shared memory.
__global__ void right(const float* x, float* y) {
    float* const s = ptx::shared_memory<float>();
    ptx::cp_async<4>(s + threadIdx.x, x + threadIdx.x);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
    y[threadIdx.x] = s[kThreads - 1 - threadIdx.x];
}
__global__ void missing_barrier(const float* x, float* y) {
    float* const s = ptx::shared_memory<float>();
    s[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = s[kThreads - 1 - threadIdx.x];
}
// Writes, reads, and writes again.
template <bool kSecondBarrier>
__global__ void rewritten(const float* x, float* y) {
    float* const s = ptx::shared_memory<float>();
    for (int round = 0; round < 2; ++round) {
        s[threadIdx.x] = round ? x[threadIdx.x] : -1.0f;
        __syncthreads();
        if (round == 0 && s[kThreads - 1 - threadIdx.x] != -1.0f) y[0] = -2.0f;
        if (round == 1) y[threadIdx.x] = y[threadIdx.x] == -2.0f ? -2.0f : s[kThreads - 1 - threadIdx.x];
        if (kSecondBarrier) __syncthreads();
    }
}
__global__ void divergent_barrier(const float* x, float* y) {
    if (threadIdx.x < 16) __syncthreads();
    y[threadIdx.x] = x[kThreads - 1 - threadIdx.x];
}
__global__ void different_barriers(const float* x, float* y) {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
    y[threadIdx.x] = x[kThreads - 1 - threadIdx.x];
}
__global__ void read_past_array(const float* x, float* y) { y[threadIdx.x] = x[kThreads - threadIdx.x]; }
__global__ void write_past_array(const float* x, float* y) {
    y[threadIdx.x] = x[kThreads - 1 - threadIdx.x];
    y[threadIdx.x + 1] = x[kThreads - 1 - threadIdx.x];
}
__global__ void past_shared_memory(const float* x, float* y) {
    float* const s = ptx::shared_memory<float>();
    s[threadIdx.x + 1] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[kThreads - threadIdx.x];
}
__global__ void misaligned_vector(const float* x, float* y) {
    const float4 v = *reinterpret_cast<const float4*>(x + 1);
    y[threadIdx.x] = x[kThreads - 1 - threadIdx.x] + 0 * v.x;
}
__global__ void unwritten_shared_memory(const float* x, float* y) {
    float* const s = ptx::shared_memory<float>();
    if (threadIdx.x) s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[kThreads - 1 - threadIdx.x];
}
__global__ void read_before_wait(const float* x, float* y) {
    float* const s = ptx::shared_memory<float>();
    ptx::cp_async<4>(s + threadIdx.x, x + threadIdx.x);
    ptx::cp_async_commit();
    __syncthreads();
    y[threadIdx.x] = s[kThreads - 1 - threadIdx.x];
    ptx::cp_async_wait<0>();
}
// Waits for all groups but the newest, which is the one it needs.
__global__ void wait_for_too_few(const float* x, float* y) {
    float* const s = ptx::shared_memory<float>();
    ptx::cp_async<4>(s + threadIdx.x, x + threadIdx.x);
    ptx::cp_async_commit();
    ptx::cp_async_wait<1>();
    __syncthreads();
    y[threadIdx.x] = s[kThreads - 1 - threadIdx.x];
    ptx::cp_async_wait<0>();
}
__global__ void never_waits(const float* x, float* y) {
    float* const s = ptx::shared_memory<float>();
    ptx::cp_async<4>(s + threadIdx.x, x + threadIdx.x);
    ptx::cp_async_commit();
    y[threadIdx.x] = x[kThreads - 1 - threadIdx.x];
}
__global__ void lanes_missing(const float* x, float* y) {
    float v = x[kThreads - 1 - threadIdx.x];
    if (threadIdx.x < 16) v = __shfl_xor_sync(~0u, __shfl_xor_sync(~0u, v, 1), 1);
    y[threadIdx.x] = v;
}
__global__ void lanes_disagree(const float* x, float* y) {
    y[threadIdx.x] = x[kThreads - 1 - threadIdx.x];
    if (threadIdx.x % 2)
        __syncwarp(0xffffffffu);
    else
        __syncwarp(0x7fffffffu);
}

const struct {
    const char* name;
    void (*kernel)(const float*, float*);
} kKernels[] = {
#define ZF_KERNEL(name) {#name, name}
    ZF_KERNEL(right),
    ZF_KERNEL(missing_barrier),
    {"right_rewriting", rewritten<true>},
    {"missing_second_barrier", rewritten<false>},
    ZF_KERNEL(divergent_barrier),
    ZF_KERNEL(different_barriers),
    ZF_KERNEL(read_past_array),
    ZF_KERNEL(write_past_array),
    ZF_KERNEL(past_shared_memory),
    ZF_KERNEL(misaligned_vector),
    ZF_KERNEL(unwritten_shared_memory),
    ZF_KERNEL(read_before_wait),
    ZF_KERNEL(wait_for_too_few),
    ZF_KERNEL(never_waits),
    ZF_KERNEL(lanes_missing),
    ZF_KERNEL(lanes_disagree),
#undef ZF_KERNEL
};

}  // namespace

int main(int count, char** arguments) {
    for (const auto& [name, kernel] : kKernels) {
        if (count != 2 || std::strcmp(arguments[1], name)) continue;
        std::vector<float> x(kThreads), y(kThreads);
        for (int i = 0; i < kThreads; ++i) x[static_cast<std::size_t>(i)] = static_cast<float>(i);
        try {
            const Grid grid{name, dim3(1), dim3(kThreads), kThreads * sizeof(float)};
            launch(Call{}, zf::Norm{}, grid, kernel, x.data(), y.data());
        } catch (const std::runtime_error& error) {
            std::fprintf(stderr, "%s\n", error.what());
            return 1;
        }
        for (int i = 0; i < kThreads; ++i)
            if (!(y[static_cast<std::size_t>(i)] == static_cast<float>(kThreads - 1 - i))) {
                std::fprintf(stderr, "wrong result\n");
                return 1;
            }
        return 0;
    }
    std::fprintf(stderr, "no such kernel\n");
    return 2;
}
