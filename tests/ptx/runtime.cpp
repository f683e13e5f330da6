// A stand-in for what csrc/cuda calls of the CUDA runtime, linked in its place: one device, whose memory is the host's,
// and launches that run translated PTX. It refuses what a device would refuse: grids and blocks beyond the limits or
// beyond a kernel's launch bounds, shared memory that was not asked for or that no GPU since sm_80 is sure to have.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "machine.h"

namespace {

namespace machine = zf::ptx_machine;

constexpr std::size_t kWithoutAsking = 48 * 1024;
constexpr int kMostShared = 99 * 1024;  // sm_86 and sm_89; the others since sm_80 have more
constexpr unsigned kMostBlocksYZ = 65535;
constexpr int kMultiprocessors = 3;

std::map<const void*, const machine::Registered*>& functions() {
    static std::map<const void*, const machine::Registered*> all;
    return all;
}
std::map<const void*, int>& asked() {
    static std::map<const void*, int> all;
    return all;
}
std::string& reason() {
    static std::string text;
    return text;
}
cudaError_t last = cudaSuccess;
int current_device = 0, devices_set = 0;

cudaError_t refused(cudaError_t error, std::string why) {
    reason() = std::move(why);
    return last = error;
}

}  // namespace

extern "C" {

// How often cudaSetDevice was called, and the device it left.
__attribute__((visibility("default"))) int zf_stand_in_devices_set() { return devices_set; }

void** __cudaRegisterFatBinary(void*) {
    static void* handle;
    return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, void*, void*, void*, void*,
                            int*) {
    for (const machine::Registered* k = machine::kernels; k->symbol != nullptr; ++k)
        if (std::string(k->symbol) == name) functions()[function] = k;
}
// Of launches with <<< >>>: device.cu has one.
struct Pushed {
    dim3 blocks, threads;
    std::size_t shared;
    void* stream;
};
static Pushed pushed;
unsigned __cudaPushCallConfiguration(dim3 blocks, dim3 threads, std::size_t shared, void* stream) {
    pushed = {blocks, threads, shared, stream};
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* blocks, dim3* threads, std::size_t* shared, void* stream) {
    *blocks = pushed.blocks, *threads = pushed.threads, *shared = pushed.shared;
    *static_cast<void**>(stream) = pushed.stream;
    return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* function, dim3 blocks, dim3 threads, void** arguments, std::size_t shared,
                             cudaStream_t) {
    const auto found = functions().find(function);
    if (found == functions().end())
        return refused(cudaErrorInvalidDeviceFunction, "no PTX of this kernel was translated");
    const machine::Registered& kernel = *found->second;
    if (blocks.x == 0 || blocks.y == 0 || blocks.z == 0 || blocks.x > 0x7fffffffu || blocks.y > kMostBlocksYZ ||
        blocks.z > kMostBlocksYZ)
        return refused(cudaErrorInvalidConfiguration, "a grid beyond the limits");
    if (threads.x == 0 || threads.y != 1 || threads.z != 1 || threads.x > static_cast<unsigned>(kernel.threads))
        return refused(cudaErrorInvalidConfiguration,
                       "a block beyond the kernel's launch bounds of " + std::to_string(kernel.threads) + " threads");
    if (shared > kWithoutAsking && static_cast<std::size_t>(asked()[function]) < shared)
        return refused(cudaErrorInvalidValue, "more shared memory than cudaFuncSetAttribute asked for");
    std::vector<std::uint64_t> memory(512);
    char* const parameters = reinterpret_cast<char*>(memory.data());
    for (int i = 0; i < kernel.parameters; ++i)
        std::memcpy(parameters + kernel.layout[i].offset, arguments[i], kernel.layout[i].bytes);
    const std::uint32_t grid[3] = {blocks.x, blocks.y, blocks.z};
    if (!machine::run(kernel, parameters, grid, threads.x, shared))
        return refused(cudaErrorIllegalAddress, machine::fault_text());
    return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 blocks, dim3 threads, void** arguments, std::size_t shared,
                               cudaStream_t stream) {
    return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), blocks, threads, arguments, shared, stream);
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
    *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize)
        return refused(cudaErrorInvalidValue, "an attribute that the stand-in does not know");
    if (value > kMostShared)
        return refused(cudaErrorInvalidValue, std::to_string(value) + " bytes of shared memory, of which sm_86 has " +
                                                  std::to_string(kMostShared) + " for a block");
    asked()[function] = value;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    if (attribute != cudaDevAttrMultiProcessorCount)
        return refused(cudaErrorInvalidValue, "an attribute that the stand-in does not know");
    *value = kMultiprocessors;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
    *device = current_device;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    ++devices_set;
    current_device = device;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    *properties = {};
    std::strcpy(properties->name, "translated PTX");
    properties->major = 8, properties->minor = 6;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaMalloc(void** memory, std::size_t size) {
    *memory = std::malloc(size);
    return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
    std::free(memory);
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t size, cudaMemcpyKind) {
    std::memcpy(to, from, size);
    return cudaSuccess;
}
cudaError_t cudaGetLastError() {
    const cudaError_t error = last;
    last = cudaSuccess;
    return error;
}
const char* cudaGetErrorString(cudaError_t) { return reason().c_str(); }
const char* cudaGetErrorName(cudaError_t error) {
    return error == cudaErrorIllegalAddress ? "cudaErrorIllegalAddress" : "cudaErrorInvalidValue";
}

}  // extern "C"
