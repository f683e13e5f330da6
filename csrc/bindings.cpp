// zfkernels._C: the compiled kernels, taking addresses, sizes and a thread count. Nothing here knows torch: one build
// serves every version of it. Sizes come as tuples in the order of problem.h's structs; `f64` chooses the element type,
// float or double; an address of 0 is a null pointer.
#include <pybind11/pybind11.h>

#include "arguments.h"
#include "cpu/calls.h"
#include "cpu/chain.h"
#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "cpu/threads.h"

namespace py = pybind11;

#ifdef ZF_WITH_CUDA
void bind_cuda(py::module_& m);
#endif

namespace {

using zf::Address;
using zf::conv;
using zf::ConvSizes;
using zf::Pointer;
using zf::pool;
using zf::PoolSizes;

// Calls kernel(table) with the table of the element type, without the interpreter's lock.
template <typename Kernel>
auto with_table(bool f64, const Kernel& kernel) {
    const py::gil_scoped_release unlocked;
    return f64 ? kernel(zf::active_kernels().f64) : kernel(zf::active_kernels().f32);
}

// zf::Kernel's.
constexpr const char* kKernelNames[] = {"direct",   "scatter",        "tiles",    "rows",
                                        "nonzeros", "nonzeros_plain", "depthwise"};

template <typename T>
void conv2d_of(const zf::KernelsOf<T>& k, const zf::Conv& s, Address x, Address w, Address packed, Address bias,
               Address add, Address y, bool relu, double cap, int threads) {
    const zf::Epilogue<T> end{Pointer{bias}, Pointer{add}, relu, static_cast<T>(cap)};
    k.conv2d(s, Pointer{x}, Pointer{w}, Pointer{packed}, end, Pointer{y}, threads);
}

using Operand = std::pair<int, int64_t>;                                            // zf::Operand's
using StageTuple = std::tuple<ConvSizes, Address, Address, Address, bool, double>;  // zf::Stage's

zf::Operand operand(const Operand& o) { return {o.first, o.second}; }

// The table of the element type that is in use when the calls are run.
template <typename Kernel>
void of_type(bool f64, const Kernel& kernel) {
    f64 ? kernel(zf::active_kernels().f64) : kernel(zf::active_kernels().f32);
}

template <typename T>
std::vector<zf::Stage<T>> stages_of(const std::vector<StageTuple>& all, int64_t x_pitch, int64_t y_pitch) {
    std::vector<zf::Stage<T>> stages;
    for (const auto& [sizes, w, packed, bias, relu, cap] : all)
        stages.push_back({conv(sizes), Pointer{w}, Pointer{packed}, Pointer{bias}, relu, static_cast<T>(cap)});
    stages.front().s.XP = x_pitch, stages.back().s.YP = y_pitch;
    return stages;
}

template <typename T>
void add_chain(zf::Calls& calls, zf::KernelsOf<T> zf::Kernels::* table, std::vector<zf::Stage<T>> stages, zf::Operand x,
               zf::Operand add, zf::Operand y) {
    calls.add([=, stages = std::move(stages)](const zf::Calls::Bases& b, int threads) {
        zf::conv2d_chain<T>(zf::active_kernels().*table, stages, Pointer{at(b, x)}, Pointer{at(b, add)},
                            Pointer{at(b, y)}, threads);
    });
}

void bind_calls(py::module_& m) {
    py::class_<zf::Calls>(m, "Calls")
        .def(py::init<>())
        .def("conv2d",
             [](zf::Calls& calls, bool f64, ConvSizes s, Operand x, Address w, Address packed, Address bias,
                Operand add, Operand y, bool relu, double cap, int64_t x_pitch, int64_t y_pitch) {
                 zf::Conv sizes = conv(s);
                 sizes.XP = x_pitch, sizes.YP = y_pitch;
                 calls.add([=](const zf::Calls::Bases& b, int threads) {
                     const Address from = at(b, operand(x)), plus = at(b, operand(add)), to = at(b, operand(y));
                     of_type(f64, [&](auto& k) {
                         conv2d_of(k, sizes, from, w, packed, bias, plus, to, relu, cap, threads);
                     });
                 });
             })
        .def("conv2d_chain",
             [](zf::Calls& calls, bool f64, const std::vector<StageTuple>& all, Operand x, Operand add, Operand y,
                int64_t x_pitch, int64_t y_pitch) {
                 const zf::Operand from = operand(x), plus = operand(add), to = operand(y);
                 if (f64)
                     add_chain(calls, &zf::Kernels::f64, stages_of<double>(all, x_pitch, y_pitch), from, plus, to);
                 else
                     add_chain(calls, &zf::Kernels::f32, stages_of<float>(all, x_pitch, y_pitch), from, plus, to);
             })
        .def("conv2d_relu_max_pool2d",
             [](zf::Calls& calls, bool f64, ConvSizes s, PoolSizes p, Operand x, Address w, Address packed,
                Address bias, Operand y) {
                 calls.add([=, sizes = conv(s), window = pool(p)](const zf::Calls::Bases& b, int threads) {
                     of_type(f64, [&](auto& k) {
                         k.conv2d_relu_max_pool2d(sizes, window, Pointer{at(b, operand(x))}, Pointer{w},
                                                  Pointer{packed}, Pointer{bias}, Pointer{at(b, operand(y))}, nullptr,
                                                  zf::kNone, threads);
                     });
                 });
             })
        .def("max_pool2d",
             [](zf::Calls& calls, bool f64, PoolSizes p, Operand x, Operand y) {
                 calls.add([=, window = pool(p)](const zf::Calls::Bases& b, int threads) {
                     of_type(f64, [&](auto& k) {
                         k.max_pool2d(window, Pointer{at(b, operand(x))}, Pointer{at(b, operand(y))}, nullptr, threads);
                     });
                 });
             })
        .def("avg_pool2d",
             [](zf::Calls& calls, bool f64, PoolSizes p, Operand x, Operand y, bool padded) {
                 calls.add([=, window = pool(p)](const zf::Calls::Bases& b, int threads) {
                     of_type(f64, [&](auto& k) {
                         k.avg_pool2d(window, Pointer{at(b, operand(x))}, Pointer{at(b, operand(y))}, padded, threads);
                     });
                 });
             })
        .def("run", [](const zf::Calls& calls, const zf::Calls::Bases& bases, int threads) {
            const py::gil_scoped_release unlocked;
            calls.run(bases, threads);
        });
}

const zf::Kernels& kernels_named(const char* name) {
    if (const zf::Kernels* k = zf::find_kernels(name)) return *k;
    std::string names;
    for (const zf::Kernels* const* k = zf::usable_kernels(); *k; ++k) names += std::string(" ") + (*k)->name;
    throw py::value_error("instruction set '" + std::string(name) + "' cannot run here; those that can:" + names);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    // `add` and `packed` may be null; without a cap it is infinity. Elements from one pixel of x, and of y and add, to
    // the next: as many as channels, or more.
    m.def("conv2d", [](bool f64, ConvSizes s, Address x, Address w, Address packed, Address bias, Address add,
                       Address y, bool relu, double cap, int threads, int64_t x_pitch, int64_t y_pitch) {
        zf::Conv sizes = conv(s);
        sizes.XP = x_pitch, sizes.YP = y_pitch;
        with_table(f64, [&](auto& k) { conv2d_of(k, sizes, x, w, packed, bias, add, y, relu, cap, threads); });
    });
    // Filters packed for the kernel that computes this convolution: how many elements, and at `to` unless it is 0.
    m.def("pack_filters", [](bool f64, ConvSizes s, Address w, Address to, int threads) {
        return with_table(f64, [&](auto& k) { return k.pack_filters(conv(s), Pointer{w}, Pointer{to}, threads); });
    });
    m.def("conv_transpose2d",
          [](bool f64, ConvSizes s, Address y, Address w, Address packed, Address x, bool rectify, int threads) {
              with_table(f64, [&](auto& k) {
                  k.conv_transpose2d(conv(s), Pointer{y}, Pointer{w}, Pointer{packed}, Pointer{x}, rectify, threads);
              });
          });
    // The same for a transposed one: how many elements, and a number that tells layouts of as many apart.
    m.def("pack_transposed", [](bool f64, ConvSizes s, Address w, int64_t most, bool rectify, Address to, int threads) {
        const zf::PackedSize size = with_table(
            f64, [&](auto& k) { return k.pack_transposed(conv(s), Pointer{w}, most, rectify, Pointer{to}, threads); });
        return py::make_tuple(size.elements, size.layout);
    });
    m.def("conv2d_weight_grad", [](bool f64, ConvSizes s, Address x, Address g, Address gw, Address gb, int threads) {
        with_table(f64, [&](auto& k) {
            k.conv2d_weight_grad(conv(s), Pointer{x}, Pointer{g}, Pointer{gw}, Pointer{gb}, threads);
        });
    });
    m.def("max_pool2d", [](bool f64, PoolSizes s, Address x, Address y, Address switches, int threads) {
        with_table(f64, [&](auto& k) { k.max_pool2d(pool(s), Pointer{x}, Pointer{y}, Pointer{switches}, threads); });
    });
    m.def("max_unpool2d", [](bool f64, PoolSizes s, Address y, Address switches, Address x, int threads) {
        return with_table(
            f64, [&](auto& k) { return k.max_unpool2d(pool(s), Pointer{y}, Pointer{switches}, Pointer{x}, threads); });
    });
    m.def("max_unpool2d_backward", [](bool f64, PoolSizes s, Address g, Address switches, Address gy, int threads) {
        return with_table(f64, [&](auto& k) {
            return k.max_unpool2d_backward(pool(s), Pointer{g}, Pointer{switches}, Pointer{gy}, threads);
        });
    });
    // padded: whether pixels of padding count, as zeros.
    m.def("avg_pool2d", [](bool f64, PoolSizes s, Address x, Address y, bool padded, int threads) {
        with_table(f64, [&](auto& k) { k.avg_pool2d(pool(s), Pointer{x}, Pointer{y}, padded, threads); });
    });
    m.def("avg_pool2d_backward", [](bool f64, PoolSizes s, Address g, Address gx, bool padded, int threads) {
        with_table(f64, [&](auto& k) { k.avg_pool2d_backward(pool(s), Pointer{g}, Pointer{gx}, padded, threads); });
    });
    m.def("contrast_norm", [](bool f64, int64_t pixels, int64_t channels, int64_t size, double alpha, double beta,
                              double k, bool center, Address x, Address y, int threads) {
        const zf::Norm s{pixels, channels, size, alpha, beta, k, center};
        with_table(f64, [&](auto& table) { table.contrast_norm(s, Pointer{x}, Pointer{y}, threads); });
    });
    m.def("contrast_norm_backward", [](bool f64, int64_t pixels, int64_t channels, int64_t size, double alpha,
                                       double beta, double k, bool center, Address g, Address x, Address gx,
                                       int threads) {
        const zf::Norm s{pixels, channels, size, alpha, beta, k, center};
        with_table(f64,
                   [&](auto& table) { table.contrast_norm_backward(s, Pointer{g}, Pointer{x}, Pointer{gx}, threads); });
    });
    m.def("conv2d_relu_max_pool2d", [](bool f64, ConvSizes s, PoolSizes p, Address x, Address w, Address packed,
                                       Address bias, Address y, Address switches, int rounding, int threads) {
        with_table(f64, [&](auto& k) {
            k.conv2d_relu_max_pool2d(conv(s), pool(p), Pointer{x}, Pointer{w}, Pointer{packed}, Pointer{bias},
                                     Pointer{y}, Pointer{switches}, static_cast<zf::Rounding>(rounding), threads);
        });
    });
    m.def("max_unpool2d_relu_conv_transpose2d",
          [](bool f64, ConvSizes s, PoolSizes p, Address y, Address switches, Address w, Address packed, Address x,
             bool rectify, int rounding, int threads) {
              return with_table(f64, [&](auto& k) {
                  return k.max_unpool2d_relu_conv_transpose2d(conv(s), pool(p), Pointer{y}, Pointer{switches},
                                                              Pointer{w}, Pointer{packed}, Pointer{x}, rectify,
                                                              static_cast<zf::Rounding>(rounding), threads);
              });
          });
    bind_calls(m);
    m.def("linear", [](bool f64, int64_t images, int64_t inputs, int64_t outputs, Address x, Address w, Address bias,
                       Address y, int threads) {
        with_table(f64, [&](auto& k) {
            k.linear({images, inputs, outputs}, Pointer{x}, Pointer{w}, Pointer{bias}, Pointer{y}, threads);
        });
    });

    m.def("isa", [] { return zf::active_kernels().name; });
    m.def("isas", [] {
        py::list names;
        for (const zf::Kernels* const* k = zf::usable_kernels(); *k; ++k) names.append((*k)->name);
        return names;
    });
    m.def("set_isa", [](const char* name) { zf::use_kernels(kernels_named(name)); });
    // zf::Mode's numbers; the names are from the time when there were only Winograd's kernels to choose.
    m.def("winograd", [] { return static_cast<int>(zf::mode()); });
    m.def("set_winograd", [](int mode) { zf::set_mode(static_cast<zf::Mode>(mode)); });
    m.def("exact_in_thread", &zf::exact_in_this_thread);
    m.def("set_exact_in_thread", &zf::set_exact_in_thread);
    // The kernels that compute a convolution, its transpose and its weight gradient with that instruction set.
    m.def("conv2d_kernels", [](const char* isa, int mode, bool f64, ConvSizes s, int64_t most, bool rectify) {
        const zf::Kernels& k = kernels_named(isa);
        const auto choose = f64 ? k.f64.choose : k.f32.choose;
        const zf::Choice choice = choose(conv(s), most, rectify, static_cast<zf::Mode>(mode));
        const auto name = [](zf::Kernel kernel) { return kKernelNames[static_cast<int>(kernel)]; };
        return py::make_tuple(name(choice.forward), name(choice.transposed), name(choice.weight_grad));
    });
    m.def("pool", &zf::pool_name);
    m.def("sampled", [](Address table, int64_t count, int threads) {
        return zf::sampled(reinterpret_cast<const int64_t (*)[3]>(table), count, threads);
    });
    m.def("prefer_huge_pages",
          [](Address memory, std::size_t bytes) { zf::prefer_huge_pages(reinterpret_cast<void*>(memory), bytes); });

#ifdef ZF_WITH_CUDA
    m.attr("built_with_cuda") = true;
    bind_cuda(m);
#else
    m.attr("built_with_cuda") = false;
#endif
}
