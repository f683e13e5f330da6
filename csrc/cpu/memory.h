// Memory of the CPU kernels: huge pages for large results, and each call's scratch memory.
#pragma once
#include <cstddef>
#include <cstdint>

namespace zf {

// Asks for huge pages under fresh memory of 4 MiB or more. A hint on Linux, nothing elsewhere; no result depends on it.
// Measured: the first touch of 37 MB in pages of 4 KiB takes 31 ms, 8 times as long as unpooling into it.
void prefer_huge_pages(void* memory, std::size_t bytes);

// Scratch memory of one call, aligned to 64 bytes; throws std::runtime_error where there is none. Each thread keeps up
// to two blocks of 8 to 64 MiB for its next calls.
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

// A number made of words of 8 bytes of `count` arrays: one that changes with nearly every change of such a word.
// table[i] = {address, bytes, parts} of an array, which is cut into equal parts; of each one word is looked at, at a
// place that differs from part to part, and all of them where there are as many parts as words.
uint64_t sampled(const int64_t (*table)[3], int64_t count, int threads);

}  // namespace zf
