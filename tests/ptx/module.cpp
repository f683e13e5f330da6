// zf_emulated, as tests/emulator has it, on csrc/cuda's own host objects: the cuda_* functions of zfkernels._C.
#include <pybind11/pybind11.h>

void bind_cuda(pybind11::module_& m);
extern "C" int zf_stand_in_devices_set();

PYBIND11_MODULE(zf_emulated, m) {
    bind_cuda(m);
    m.def("devices_set", &zf_stand_in_devices_set);
}
