// How host code starts a kernel: every launch goes through launch(), which checks it. Compiled by g++ for the tests,
// the grid runs on the CPU instead (tests/emulator).
#pragma once
#include <cstddef>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>

#include "cuda/kernels.h"
#include "window.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "emulator.h"
#endif

namespace zf::cuda {

// The sizes of a problem in words, for messages.
inline std::string describe(const Conv& s) {
    const auto text = [](int64_t v) { return std::to_string(v); };
    return "x (" + text(s.N) + ", " + text(s.C) + ", " + text(s.H) + ", " + text(s.W) + "), weight (" + text(s.K) +
           ", " + text(s.C) + ", " + text(s.KH) + ", " + text(s.KW) + "), stride (" + text(s.SH) + ", " + text(s.SW) +
           "), padding (" + text(s.PH) + ", " + text(s.PW) + "), map (" + text(s.OH) + ", " + text(s.OW) + ")";
}
inline std::string describe(const Pool& s) {
    const auto text = [](int64_t v) { return std::to_string(v); };
    return "map (" + text(s.N) + ", " + text(s.C) + ", " + text(s.H) + ", " + text(s.W) + "), window (" + text(s.KH) +
           ", " + text(s.KW) + "), stride (" + text(s.SH) + ", " + text(s.SW) + "), padding (" + text(s.PH) + ", " +
           text(s.PW) + "), pooled to (" + text(s.OH) + ", " + text(s.OW) + ")";
}
inline std::string describe(const Norm& s) {
    return std::to_string(s.P) + " pixels of " + std::to_string(s.C) + " maps, size " + std::to_string(s.size);
}

// A map that is copied 16 bytes at a time must begin at a multiple of them.
inline void check_start(const char* name, const Conv& sizes, const void* map) {
    if (reinterpret_cast<std::uintptr_t>(map) % 16 == 0) return;
    throw std::runtime_error(std::string(name) + " takes a map that begins at a multiple of 16 bytes; " +
                             describe(sizes));
}

constexpr int kMostShared = 99 * 1024;  // bytes that a block can have on every GPU since sm_80

// Where and how a kernel runs: a grid of blocks of threads, each block with `shared` bytes of shared memory.
struct Grid {
    const char* name;  // of the kernel, for messages
    dim3 blocks, threads;
    std::size_t shared = 0;
};

template <typename T>
struct Same {
    using Type = T;
};

#ifdef __CUDACC__

inline void check(cudaError_t status, const std::string& what) {
    if (status == cudaSuccess) return;
    (void)cudaGetLastError();  // a refused call must not be reported again by the next one
    throw std::runtime_error(what + ": " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) + ")");
}

// The number of the device's multiprocessors.
inline int multiprocessors(int device) {
    int count = 0;
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
    return count;
}

// Queues kernel(arguments...) on the call's stream; the current device is call.device. `sizes` is for the message.
template <typename Sizes, typename... Parameters>
void launch(const Call& call, const Sizes& sizes, const Grid& grid, void (*kernel)(Parameters...),
            typename Same<Parameters>::Type... arguments) {
    constexpr std::size_t kWithoutAsking = 48 * 1024;
    const auto what = [&] {
        const auto text = [](const dim3& d) {
            return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
        };
        return "CUDA kernel " + std::string(grid.name) + ", " + describe(sizes) + ", grid " + text(grid.blocks) +
               ", block " + text(grid.threads) + ", " + std::to_string(grid.shared) + " bytes of shared memory";
    };
    cudaError_t status = cudaSuccess;
    if (grid.shared > kWithoutAsking) {
        status =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(grid.shared));
        if (status != cudaSuccess) check(status, what());
    }
    void* addresses[] = {static_cast<void*>(&arguments)...};
    status = cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid.blocks, grid.threads, addresses, grid.shared,
                              reinterpret_cast<cudaStream_t>(call.stream));
    if (status != cudaSuccess) check(status, what());
}

#else

inline int multiprocessors(int) { return 3; }

template <typename Sizes, typename... Parameters>
void launch(const Call&, const Sizes& sizes, const Grid& grid, void (*kernel)(Parameters...),
            typename Same<Parameters>::Type... arguments) {
    try {
        emulator::launch(grid.name, kernel, grid.blocks, grid.threads, grid.shared,
                         std::tuple<std::decay_t<Parameters>...>(arguments...));
    } catch (const std::runtime_error& error) {
        throw std::runtime_error(std::string(error.what()) + "; " + describe(sizes));
    }
}

#endif

}  // namespace zf::cuda
