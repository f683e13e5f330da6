#include "cuda/device.h"
#include "cuda/launch.h"

namespace zf::cuda {
namespace {

// One block of 32 threads: each writes the sum over the warp of its lanes' squares, 0 + 1 + 4 + ... + 31^2.
__global__ void sum_of_squares(int* out) {
    int value = static_cast<int>(threadIdx.x * threadIdx.x);
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    out[threadIdx.x] = value;
}

}  // namespace

Current::Current(int index) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    if (index == previous_) return;
    check(cudaSetDevice(index), "cudaSetDevice");
    changed_ = true;
}

Current::~Current() {
    if (changed_) (void)cudaSetDevice(previous_);
}

int device_count() {
    int count = 0;
    check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
    return count;
}

Device device(int index) {
    cudaDeviceProp p;
    check(cudaGetDeviceProperties(&p, index), "cudaGetDeviceProperties");
    return {p.name, p.major, p.minor, p.totalGlobalMem};
}

int driver_version() {
    int version = 0;
    check(cudaDriverGetVersion(&version), "cudaDriverGetVersion");
    return version;
}

int runtime_version() {
    int version = 0;
    check(cudaRuntimeGetVersion(&version), "cudaRuntimeGetVersion");
    return version;
}

void self_test(int index) {
    constexpr int kLanes = 32, kSum = 31 * 32 * 63 / 6;
    Current current(index);
    int* memory = nullptr;
    check(cudaMalloc(&memory, kLanes * sizeof(int)), "cudaMalloc");
    int result[kLanes] = {};
    sum_of_squares<<<1, kLanes>>>(memory);
    cudaError_t launched = cudaGetLastError();
    cudaError_t copied = cudaMemcpy(result, memory, sizeof(result), cudaMemcpyDeviceToHost);
    (void)cudaFree(memory);
    check(launched, "the self-test kernel's launch");
    check(copied, "the self-test kernel");
    for (int value : result) {
        if (value != kSum) {
            throw std::runtime_error("the self-test kernel returned " + std::to_string(value) + ", expected " +
                                     std::to_string(kSum));
        }
    }
}

}  // namespace zf::cuda
