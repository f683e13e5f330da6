// zf_emulated: the cuda_* functions of zfkernels._C on tensors in host memory, for tests.
#include <dlfcn.h>
#include <pybind11/pybind11.h>

#include "cuda/device.h"
#include "emulator.h"

void bind_cuda(pybind11::module_& m);

namespace {

// The address of a kernel's symbol in this module's file.
std::ptrdiff_t place_of(const void* kernel) {
    Dl_info info;
    if (dladdr(reinterpret_cast<const void*>(&bind_cuda), &info) == 0) throw std::runtime_error("dladdr");
    return static_cast<const char*>(kernel) - static_cast<const char*>(info.dli_fbase);
}

pybind11::list launched() {
    pybind11::list addresses;
    for (const void* kernel : zf::emulator::launched()) addresses.append(place_of(kernel));
    return addresses;
}

// Begins to note launches instead of running them.
void record() { zf::emulator::record() = {true, {}}; }

// The launches noted: (kernel, threads a block, bytes of shared memory).
pybind11::list recorded() {
    pybind11::list found;
    for (const auto& one : zf::emulator::record().launches)
        found.append(pybind11::make_tuple(place_of(one.kernel), one.threads, one.shared));
    return found;
}

}  // namespace

PYBIND11_MODULE(zf_emulated, m) {
    bind_cuda(m);
    m.def("launched", &launched);
    m.def("record", &record);
    m.def("recorded", &recorded);
}

// csrc/cuda/device.h for the one emulated device.
namespace zf::cuda {

int device_count() { return 1; }
Device device(int) { return {"emulator", 8, 0, 0}; }
int driver_version() { return 0; }
int runtime_version() { return 0; }
void self_test(int) {}
Current::Current(int) {}
Current::~Current() {}

}  // namespace zf::cuda
