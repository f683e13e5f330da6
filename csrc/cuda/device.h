// The CUDA devices of this machine. No header of the CUDA toolkit is needed to include this one.
// Every function throws std::runtime_error with the CUDA runtime's own words when the runtime refuses.
#pragma once
#include <cstddef>
#include <string>

namespace zf::cuda {

struct Device {
    std::string name;
    int major, minor;  // compute capability
    size_t memory;     // bytes
};

// The number of devices this process can use. Throws where there is no driver, or one too old for the runtime.
int device_count();

Device device(int index);

// Makes a device current, and at the end of the scope the previous one, which is torch's choice. Where the device is
// current already, nothing is set: cudaSetDevice makes a context on a device that has none yet.
class Current {
   public:
    explicit Current(int index);
    ~Current();
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;

   private:
    int previous_ = 0;
    bool changed_ = false;
};

// CUDA versions as 1000 * major + 10 * minor: the driver's (0 when there is none), and that of the linked runtime.
int driver_version();
int runtime_version();

// Runs a kernel of this module on the device and compares its result: throws when the module holds no machine code that
// the device can run, or when the result is wrong.
void self_test(int index);

}  // namespace zf::cuda
