// How the bindings receive what Python gives: addresses as integers, sizes as tuples in the order of problem.h.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "problem.h"

namespace zf {

using Address = std::uintptr_t;
using ConvSizes = std::array<int64_t, 20>;
using PoolSizes = std::array<int64_t, 12>;

inline Conv conv(const ConvSizes& s) {
    return {s[0],  s[1],  s[2],  s[3],  s[4],  s[5],  s[6],  s[7],  s[8],  s[9], s[10],
            s[11], s[12], s[13], s[14], s[15], s[16], s[17], s[18], s[19], s[1], s[4]};
}

inline Pool pool(const PoolSizes& s) {
    return {s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11]};
}

// An address that becomes whatever pointer a kernel's parameter is.
struct Pointer {
    Address address;
    template <typename T>
    operator T*() const {
        return reinterpret_cast<T*>(address);
    }
};

}  // namespace zf
