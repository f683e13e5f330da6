// Threads for the CPU kernels: torch's own OpenMP pool, so that two pools never spin against each other.
//
// A wheel of torch brings its own OpenMP runtime under a mangled file name, and linking the system's would start a
// second pool. So the runtime is looked up among the symbols that torch has loaded (GOMP_parallel, which GNU's, LLVM's
// and Intel's runtimes all export on Linux). Where there is none, a small pool of our own takes its place.
#pragma once
#include <cstdint>

namespace zf {

// Calls body(context, thread, threads) on each of at most `threads` threads, the caller among them, and waits for all.
// `threads` inside the body is the actual team size. Bodies must not throw.
void run_team(int threads, void (*body)(void* context, int thread, int threads), void* context);
// Calls run(context) on the caller, while the other threads of a team of `threads` wait for its run_team calls without
// sleeping: a fork and a join of some microseconds once, and a few hundred nanoseconds for each call. run may throw.
void in_team(int threads, void (*run)(void* context), void* context);
// "torch's OpenMP" or "own".
const char* pool_name();

// Splits [0, count) into one contiguous range per thread, and calls body(begin, end, thread) for each. Which thread
// does what never changes a result: no kernel adds across units of work.
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
