#include <pybind11/pybind11.h>

#include "cuda/device.h"

namespace py = pybind11;

// Adds the cuda_* functions to zfkernels._C. RuntimeError carries the CUDA runtime's message.
void bind_cuda(py::module_& m) {
    m.def("cuda_device_count", &zf::cuda::device_count);
    m.def("cuda_driver_version", &zf::cuda::driver_version);
    m.def("cuda_runtime_version", &zf::cuda::runtime_version);
    m.def("cuda_self_test", &zf::cuda::self_test, py::arg("index"), py::call_guard<py::gil_scoped_release>());
    m.def(
        "cuda_device",
        [](int index) {
            const zf::cuda::Device d = zf::cuda::device(index);
            return py::dict(py::arg("name") = d.name, py::arg("capability") = py::make_tuple(d.major, d.minor),
                            py::arg("memory") = d.memory);
        },
        py::arg("index"));
}
