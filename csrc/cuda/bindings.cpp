#include "arguments.h"
#include "cuda/device.h"
#include "cuda/kernels.h"

namespace py = pybind11;

namespace {

using zf::Address;
using zf::conv;
using zf::ConvSizes;
using zf::Norm;
using zf::Pointer;
using zf::pool;
using zf::PoolSizes;
using zf::cuda::Call;

// kernels.h, struct Call: device, stream, dtype, tf32.
using CallTuple = std::tuple<int, Address, int, bool>;
// problem.h, struct Norm.
using NormSizes = std::tuple<int64_t, int64_t, int64_t, double, double, double, bool>;

Call as_call(const CallTuple& t) {
    return {std::get<0>(t), std::get<1>(t), static_cast<zf::cuda::DType>(std::get<2>(t)), std::get<3>(t)};
}

Norm norm(const NormSizes& t) {
    return std::apply([](auto... values) { return Norm{values...}; }, t);
}

// Runs what queues kernels, on the call's device and without the interpreter's lock.
template <typename Queue>
void on(const CallTuple& t, const Queue& queue) {
    const py::gil_scoped_release unlocked;
    const zf::cuda::Current current(std::get<0>(t));
    queue(as_call(t));
}

void bind_kernels(py::module_& m) {
    namespace k = zf::cuda;
    m.def("cuda_conv2d",
          [](CallTuple call, ConvSizes s, Address x, Address w, Address bias, Address y, bool relu, Address workspace) {
              on(call, [&](const Call& c) {
                  k::conv2d(c, conv(s), Pointer{x}, Pointer{w}, Pointer{bias}, Pointer{y}, relu, Pointer{workspace});
              });
          });
    m.def("cuda_conv2d_workspace",
          [](CallTuple call, ConvSizes s) { return k::conv2d_workspace(as_call(call), conv(s)); });
    m.def("cuda_conv_transpose2d",
          [](CallTuple call, ConvSizes s, Address y, Address w, Address x, bool rectify, Address workspace) {
              on(call, [&](const Call& c) {
                  k::conv_transpose2d(c, conv(s), Pointer{y}, Pointer{w}, Pointer{x}, rectify, Pointer{workspace});
              });
          });
    m.def("cuda_conv_transpose2d_workspace",
          [](CallTuple call, ConvSizes s) { return k::conv_transpose2d_workspace(as_call(call), conv(s)); });
    m.def("cuda_conv2d_weight_grad", [](CallTuple call, ConvSizes s, Address x, Address g, Address gw, Address gb,
                                        Address workspace) {
        on(call, [&](const Call& c) {
            k::conv2d_weight_grad(c, conv(s), Pointer{x}, Pointer{g}, Pointer{gw}, Pointer{gb}, Pointer{workspace});
        });
    });
    m.def("cuda_conv2d_weight_grad_workspace",
          [](CallTuple call, ConvSizes s) { return k::conv2d_weight_grad_workspace(as_call(call), conv(s)); });
    m.def("cuda_max_pool2d", [](CallTuple call, PoolSizes s, Address x, Address y, Address switches) {
        on(call, [&](const Call& c) { k::max_pool2d(c, pool(s), Pointer{x}, Pointer{y}, Pointer{switches}); });
    });
    m.def("cuda_max_unpool2d", [](CallTuple call, PoolSizes s, Address y, Address switches, Address x) {
        on(call, [&](const Call& c) { k::max_unpool2d(c, pool(s), Pointer{y}, Pointer{switches}, Pointer{x}); });
    });
    m.def("cuda_max_unpool2d_backward", [](CallTuple call, PoolSizes s, Address g, Address switches, Address gy) {
        on(call,
           [&](const Call& c) { k::max_unpool2d_backward(c, pool(s), Pointer{g}, Pointer{switches}, Pointer{gy}); });
    });
    m.def("cuda_contrast_norm", [](CallTuple call, NormSizes s, Address x, Address y) {
        on(call, [&](const Call& c) { k::contrast_norm(c, norm(s), Pointer{x}, Pointer{y}); });
    });
    m.def("cuda_contrast_norm_backward", [](CallTuple call, NormSizes s, Address g, Address x, Address gx) {
        on(call, [&](const Call& c) { k::contrast_norm_backward(c, norm(s), Pointer{g}, Pointer{x}, Pointer{gx}); });
    });
    m.def("cuda_max_pool2d_contrast_norm",
          [](CallTuple call, PoolSizes p, NormSizes s, Address x, Address y, Address switches, Address normalized) {
              on(call, [&](const Call& c) {
                  k::max_pool2d_contrast_norm(c, pool(p), norm(s), Pointer{x}, Pointer{y}, Pointer{switches},
                                              Pointer{normalized});
              });
          });
    m.def("cuda_conv2d_relu_max_pool2d", [](CallTuple call, ConvSizes s, PoolSizes p, Address x, Address w,
                                            Address bias, Address y, Address switches, Address workspace) {
        on(call, [&](const Call& c) {
            k::conv2d_relu_max_pool2d(c, conv(s), pool(p), Pointer{x}, Pointer{w}, Pointer{bias}, Pointer{y},
                                      Pointer{switches}, Pointer{workspace});
        });
    });
    m.def("cuda_conv2d_relu_max_pool2d_workspace", [](CallTuple call, ConvSizes s, PoolSizes p) {
        return k::conv2d_relu_max_pool2d_workspace(as_call(call), conv(s), pool(p));
    });
    m.def("cuda_conv2d_relu_max_pool2d_weight_grad", [](CallTuple call, ConvSizes s, PoolSizes p, Address x, Address g,
                                                        Address switches, Address gw, Address gb, Address workspace) {
        on(call, [&](const Call& c) {
            k::conv2d_relu_max_pool2d_weight_grad(c, conv(s), pool(p), Pointer{x}, Pointer{g}, Pointer{switches},
                                                  Pointer{gw}, Pointer{gb}, Pointer{workspace});
        });
    });
    m.def("cuda_conv2d_relu_max_pool2d_weight_grad_workspace", [](CallTuple call, ConvSizes s, PoolSizes p) {
        return k::conv2d_relu_max_pool2d_weight_grad_workspace(as_call(call), conv(s), pool(p));
    });
    m.def("cuda_max_unpool2d_relu_conv_transpose2d",
          [](CallTuple call, ConvSizes s, PoolSizes p, Address y, Address switches, Address w, Address x, bool rectify,
             Address workspace) {
              on(call, [&](const Call& c) {
                  k::max_unpool2d_relu_conv_transpose2d(c, conv(s), pool(p), Pointer{y}, Pointer{switches}, Pointer{w},
                                                        Pointer{x}, rectify, Pointer{workspace});
              });
          });
    m.def("cuda_max_unpool2d_relu_conv_transpose2d_workspace", [](CallTuple call, ConvSizes s, PoolSizes p) {
        return k::max_unpool2d_relu_conv_transpose2d_workspace(as_call(call), conv(s), pool(p));
    });
}

}  // namespace

// Adds the cuda_* functions to a module. RuntimeError carries the CUDA runtime's message.
void bind_cuda(py::module_& m) {
    bind_kernels(m);
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
