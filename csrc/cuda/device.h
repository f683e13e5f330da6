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

// How many devices this process can use. Throws where there is no driver, or one older than the runtime wants.
int device_count();

Device device(int index);

// Makes a device current, and the previous one again at the end of the scope: torch owns that choice.
class Current {
   public:
    explicit Current(int index);
    ~Current();
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;

   private:
    int previous_ = 0;
};

// CUDA versions as 1000 * major + 10 * minor: what the driver supports (0 when there is none), and the runtime linked
// in.
int driver_version();
int runtime_version();

// Runs a kernel of this module on the device and compares its result: throws when the module holds no machine code that
// the device can run, or when what came back is wrong.
void self_test(int index);

}  // namespace zf::cuda
