// zf_emulated: the cuda_* functions of zfkernels._C on tensors in host memory, for tests.
#include <pybind11/pybind11.h>

#include "cuda/device.h"

void bind_cuda(pybind11::module_& m);

PYBIND11_MODULE(zf_emulated, m) { bind_cuda(m); }

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
