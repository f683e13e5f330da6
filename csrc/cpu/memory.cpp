#include "memory.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "threads.h"

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
    try {
        memory_ = ::operator new(bytes_, std::align_val_t{64});
    } catch (const std::bad_alloc&) {
        throw std::runtime_error("can't allocate memory: a kernel tried to allocate " + std::to_string(bytes_) +
                                 " bytes to work in, beside its result; smaller maps, padding or dilation take less");
    }
    prefer_huge_pages(memory_, bytes_);
}

Scratch::~Scratch() {
    if (kKeep && bytes_ >= kLeastKept && bytes_ <= kMostKept)
        kept().give(memory_, bytes_);
    else
        release(memory_);
}

namespace {

constexpr int64_t kWord = sizeof(uint64_t);

// A product's upper bits tell of the word's lower ones alone, and so they are brought down.
uint64_t mixed(uint64_t seen, uint64_t word) {
    seen = (seen ^ word) * 0x9e3779b97f4a7c15;
    return seen ^ (seen >> 29);
}

uint64_t word_at(const char* memory, int64_t place, int64_t bytes) {
    uint64_t word = 0;
    std::memcpy(&word, memory + place, static_cast<std::size_t>(std::min(bytes, kWord)));
    return word;
}

// Of every word; four numbers in turn, each of which waits for itself alone.
uint64_t of_all(const char* memory, int64_t words, uint64_t seen) {
    uint64_t lane[4] = {seen, seen + 1, seen + 2, seen + 3};
    for (int64_t n = 0; n < words; ++n) lane[n % 4] = mixed(lane[n % 4], word_at(memory, n * kWord, kWord));
    return mixed(mixed(lane[0], lane[1]), mixed(lane[2], lane[3]));
}

}  // namespace

namespace {

uint64_t sample_of(const int64_t (&row)[3], uint64_t seen) {
    const char* const memory = reinterpret_cast<const char*>(row[0]);
    const int64_t bytes = row[1], words = bytes / kWord, parts = row[2];
    seen = mixed(seen, word_at(memory, std::max<int64_t>(bytes - kWord, 0), bytes));
    if (parts >= words) return of_all(memory, words, seen);
    const double part = static_cast<double>(words) / static_cast<double>(parts);
    uint64_t draw = 0x2545f4914f6cdd1d;
    for (int64_t n = 0; n < parts; ++n) {
        draw = draw * 0x5851f42d4c957f2d + 0x14057b7ef767814f;
        const double within = static_cast<double>(draw >> 11) * 0x1p-53;
        const int64_t place = static_cast<int64_t>((static_cast<double>(n) + within) * part);
        seen = mixed(seen, word_at(memory, std::min(place, words - 1) * kWord, kWord));
    }
    return seen;
}

}  // namespace

uint64_t sampled(const int64_t (*table)[3], int64_t count, int threads) {
    std::atomic<uint64_t> sum{0};
    parallel_for(count, threads, [&](int64_t begin, int64_t end, int) {
        uint64_t own = 0;
        for (int64_t i = begin; i < end; ++i)
            own += sample_of(table[i], mixed(0xcbf29ce484222325, static_cast<uint64_t>(i)));
        sum.fetch_add(own, std::memory_order_relaxed);
    });
    return sum.load();
}

}  // namespace zf
