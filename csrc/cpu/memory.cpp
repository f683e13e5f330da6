#include "memory.h"

#include <cstdint>
#include <cstring>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace zf {
namespace {

constexpr std::size_t kLeastKept = 8 << 20, kMostKept = 64 << 20;
// A sanitizer has to see every use of freed memory.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kKeep = false;
#else
constexpr bool kKeep = true;
#endif

void release(void* memory) { ::operator delete(memory, std::align_val_t{64}); }

// The largest blocks that a thread's last calls gave back. malloc returns blocks above 32 MB to the system at once, and
// getting their pages again takes longer than most kernels: 15 ms for 40 MB.
class Kept {
   public:
    ~Kept() { release(slots_[0].memory), release(slots_[1].memory); }

    // The smallest kept block of at least `bytes` bytes, which becomes its size; null when there is none.
    void* take(std::size_t& bytes) {
        Slot* best = nullptr;
        for (Slot& slot : slots_)
            if (slot.bytes >= bytes && (!best || slot.bytes < best->bytes)) best = &slot;
        if (!best) return nullptr;
        bytes = best->bytes;
        return std::exchange(*best, {}).memory;
    }

    void give(void* memory, std::size_t bytes) {
        Slot& least = slots_[slots_[1].bytes < slots_[0].bytes];
        if (bytes <= least.bytes) return release(memory);
        release(least.memory);
        least = {memory, bytes};
    }

   private:
    struct Slot {
        void* memory = nullptr;
        std::size_t bytes = 0;
    } slots_[2];
};

Kept& kept() {
    static thread_local Kept blocks;
    return blocks;
}

}  // namespace

void prefer_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__)
    constexpr std::uintptr_t kPage = 2 << 20;
    if (bytes < 2 * kPage) return;
    const std::uintptr_t begin = (reinterpret_cast<std::uintptr_t>(memory) + kPage - 1) / kPage * kPage;
    const std::uintptr_t end = (reinterpret_cast<std::uintptr_t>(memory) + bytes) / kPage * kPage;
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

Scratch::Scratch(std::size_t bytes) : memory_(nullptr), bytes_(bytes ? bytes : 1) {
    if (kKeep && bytes_ >= kLeastKept) memory_ = kept().take(bytes_);
    if (memory_) return;
    memory_ = ::operator new(bytes_, std::align_val_t{64});
    prefer_huge_pages(memory_, bytes_);
}

Scratch::~Scratch() {
    if (kKeep && bytes_ >= kLeastKept && bytes_ <= kMostKept)
        kept().give(memory_, bytes_);
    else
        release(memory_);
}

uint64_t sampled(const int64_t (*table)[2], int64_t count) {
    constexpr int64_t kWord = sizeof(uint64_t);
    uint64_t result = 0xcbf29ce484222325;
    for (int64_t i = 0; i < count; ++i) {
        const char* const memory = reinterpret_cast<const char*>(table[i][0]);
        const int64_t bytes = table[i][1];
        for (int64_t n = 0; n < kSamples; ++n) {
            const int64_t last = bytes < kWord ? 0 : bytes - kWord;
            const int64_t at = n + 1 == kSamples ? last : last * n / (kSamples - 1) / kWord * kWord;
            uint64_t word = 0;
            std::memcpy(&word, memory + at, static_cast<std::size_t>(bytes < kWord ? bytes : kWord));
            result = (result ^ word) * 0x9e3779b97f4a7c15;
            result ^= result >> 29;  // a product's upper bits tell of the word's lower ones alone
        }
    }
    return result;
}

}  // namespace zf
