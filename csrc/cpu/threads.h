// Threads for the CPU kernels: torch's own OpenMP pool, so that two pools never spin against each other.
//
// A wheel of torch brings its own OpenMP runtime under a mangled file name, and linking the system's would start a
// second pool. The runtime is found among the symbols that torch has loaded instead (GOMP_parallel, which GNU's, LLVM's
// and Intel's runtimes all export on Linux). Where there is none, a small pool of our own serves.
#pragma once
#include <cstddef>
#include <cstdint>

namespace zf {

// Calls body(context, thread, threads) on each of at most `threads` threads, the caller among them, and waits for all.
// `threads` inside the body is the size of the team that was had. Bodies must not throw.
void run_team(int threads, void (*body)(void* context, int thread, int threads), void* context);

// "torch's OpenMP" or "own".
const char* pool_name();

// Asks for huge pages under fresh memory, where it is large enough for a kernel to be slower at being given its pages
// than at filling them: at 37 MB a first touch of 4 KiB pages took 31 ms, 8 times what unpooling into it takes. Linux
// only, and a hint: nothing depends on it.
void prefer_huge_pages(void* memory, std::size_t bytes);

// Scratch memory of one call, aligned to 64 bytes; throws std::bad_alloc. Large blocks, up to two of 64 MB, are kept
// for the calling thread's next calls.
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

// Splits [0, count) into one contiguous range a thread, and calls body(begin, end, thread) for each.
// Which thread does what never changes a result: no kernel adds across units.
template <typename Body>
void parallel_for(int64_t count, int threads, const Body& body) {
    if (count <= 0) return;
    if (threads > count) threads = static_cast<int>(count);
    if (threads <= 1) {
        body(int64_t{0}, count, 0);
        return;
    }
    struct Context {
        const Body& body;
        int64_t count;
    } context{body, count};
    run_team(
        threads,
        [](void* opaque, int thread, int team) {
            const Context& c = *static_cast<const Context*>(opaque);
            const int64_t begin = c.count * thread / team, end = c.count * (thread + 1) / team;
            if (begin < end) c.body(begin, end, thread);
        },
        &context);
}

}  // namespace zf
