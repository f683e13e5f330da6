// Memory of the CPU kernels: huge pages for large results, and each call's scratch memory.
#pragma once
#include <cstddef>
#include <cstdint>

namespace zf {

// Asks for huge pages under fresh memory of 4 MiB or more. A hint on Linux, nothing elsewhere; no result depends on it.
// Measured: the first touch of 37 MB in pages of 4 KiB takes 31 ms, 8 times as long as unpooling into it.
void prefer_huge_pages(void* memory, std::size_t bytes);

// Scratch memory of one call, aligned to 64 bytes; throws std::bad_alloc. Each thread keeps up to two blocks of 8 to 64
// MiB for its next calls.
class Scratch {
   public:
    explicit Scratch(std::size_t bytes);
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    template <typename T>
    T* as() const {
        return static_cast<T*>(memory_);
    }

   private:
    void* memory_;
    std::size_t bytes_;
};

// A number made of kSamples words of each of `count` arrays, evenly spread, the first and the last among them: one that
// changes with nearly every change of a word. table[i] = {address, bytes} of an array.
constexpr int64_t kSamples = 8;
uint64_t sampled(const int64_t (*table)[2], int64_t count);

}  // namespace zf
